"""`flux-klein doctor`: what each check finds, and what the command prints."""

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from flux_klein_async.cli import doctor
from flux_klein_async.cli.doctor import CHECKS, Finding, Level, Machine, examine
from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.emulator import Emulator, Engine, Reply, error_reply
from flux_klein_async.errors import ConfigurationError, ServerError
from flux_klein_async.options import Environment
from tests.networks import tls_service, write_authority

from .helpers import TOKEN, Command

NAMES = [name for name, _ in CHECKS]


def environment(**facts: str | None) -> Environment:
    return Environment(**{"token": TOKEN, "token_variable": "RUNCOMFY_TOKEN", **facts})  # type: ignore[arg-type]


async def found(machine: Machine) -> dict[str, Finding]:
    return {finding.name: finding for finding in await examine(machine)}


def test_all_is_well_on_the_emulator(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("doctor", "--base-url", served.base_url)
    lines = ran.out.splitlines()
    assert [line[8:19].strip() for line in lines] == NAMES
    assert {line[:8].strip() for line in lines} == {"ok", "-"}
    assert ran.code == 0
    assert "from RUNCOMFY_API_TOKEN" in lines[3]
    assert f"{served.base_url} (--base-url)" in ran.out
    assert "RUNCOMFY_MODEL_API_BASE" in flux_klein("doctor").out
    assert lines[-1].endswith("text-to-image: $0.01 per output")
    assert [record.endpoint for record in served.records] == ["model", "model"], "nothing is submitted"


def test_without_a_token_the_rest_is_checked_and_77_is_the_worst(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNCOMFY_API_TOKEN")
    ran = flux_klein("doctor")
    assert ran.code == 77
    assert "bad     token      No token. Set RUNCOMFY_API_TOKEN" in ran.out
    assert "-       API        not checked: there is no token" in ran.out
    assert not served.records


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        (error_reply(401, 401001), 77, "create a new token"),
        (error_reply(402, 400002), 77, "add money to the account"),
        (error_reply(403, 403003), 77, "is the account active"),
        (error_reply(422, 422001), 65, "the API's address?"),
        (error_reply(500), 69, "try later"),
        (error_reply(429), 75, "try later"),
        (error_reply(404, 404001), 65, "the API's address?"),
        (Reply(200, "<html>hello</html>"), 69, "proxy or firewall"),
        (Reply(401, {"error_message": f"who is {TOKEN}?"}), 77, "[token]"),
    ],
)
def test_what_the_api_refuses_decides_the_code(
    served: Emulator, flux_klein: Command, action: Reply, code: int, words: str
) -> None:
    served.fault("model", action, probability=1)
    ran = flux_klein("doctor")
    assert ran.code == code
    line = ran.out.splitlines()[NAMES.index("API")]
    assert line.startswith("bad     API")
    assert words in line
    assert "-       price" in ran.out


def test_a_price_that_is_not_known_is_a_warning(served: Emulator, flux_klein: Command) -> None:
    served.script("model", Reply(200, {"model_id": "a/b"}))
    ran = flux_klein("doctor")
    assert ran.code == 0
    assert "warning price      a/b: unknown price" in ran.out


async def test_the_token_is_shown_in_no_line_whatever_holds_it() -> None:
    findings = await found(Machine(environment=environment(), base_url=f"https://{TOKEN}.invalid"))
    assert findings["base URL"].line.startswith("https://[token].invalid")
    assert TOKEN not in "".join(finding.line for finding in findings.values())


def test_a_file_gets_whole_lines_and_a_terminal_folded_ones_of_at_least_40_columns() -> None:
    finding = Finding("token", Level.BAD, "half-way word " * 20)
    [whole] = doctor._lines(finding, None)
    for width, narrowest, widest in ((100, 90, 100), (80, 70, 80), (10, 30, 40)):
        folded = doctor._lines(finding, width)
        assert narrowest < max(map(len, folded)) <= widest
        assert all(line.startswith(" " * 19) and not line.endswith("half-") for line in folded[1:])
        assert " ".join(" ".join(folded).split()) == " ".join(whole.split())


async def test_a_check_that_never_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(_: Machine) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(doctor, "CHECKS", [("DNS", endless)])
    monkeypatch.setattr(doctor, "_PATIENCE", 0.0)
    [finding] = await examine(Machine(environment=environment(), base_url=None))
    assert (finding.level, finding.code) == (Level.BAD, ExitCode.UNAVAILABLE)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (TimeoutError(), 69, "nothing within 10 s; is the name right, and is there a network?"),
        (OSError(7, "no such host"), 69, "no such host; is the name right, and is there a network?"),
        (OSError("something else"), 69, "something else; is the name right, and is there a network?"),
        (ssl.SSLError(1, "x"), 69, "x; is the name right, and is there a network?"),
        (ConfigurationError("set it up"), 77, "set it up"),
        (ServerError("down"), 69, "down"),
        (ZeroDivisionError("x"), 1, "ZeroDivisionError: x; please report this"),
        (UnicodeError("x"), 1, "UnicodeError: x; please report this"),
    ],
)
async def test_any_exception_of_a_check_is_its_finding_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    async def broken(_: Machine) -> str:
        raise error

    async def fine(_: Machine) -> str:
        return "fine"

    monkeypatch.setattr(doctor, "CHECKS", [("DNS", broken), ("TLS", fine)])
    bad, good = await examine(Machine(environment=environment(), base_url=None))
    assert (bad.level, bad.code, bad.line) == (Level.BAD, code, line)
    assert (good.level, good.line) == (Level.OK, "fine")


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


