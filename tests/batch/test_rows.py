"""From bytes to lines.

Remembering any number of things.

What may be in a row.

An object a line.

A header, and a row a record.

A file of many inputs, as a stream.
"""

import csv
import io
import itertools
import json
import os
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from flux_klein_async.batch.rows import (
    CHECKED_FIRST,
    LONGEST,
    Ahead,
    BadRow,
    Kind,
    Line,
    Row,
    Seen,
    checked,
    csv_rows,
    json_rows,
    kind_of,
    lines,
    named,
    not_utf8,
    read_rows,
    unknown_fields,
)
from flux_klein_async.errors import InvalidInputError, JournalError

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


@pytest.fixture
def seen():
    seen = Seen()
    yield seen
    seen.close()


def test_the_value_before_is_given_back(seen: Seen) -> None:
    assert [seen.add(b"a", 1), seen.add(b"b", b"2"), seen.add(b"a", 3), seen.add(b"a", 4)] == [None, None, 1, 3]
    assert [seen.get(b"a"), seen.get(b"b"), seen.get(b"c")] == [4, b"2", None]


def test_keys_are_bytes_and_nothing_more(seen: Seen) -> None:
    for key in (b"", b"\x00", b"a", b"a\x00", b"A", b"\xff", b"1"):
        assert seen.add(key, 1) is None


def test_it_may_move_from_thread_to_thread(seen: Seen) -> None:
    seen.add(b"a", 1)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(seen.add(b"a", 2)))
    thread.start()
    thread.join()
    assert found == [1]


def test_two_share_nothing(seen: Seen) -> None:
    other = Seen()
    seen.add(b"a", 1)
    assert other.get(b"a") is None
    other.close()


def test_a_full_disk_is_told_with_what_to_do(seen: Seen) -> None:
    pages = seen._database.execute("PRAGMA max_page_count = 10").fetchone()[0]
    with pytest.raises(JournalError, match=r"no room for temporary files; make some.*SQLITE_TMPDIR") as caught:
        for number in range(100 * pages):
            seen.add(b"%1000d" % number, number)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


LONG = "x" * 201
KNOWN = "; known are prompt, width, height, id"


@pytest.mark.parametrize(
    ("given", "row_id", "fields"),
    [
        ({"prompt": "a"}, None, {"prompt": "a"}),
        ({"prompt": " a\tb\r\nc\u2028 "}, None, {"prompt": " a\tb\r\nc\u2028 "}),
        ({"prompt": "a", "width": 64, "height": 2048, "id": "x"}, "x", {"prompt": "a", "width": 64, "height": 2048}),
        ({"prompt": "a", "width": None, "height": None, "id": None}, None, {"prompt": "a"}),
        ({"prompt": "a", "id": 7}, "7", {"prompt": "a"}),
        ({"prompt": "a", "id": "é" * 200}, "é" * 200, {"prompt": "a"}),
    ],
)
def test_a_good_row_holds_what_was_given(given, row_id, fields) -> None:
    assert checked(3, given) == Row(3, row_id, fields)


def test_the_order_of_the_fields_makes_no_other_row() -> None:
    """By its bytes a row without an id is known again: columns that were moved must not be paid for anew."""
    there, back = ({"prompt": "a", "width": 64, "height": 96}, {"height": 96, "width": 64, "prompt": "a"})
    first, second = checked(1, there), checked(1, back)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert list(first.fields.items()) == list(second.fields.items()) == list(there.items())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": None}, "prompt: Field required"),
        ({"prompt": " \n"}, "prompt: Value error, the prompt is blank"),
        ({"prompt": 1}, "prompt: Input should be a valid string"),
        ({"prompt": "a", "width": 63}, "width: Input should be greater than or equal to 64"),
        ({"prompt": "a", "height": 2049}, "height: Input should be less than or equal to 2048"),
        ({"prompt": "a", "width": "512"}, "width: Input should be a valid integer"),
        ({"prompt": "a", "width": True}, "width: Input should be a valid integer"),
        (
            {"prompt": "a", "width": 1, "height": 1},
            "width: Input should be greater than or equal to 64; height: Input should be greater than or equal to 64",
        ),
        ({"prompt": "a", "steps": 4}, "unknown field 'steps'; known are prompt, width, height, id"),
        ({"prompt": "a", "steps": None}, "unknown field 'steps'; known are prompt, width, height, id"),
        ({"prompt": "a", "id": ""}, "id: blank; leave it out where a row has none"),
        ({"prompt": "a", "id": " \u3000"}, "id: blank; leave it out where a row has none"),
        ({"prompt": "a", "id": LONG}, "id: longer than 200 characters"),
        ({"prompt": "a", "id": 10**200}, "id: longer than 200 characters"),
        ({"prompt": "a", "id": True}, "id: neither text nor a number"),
        ({"prompt": "a", "id": ["b"]}, "id: neither text nor a number"),
        ({"prompt": "a", "id": "b\tc"}, "id: the control character U+0009 (TAB) may not be in it"),
        ({"prompt": "a", "id": "b\u2028"}, "id: U+2028 (a line break) may not be in it"),
        ({"prompt": "a\ud800"}, "prompt: U+D800 (half of a surrogate pair) may not be in it"),
        ({"prompt": "a", "id": "\udfff"}, "id: U+DFFF (half of a surrogate pair) may not be in it"),
    ],
)
def test_a_bad_row_says_what_is_wrong(given, problem) -> None:
    assert checked(3, given) == BadRow(3, problem)


