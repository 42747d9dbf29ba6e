"""A file of many inputs, as a stream."""

import io
import itertools
import json
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.ledger.batchfile import CHECKED_FIRST, Ahead, Kind, kind_of, read_rows
from flux_klein_async.ledger.lines import LONGEST
from flux_klein_async.ledger.rows import BadRow, Row

from .generated import Generated, Slow


def read(data: bytes, kind: Kind = Kind.TXT) -> list[Row | BadRow]:
    return list(read_rows(io.BytesIO(data), kind))


def prompt(line: int, text: str, row_id: str | None = None) -> Row:
    return Row(line, row_id, {"prompt": text})


# --- which kind


@pytest.mark.parametrize(
    ("path", "kind"), [("a.txt", Kind.TXT), ("x/a.b.JSONL", Kind.JSONL), (Path("a.txt", "b.csv"), Kind.CSV)]
)
def test_the_end_of_a_files_name_says_how_it_is_written(path: str | Path, kind: Kind) -> None:
    assert kind_of(path) is kind


@pytest.mark.parametrize("path", ["a", "a.json", "-", "", "a.txt.gz", ".csv", "a.csv/b", "x\x1b.tsv"])
def test_a_file_of_another_name_is_refused_with_those_that_are_known(path: str) -> None:
    with pytest.raises(InvalidInputError, match=r"ends in none of \.txt, \.jsonl, \.csv: say which of them") as caught:
        kind_of(path)
    assert str(caught.value).isprintable()


# --- text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b"a\r\n\n b \nc", [prompt(1, "a"), prompt(3, " b "), prompt(4, "c")]),
        ("\ufeffé\n🐆\u2028".encode(), [prompt(1, "é"), prompt(2, "🐆\u2028")]),
        (b"a\tb\n", [prompt(1, "a\tb")]),
    ],
)
def test_a_line_of_text_is_a_prompt(data: bytes, expected: list[Row]) -> None:
    assert read(data) == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"caf\xe9", "not UTF-8 (byte 0xE9)"),
        (b"\xed\xa0\x80", "not UTF-8 (byte 0xED)"),
        (b"a\x1b[2J", "prompt: the control character U+001B (ESC) may not be in it"),
        (b"some text with a\x00", "prompt: the control character U+0000 (NUL) may not be in it"),
        (b"a\rb", "a carriage return within the line"),
        (b"x" * 10 * LONGEST, f"longer than {LONGEST} bytes"),
    ],
)
def test_a_bad_line_is_named_and_the_next_is_read(line: bytes, problem: str) -> None:
    good, bad, last = read(b"a\n" + line + b"\nb\n")
    assert (good, last) == (prompt(1, "a"), prompt(3, "b"))
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal) == (2, False)
    assert bad.problem.startswith(problem)


# --- every kind

ALIKE = {
    Kind.TXT: "a cat\na dog\n",
    Kind.JSONL: '{"prompt": "a cat"}\n{"prompt": "a dog"}\n',
    Kind.CSV: "prompt\na cat\na dog\n",
}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_all_kinds_are_read_with_and_without_mark_and_with_both_line_ends(kind: Kind, mark: bytes, end: str) -> None:
    rows = read(mark + ALIKE[kind].replace("\n", end).encode(), kind)
    assert [row.fields for row in rows if isinstance(row, Row)] == [{"prompt": "a cat"}, {"prompt": "a dog"}]
    assert len(rows) == 2


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        *(
            ("utf-16", "UTF-16"),
            ("utf-32", "UTF-32"),
            ("utf-16-le", "UTF-16 or no text"),
            ("utf-16-be", "UTF-16 or no"),
        ),
        *(("utf-32-le", "UTF-16 or no text"), ("utf-32-be", "UTF-16 or no text")),
    ],
)
def test_another_encoding_of_unicode_is_refused_whole(kind: Kind, encoding: str, name: str) -> None:
    (bad,) = read(ALIKE[kind].encode(encoding), kind)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal) == (1, True)
    assert bad.problem.startswith(f"the file is {name}")
    assert bad.problem.endswith("not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8")


def test_a_few_zeros_are_no_other_encoding() -> None:
    assert [(row[0], isinstance(row, Row)) for row in read(b"a zero \x00\nb\n")] == [(1, False), (2, True)]


@pytest.mark.parametrize("mark", [b"\xfe\xff", b"\x00\x00\xfe\xff"])
def test_marks_of_the_other_byte_order_are_known(mark: bytes) -> None:
    (bad,) = read(mark + "\u732b\u732b\u732b\n".encode("utf-16-be"))
    assert isinstance(bad, BadRow)
    assert bad.fatal


@pytest.mark.parametrize("kind", [Kind.JSONL, Kind.CSV])
def test_an_id_that_came_before_is_bad_with_both_lines(kind: Kind) -> None:
    ids = ["7", '"x"', '"7"', "null", "null", '"x"', '"X"']
    data = "".join(f'{{"prompt": "a", "id": {each}}}\n' for each in ids)
    if kind is Kind.CSV:
        data = "prompt,id\n" + "".join(f"a,{each}\n".replace("null", "") for each in ids)
    first = 1 if kind is Kind.JSONL else 2
    found = read(data.encode(), kind)
    assert [row.id for row in found if isinstance(row, Row)] == ["7", "x", None, None, "X"]
    assert [row for row in found if isinstance(row, BadRow)] == [
        BadRow(first + 2, f"the id '7' is that of line {first} too"),
        BadRow(first + 5, f"the id 'x' is that of line {first + 1} too"),
    ]


