"""What each check finds on machines of every kind."""

import time
from pathlib import Path

import pytest

from flux_klein_async.cli import checks
from flux_klein_async.cli.checks import Level, Machine
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.emulator import Emulator, Engine, Reply
from flux_klein_async.options import Environment
from tests.networks import tls_service, write_authority

from .helpers import environment, found


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [
        (0, Level.OK, "agrees"),
        (50, Level.OK, "agrees"),
        (3600, Level.WARNING, " s ahead of the service's"),
        (-3600, Level.WARNING, " s behind the service's"),
    ],
)
async def test_the_clock_is_held_against_the_services_date(
    live_emulator: Emulator, ahead: float, level: Level, words: str
) -> None:
    machine = Machine(
        environment=environment(token=live_emulator.api_key, base_url=live_emulator.base_url),
        base_url=None,
        wall_clock=lambda: time.time() + ahead,
    )
    clock = (await found(machine))["clock"]
    assert (clock.level, clock.code) == (level, ExitCode.OK)
    assert words in clock.line


async def test_an_unreadable_date_is_no_finding(live_emulator: Emulator) -> None:
    live_emulator.script("model", Reply(200, {"model_id": "a/b"}, {"Date": "yesterday"}))
    machine = Machine(environment=environment(token=live_emulator.api_key), base_url=live_emulator.base_url)
    assert (await found(machine))["clock"].level is Level.SKIPPED


def written(folder: Path, mode: int, text: str = '{"access_token": "from-the-file", "expires_at": 2000}') -> str:
    path = folder / "token.json"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "level"), [(0o600, Level.OK), (0o400, Level.OK), (0o640, Level.WARNING), (0o604, Level.WARNING)]
)
async def test_a_token_file_that_others_can_read_is_warned_about(tmp_path: Path, mode: int, level: Level) -> None:
    path = written(tmp_path, mode)
    machine = Machine(environment=Environment(token_file=path), base_url="", wall_clock=lambda: 1000.0)
    findings = await found(machine)
    assert (findings["token"].level, findings["token"].line) == (Level.OK, f"from {path}")
    assert (findings["token file"].level, findings["token file"].code) == (level, ExitCode.OK)
    assert (f"chmod 600 {path}" in findings["token file"].line) is (level is Level.WARNING)


@pytest.mark.parametrize("text", ['{"access_token": "x", "expires_at": 999}', "no json", "{}"])
async def test_a_token_file_that_is_of_no_use_is_bad(tmp_path: Path, text: str) -> None:
    machine = Machine(
        environment=Environment(token_file=written(tmp_path, 0o600, text)), base_url="", wall_clock=lambda: 1000.0
    )
    token = (await found(machine))["token"]
    assert (token.level, token.code) == (Level.BAD, ExitCode.NO_ACCESS)
    assert "token.json" in token.line


async def test_a_bad_base_url_is_told_once_and_skips_what_needs_it() -> None:
    findings = await found(Machine(environment=environment(), base_url="http://example.com"))
    assert (findings["base URL"].level, findings["base URL"].code) == (Level.BAD, ExitCode.NO_ACCESS)
    assert {findings[name].level for name in ("proxy", "DNS", "TLS", "API", "clock", "price")} == {Level.SKIPPED}


async def test_the_proxy_is_shown_without_its_credentials_and_asks_for_the_names() -> None:
    proxied = environment(proxy="http://user:hunter2@127.0.0.1:1")
    findings = await found(Machine(environment=proxied, base_url="https://api.example"))
    assert findings["proxy"].line == "http://127.0.0.1:1 (from the environment)"
    assert (findings["DNS"].level, findings["TLS"].level) == (Level.SKIPPED, Level.SKIPPED)
    assert (findings["API"].level, findings["API"].code) == (Level.BAD, ExitCode.UNAVAILABLE)
    assert "hunter2" not in "".join(finding.line for finding in findings.values())
    unusable = environment(proxy="socks5://user:hunter2@127.0.0.1:1")
    findings = await found(Machine(environment=unusable, base_url="https://api.example"))
    assert (findings["proxy"].level, findings["proxy"].code) == (Level.BAD, ExitCode.NO_ACCESS)


async def test_a_host_that_no_name_server_knows_is_unavailable() -> None:
    findings = await found(Machine(environment=environment(), base_url="https://nobody.invalid"))
    assert (findings["DNS"].level, findings["DNS"].code) == (Level.BAD, ExitCode.UNAVAILABLE)
    assert "is the name right" in findings["DNS"].line
    assert findings["TLS"].level is Level.SKIPPED


