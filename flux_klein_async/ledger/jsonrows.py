"""Rows of a file that has a JSON object a line. Pure."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, NoReturn

from flux_klein_async.ledger.lines import LONGEST, Line
from flux_klein_async.ledger.rows import BadRow, Row, checked, named, not_utf8

__all__ = ["json_rows"]

_BLANK: Final = b" \t\r\n"  # what JSON calls white space


class _Fraction(NamedTuple):
    """A number that is not whole: no field has one, but an id may look like it, and means its text."""

    text: str


class _RefusedError(ValueError):
    """It is no row, for the reason that is said."""


def json_rows(lines: Iterable[Line]) -> Iterator[Row | BadRow]:
    """An object a line; blank lines say nothing."""
    for line in lines:
        if line.cut:
            yield BadRow(line.number, f"longer than {LONGEST} bytes")
        elif line.data.strip(_BLANK):
            yield _row(line.number, line.data.rstrip(b"\r\n"))


def _row(number: int, data: bytes) -> Row | BadRow:
    try:
        given = _parsed(data)
    except _RefusedError as error:
        return BadRow(number, str(error))
    if not isinstance(given, dict):
        return BadRow(number, 'no JSON object: a row looks like {"prompt": "a snow leopard"}')
    if isinstance(given.get("id"), _Fraction):
        given["id"] = given["id"].text
    return checked(number, given)


def _parsed(data: bytes) -> object:
    try:
        return _DECODER.decode(data.decode())
    except _RefusedError:
        raise
    except UnicodeDecodeError as error:
        problem = not_utf8(data[error.start])
    except json.JSONDecodeError as error:
        problem = f"no JSON: {error.msg} (character {error.colno})"
    except RecursionError:
        problem = "no row: it is nested too deeply"
    except ValueError:  # so many that Python will not count them
        problem = "no row: a number has too many digits"
    raise _RefusedError(problem)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; json alone would let the last of two equal names win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _RefusedError(f"the field {named(twice)} is there twice")
    return found


def _no_number(word: str) -> NoReturn:
    raise _RefusedError(f"{word} is no number in JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number, parse_float=_Fraction)