def test_the_id_of_a_bad_row_is_free() -> None:
    found = read(b'{"prompt": " ", "id": 1}\n{"prompt": "a", "id": 1}\n', Kind.JSONL)
    assert found[1] == prompt(2, "a", "1")


@pytest.mark.parametrize("kind", Kind)
def test_a_row_is_given_out_before_the_next_is_there(kind: Kind) -> None:
    stream = Slow(*(line.encode() for line in ALIKE[kind].splitlines(keepends=True)))
    assert isinstance(next(read_rows(stream, kind)), Row)
    assert len(stream.found) == 1


@pytest.mark.parametrize("kind", Kind)
def test_a_pipe_gives_each_line_as_it_comes(kind: Kind) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        *before, last = ALIKE[kind].splitlines(keepends=True)
        os.write(writing, "".join(before).encode())
        rows = read_rows(stream, kind)
        assert next(rows)[2] == {"prompt": "a cat"}  # would wait for ever if it wanted more
        os.write(writing, last.encode())
        os.close(writing)
        assert [row[2] for row in rows] == [{"prompt": "a dog"}]


class Broken:
    def __init__(self, error: OSError) -> None:
        self.lines = [b"a\n", b"b\n"]
        self.error = error

    def readline(self, size: int, /) -> bytes:
        if self.lines:
            return self.lines.pop(0)
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(5, "Input/output error"), "Input/output error"), (OSError("odd"), "odd")]
)
def test_what_cannot_be_read_any_further_is_told_with_the_line(error: OSError, reason: str) -> None:
    rows = list(read_rows(Broken(error), Kind.TXT))
    assert rows == [prompt(1, "a"), prompt(2, "b"), BadRow(3, f"the rest cannot be read: {reason}", fatal=True)]


# --- bombs

MIB = 1024 * 1024
PIECE = 64 * 1024


def peak(pieces: Iterable[bytes], kind: Kind) -> tuple[int, list[Row | BadRow]]:
    """The most bytes held while a stream is read, and the last rows."""
    stream = Generated(pieces)
    tracemalloc.start()
    try:
        rows: list[Row | BadRow] = []
        for row in read_rows(stream, kind):
            rows = [*rows[-3:], row]
        return tracemalloc.get_traced_memory()[1], rows
    finally:
        tracemalloc.stop()


GIB_OF_X = [b"x" * PIECE] * (1024 * MIB // PIECE)
LAST = {Kind.TXT: b"\nlast\n", Kind.JSONL: b'\n{"prompt": "last"}\n', Kind.CSV: b"\nlast\n"}


@pytest.mark.parametrize("kind", Kind)
def test_a_line_of_a_gibibyte_costs_no_memory_and_the_next_is_read(kind: Kind) -> None:
    head = [b"prompt\n"] if kind is Kind.CSV else []
    held, rows = peak([*head, *GIB_OF_X, LAST[kind]], kind)
    assert held < 2 * MIB
    assert rows == [BadRow(len(head) + 1, f"longer than {LONGEST} bytes"), prompt(len(head) + 2, "last")]


@pytest.mark.parametrize("line", [b"x" * 99 + b"\n", b"\n", b'""\n'])
def test_a_quote_that_is_never_closed_costs_no_memory(line: bytes) -> None:
    pieces = itertools.chain([b'prompt\n"'], [line * (PIECE // len(line))] * 160)
    held, rows = peak(pieces, Kind.CSV)
    assert held < 2 * MIB
    bad = rows[-1]
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal) == (2, True)


def test_a_million_brackets_cost_no_memory() -> None:
    held, rows = peak([b"[" * PIECE] * 16 + [b"\n"], Kind.JSONL)
    assert held < 2 * MIB
    assert [row[0] for row in rows] == [1]


# --- the first rows, ahead


def test_the_first_rows_are_read_at_once_and_the_others_when_they_are_wanted() -> None:
    stream = Slow(*(b"%d\n" % number for number in range(1, CHECKED_FIRST + 3)))
    rows = Ahead(read_rows(stream, Kind.TXT))
    assert CHECKED_FIRST == 1000
    assert len(stream.found) == 2
    assert rows.bad == []
    assert [next(rows).line for _ in range(1002)] == list(range(1, 1003))


def test_the_bad_ones_among_the_first_are_told() -> None:
    data = b"a\n\x00bad\nc\n" + b"x\n" * 997 + b"\x00bad too\n"
    rows = Ahead(read_rows(io.BytesIO(data), Kind.TXT))
    assert [bad.line for bad in rows.bad] == [2]
    assert [row.line for row in rows] == list(range(1, 1002))


def test_a_short_file_is_read_whole() -> None:
    rows = Ahead(read_rows(io.BytesIO(b"a\nb\n"), Kind.TXT), 5)
    assert list(rows) == [prompt(1, "a"), prompt(2, "b")]
    assert list(rows) == []


def test_lines_of_json_may_come_from_anything_that_has_lines() -> None:
    pieces = [json.dumps({"prompt": str(each)}).encode() + b"\n" for each in range(3)]
    assert list(read_rows(Generated(pieces), Kind.JSONL)) == [prompt(each + 1, str(each)) for each in range(3)]
