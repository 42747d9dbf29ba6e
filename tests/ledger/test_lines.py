"""From bytes to lines."""

import io

import pytest

from flux_klein_async.ledger.lines import Line, lines

from .generated import Generated, Slow


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", [(1, b"a")]),
        (b"a\n", [(1, b"a\n")]),
        (b"a\r\n\nb\rc", [(1, b"a\r\n"), (2, b"\n"), (3, b"b\rc")]),
        (b"1234567\n12345678", [(1, b"1234567\n"), (2, b"12345678")]),
    ],
)
def test_lines_end_at_line_feeds_and_are_counted(data: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert list(lines(io.BytesIO(data), 8)) == [Line(number, line) for number, line in expected]


@pytest.mark.parametrize(
    ("data", "quotes"),
    [
        (b"12345678\n", 0),
        (b"123456789\n", 0),
        (b'"2345678\n', 1),
        (b'"23456789012345"\n', 2),
        (b'123456789"' + b'""' * 100_000 + b'"\n', 200_002),
    ],
)
def test_of_a_line_that_is_too_long_the_beginning_is_kept_and_the_quotes_are_counted(data: bytes, quotes: int) -> None:
    found = list(lines(io.BytesIO(data + b"next\n"), 8))
    assert found == [Line(1, data[:9], cut=True, quotes=quotes), Line(2, b"next\n")]


def test_a_line_that_is_too_long_may_be_the_last() -> None:
    assert list(lines(io.BytesIO(b"123456789" * 10), 8)) == [Line(1, b"123456789", cut=True)]


def test_a_line_is_given_out_before_the_next_is_there() -> None:
    stream = Slow(b"a\n", b"b\n")
    found = lines(stream)
    assert next(found).data == b"a\n"
    assert stream.found == [b"b\n"]


def test_a_stream_made_of_pieces_is_read_like_a_file() -> None:
    pieces = [b"a", b"b\nc", b"\n", b"\n\nd"]
    assert list(lines(Generated(pieces), 8)) == list(lines(io.BytesIO(b"".join(pieces)), 8))
