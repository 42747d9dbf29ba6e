"""A file of prompts becomes rows, good and bad, whatever is in it, in constant memory."""

import asyncio
import csv
import io
import itertools
import json
import os
import threading
import tracemalloc
from collections.abc import Generator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from flux_klein_async.batch.formats import FileFormat
from flux_klein_async.batch.rows import (
    LONGEST,
    Columns,
    DiskMap,
    Row,
    lines,
    read_ahead,
    read_rows,
)
from flux_klein_async.errors import JournalError
from flux_klein_async.models import KLEIN_9B_TEXT_TO_IMAGE
from tests.fakes import png

from .generated import Generated

TXT, JSONL, CSV = FileFormat


def read(data: bytes, file_format: FileFormat) -> list[Row]:
    rows = list(read_rows(io.BytesIO(data), file_format))
    assert [row.number for row in rows] == list(range(len(rows)))
    return [row._replace(number=0) for row in rows]


def prompt(line: int, text: str, row_id: str | None = None, **size: int) -> Row:
    return Row(line, {"prompt": text, **size}, row_id)


def bad(line: int, problem: str) -> Row:
    return Row(line, {}, problem=problem)


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
    assert list(lines(io.BytesIO(data))) == expected


def test_a_line_beyond_the_bound_is_cut_and_the_next_is_read() -> None:
    data = b"12345\n" + b"x" * 200_000 + b"\nz\n" + b"y" * 9
    assert list(lines(io.BytesIO(data), 6)) == [(1, b"12345\n"), (2, b"xxxxxxx"), (3, b"z\n"), (4, b"yyyyyyy")]


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
    # As spreadsheets and data frames write it.
    (CSV, b"PROMPT;Height;\r\na, b;64;\r\nc;;;;\r\n", [(2, "a, b", None, 64), (3, "c")]),
    (CSV, b'"prompt";"height"\n"a";"64"\n', [(2, "a", None, 64)]),
    (CSV, b'"prompt","height"\n"a","64"\n', [(2, "a", None, 64)]),
    (CSV, b"sep=;\r\nId;Prompt\r\nx;a\r\n", [(3, "a", "x")]),
    (CSV, b"prompt\theight\na;b\t64.0\n", [(2, "a;b", None, 64)]),
    (CSV, b"Unnamed: 0,,prompt,height\n0,7,a,64.0\n1,,b,\n", [(2, "a", None, 64), (3, "b")]),
    (JSONL, b'{"prompt": "a", "height": 64.0}', [(1, "a", None, 64)]),
]  # type: ignore[list-item]


@pytest.mark.parametrize(("file_format", "data", "expected"), GOOD)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_good_file_gives_its_rows(file_format: FileFormat, data: bytes, expected: list[Any], mark: bytes) -> None:
    rows = [prompt(*row[:3], **({"height": row[3]} if len(row) > 3 else {})) for row in expected]
    assert read(mark + data, file_format) == rows


def test_the_order_of_the_fields_makes_no_difference() -> None:
    one, other = read(b'{"width": 64, "prompt": "a"}\n{"prompt": "a", "width": 64}', JSONL)
    assert list(one.fields) == list(other.fields) == ["prompt", "width"]


# --- bad rows: named, and the next row is read