async def test_a_host_has_its_addresses_or_is_unavailable() -> None:
    findings = await found(Machine(environment=environment(), base_url="https://nobody.invalid"))
    assert (findings["DNS"].level, findings["DNS"].code) == (Level.BAD, ExitCode.UNAVAILABLE)
    assert "is the name right" in findings["DNS"].line
    assert findings["TLS"].level is Level.SKIPPED
    findings = await found(Machine(environment=environment(), base_url="http://localhost:9"))
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


@pytest.mark.parametrize(
    ("facts", "base_url", "api"),
    [
        ({"proxy": "socks5://127.0.0.1:1"}, "https://api.example", "not checked: fix what is bad above first"),
        ({"ca_file": "/no/such/file"}, "https://127.0.0.1:1", "not checked: fix what is bad above first"),
        ({"ca_file": "/no/such/file"}, "http://127.0.0.1:1", "SSL_CERT_FILE names /no/such/file"),
    ],
)
async def test_an_error_of_the_set_up_is_reported_once_and_blames_no_token(
    facts: dict[str, str], base_url: str, api: str
) -> None:
    findings = await found(Machine(environment=environment(**facts), base_url=base_url))
    bad = [finding for finding in findings.values() if finding.level is Level.BAD]
    assert [finding.code for finding in bad] == [ExitCode.NO_ACCESS]
    assert "token" not in bad[0].line
    assert findings["API"].line.startswith(api)
    assert "try later" not in findings["API"].line


@pytest.mark.parametrize(
    ("given", "set_", "source"),
    [("http://example.com", None, "--base-url"), (None, "x", "RUNCOMFY_MODEL_API_BASE")],
)
async def test_a_bad_base_url_is_reported_once_with_its_source_and_skips_what_needs_it(
    given: str | None, set_: str | None, source: str
) -> None:
    findings = await found(Machine(environment=environment(base_url=set_), base_url=given))
    assert (findings["base URL"].level, findings["base URL"].code) == (Level.BAD, ExitCode.NO_ACCESS)
    assert findings["base URL"].line.endswith(f"(it comes from {source})")
    assert {findings[name].level for name in ("proxy", "DNS", "TLS", "API", "clock", "price")} == {Level.SKIPPED}


async def test_packages_are_named_and_old_ones_with_the_command_that_updates_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = {"aiohttp": "3.14.2", "pydantic": "2.10.1.post1"}
    requires = ["aiohttp>=3.14.2", "pydantic<3,>=2.7", "x>=1; extra == 'cli'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: requires)
    for versions, level, code, end in (
        (new, Level.OK, ExitCode.OK, ", aiohttp 3.14.2, pydantic 2.10.1.post1"),
        (new | {"aiohttp": "3.9.0"}, Level.BAD, ExitCode.OTHER, "too old; pip install -U 'aiohttp>=3.14.2'"),
    ):
        monkeypatch.setattr(doctor.importlib.metadata, "version", versions.get)
        packages = (await found(Machine(environment=environment(), base_url="")))["packages"]
        assert (packages.level, packages.code) == (level, code)
        assert packages.line.endswith(end)


INSTALL = "(pip install 'flux_klein_async[NAME]')"


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (["redis"], f"testing; not installed: redis {INSTALL}"),
        (["ray", "redis", "dev", "all", "docs"], f"testing; not installed: ray, redis {INSTALL}"),
        (["testing", "redis"], f"none; not installed: testing, redis {INSTALL}"),
        ([], "testing"),
    ],
)
async def test_missing_extras_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], line: str
) -> None:
    needed = ["pytest>=1; extra == 'testing'", "aiohttp>=1", *(f"no-{name}>=1; extra == '{name}'" for name in missing)]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: needed)
    extras = (await found(Machine(environment=environment(), base_url="")))["extras"]
    assert extras.level is Level.OK
    assert extras.line == line


async def test_every_extra_that_adds_a_feature_is_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda _: True)
    extras = (await found(Machine(environment=environment(), base_url="")))["extras"]
    given = set(doctor.importlib.metadata.metadata("flux_klein_async").get_all("Provides-Extra") or [])
    assert sorted(extras.line.split(", ")) == sorted(given - {"all", "dev", "docs"})
