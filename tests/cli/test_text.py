from decimal import Decimal

import pytest

from flux_klein_async.cli.text import decoded_prompt, dollars, duration, shortened, shown
from flux_klein_async.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a snow leopard", "a snow leopard"),
        ("[red]not markup[/]", "[red]not markup[/]"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\udcff", "\\udcff"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("שלום 🐆 👩\u200d🚀 é", "שלום 🐆 👩\u200d🚀 é"),
    ],
)
def test_shows_text_and_escapes_what_a_terminal_would_obey(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_shortens_to_a_length_after_escaping() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abc..."
    assert shortened("\x1b" * 9, 6) == "\\x1..."


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"a\r", "a\r"), (b"-", "-"), ("é\n".encode(), "é")],
)
def test_a_prompt_from_a_pipe_loses_one_line_end(data: bytes, expected: str) -> None:
    assert decoded_prompt(data) == expected


@pytest.mark.parametrize("data", [b"caf\xe9", "\udc80".encode("utf-8", "surrogatepass")])
def test_a_prompt_that_is_no_utf8_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        decoded_prompt(data)


@pytest.mark.parametrize(("seconds", "expected"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (125, "2:05"), (3603, "1:00:03")])
def test_durations_read_as_people_write_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("0", "$0.00"),
        ("0.5", "$0.50"),
        ("0.0005", "$0.0005"),
        ("0.1250", "$0.125"),
        ("100", "$100.00"),
        ("1E+2", "$100.00"),
        ("1e-9", "$0.000000001"),
        ("NaN", "$NaN"),
    ],
)
def test_money_has_two_decimals_and_more_where_they_say_something(amount: str, expected: str) -> None:
    assert dollars(Decimal(amount)) == expected