NAMES = {0: "NUL", 7: "BEL", 8: "BS", 11: "VT", 12: "FF", 14: "SO", 27: "ESC", 31: "US", 127: "DEL"}
CONTROLS = [*range(9), 11, 12, *range(14, 32), *range(127, 160)]


@pytest.mark.parametrize("number", CONTROLS)
def test_a_control_character_is_no_prompt_and_is_named(number: int) -> None:
    name = f" ({NAMES[number]})" if number in NAMES else ""
    found = checked(1, {"prompt": f"a{chr(number)}b"})
    assert isinstance(found, BadRow)
    assert found.problem.startswith(f"prompt: the control character U+{number:04X}{name}")
    assert chr(number) not in found.problem


@pytest.mark.parametrize("number", [*range(32), *range(127, 160)])
def test_no_control_character_is_in_an_id(number: int) -> None:
    assert isinstance(checked(1, {"prompt": "a", "id": f"a{chr(number)}b"}), BadRow)


def test_unknown_fields_are_named_but_not_all_of_a_thousand() -> None:
    assert unknown_fields("column", ["prompt", "width", "height", "id"]) is None
    assert unknown_fields("column", ["a", "\x1b"]) == r"unknown columns 'a', '\x1b'" + KNOWN
    many = unknown_fields("field", map(str, range(1000)))
    assert many == "unknown fields '0', '1', '2', '3', '4', ..." + KNOWN


def test_a_foreign_text_in_a_message_is_short_and_harmless() -> None:
    assert named("é\x1b[2J\u202e\ud800") == r"'é\x1b[2J\u202e\ud800'"
    assert named("x" * 60) == repr("x" * 60)
    assert named("x" * 61) == repr("x" * 57 + "...")


def test_what_is_no_utf8_is_told_how_to_become_it() -> None:
    assert not_utf8(0xE9) == (
        "not UTF-8 (byte 0xE9); if the file is Latin-1 or Windows-1252, "
        "convert it first: iconv -f WINDOWS-1252 -t UTF-8"
    )


def read(data: bytes) -> list[Row | BadRow]:
    return list(json_rows(lines(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"prompt": "a"}', Row(1, None, {"prompt": "a"})),
        (b' {"id": null, "prompt": "a", "width": 64}\r\n', Row(1, None, {"prompt": "a", "width": 64})),
        (b'{"prompt": "\\ud83d\\udc06 \\t\\n"}', Row(1, None, {"prompt": "\U0001f406 \t\n"})),
        ('{"prompt": "é"}'.encode(), Row(1, None, {"prompt": "é"})),
        (b'{"prompt": "a", "id": -7}', Row(1, "-7", {"prompt": "a"})),
        (b'{"prompt": "a", "id": 1.50}', Row(1, "1.50", {"prompt": "a"})),
        (b'{"prompt": "a", "id": 1e400}', Row(1, "1e400", {"prompt": "a"})),
        (b'{"prompt": "a", "id": 12345678901234567890123}', Row(1, "12345678901234567890123", {"prompt": "a"})),
    ],
)
def test_a_line_is_a_row(data: bytes, expected: Row) -> None:
    assert read(data) == [expected]


