"""A header, and a row a record."""

import csv
import io

import pytest

from flux_klein_async.ledger.csvrows import csv_rows
from flux_klein_async.ledger.lines import LONGEST, lines
from flux_klein_async.ledger.rows import BadRow, Row

from .generated import Slow


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
