"""Where the token comes from, in order, and that it is shown nowhere."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.api.credentials import Redactor, Secret, find_token
from flux_klein_async.errors import ConfigurationError
from flux_klein_async.options import Environment

NOW = 1_800_000_000.0
SECRET = "s3cr3t-token-0123456789"


def find(explicit: Any = None, *, token: str | None = None, token_file: Path | str | None = None) -> str:
    environment = Environment(
        token=token, token_variable="RUNCOMFY_TOKEN", token_file=None if token_file is None else str(token_file)
    )
    return find_token(explicit, environment, wall_clock=lambda: NOW)


def refusal(*arguments: Any, **sources: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        find(*arguments, **sources)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert "s3cr3t" not in str(error)
    return str(error)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "token.json"


def test_the_token_given_comes_first_then_the_environment_then_the_file(token_file: Path) -> None:
    token_file.write_text('{"access_token": " file\\n"}', encoding="utf-8")
    assert find(None, token_file=token_file) == "file"
    token_file.write_bytes(b"garbled")  # not opened if another source has the token
    assert find(None, token="environment", token_file=token_file) == "environment"
    assert find("  given \n", token="environment", token_file=token_file) == "given"


def test_a_file_is_read_until_it_expires(token_file: Path) -> None:
    for expires_at in (None, NOW + 1, NOW + 0.5, 10**400, "soon"):
        token_file.write_text(json.dumps({"access_token": SECRET, "expires_at": expires_at}), encoding="utf-8")
        assert find(token_file=token_file) == SECRET
    for expires_at in (NOW, NOW - 1, 0, -1, 1.5):
        token_file.write_text(json.dumps({"access_token": SECRET, "expires_at": expires_at}), encoding="utf-8")
        assert refusal(token_file=token_file) == (
            f"The token in {token_file} has expired; log in again with the vendor's CLI"
        )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbled",
        b'{"access_token": "s3cr3t-token-0123456789"',
        b'{"access_token": "s3cr3t-token-0123456789 \xff"}',
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b'{"expires_at": ' + b"9" * 5000 + b"}",
        b'{"access_token": "s3cr3t-token-0123456789", "padding": "' + b"x" * 70_000 + b'"}',
    ],
    ids=range(8),
)
def test_a_garbled_file_cannot_be_read(content: bytes, token_file: Path) -> None:
    token_file.write_bytes(content)
    assert refusal(token_file=token_file).startswith(
        f"Log in again with the vendor's CLI: the token file {token_file} cannot be read: "
    )


@pytest.mark.parametrize("content", ["null", "[]", "5", '"a"', "{}", '{"access_token": null}', '{"access_token": 5}'])
def test_a_file_without_a_token_says_so(content: str, token_file: Path) -> None:
    token_file.write_text(content, encoding="utf-8")
    assert refusal(token_file=token_file) == (
        f"Log in again with the vendor's CLI: the token file {token_file} holds no access_token"
    )


def test_a_path_that_is_no_file_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(token_file=tmp_path).endswith("cannot be read: IsADirectoryError")
    assert refusal(token_file="/a\0b").endswith("cannot be read: ValueError")


@pytest.mark.parametrize("token", ['"abc-def"', "'abc-def'", " `abc-def`\n", "Bearer abc-def", "bearer abc-def"])
def test_what_was_copied_around_a_token_is_named(token: str) -> None:
    said = refusal(token=token)
    assert said.startswith("The token in RUNCOMFY_TOKEN ")
    assert ("in quotes" in said) != ("begins with 'Bearer'" in said)
    assert "abc" not in said


@pytest.mark.parametrize("path", [None, "missing"])
def test_without_any_source_the_message_names_all_ways_to_give_a_token(path: str | None, tmp_path: Path) -> None:
    assert refusal(token_file=tmp_path / path if path else None) == (
        "No token. Set RUNCOMFY_API_TOKEN, RUNCOMFY_TOKEN or RUNCOMFY_API_KEY, pass api_key=..., or log in with the "
        "vendor's CLI (its token.json is read). To try things without a token, use the emulator."
    )


def test_takes_a_token_that_a_header_can_carry_and_no_other(token_file: Path) -> None:
    for token in (SECRET, "a", "!~", "a.b-c_d/e+f==", "\tpadded\n"):
        assert find(token) == token.strip()
    for token in (
        *("", "  ", "s3cr3t token", "s3cr3t\ttoken", "s3cr3t\r\nX-Evil: 1", "s3cr3t\0", "s3cr3t\x7f", "s3cr3t\u00e9"),
        *("s3cr3t\u200b", "\u0663s3cr3t", "s3cr3t\ud800"),
    ):
        token_file.write_text(json.dumps({"access_token": token}), encoding="utf-8")
        sources = {"explicit": "api_key", "token": "RUNCOMFY_TOKEN", "token_file": str(token_file)}
        values = {"explicit": token, "token": token, "token_file": token_file}
        for source, named in sources.items():
            assert refusal(**{source: values[source]}) == (
                f"The token in {named} is empty or holds spaces or characters that no header can carry"
            )
    for other in (5, b"s3cr3t", ["s3cr3t"], True):
        assert refusal(other) == "The token in api_key must be a string"


@pytest.mark.parametrize(
    ("token", "echo", "shown"),
    [
        (SECRET, f"Bearer {SECRET}", "Bearer [token]"),
        (SECRET, f"{SECRET}, {SECRET}", "[token], [token]"),
        (SECRET, "nothing of it", "nothing of it"),
        (SECRET, "", ""),
        ("abc/def==", "token abc/def== is wrong", "token [token] is wrong"),
        ("abc/def==", r"token abc\/def== is wrong", "token [token] is wrong"),
        # A placeholder is no secret, and replacing it would damage ordinary words.
        ("dummy", "a dummy", "a dummy"),
        ("dummy6", "a dummy6", "a [token]"),
    ],
)
def test_replaces_the_token_wherever_it_is_echoed(token: str, echo: str, shown: str) -> None:
    redactor = Redactor(token)
    assert (redactor.text(echo), redactor.body(echo.encode())) == (shown, shown.encode())
    assert token == "dummy" or token not in repr(redactor)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


@pytest.mark.parametrize(
    ("token", "spelling"),
    [
        ('s3cr3t"token', json.dumps('s3cr3t"token')),
        ("s3cr3t\\token", json.dumps("s3cr3t\\token")),
        ("s3cr3t/token/2", '"s3cr3t\\/token/2"'),
        ("s3cr3t+token", '"s3cr3t\\u002Btoken"'),  # as .NET writes it
        ("s3cr3t==", '"s3cr3t\\u003d\\u003d"'),  # as Gson writes it
        ("s3cr3t&token", '"s3cr3t\\u0026token"'),  # as Go writes it
        (SECRET, f'"{escaped(SECRET)}"'),
        (SECRET, f'"{escaped(SECRET).upper().replace("U", "u")}"'),
        ("s3cr3t/token", '"https://x.example/s3cr3t%2Ftoken"'),
        ("s3cr3t/token", '"https://x.example/%733cr3t%2f%74oken"'),  # yarl undoes it before the URL is opened
    ],
)
def test_no_json_spelling_of_the_token_survives(token: str, spelling: str) -> None:
    body = b'{"message": ' + spelling.encode() + b"}"
    message = json.loads(Redactor(token).body(body))["message"]
    assert token not in message
    assert token not in unquote(message)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6), st.binary(), st.binary())
def test_no_plain_echo_of_any_token_survives(token: str, before: bytes, after: bytes) -> None:
    assert b"[token]" in Redactor(token).body(before + token.encode() + after)
    assert Redactor("s" * 99).body(before + after) == before + after


def test_a_variable_shows_no_token():
    secret = Secret("very-secret-token")
    assert (secret.text, f"{secret} {secret!r}") == ("very-secret-token", "Secret() Secret()")
