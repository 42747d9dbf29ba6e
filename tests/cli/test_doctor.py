import asyncio
import ssl

import pytest

from flux_klein_async.cli import doctor
from flux_klein_async.cli.checks import CHECKS, Level, Machine
from flux_klein_async.cli.doctor import Finding, examine
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.emulator import Emulator, Reply, error_reply
from flux_klein_async.errors import ConfigurationError, ServerError

from .helpers import TOKEN, Command, environment, found

NAMES = [name for name, _ in CHECKS]


def test_all_is_well_on_the_emulator(served: Emulator, flux_klein: Command) -> None:
    ran = flux_klein("doctor", "--base-url", served.base_url)
    lines = ran.out.splitlines()
    assert [line[8:19].strip() for line in lines] == NAMES
    assert {line[:8].strip() for line in lines} == {"ok", "-"}
    assert ran.code == 0
    assert "from RUNCOMFY_API_TOKEN" in lines[3]
    assert f"{served.base_url} (--base-url)" in ran.out
    assert "RUNCOMFY_MODEL_API_BASE" in flux_klein("doctor").out
    assert lines[-1].endswith("text-to-image: $0.01 for each output")
    assert [record.endpoint for record in served.records] == ["model", "model"], "nothing is ordered"


def test_without_a_token_the_rest_is_polled_and_77_is_the_worst(
    served: Emulator, flux_klein: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNCOMFY_API_TOKEN")
    ran = flux_klein("doctor")
    assert ran.code == 77
    assert "bad     token      No token. Set RUNCOMFY_API_TOKEN" in ran.out
    assert "-       API        not polled: there is no token" in ran.out
    assert not served.records


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        (error_reply(401, 401001), 77, "make a new token"),
        (error_reply(402, 400002), 77, "put money into the account"),
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZeroDivisionError("x"), ExitCode.OTHER),
        (ssl.SSLError(1, "x"), ExitCode.UNAVAILABLE),
        (TimeoutError(), ExitCode.UNAVAILABLE),
        (UnicodeError("x"), ExitCode.OTHER),
    ],
)
@pytest.mark.parametrize("name", NAMES)
async def test_whatever_a_check_raises_is_its_finding(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, code: ExitCode
) -> None:
    async def broken(_: Machine) -> tuple[Level, str]:
        raise error

    async def fine(_: Machine) -> tuple[Level, str]:
        return Level.OK, "fine"

    monkeypatch.setattr(doctor, "CHECKS", [(other, broken if other == name else fine) for other in NAMES])
    findings = await found(Machine(environment=environment(), base_url=None))
    assert {other for other in NAMES if findings[other].level is Level.BAD} == {name}
    assert findings[name].code == code


def test_a_terminal_is_given_folded_lines_and_a_file_whole_ones() -> None:
    finding = Finding("token", Level.BAD, "word " * 40)
    shown = doctor._shown
    assert len(shown(finding, None)) == 1
    folded = shown(finding, 80)
    assert max(map(len, folded)) <= 80
    assert all(line.startswith(" " * 19) for line in folded[1:])
    assert " ".join(" ".join(folded).split()) == " ".join(shown(finding, None)[0].split())


async def test_a_check_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(_: Machine) -> tuple[Level, str]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(doctor, "CHECKS", [("DNS", endless)])
    monkeypatch.setattr(doctor, "_PATIENCE", 0.0)
    [finding] = await examine(Machine(environment=environment(), base_url=None))
    assert (finding.level, finding.code) == (Level.BAD, ExitCode.UNAVAILABLE)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TimeoutError(), "nothing within 10 s; is the name right, and is there a network?"),
        (OSError(7, "no such host"), "no such host; is the name right, and is there a network?"),
        (OSError("something else"), "something else; is the name right, and is there a network?"),
        (ConfigurationError("set it up"), "set it up"),
        (ServerError("down"), "down"),
    ],
)
async def test_each_kind_of_trouble_has_its_words(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    async def broken(_: Machine) -> tuple[Level, str]:
        raise error

    monkeypatch.setattr(doctor, "CHECKS", [("DNS", broken)])
    [finding] = await examine(Machine(environment=environment(), base_url=None))
    assert finding.line == line


async def test_what_is_set_up_wrong_is_no_trouble_of_the_api() -> None:
    api = (await found(Machine(environment=environment(ca_file="/no/such/file"), base_url="http://127.0.0.1:1")))["API"]
    assert api.level is Level.BAD
    assert api.line.startswith("SSL_CERT_FILE names /no/such/file")
    assert "try later" not in api.line


def test_lines_are_as_wide_as_the_terminal_but_not_narrower_than_can_be_read() -> None:
    finding = Finding("token", Level.BAD, "half-way " * 40)
    assert 90 < max(map(len, doctor._shown(finding, 100))) <= 100
    assert 30 < max(map(len, doctor._shown(finding, 10))) <= 40
    assert not any(line.endswith("half-") for width in range(40, 60) for line in doctor._shown(finding, width))