BAD = [
    (b'["a"]', 'no JSON object: a row looks like {"prompt": "a snow leopard"}'),
    (b'"a"', 'no JSON object: a row looks like {"prompt": "a snow leopard"}'),
    (b"a cat", "no JSON: Expecting value (character 1)"),
    (b'{"prompt": "a"', "no JSON: Expecting ',' delimiter (character 15)"),
    (b'{"prompt": "a"} {"prompt": "b"}', "no JSON: Extra data (character 17)"),
    (b'{"prompt": "a\x00"}', "no JSON: Invalid control character at (character 14)"),
    (b'{"prompt": "\\u0000"}', "prompt: the control character U+0000 (NUL) may not be in it"),
    (b'{"prompt": "\\ud800"}', "prompt: U+D800 (half of a surrogate pair) may not be in it"),
    (b'{"prompt": "a", "prompt": "b"}', "the field 'prompt' is there twice"),
    (b'{"prompt": "a", "x\\u001b": 1, "x\\u001b": 1}', r"the field 'x\x1b' is there twice"),
    (b'{"prompt": NaN}', "NaN is no number in JSON"),
    (b'{"prompt": "a", "width": -Infinity}', "-Infinity is no number in JSON"),
    (b'{"prompt": 1.5}', "prompt: Input should be a valid string"),
    (b'{"prompt": "a", "width": 512.0}', "width: Input should be a valid integer"),
    (b'{"prompt": "a", "width": 1e999}', "width: Input should be a valid integer"),
    (b'{"prompt": "a", "width": ' + b"1" * 100_000 + b"}", "no row: a number has too many digits"),
    (b'{"prompt": "a", "id": 1.' + b"1" * 100_000 + b"}", "id: longer than 200 characters"),
    (b"[" * 100_000, "no row: it is nested too deeply"),
    (b'{"a":' * 20_000, "no row: it is nested too deeply"),
    (b'{"prompt": "caf\xe9"}', "not UTF-8 (byte 0xE9)"),
    (b'{"prompt": "a", "seed": 1}', "unknown field 'seed'"),
    (b'{"prompt": "' + b"x" * LONGEST + b'"}', f"longer than {LONGEST} bytes"),
]


@pytest.mark.parametrize(("data", "problem"), BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_and_the_next_is_read(data: bytes, problem: str) -> None:
    bad, good = read(data + b'\n{"prompt": "b"}\n')
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal) == (1, False)
    assert bad.problem.startswith(problem)
    assert good == Row(2, None, {"prompt": "b"})


def test_blank_lines_say_nothing_and_count() -> None:
    assert read(b'\n \t\r\n{"prompt": "a"}\n\n') == [Row(3, None, {"prompt": "a"})]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_the_json_module_wrote_comes_back(ascii_only: bool) -> None:
    wanted = [
        {"prompt": f"{number} \u2028 é 🐆 \t\n", "width": 64 + number, "id": str(number)} for number in range(100)
    ]
    data = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in wanted).encode()
    assert [{**row.fields, "id": row.id} for row in read(data) if isinstance(row, Row)] == wanted


def read(data: bytes) -> list[Row | BadRow]:
    return list(csv_rows(lines(io.BytesIO(data))))


def row(line: int, prompt: str, row_id: str | None = None, **size: int) -> Row:
    return Row(line, row_id, {"prompt": prompt, **size})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"prompt\n", []),
        (b"prompt\na", [row(2, "a")]),
        (b"\r\n, \r\n prompt ,id\r\na,b\r\n", [row(4, "a", "b")]),
        (b"id,height,prompt,width\n1,64,a,2048\n", [row(2, "a", "1", height=64, width=2048)]),
        (b"id,height,prompt,width\n, ,a, +512 \n", [row(2, "a", width=512)]),
        (b'prompt,id\n"a, ""b""\r\nc\n\nd",1\ne,2\n', [row(2, 'a, "b"\r\nc\n\nd', "1"), row(6, "e", "2")]),
        (b'prompt,id\n6" nail, 1\n', [row(2, '6" nail', " 1")]),
        ("prompt\né 🐆\n".encode(), [row(2, "é 🐆")]),
        (b"prompt,id\n,\n\n a ,1\n , \n", [row(4, " a ", "1")]),
    ],
)
def test_a_record_is_a_row_and_knows_where_it_began(data: bytes, expected: list[Row]) -> None:
    assert read(data) == expected


BAD = [
    (b"a", "1 cells where the header names 3"),
    (b"a cat, sitting, at dawn,1,64", "5 cells where the header names 3; a prompt with commas in it needs quotes"),
    (b",1,64", "prompt: Value error, the prompt is blank"),
    (b"a,1,64.0", "width: not a whole number of pixels: '64.0'"),
    (b"a,1,\xd9\xa6\xd9\xa4", "width: not a whole number of pixels: '\u0666\u0664'"),
    (b"a,1," + b"1" * 5000, "width: not a whole number of pixels: '1111"),
    (b"a,1,63", "width: Input should be greater than or equal to 64"),
    (b"a, ,64", "id: blank"),
    (b"a\x00,1,64", "prompt: the control character U+0000 (NUL) may not be in it"),
    (b'"a\tb","1\n",64', "id: the control character U+000A (LF) may not be in it"),
    (b"caf\xe9,1,64", "not UTF-8 (byte 0xE9)"),
    (b'"caf\xe9\nau lait",1,64', "not UTF-8 (byte 0xE9)"),
    (b'"a" cat,1,64', "no CSV: "),
    (b"a\rb,1,64", "a carriage return outside of quotes"),
    (b"x" * LONGEST + b",1,64", f"longer than {LONGEST} bytes"),
    (b'"' + b"x" * 3 * LONGEST + b'",1,64', f"longer than {LONGEST} bytes"),
]


