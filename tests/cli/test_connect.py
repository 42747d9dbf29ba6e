"""What commands share: the service that the options name, the store of learned times, the printing of an answer."""

from pathlib import Path

import pytest

from flux_klein_async import FluxKleinClient
from flux_klein_async.cli.connect import emulated, store_path
from flux_klein_async.emulator import Emulator
from flux_klein_async.errors import ConfigurationError
from flux_klein_async.models import KLEIN_4B_TEXT_TO_IMAGE
from flux_klein_async.polling.adaptive import Snapshot

from .helpers import Command

HOME = {"HOME": "/home/me"}
THERE = HOME | {"RUNCOMFY_MODEL_API_BASE": "https://a.example"}
CACHE = "/home/me/.cache/flux-klein"


async def test_each_emulator_of_a_run_gives_ids_of_its_own() -> None:
    ids = set()
    for _ in range(2):
        async with emulated() as service, FluxKleinClient(service.token, base_url=service.base_url) as client:
            ids.add((await client.submit("a leopard")).request_id)
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("line", "code", "out"),
    [
        ("generate x --width 64 --height 64 --no-download", 0, "http://127.0.0.1:"),
        ("batch prompts.txt --no-download", 0, "http://127.0.0.1:"),
        ("status abc", 65, ""),
        ("result abc", 65, ""),
        ("cancel abc", 65, ""),
        ("models", 0, f"{KLEIN_4B_TEXT_TO_IMAGE}  text-to-image   $0.01   output"),
        (f"models show {KLEIN_4B_TEXT_TO_IMAGE}", 0, "$0.01 per output"),
        ("doctor", 0, "(--emulator)"),
    ],
)
def test_every_command_that_calls_the_service_takes_the_emulator_without_a_token(
    flux_klein: Command, line: str, code: int, out: str
) -> None:
    Path("prompts.txt").write_text("a cat\n")
    ran = flux_klein(*line.split(), "--emulator")
    assert ran.code == code, ran.err
    assert out in ran.out
    assert ("nothing is charged" in ran.err) is (line != "doctor")
    for options in (
        ["--emulator", "--base-url", "https://a.example"],
        ["--base-url", "https://a.example", "--emulator"],
    ):
        refused = flux_klein(*line.split(), *options)
        assert (refused.code, refused.out) == (64, "")
        assert "leave out --base-url" in refused.err


def test_a_token_that_the_service_refuses_is_told_with_where_it_comes_from(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("prompts.txt").write_text("a cat\n")
    lines = ("generate x", "batch prompts.txt", "status abc", "models", "batch prompts.txt --dry-run")
    (tmp_path / "token.json").write_text('{"access_token": "wrong-token"}')
    monkeypatch.setenv("RUNCOMFY_CONFIG_DIR", str(tmp_path))
    for token, source in (("wrong-token", "RUNCOMFY_API_TOKEN"), ("", "the token.json of the vendor's CLI")):
        monkeypatch.setenv("RUNCOMFY_API_TOKEN", token)
        for line in lines:
            ran = flux_klein(*line.split())
            assert (ran.code, f"; the token comes from {source}" in ran.err) == (77, True), ran.err
            assert "wrong-token" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("environ", "base_url", "path"),
    [
        (HOME, None, f"{CACHE}/polling-model-api.runcomfy.net.json"),
        (HOME, "https://API.example.com/v1", f"{CACHE}/polling-api.example.com.json"),
        (HOME, "https://api.example.com:8443", f"{CACHE}/polling-api.example.com-8443.json"),
        (HOME, "https://[2001:db8::1]", f"{CACHE}/polling-2001_db8__1.json"),
        (THERE, None, f"{CACHE}/polling-a.example.json"),
        (THERE, "https://b.example", f"{CACHE}/polling-b.example.json"),
        (HOME | {"XDG_CACHE_HOME": "/cache"}, "https://a.example", "/cache/flux-klein/polling-a.example.json"),
        (HOME | {"XDG_CACHE_HOME": ""}, "https://a.example", f"{CACHE}/polling-a.example.json"),
        (HOME | {"XDG_CACHE_HOME": "cache"}, "https://a.example", f"{CACHE}/polling-a.example.json"),
        ({"USERPROFILE": "/users/me"}, "https://a.example", "/users/me/.cache/flux-klein/polling-a.example.json"),
        ({"HOME": "here"}, "https://a.example", None),
        ({}, "https://a.example", None),
        (HOME, "http://127.0.0.1:8188", None),
        (HOME, "http://localhost:8188", None),
        (HOME, "https://[::1]", None),
        (HOME | {"FLUX_KLEIN_STORE": "kept/times.json"}, "http://127.0.0.1:8188", "kept/times.json"),
        (HOME | {"FLUX_KLEIN_STORE": "/times.json"}, "https://a.example", "/times.json"),
        (HOME | {"FLUX_KLEIN_STORE": ""}, "https://a.example", None),
    ],
)
def test_each_service_has_a_file_of_its_own_and_this_machine_none(
    environ: dict[str, str], base_url: str | None, path: str | None
) -> None:
    assert store_path(environ, base_url) == (Path(path) if path is not None else None)


def test_an_address_that_is_none_has_no_file() -> None:
    with pytest.raises(ConfigurationError):
        store_path(HOME, "http://example.com")


def samples(path: Path) -> int:
    """What was learned in all, of models by their name."""
    snapshot = Snapshot.model_validate_json(path.read_bytes())
    return sum(count for kept in snapshot.models for _, count in kept.sizes.values())


def test_a_second_run_begins_with_what_the_first_has_learned(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "times.json"
    monkeypatch.setenv("FLUX_KLEIN_STORE", str(path))
    assert flux_klein("generate", "x", "--count", "3", "--no-download").code == 0
    assert samples(path) == pytest.approx(3)
    [line] = flux_klein("generate", "x", "--no-download", "--json").records
    assert samples(path) == pytest.approx(4), "the first three are still there"
    assert flux_klein("result", line["request_id"]).code == 0
    assert samples(path) == pytest.approx(4), "nothing was waited for"
    assert flux_klein("result", line["request_id"], "--wait", "5").code == 0
    assert samples(path) == pytest.approx(5)


def test_an_emulator_on_this_machine_teaches_nothing(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FLUX_KLEIN_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert flux_klein("generate", "x", "--no-download").code == 0
    monkeypatch.setenv("FLUX_KLEIN_STORE", str(tmp_path / "times.json"))
    assert flux_klein("generate", "x", "--no-download", "--emulator", "--width", "64", "--height", "64").code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_costs_nothing(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLUX_KLEIN_STORE", str(tmp_path / "file" / "times.json"))
    ran = flux_klein("generate", "x", "--quiet", "--json", "--no-download")
    assert (ran.code, len(ran.records), ran.err) == (0, 1, "")


def test_only_a_command_that_waits_reads_it(
    served: Emulator,
    flux_klein: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "times.json").write_text("damaged")
    monkeypatch.setenv("FLUX_KLEIN_STORE", str(tmp_path / "times.json"))
    for arguments in (["status", "abc"], ["result", "abc"], ["cancel", "abc"]):
        flux_klein(*arguments)
    assert caplog.records == []
    flux_klein("result", "abc", "--wait", "0.01")
    assert "is damaged" in caplog.text
