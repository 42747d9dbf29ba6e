"""One function makes a stranger's text safe, for logs, terminals and pipes alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.text import clipped, shown


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
        ("\u2066\u2069\u200e\u200f\u061c", "\\u2066\\u2069\\u200e\\u200f\\u061c"),
        ("to\u200bken, to\xadken\ufeff", "to\\u200bken, to\\xadken\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("already \\x1b", "already \\x1b"),
        ("שלום 🐆 👩\u200d🚀 é", "שלום 🐆 👩\u200d🚀 é"),
    ],
)
def test_shows_text_and_escapes_what_a_terminal_would_obey(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_a_text_is_cut_to_a_length_after_escaping() -> None:
    assert clipped("abcdef", 6) == "abcdef"
    assert clipped("abcdefg", 6) == "abc..."
    assert clipped("\x1b" * 9, 6) == "\\x1..."


@given(st.text())
def test_any_text_becomes_one_line_that_can_be_encoded_and_is_not_escaped_twice(text: str) -> None:
    once = shown(text)
    assert len((once + "x").splitlines()) == 1
    assert not set(once) & {chr(number) for number in (*range(0x20), *range(0x7F, 0xA0))}
    assert once.encode().decode() == shown(once) == once
