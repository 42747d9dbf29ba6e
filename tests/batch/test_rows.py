"""A file of prompts becomes rows, good and bad, whatever is in it, in constant memory."""

import csv
import io
import itertools
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from flux_klein_async.batch.rows import (
    CHECKED_FIRST,
    LONGEST,
    Ahead,
    BadRow,
    FileFormat,
    Line,
    Row,
    Seen,
    kind_of,
    lines,
    read_rows,
)
from flux_klein_async.errors import InvalidInputError, JournalError

from .generated import Generated

TXT, JSONL, CSV = FileFormat


def read(data: bytes, kind: FileFormat) -> list[Row | BadRow]:
    rows = list(read_rows(io.BytesIO(data), kind))
    assert all(row.number == number for number, row in enumerate(rows) if isinstance(row, Row))
    return [row._replace(number=0) if isinstance(row, Row) else row for row in rows]


def prompt(line: int, text: str, row_id: str | None = None, **size: int) -> Row:
    return Row(line, row_id, {"prompt": text, **size})


# --- lines


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", [(1, b"a")]),
        (b"a\n\nb\r\nc", [(1, b"a\n"), (2, b"\n"), (3, b"b\r\n"), (4, b"c")]),
        (b"a\rb\x85c\xe2\x80\xa8\n", [(1, b"a\rb\x85c\xe2\x80\xa8\n")]),
    ],
)
def test_lines_end_at_line_feeds_and_are_counted(data: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert list(lines(io.BytesIO(data))) == [Line(*line) for line in expected]


def test_a_line_beyond_the_bound_is_cut_and_the_next_is_read() -> None:
    data = b"12345\n" + b"x" * 200_000 + b"\nz\n" + b"y" * 9
    assert list(lines(io.BytesIO(data), 6)) == [
        Line(1, b"12345\n"),
        Line(2, b"xxxxxxx", cut=True),
        Line(3, b"z\n"),
        Line(4, b"yyyyyyy", cut=True),
    ]


# --- good files

GOOD: list[tuple[FileFormat, bytes, list[Row]]] = [
    (
        TXT,
        "a cat\n\n  a dog \n# no comment\né🐆".encode(),
        [(1, "a cat"), (3, "  a dog "), (4, "# no comment"), (5, "é🐆")],
    ),
    (TXT, b'a, "b"\tc\r\n', [(1, 'a, "b"\tc')]),
    (JSONL, b'{"prompt": "a"}\n \n{"id": 7, "height": 64, "prompt": "b\\n"}', [(1, "a"), (3, "b\n", "7", 64)]),
    (JSONL, b'{"prompt": "a", "width": null, "id": null}', [(1, "a")]),
    (CSV, b'prompt,id\n"a, ""b""",x\n,\n\n"c\nd",\n', [(2, 'a, "b"', "x"), (5, "c\nd")]),
    (CSV, b" height , prompt\r\n 64 ,a\r\n,b\r\n", [(2, "a", None, 64), (3, "b")]),
    (CSV, b'prompt\n"a\r\nb"\nc', [(2, "a\r\nb"), (4, "c")]),
]  # type: ignore[list-item]


@pytest.mark.parametrize(("kind", "data", "expected"), GOOD)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_good_file_gives_its_rows(kind: FileFormat, data: bytes, expected: list[Any], mark: bytes) -> None:
    rows = [prompt(*row[:3], **({"height": row[3]} if len(row) > 3 else {})) for row in expected]
    assert read(mark + data, kind) == rows


@pytest.mark.parametrize(("quoting", "end"), [(csv.QUOTE_MINIMAL, "\n"), (csv.QUOTE_ALL, "\r\n")])
def test_what_the_csv_and_json_modules_write_comes_back(quoting: int, end: str) -> None:
    texts = ["plain", "with, comma", 'with "quotes"', "with\nbreak", " blanks ", "é🐆", "tab\t"]
    out = io.StringIO()
    csv.writer(out, quoting=quoting, lineterminator=end).writerows([["prompt"], *([text] for text in texts)])
    assert [row.fields["prompt"] for row in read(out.getvalue().encode(), CSV)] == texts  # type: ignore[union-attr]
    for ascii_only in (True, False):
        data = end.join(json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in texts).encode()
        assert [row.fields["prompt"] for row in read(data, JSONL)] == texts  # type: ignore[union-attr]


def test_the_order_of_the_fields_makes_no_difference() -> None:
    one, other = read(b'{"width": 64, "prompt": "a"}\n{"prompt": "a", "width": 64}', JSONL)
    assert isinstance(one, Row)
    assert isinstance(other, Row)
    assert list(one.fields) == list(other.fields) == ["prompt", "width"]


# --- bad rows: named, and the next row is read

BAD: list[tuple[FileFormat, bytes, str]] = [
    (TXT, b"a\rb", "a carriage return within the line"),
    (TXT, b"caf\xe9", "not UTF-8 (byte 0xE9); if the file is Latin-1"),
    (TXT, b"x" * (LONGEST + 1), f"longer than {LONGEST} bytes"),
    (TXT, b"a\x1b[2J", "prompt: the control character U+001B is not allowed"),
    (JSONL, b"{", "no JSON: Expecting property name"),
    (JSONL, b'["a"]', 'no JSON object: write a row as {"prompt": "a snow leopard"}'),
    (JSONL, b'{"prompt": "a", "prompt": "b"}', "the field 'prompt' is there twice"),
    (JSONL, b'{"prompt": "a", "width": NaN}', "NaN is no number in JSON"),
    (JSONL, b'{"prompt": "a", "width": 1' + b"0" * 5000 + b"}", "a number has too many digits"),
    (JSONL, b"[" * 100_000, "nested too deeply"),
    (JSONL, b'{"prompt": "a", "seed": 3}', "unknown field 'seed'; known are prompt, width, height, id"),
    (JSONL, b'{"prompt": "a", "b": 1, "c\\n": 2}', "unknown fields 'b', 'c\\n'"),
    (JSONL, b'{"width": 64}', "prompt: Field required"),
    (JSONL, b'{"prompt": " "}', "prompt: Value error, the prompt is blank"),
    (JSONL, b'{"prompt": "a", "width": 63}', "width: Input should be greater than or equal to 64"),
    (JSONL, b'{"prompt": "a", "height": "64"}', "height: Input should be a valid integer"),
    (JSONL, b'{"prompt": "\\ud800"}', "prompt: the control character U+D800 is not allowed"),
    (JSONL, b'{"prompt": "a", "id": true}', "id: neither text nor a whole number"),
    (JSONL, b'{"prompt": "a", "id": 1.5}', "id: neither text nor a whole number"),
    (JSONL, b'{"prompt": "a", "id": "  "}', "id: blank; leave it out"),
    (JSONL, b'{"prompt": "a", "id": "' + b"x" * 201 + b'"}', "id: longer than 200 characters"),
    (JSONL, b'{"prompt": "a", "id": "\\n"}', "id: blank"),
    (JSONL, b'{"prompt": "a", "id": "a\\u2028"}', "id: the control character U+2028 is not allowed"),
    (CSV, b"a,b", "2 cells, but the header has 1; put quotes around a prompt with commas"),
    (CSV, b'"a"b"c"', "no CSV"),
    (CSV, b"a\rb", "no CSV: new-line character seen in unquoted field"),
    (CSV, b"caf\xe9", "not UTF-8 (byte 0xE9)"),
]


@pytest.mark.parametrize(("kind", "line", "problem"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_and_the_next_is_read(kind: FileFormat, line: bytes, problem: str) -> None:
    good = b'{"prompt": "z"}' if kind is JSONL else b"z"
    head = b"prompt\n" if kind is CSV else b""
    bad, last = read(head + line + b"\n" + good, kind)
    number = 1 + bool(head)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal, last) == (number, False, prompt(number + 1, "z"))
    assert bad.problem.startswith(problem)
    assert bad.problem.isprintable()


def test_a_csv_size_that_is_no_number_is_named() -> None:
    assert read(b"prompt,width\na,wide\nb,1024.5\n", CSV) == [
        BadRow(2, "width: not a whole number of pixels: 'wide'"),
        BadRow(3, "width: not a whole number of pixels: '1024.5'"),
    ]


# --- what ends the reading

FATAL: list[tuple[FileFormat, bytes, int, str]] = [
    (CSV, b"", 1, "there is no header with the columns prompt"),
    (
        CSV,
        b"text,id\na,b",
        1,
        "unknown column 'text'; known are prompt, width, height, id (the first line is the header)",
    ),
    (CSV, b"prompt;width\na;64", 1, "columns are separated by commas; this is one column, 'prompt;width'"),
    (CSV, b"id,id,prompt\n", 1, "the column 'id' is there twice"),
    (CSV, b"id\n", 1, "there is no column 'prompt'"),
    (CSV, b'prompt\na\n"b\nc\n', 3, "a quote that opens in this record is never closed"),
    (CSV, b"prompt\n" + b"x" * (LONGEST + 1), 2, f"a record longer than {LONGEST} bytes"),
    (CSV, b'prompt\n"' + b"x\n" * LONGEST, 2, f"a record longer than {LONGEST} bytes"),
    (TXT, "a cat\n".encode("utf-16"), 1, "the file is not UTF-8; convert it first"),
    (TXT, "a cat\n".encode("utf-16-le"), 1, "the file is not UTF-8; convert it first"),
    (JSONL, "a".encode("utf-32"), 1, "the file is not UTF-8; convert it first"),
]


@pytest.mark.parametrize(("kind", "data", "line", "problem"), FATAL, ids=range(len(FATAL)))
def test_what_cannot_be_read_any_further_is_the_last_row(
    kind: FileFormat, data: bytes, line: int, problem: str
) -> None:
    last = read(data, kind)[-1]
    assert isinstance(last, BadRow)
    assert (last.line, last.fatal) == (line, True)
    assert last.problem.startswith(problem)


class Breaks(io.RawIOBase):
    """Breaks after its first line."""

    def __init__(self) -> None:
        self.given = False

    def readline(self, _size: int | None = -1, /) -> bytes:
        if self.given:
            raise OSError(5, "Input/output error")
        self.given = True
        return b"a\n"


def test_a_file_that_breaks_is_told_with_the_line() -> None:
    assert list(read_rows(Breaks(), TXT)) == [
        prompt(1, "a"),
        BadRow(2, "the rest cannot be read: Input/output error", fatal=True),
    ]


@pytest.mark.parametrize("kind", [JSONL, CSV])
def test_an_id_that_came_before_is_bad_and_the_id_of_a_bad_row_is_free(kind: FileFormat) -> None:
    rows = [("a", "x"), ("\x1b", "y"), ("b", "x"), ("c", "y")]
    out = io.StringIO()
    csv.writer(out).writerows([["prompt", "id"], *rows])
    data = out.getvalue() if kind is CSV else "\n".join(json.dumps({"prompt": text, "id": i}) for text, i in rows)
    first, _, twice, last = read(data.encode(), kind)
    assert twice == BadRow(first.line + 2, f"its id is that of line {first.line} too")
    assert isinstance(last, Row)


# --- constant memory, and each row as soon as it is there


@pytest.mark.parametrize("kind", FileFormat)
def test_a_row_is_given_before_the_next_is_there(kind: FileFormat) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        head = {TXT: b"", JSONL: b"", CSV: b"prompt\n"}[kind]
        line = {TXT: b"a\n", JSONL: b'{"prompt": "a"}\n', CSV: b"a\n"}[kind]
        pipe.write(head + line)
        rows = read_rows(stream, kind)
        assert isinstance(next(rows), Row)
        pipe.write(line)
        assert isinstance(next(rows), Row)


@pytest.mark.parametrize(("kind", "head"), [(TXT, b""), (JSONL, b""), (CSV, b"prompt\n"), (CSV, b'prompt\n"')])
def test_a_line_of_any_length_costs_no_memory(kind: FileFormat, head: bytes) -> None:
    stream = Generated(itertools.chain([head] if head else [], itertools.repeat(b"x" * 65_536, 3000), [b"\n"]))
    tracemalloc.start()
    try:
        [row] = read_rows(stream, kind)
        assert isinstance(row, BadRow)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# --- names of files, reading ahead, remembering


@pytest.mark.parametrize(("path", "kind"), [("a.txt", TXT), ("b/c.JSONL", JSONL), ("d.e.csv", CSV)])
def test_the_end_of_a_files_name_tells_its_format(path: str, kind: FileFormat) -> None:
    assert kind_of(path) is kind


@pytest.mark.parametrize("path", ["a", "a.json", "a.xlsx", ".txt/a"])
def test_a_file_of_another_name_is_refused_with_what_to_do(path: str) -> None:
    with pytest.raises(InvalidInputError, match=r"does not end in .txt, .jsonl, .csv: name its format \(--format\)"):
        kind_of(path)


def test_the_first_rows_are_read_at_once_and_the_others_when_they_are_wanted() -> None:
    wanted: list[int] = []

    def rows() -> Iterator[Row | BadRow]:
        for number in range(CHECKED_FIRST + 9):
            wanted.append(number)
            yield BadRow(number, "bad") if number in {3, CHECKED_FIRST + 1} else prompt(number, "a")

    ahead = Ahead(rows())
    assert (len(wanted), ahead.total, [row.line for row in ahead.bad]) == (CHECKED_FIRST, None, [3])
    assert len(list(ahead)) == len(wanted) == CHECKED_FIRST + 9
    assert Ahead(iter([prompt(1, "a")])).total == 1


def test_seen_gives_the_value_before_from_any_thread_and_shares_nothing() -> None:
    seen, other = Seen(), Seen()
    assert [seen.add(b"k", 1), seen.add(b"k", b"two"), seen.get(b"k"), seen.get(b"K"), other.get(b"k")] == [
        None, 1, b"two", None, None
    ]  # fmt: skip
    thread = threading.Thread(target=seen.add, args=(b"l", 3))
    thread.start()
    thread.join()
    assert seen.get(b"l") == 3
    seen.close()
    other.close()


def test_a_full_disk_is_told_with_what_to_do() -> None:
    seen = Seen()
    seen._do("PRAGMA max_page_count = 3")
    with pytest.raises(JournalError, match="SQLITE_TMPDIR"):
        for number in range(10_000):
            seen.add(b"%d" % number * 100, number)
    seen.close()
