"""Which service a command talks to: the token, the store of learned times, the emulator of a run."""

from pathlib import Path

import pytest

from flux_klein_async.cli.connect import build_client, emulated, store_path
from flux_klein_async.emulator import Emulator
from flux_klein_async.errors import ConfigurationError
from flux_klein_async.polling.adaptive import AdaptivePolling

from .helpers import Command

HOME = {"HOME": "/home/me"}
THERE = HOME | {"RUNCOMFY_MODEL_API_BASE": "https://a.example"}
CACHE = "/home/me/.cache/flux-klein"


async def test_builds_a_client_of_the_address_given() -> None:
    client = build_client(("http://127.0.0.1:1", "a-token-for-this"), timeout=None, concurrency=1000)
    assert "127.0.0.1:1" in repr(client)
    await client.aclose()


def test_without_a_token_there_is_no_client() -> None:
    with pytest.raises(ConfigurationError, match="RUNCOMFY_API_TOKEN"):
        build_client((None, None))


async def test_the_emulator_of_a_run_gives_ids_of_its_own() -> None:
    ids = set()
    for _ in range(2):
        async with emulated() as address, build_client(address) as client:
            ids.add((await client.submit("a leopard")).request_id)
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("environ", "base_url", "path"),
    [
        (HOME, None, f"{CACHE}/polling-model-api.runcomfy.net.json"),
        (HOME, "https://API.example.com/v1", f"{CACHE}/polling-api.example.com.json"),
        (HOME, "https://api.example.com:8443", f"{CACHE}/polling-api.example.com-8443.json"),
        (HOME, "https://[2001:db8::1]", f"{CACHE}/polling-2001_db8__1.json"),
        (THERE, None, f"{CACHE}/polling-a.example.json"),
        (
            HOME | {"RUNCOMFY_MODEL_API_BASE": "https://a.example"},
            "https://b.example",
            f"{CACHE}/polling-b.example.json",
        ),
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


def samples(path: Path) -> float:
    """What was learned in all, of models by their name."""
    snapshot = AdaptivePolling(store=path)._store.load()
    return sum(sum(bins.values()) for kept in snapshot.models for *_, bins in kept.sizes)


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


@pytest.mark.parametrize(
    ("variable", "file", "options"),
    [("FLUX_KLEIN_STORE", "times.json", ["--emulator", "--width", "64", "--height", "64"]), ("XDG_CACHE_HOME", "", [])],
    ids=["emulator", "loopback"],
)
def test_an_emulator_on_this_machine_teaches_nothing(
    served: Emulator,
    flux_klein: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    file: str,
    options: list[str],
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / file))
    assert flux_klein("generate", "x", "--no-download", *options).code == 0
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