KNOWN = "known are prompt, width, height, id; for the fields of another model pass --model"
EDIT = "blackforestlabs/flux-2/dev/edit"
BAD: list[tuple[FileFormat, bytes, str]] = [
    (TXT, b"a\rb", "a carriage return within the line"),
    (TXT, b"caf\xe9", "not UTF-8 (byte 0xE9); if the file is Latin-1"),
    (TXT, b"x" * (LONGEST + 1), f"longer than {LONGEST} bytes"),
    (TXT, b"a\x1b[2J", "prompt: the control character U+001B is not allowed"),
    (JSONL, b"{", "not JSON: Expecting property name"),
    (JSONL, b'"a"', 'not a JSON object: write a row as {"prompt": "a snow leopard"}'),
    (JSONL, b'{"prompt": "a", "prompt": "b"}', "the field 'prompt' is there twice: remove one of them"),
    (JSONL, b'{"prompt": "a", "width": NaN}', "NaN is not a number in JSON"),
    (JSONL, b'{"prompt": "a", "width": 1' + b"0" * 5000 + b"}", "a number has too many digits"),
    (JSONL, b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
    (JSONL, b'{"prompt": "a", "seed": 3}', "unknown field 'seed'; known are prompt, width, height, id"),
    (JSONL, b'{"prompt": "a", "b": 1, "c\\n": 2}', "unknown fields 'b', 'c\\n'"),
    (JSONL, b'{"prompt": "a", "b": 1}', f"unknown field 'b'; {KNOWN} ID"),
    (JSONL, b'{"prompt": "a", "b": 1, "image_urls": []}', f"unknown fields 'b', 'image_urls'; {KNOWN} {EDIT}"),
    (JSONL, b'{"prompt": "a", "steps": 8}', f"unknown field 'steps'; {KNOWN} {KLEIN_9B_TEXT_TO_IMAGE}"),
    (JSONL, b'{"width": 64}', "prompt: missing"),
    (JSONL, b"{}", "prompt: missing"),
    (JSONL, b'{"prompt": " "}', "prompt: the prompt is blank"),
    (JSONL, b'{"prompt": "a", "width": 63}', "width: 63 is less than 64"),
    (JSONL, b'{"prompt": "a", "height": "64"}', "height: '64' is not a whole number"),
    (JSONL, b'{"prompt": "\\ud800"}', "prompt: the control character U+D800 is not allowed"),
    (JSONL, b'{"prompt": "a", "id": true}', "id: neither text nor a whole number"),
    (JSONL, b'{"prompt": "a", "id": 1.5}', "id: neither text nor a whole number"),
    (JSONL, b'{"prompt": "a", "id": "  "}', "id: blank; leave it out"),
    (
        JSONL,
        b'{"prompt": "a", "id": "' + b"x" * 201 + b'"}',
        "id: 'xxxxxxxxxxxxxxxxxxxx'... has 201 characters, of at most 200: shorten it",
    ),
    (JSONL, b'{"prompt": "a", "id": "\\n"}', "id: blank"),
    (JSONL, b'{"prompt": "a", "id": "a\\u2028"}', "id: the control character U+2028 is not allowed"),
    (JSONL, b'{"prompt": "a", "width": 64.5}', "width: 64.5 is not a whole number"),
    (CSV, b"a,b", "2 cells, but the header has 1; put quotes around a prompt with commas"),
    (CSV, b'"a"b"c"', "not CSV"),
    (CSV, b"a\rb", "not CSV: new-line character seen in unquoted field"),
    (CSV, b"caf\xe9", "not UTF-8 (byte 0xE9)"),
]


@pytest.mark.parametrize(("file_format", "line", "problem"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_and_the_next_is_read(file_format: FileFormat, line: bytes, problem: str) -> None:
    good = b'{"prompt": "z"}' if file_format is JSONL else b"z"
    head = b"prompt\n" if file_format is CSV else b""
    found, last = read(head + line + b"\n" + good, file_format)
    number = 1 + bool(head)
    assert (found.line, last) == (number, prompt(number + 1, "z"))
    assert (found.problem or "").startswith(problem)
    assert (found.problem or "").isprintable()


def test_a_csv_size_that_is_not_a_number_is_named() -> None:
    wide, broken = read(b"id,prompt,width\nx,a,wide\n,b,1024.5\n", CSV)
    assert (wide.place, wide.problem) == ("Line 2 (x)", "width: 'wide' is not a whole number")
    assert broken.problem == "width: '1024.5' is not a whole number"


def test_a_quote_within_a_csv_field_is_named_for_what_it_is() -> None:
    text = b'prompt\na 12" screen\na 14" screen\nthe last\n'
    assert read(text, CSV)[0] == bad(2, 'not CSV: a quote within a field: write the field as "a 12"" screen"')


def test_columns_can_be_named_and_left_out() -> None:
    data = b"notes,Text,prompt,,width\nn,a,p,u,64\n"
    columns = Columns("text", ignore_extra=True)
    assert list(read_rows(io.BytesIO(data), CSV, columns=columns)) == [prompt(2, "a", width=64)]
    [row] = read_rows(io.BytesIO(data), CSV, columns=Columns("text"))
    assert (row.problem or "").startswith("unknown columns 'notes', 'prompt'")
    [row] = read_rows(io.BytesIO(b"prompt,image_urls\na,in.png\n"), CSV, model="owner/other")
    assert (row.problem or "").endswith(': {"prompt": "at night", "image_urls": [{"file": "in.png"}]}')
    assert read(b"prompt,\na,x\n", CSV) == [
        bad(2, "column 2 has no name and holds 'x'; --ignore-extra-columns ignores it")
    ]


# --- what ends the reading

FATAL: list[tuple[FileFormat, bytes, int, str]] = [
    (CSV, b"", 1, "there is no header with the columns prompt"),
    (
        CSV,
        b"text,id\na,b",
        1,
        "there is no column 'prompt'; the first line names 'text', 'id': name the column of prompts 'prompt', or pass",
    ),
    (CSV, b"Prompt;notes\na;64", 1, "unknown column 'notes'; known are prompt, width, height, id (the first line is"),
    (CSV, b'"a"b"c"\n', 1, "not CSV: "),
    (CSV, b"prompt,a,b\n", 1, "unknown columns 'a', 'b'; known are"),
    (CSV, b"prompt\tPROMPT\n", 1, "the column 'prompt' is there twice: remove or rename one of them"),
    (JSONL, b'[{"prompt": "a"}]', 1, "a JSON array; write an object on each line"),
    (JSONL, b"\x1f\x8b\x08", 1, "the file is compressed with gzip"),
    (CSV, b"PK\x03\x04", 1, "the file is an Excel workbook or another zip"),
    (TXT, b"\xd0\xcf\x11\xe0", 1, "the file is an Excel workbook"),
    (CSV, b"id,id,prompt\n", 1, "the column 'id' is there twice: remove or rename one of them"),
    (CSV, b"id\n", 1, "there is no column 'prompt'"),
    (CSV, b"\n,\ncaf\xe9\nprompt\na", 3, "not UTF-8 (byte 0xE9)"),
    (CSV, b'prompt\na\n"b\nc\n', 3, "a quote that opens in this record is never closed"),
    (CSV, b"prompt\n" + b"x" * (LONGEST + 1), 2, f"a record longer than {LONGEST} bytes"),
    (CSV, b'prompt\n"' + b"x\n" * LONGEST, 2, f"a record longer than {LONGEST} bytes"),
    (TXT, "a cat\n".encode("utf-16"), 1, "the file is not UTF-8; convert it first"),
    (TXT, "a cat\n".encode("utf-16-le"), 1, "the file is not UTF-8; convert it first"),
    (JSONL, "a".encode("utf-32"), 1, "the file is not UTF-8; convert it first"),
]


@pytest.mark.parametrize(("file_format", "data", "line", "problem"), FATAL, ids=range(len(FATAL)))
def test_a_file_that_cannot_be_read_any_further_says_why_in_its_last_row(
    file_format: FileFormat, data: bytes, line: int, problem: str
) -> None:
    last = read(data, file_format)[-1]
    assert last.line == line
    assert (last.problem or "").startswith(problem)


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
        bad(2, "the rest cannot be read: Input/output error")._replace(number=1),
    ]


@pytest.mark.parametrize("file_format", [JSONL, CSV])
def test_an_id_that_came_before_is_bad_and_the_id_of_a_bad_row_is_free(file_format: FileFormat) -> None:
    rows = [("a", "x"), ("\x1b", "y"), ("b", "x"), ("c", "y")]
    out = io.StringIO()
    csv.writer(out).writerows([["prompt", "id"], *rows])
    data = "\n".join(json.dumps({"prompt": text, "id": i}) for text, i in rows)
    first, _, twice, last = read((out.getvalue() if file_format is CSV else data).encode(), file_format)
    assert twice == bad(first.line + 2, f"line {first.line} has the same id, 'x'")
    assert last.problem is None


# --- other models


def test_a_row_of_another_model_has_any_field_and_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    file = {"file": "a.png"}
    given = {
        "id": "x",
        "prompt": "@a.png",
        "seed": 3,
        "none": None,
        "image_urls": [file, {"file": str(tmp_path / "a.png")}],
        "deep": {"mask": file, "file": 5, "text": {"file": "a.png", "more": 1}},
        "number": {"file": 5},
    }
    [row] = read_rows(io.BytesIO(json.dumps(given).encode()), JSONL, model="owner/other", folder=tmp_path)
    assert (row.id, row.problem) == ("x", None)
    assert list(row.fields) == ["prompt", "seed", "image_urls", "deep", "number"]
    files = [*row.fields["image_urls"], row.fields["deep"]["mask"]]
    assert [str(each.path) for each in files] == [str(tmp_path / "a.png")] * 3
    assert row.fields["deep"] == {**given["deep"], "mask": files[2]}
    assert row.fields["prompt"] == "@a.png"
    assert row.fields["number"] == {"file": 5}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"image": {"file": "no.png"}}, "image: the file '/no.png' does not exist; name one that does"),
        ({"image": {"file": ""}}, "image: the file '/' is a directory; name one of its files"),
        (
            {"image": {"file": "~no-such-user/a.png"}},
            "image: the file '/~no-such-user/a.png' does not exist; name one that does",
        ),
        ({"text": "\ud800"}, "text: surrogates not allowed; write whole characters"),
        ({"prompt": "\x1b"}, "prompt: the control character U+001B is not allowed; remove it"),
        ({"width": 10**30, "id": ""}, "id: blank; leave it out if the row has none"),
    ],
)
def test_a_bad_row_of_another_model_says_why(data: dict[str, Any], problem: str) -> None:
    assert list(read_rows(io.BytesIO(json.dumps(data).encode()), JSONL, model="owner/other", folder="/")) == [
        Row(1, {"prompt": data["prompt"]} if "prompt" in data else {}, problem=problem)
    ]


