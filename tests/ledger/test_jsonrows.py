"""An object a line."""

import io
import json

import pytest

from flux_klein_async.ledger.jsonrows import json_rows
from flux_klein_async.ledger.lines import LONGEST, lines
from flux_klein_async.ledger.rows import BadRow, Row


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