async def test_a_name_is_told_with_its_addresses() -> None:
    findings = await found(Machine(environment=environment(), base_url="http://localhost:9"))
    assert findings["DNS"].level is Level.OK
    assert findings["DNS"].line.startswith("localhost is ")


async def test_a_certificate_is_told_with_who_gave_it_and_who_is_trusted(tmp_path: Path) -> None:
    named = environment(ca_file=write_authority(tmp_path))
    async with tls_service(Engine(profile="fixed:0.01"), "127.0.0.1") as port:
        url = f"https://127.0.0.1:{port}"
        trusted = (await found(Machine(environment=named, base_url=url)))["TLS"]
        unknown = (await found(Machine(environment=environment(), base_url=url)))["TLS"]
    assert trusted.level is Level.OK
    assert "certificate of trustme" in trusted.line
    assert trusted.line.endswith(f"trusted: {named.ca_file}")
    assert (unknown.level, unknown.code) == (Level.BAD, ExitCode.UNAVAILABLE)
    assert "SSL_CERT_FILE" in unknown.line


async def test_packages_that_are_too_old_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.metadata, "version", {"aiohttp": "3.9.0"}.get)
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda _: ["aiohttp>=3.14.2", "x>=1; extra == 'cli'"])
    packages = (await found(Machine(environment=environment(), base_url="")))["packages"]
    assert (packages.level, packages.code) == (Level.BAD, ExitCode.OTHER)
    assert packages.line.endswith("too old; pip install -U 'aiohttp>=3.14.2'")


async def test_an_extra_that_is_missing_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda _: ["no-such-thing>=1; extra == 'emulator'"])
    extras = (await found(Machine(environment=environment(), base_url="")))["extras"]
    assert extras.level is Level.OK
    assert extras.line == "cli, testing; for emulator: pip install 'flux_klein_async[emulator]'"


@pytest.mark.parametrize(
    ("facts", "base_url"),
    [
        ({"proxy": "socks5://127.0.0.1:1"}, "https://api.example"),
        ({"ca_file": "/no/such/file"}, "https://127.0.0.1:1"),
    ],
    ids=["proxy", "certificates"],
)
async def test_what_is_in_the_way_of_all_is_told_once_and_no_token_is_blamed(
    facts: dict[str, str], base_url: str
) -> None:
    findings = await found(Machine(environment=environment(**facts), base_url=base_url))
    bad = [finding for finding in findings.values() if finding.level is Level.BAD]
    assert [finding.code for finding in bad] == [ExitCode.NO_ACCESS]
    assert "token" not in bad[0].line
    assert (findings["API"].level, findings["API"].line) == (
        Level.SKIPPED,
        "not checked, because of the problem above",
    )


@pytest.mark.parametrize(
    ("given", "set_", "source"), [("x", None, "--base-url"), (None, "x", "RUNCOMFY_MODEL_API_BASE")]
)
async def test_an_address_of_no_use_is_told_with_where_it_comes_from(
    given: str | None, set_: str | None, source: str
) -> None:
    findings = await found(Machine(environment=environment(base_url=set_), base_url=given))
    assert findings["base URL"].line.endswith(f"(it comes from {source})")


async def test_packages_that_are_just_new_enough_are_named_and_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.metadata, "version", {"aiohttp": "3.14.2", "pydantic": "2.10.1.post1"}.get)
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda _: ["aiohttp>=3.14.2", "pydantic<3,>=2.7"])
    packages = (await found(Machine(environment=environment(), base_url="")))["packages"]
    assert packages.level is Level.OK
    assert packages.line.endswith(", aiohttp 3.14.2, pydantic 2.10.1.post1")


async def test_only_extras_that_lack_something_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["pytest>=1; extra == 'testing'", "nothing-a>=1; extra == 'cli'", "nothing-b>=1; extra == 'emulator'"]
    monkeypatch.setattr(
        checks.importlib.metadata, "requires", lambda _: [*needed, "nothing-c>=1; extra == 'dev'", "aiohttp>=1"]
    )
    extras = (await found(Machine(environment=environment(), base_url="")))["extras"]
    assert extras.line == "testing; for cli, emulator: pip install 'flux_klein_async[cli,emulator]'"
    needed[0] = "nothing-d>=1; extra == 'testing'"
    extras = (await found(Machine(environment=environment(), base_url="")))["extras"]
    assert extras.line.startswith("none; for testing, cli, emulator: ")