def test_a_bad_row_keeps_its_prompt_and_an_id_that_is_its_own() -> None:
    rows = [{"id": "a", "prompt": "x", "width": 1}, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}]
    rows += [{"id": "b", "prompt": "x", "sed": 1}]
    first, _, twice, unknown = read("\n".join(map(json.dumps, rows)).encode(), JSONL)
    assert (first.id, first.fields, first.problem) == ("a", {"prompt": "x"}, "width: 1 is less than 64")
    assert twice == bad(3, "line 2 has the same id, 'a'")
    assert (unknown.place, unknown.fields) == ("Line 4 (b)", {"prompt": "x"})


def test_a_row_nested_too_deeply_is_bad() -> None:
    deep = b'{"a": ' + b"[" * 60_000 + b"]" * 60_000 + b"}"
    assert list(read_rows(io.BytesIO(deep), JSONL, model="owner/other")) == [bad(1, "nested too deeply")]


def test_rows_of_the_9b_model_have_its_fields() -> None:
    rows = [{"prompt": "a", "steps": 8}, {"prompt": "a", "steps": 101}, {"prompt": "a", "seed": 1}]
    data = "\n".join(map(json.dumps, rows)).encode()
    good, *others = read_rows(io.BytesIO(data), JSONL, model=KLEIN_9B_TEXT_TO_IMAGE)
    assert good.fields == rows[0]
    assert [row.problem for row in others] == [
        "steps: 101 is more than 100",
        f"unknown field 'seed'; {KNOWN.replace('height', 'height, steps')} {EDIT}",
    ]


