"""A file of many inputs, read as a stream: whatever its length and whatever is in it, in constant memory.

Blocking: on a loop, take rows in a thread, some hundred at a time. Opens no file; reads any binary stream, and gives
each row out as soon as it is there.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from enum import StrEnum
from itertools import chain, islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from flux_klein_async.errors import InvalidInputError
from flux_klein_async.ledger.csvrows import csv_rows
from flux_klein_async.ledger.jsonrows import json_rows
from flux_klein_async.ledger.lines import LONGEST, Line, Readable, lines
from flux_klein_async.ledger.rows import BadRow, Row, checked, named, not_utf8
from flux_klein_async.ledger.seen import Seen

if TYPE_CHECKING:
    import os

__all__ = ["CHECKED_FIRST", "Ahead", "Kind", "kind_of", "read_rows"]

CHECKED_FIRST: Final = 1000
"""Rows that are checked before the first of them is submitted."""

_UTF8: Final = b"\xef\xbb\xbf"
_OTHERS: Final = {  # byte order marks, those first that begin like others
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class Kind(StrEnum):
    """How a batch file is written."""

    TXT = "txt"
    JSONL = "jsonl"
    CSV = "csv"


def kind_of(path: "str | os.PathLike[str]") -> Kind:
    """How a file is written, by the end of its name.

    Raises:
        InvalidInputError: It ends in none that is known.
    """
    suffix = PurePath(path).suffix.lower().removeprefix(".")
    if suffix not in set(Kind):
        known = ", ".join(f".{kind}" for kind in Kind)
        raise InvalidInputError(
            f"{named(PurePath(path).name)} ends in none of {known}: say which of them it is (--format)"
        )
    return Kind(suffix)


def read_rows(stream: Readable, kind: Kind) -> Iterator[Row | BadRow]:
    """The rows of a file, the bad ones with what is wrong with them.

    A row is bad too if its id came before. One that is fatal comes last, for what lies behind it cannot be read.

    Raises:
        JournalError: There is no room for the temporary file that remembers the ids.
    """
    place = _Place()
    try:
        yield from _without_twins(_READERS[kind](place.followed(_as_utf8(lines(stream)))))
    except _EncodingError as error:
        yield BadRow(1, str(error), fatal=True)
    except OSError as error:
        yield BadRow(place.line + 1, f"the rest cannot be read: {error.strerror or error}", fatal=True)


class Ahead:
    """The rows of a file, of which the first are read at once, to be checked before anything is submitted.

    Attributes:
        bad: Those of the first rows that are bad.
        total: How many rows there are, if the first are all.
    """

    def __init__(self, rows: Iterable[Row | BadRow], count: int = CHECKED_FIRST) -> None:
        self._rows = iter(rows)
        first = list(islice(self._rows, count))
        self.bad = [row for row in first if isinstance(row, BadRow)]
        self.total = len(first) if len(first) < count else None
        self._all = chain(first, self._rows)

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self

    def __next__(self) -> Row | BadRow:
        return next(self._all)


class _EncodingError(Exception):
    """The whole file is written in another encoding."""


class _Place:
    """Which line was read last."""

    line = 0

    def followed(self, found: Iterable[Line]) -> Iterator[Line]:
        for line in found:
            self.line = line.number
            yield line


def _as_utf8(found: Iterator[Line]) -> Iterator[Line]:
    """The lines without the mark that some editors begin UTF-8 with; refuses the other encodings of Unicode."""
    for line in islice(found, 1):
        data = line.data
        other = next((name for mark, name in _OTHERS.items() if data.startswith(mark)), None)
        if other is None and 4 * data.count(0) >= len(data):
            other = "UTF-16 or no text"
        if other:
            raise _EncodingError(f"the file is {other}, not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8")
        yield line._replace(data=data.removeprefix(_UTF8))
    yield from found


def _without_twins(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    with closing(Seen()) as seen:
        for row in rows:
            if isinstance(row, Row) and row.id is not None:
                before = seen.add(row.id.encode(), row.line)
                if before is not None:
                    yield BadRow(row.line, f"the id {named(row.id)} is that of line {before!r} too")
                    continue
            yield row


def _text_rows(found: Iterable[Line]) -> Iterator[Row | BadRow]:
    """A prompt a line; blank lines say nothing."""
    for line in found:
        if line.cut:
            yield BadRow(line.number, f"longer than {LONGEST} bytes")
            continue
        try:
            prompt = line.data.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            yield BadRow(line.number, not_utf8(line.data[error.start]))
            continue
        if "\r" in prompt:
            yield BadRow(line.number, "a carriage return within the line: save the file with line ends of LF or CRLF")
        elif prompt.strip():
            yield checked(line.number, {"prompt": prompt})


_READERS: Final = {Kind.TXT: _text_rows, Kind.JSONL: json_rows, Kind.CSV: csv_rows}