@pytest.mark.parametrize(("record", "problem"), BAD, ids=range(len(BAD)))
def test_a_bad_record_is_named_and_the_next_is_read(record: bytes, problem: str) -> None:
    bad, good = read(b"prompt,id,width\n" + record + b"\nb,2,64\n")
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal) == (2, False)
    assert bad.problem.startswith(problem)
    assert good == row(3 + record.count(b"\n"), "b", "2", width=64)


NO_HEADER = [
    (b"", 1, "there is no header, which names the columns"),
    (b"\n,\n", 1, "there is no header, which names the columns"),
    (b"\na snow leopard\nc\n", 2, "unknown column 'a snow leopard'"),
    (b"prompt,Width,steps\nc,5,5\n", 1, "unknown columns 'Width', 'steps'; known are prompt, width, height, id"),
    (b"id,width\nc,64\n", 1, "there is no column 'prompt'"),
    (b"prompt,id,prompt\nc,5,c\n", 1, "the column 'prompt' is there twice"),
    (b"prompt;id\nc;5\n", 1, "columns are separated by commas; this is one column, 'prompt;id'"),
    (b"prompt\tid\nc\t5\n", 1, r"columns are separated by commas; this is one column, 'prompt\tid'"),
    (b"pr\xf4mpt\nc\n", 1, "not UTF-8 (byte 0xF4)"),
    (b"prompt\rc\r", 1, "a carriage return outside of quotes"),
    (b"x" * 2 * LONGEST + b"\nprompt\nc\n", 1, f"longer than {LONGEST} bytes"),
    (b'"prompt\nc\n', 1, "a quote that opens in this record is never closed"),
]


@pytest.mark.parametrize(("data", "line", "problem"), NO_HEADER, ids=range(len(NO_HEADER)))
def test_without_a_header_nothing_can_be_read(data: bytes, line: int, problem: str) -> None:
    (bad,) = read(data)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal) == (line, True)
    assert bad.problem.startswith(problem)


NEVER_CLOSED = "a quote that opens in this record is never closed"
NO_END = f"longer than {LONGEST} bytes; is a quote not closed?; where the next record begins cannot be known"
LOST = [
    (b'"a', NEVER_CLOSED),
    (b'"a\nc,2\nd,3\n', NEVER_CLOSED),
    (b'6" nail,"a', NEVER_CLOSED),
    # Whether what follows is a row or the middle of a prompt, nobody knows.
    (b'"a cat,1\n"a dog\nat dawn",2\nc,3\n', "no CSV: "),
    (b'"a" "cat\nat dawn",2\nc,3\n', "no CSV: "),
    (b'"a\n' + b"x" * 2 * LONGEST + b'\nc,2\nd,3\n"e",4\n', NO_END),
    (b'"a\n' + b"x\n" * LONGEST + b'",2\nc,3\n', NO_END),
    (b'"' + b"x" * 2 * LONGEST + b"\nc,2\nd,3\n", NO_END),
]


@pytest.mark.parametrize(("data", "problem"), LOST, ids=range(len(LOST)))
def test_what_cannot_be_told_from_the_next_record_is_the_end(data: bytes, problem: str) -> None:
    good, bad = read(b"prompt,id\nb,1\n" + data)
    assert good == row(2, "b", "1")
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.fatal) == (3, True)
    assert bad.problem.startswith(problem)


def test_one_bad_record_makes_nobody_careless_about_the_next() -> None:
    first, second = read(b'prompt,id\n"a" b,1\n"c,2\n')
    assert first == BadRow(2, "no CSV: ',' expected after '\"'")
    assert second == BadRow(3, NEVER_CLOSED, fatal=True)


def test_a_row_is_given_out_before_the_next_is_there() -> None:
    stream = Slow(b"prompt\n", b"a\n", b'"b\n', b'c"\n', b"d\n")
    found = csv_rows(lines(stream))
    assert [next(found), next(found)] == [row(2, "a"), row(3, "b\nc")]
    assert stream.found == [b"d\n"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_the_csv_module_wrote_comes_back(quoting: int, end: str) -> None:
    wanted = [(f'{number}, "a"\n é\r\n🐆\t', str(number), 64 + number) for number in range(100)]
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator=end)
    writer.writerow(["prompt", "id", "width"])
    writer.writerows(wanted)
    found = read(out.getvalue().encode())
    assert [(each.fields["prompt"], each.id, each.fields["width"]) for each in found if isinstance(each, Row)] == wanted


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