# --- constant memory, and each row as soon as it is there


@pytest.mark.parametrize("file_format", FileFormat)
def test_a_row_is_given_before_the_next_is_there(file_format: FileFormat) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        head = {TXT: b"", JSONL: b"", CSV: b"prompt\n"}[file_format]
        line = {TXT: b"a\n", JSONL: b'{"prompt": "a"}\n', CSV: b"a\n"}[file_format]
        pipe.write(head + line)
        rows = read_rows(stream, file_format)
        assert next(rows).problem is None
        pipe.write(line)
        assert next(rows).problem is None


@pytest.mark.parametrize(("file_format", "head"), [(TXT, b""), (JSONL, b""), (CSV, b"prompt\n"), (CSV, b'prompt\n"')])
def test_a_line_of_any_length_costs_no_memory(file_format: FileFormat, head: bytes) -> None:
    stream = Generated(itertools.chain([head] if head else [], itertools.repeat(b"x" * 65_536, 3000), [b"\n"]))
    tracemalloc.start()
    try:
        [row] = read_rows(stream, file_format)
        assert row.problem
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# --- reading ahead in a thread


def counted(count: int, *, then: Exception | None = None) -> Generator[Row, None, None]:
    for number in range(count):
        yield prompt(number, f"prompt {number}")
    if then is not None:
        raise then


@pytest.mark.parametrize("count", [0, 1, 3000])
async def test_every_row_comes_once_and_in_order(count: int) -> None:
    assert [row async for row in read_ahead(counted(count))] == list(counted(count))


async def test_a_slow_pipe_is_read_line_by_line_and_does_not_hold_up_the_loop() -> None:
    gates = [threading.Event() for _ in range(3)]

    def slowly() -> Generator[Row, None, None]:
        for number, gate in enumerate(gates):
            gate.wait()
            yield prompt(number, "a")

    async with aclosing(read_ahead(slowly())) as rows:
        for number, gate in enumerate(gates):
            coming = asyncio.ensure_future(anext(rows))
            await asyncio.sleep(0)
            assert not coming.done()
            gate.set()
            assert await coming == prompt(number, "a")


async def test_no_more_is_read_than_is_wanted_soon_and_a_closed_iterator_closes_its_rows() -> None:
    read, over = [], threading.Event()

    def rows() -> Generator[Row, None, None]:
        try:
            for row in counted(10_000):
                read.append(row)
                yield row
        finally:
            over.set()

    async with aclosing(read_ahead(rows())) as ahead:
        for _ in range(2000):
            await anext(ahead)
        assert len(read) <= 2000 + 300
    assert await asyncio.get_running_loop().run_in_executor(None, over.wait, 10)
    assert len(read) <= 2000 + 300


@pytest.mark.parametrize("before", [0, 1500])
async def test_an_error_of_reading_is_raised_on_the_loop_after_the_rows_before_it(before: int) -> None:
    rows = read_ahead(counted(before, then=JournalError("no room")))
    for _ in range(before):
        await anext(rows)
    with pytest.raises(JournalError):
        await anext(rows)


def test_a_thread_whose_loop_is_closed_ends() -> None:
    gate, over = threading.Event(), threading.Event()

    def rows() -> Generator[Row, None, None]:
        gate.wait()
        try:
            yield prompt(0, "a")
        finally:
            over.set()

    async def body() -> None:
        reading = asyncio.ensure_future(anext(read_ahead(rows())))
        await asyncio.sleep(0)
        reading.cancel()

    asyncio.run(body())
    gate.set()
    assert over.wait(10)


# --- remembering


def test_a_disk_map_can_be_used_from_any_thread_and_shares_nothing() -> None:
    known, other = DiskMap(), DiskMap()
    known.put(b"k", 1)
    known.put(b"k", b"two")
    assert [known.get(b"k"), known.get(b"K"), other.get(b"k")] == [b"two", None, None]
    thread = threading.Thread(target=known.put, args=(b"l", 3))
    thread.start()
    thread.join()
    assert known.get(b"l") == 3
    known.close()
    other.close()


def test_a_full_disk_is_reported_with_what_to_do() -> None:
    known = DiskMap()
    known._do("PRAGMA max_page_count = 3")
    with pytest.raises(JournalError, match="SQLITE_TMPDIR"):
        for number in range(10_000):
            known.put(b"%d" % number * 100, number)
    known.close()
