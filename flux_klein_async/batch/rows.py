"""From bytes to lines, however long they are: no more of a line than a bound is ever held. Pure over its stream.

Remembers any number of things in constant memory: in a temporary database that nobody else sees.

One row of a batch file: what is posted for it, or what is wrong with it. Pure; knows no file format.

Rows of a file that has a JSON object a line. Pure.

Rows of a CSV file (RFC 4180): a header that names the columns, then a row a record. Pure.

The csv module does the reading. Here is what it leaves open: how long a record may be, where it began, and what is
done when one is broken. A record that cannot be told from the next is the end: what stands in the middle of a prompt
must never be taken for a row, and be paid for.

A file of many inputs, read as a stream: whatever its length and whatever is in it, in constant memory.

Blocking: on a loop, take rows in a thread, some hundred at a time. Opens no file; reads any binary stream, and gives
each row out as soon as it is there.
"""

import csv
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from enum import StrEnum
from itertools import chain, islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol

from pydantic import ValidationError

from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.models import TextToImageInput

if TYPE_CHECKING:
    import os

__all__ = [
    "CHECKED_FIRST",
    "FIELDS",
    "LONGEST",
    "Ahead",
    "BadRow",
    "Kind",
    "Line",
    "Readable",
    "Row",
    "Seen",
    "checked",
    "csv_rows",
    "json_rows",
    "kind_of",
    "lines",
    "named",
    "not_utf8",
    "read_rows",
    "unknown_fields",
]


LONGEST: Final = 128 * 1024
"""Bytes of a line of a batch file, with its end. The csv module takes as much for a field; the longest prompt that the
model heeds in full is some fifty times shorter."""

_PIECE: Final = 64 * 1024  # bytes of a line that is skipped, at a time


class Readable(Protocol):
    """What lines are read from: any binary file, pipe or `io.BytesIO`."""

    def readline(self, size: int, /) -> bytes:
        """At most so many bytes, to the end of the line; none at the end. Returns as soon as a line is there."""
        ...


class Line(NamedTuple):
    """One line of a file.

    Attributes:
        number: Counted from 1.
        data: With its line end; of a line that is `cut` the beginning.
        cut: It is longer than the bound, and the rest of it was skipped.
        quotes: How many double quotes a line that is `cut` has; 0 for others, of which anybody can count them.
    """

    number: int
    data: bytes
    cut: bool = False
    quotes: int = 0


def lines(stream: Readable, longest: int = LONGEST) -> Iterator[Line]:
    """The lines of a stream, each as soon as it is there; they end at line feeds."""
    number = 0
    while data := stream.readline(longest + 1):
        number += 1
        if len(data) <= longest:
            yield Line(number, data)
            continue
        quotes = data.count(b'"')
        piece = data
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(_PIECE)
            quotes += piece.count(b'"')
        yield Line(number, data, cut=True, quotes=quotes)


class Seen:
    """What came before, by key. Blocking; may move from thread to thread, but is used by one at a time.

    Raises of all its calls: `JournalError` where the directory for temporary files is full.
    """

    def __init__(self) -> None:
        # An unnamed database lives in memory as far as that goes, then in a file that vanishes with it.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE seen (key BLOB PRIMARY KEY, value) WITHOUT ROWID",
            "BEGIN",  # never committed: all of it is for this one connection
        ):
            self._do(statement)

    def add(self, key: bytes, value: int | bytes) -> int | bytes | None:
        """Remember the value; return the one that the key had before, or None."""
        before = self.get(key)
        self._do("INSERT OR REPLACE INTO seen VALUES (?, ?)", key, value)
        return before

    def get(self, key: bytes) -> int | bytes | None:
        """The value that the key has, or None."""
        row = self._do("SELECT value FROM seen WHERE key = ?", key)
        found: int | bytes | None = row[0] if row else None
        return found

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def _do(self, statement: str, *values: int | bytes) -> Any:
        try:
            return self._database.execute(statement, values).fetchone()
        except sqlite3.OperationalError as error:
            raise JournalError(
                "There is no room for temporary files; make some, or name another directory in SQLITE_TMPDIR",
                cause=f"{type(error).__name__}: {error}",
            ) from error


FIELDS: Final = ("prompt", "width", "height", "id")
"""What a row may hold."""

_LONGEST_ID: Final = 200  # characters
_IN_MESSAGE: Final = 60  # characters of a foreign text
_NAMED: Final = 5  # unknown fields in a message
# Tabs and line breaks may stand in a prompt. No prompt means the others, which terminals obey instead of showing them
# (ECMA-48); half a surrogate pair is no text at all.
_NOT_IN_PROMPTS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_IDS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_C0: Final = (
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI", "DLE"),
    *("DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)
_NAMES: Final = {**dict(enumerate(_C0)), 0x7F: "DEL", 0x85: "NEL", 0x9B: "CSI"}


class Row(NamedTuple):
    """A row that can be submitted.

    Attributes:
        line: Where it begins in its file, counted from 1.
        id: The user's own name for it, or None.
        fields: What is posted: `prompt`, and `width` and `height` where they were given.
    """

    line: int
    id: str | None
    fields: dict[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be submitted.

    Attributes:
        problem: What is wrong with it, in a sentence that may hold the user's own text, as `repr` shows it.
        fatal: What comes behind it could not be read; it is the last.
    """

    line: int
    problem: str
    fatal: bool = False


def checked(line: int, given: Mapping[str, Any]) -> Row | BadRow:
    """A row of these fields, if they can be submitted; what is None was not given."""
    if unknown := unknown_fields("field", given):
        return BadRow(line, unknown)
    # In one order, whatever the file's: what is posted is by what a row without an id is known again.
    fields = {name: given[name] for name in FIELDS if given.get(name) is not None}
    row_id = fields.pop("id", None)
    if type(row_id) is int:
        row_id = str(row_id)
    problem = _id_problem(row_id) or _prompt_problem(fields.get("prompt")) or _input_problem(fields)
    return BadRow(line, problem) if problem else Row(line, row_id, fields)


def unknown_fields(word: str, names: Iterable[str]) -> str | None:
    """What is wrong with fields, or columns, of these names; None: nothing."""
    unknown = [named(name) for name in names if name not in FIELDS]
    if not unknown:
        return None
    listed = ", ".join(unknown[:_NAMED]) + (", ..." if len(unknown) > _NAMED else "")
    return f"unknown {word}{'' if len(unknown) == 1 else 's'} {listed}; known are {', '.join(FIELDS)}"


def named(text: str) -> str:
    """A foreign text as it may stand in a message."""
    return repr(text if len(text) <= _IN_MESSAGE else text[: _IN_MESSAGE - 3] + "...")


def not_utf8(byte: int) -> str:
    """What is wrong with text in which this byte cannot stand."""
    return (
        f"not UTF-8 (byte 0x{byte:02X}); if the file is Latin-1 or Windows-1252, "
        "convert it first: iconv -f WINDOWS-1252 -t UTF-8"
    )


def _id_problem(row_id: object) -> str | None:
    if row_id is None:
        return None
    if not isinstance(row_id, str):
        return "id: neither text nor a number"
    if not row_id.strip():
        return "id: blank; leave it out where a row has none"
    if len(row_id) > _LONGEST_ID:
        return f"id: longer than {_LONGEST_ID} characters"
    found = _NOT_IN_IDS.search(row_id)
    return f"id: {_character(found[0])} may not be in it" if found else None


def _prompt_problem(prompt: object) -> str | None:
    found = _NOT_IN_PROMPTS.search(prompt) if isinstance(prompt, str) else None
    return f"prompt: {_character(found[0])} may not be in it" if found else None


def _input_problem(fields: dict[str, Any]) -> str | None:
    try:
        TextToImageInput(**fields)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)
    return None


def _character(character: str) -> str:
    number = ord(character)
    code = f"U+{number:04X}"
    if 0xD800 <= number <= 0xDFFF:
        return f"{code} (half of a surrogate pair)"
    if number > 0xFF:
        return f"{code} (a line break)"
    name = _NAMES.get(number)
    return f"the control character {code}" + (f" ({name})" if name else "")


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

_WHOLE: Final = re.compile(r"\s*([+-]?[0-9]{1,9})\s*")
_ESCAPED: Final = re.compile("[\udc80-\udcff]")  # how Python writes a byte that is no UTF-8


class _TooLongError(Exception):
    """The record passes the bound."""


class _Records:
    """The records of a file, one at a time.

    Attributes:
        line: Where the last one began.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = iter(lines)
        self._ended = False
        self._begin()
        self.line = 0

    def __iter__(self) -> Iterator[list[str] | BadRow]:
        reader = csv.reader(self._texts(), strict=True)
        while True:
            self._begin()
            try:
                yield next(reader)
            except StopIteration:
                return
            except (_TooLongError, csv.Error) as error:
                # What stands behind a broken record is the next one only if no quote can be open at its end.
                lost = self._ended or self._read > 1 or self._quotes % 2 == 1
                yield BadRow(self.line, self._problem(error, lost=lost), fatal=lost)
                if lost:
                    return
                reader = csv.reader(self._texts(), strict=True)  # a generator that raised is at its end

    def _begin(self) -> None:
        self._read, self._size, self._quotes, self._last = 0, 0, 0, ""

    def _texts(self) -> Iterator[str]:
        """The lines for the csv module, while they are not too many for one record."""
        for line in self._lines:
            if self._read == 0:
                self.line = line.number
            self._read += 1
            self._size += len(line.data)
            self._quotes += line.quotes if line.cut else line.data.count(b'"')
            if self._size > LONGEST:
                raise _TooLongError
            self._last = line.data.decode(errors="surrogateescape")
            yield self._last
        self._ended = True

    def _problem(self, error: Exception, *, lost: bool) -> str:
        if self._ended:
            return "a quote that opens in this record is never closed"
        if isinstance(error, _TooLongError):
            problem = f"longer than {LONGEST} bytes" + ("; is a quote not closed?" if lost else "")
        elif "\r" in self._last.rstrip("\r\n"):
            problem = "a carriage return outside of quotes: save the file with line ends of LF or CRLF"
        else:
            problem = f"no CSV: {error}"
        return problem + ("; where the next record begins cannot be known" if lost else "")


def csv_rows(lines: Iterable[Line]) -> Iterator[Row | BadRow]:
    """A row a record; those that are empty, or whose cells all are, say nothing."""
    records = _Records(lines)
    header: list[str] | None = None
    for record in records:
        if isinstance(record, BadRow):
            yield record if header else record._replace(fatal=True)
            if not header:
                return
        elif not any(map(str.strip, record)):
            continue
        elif header is None:
            header = [name.strip() for name in record]
            if problem := _header_problem(header):
                yield BadRow(records.line, problem, fatal=True)
                return
        else:
            yield _csv_row(records.line, header, record)
    if header is None:
        yield BadRow(1, "there is no header, which names the columns: prompt, and width, height, id where wanted", True)


def _header_problem(header: list[str]) -> str | None:
    if escaped := _ESCAPED.search("".join(header)):
        return not_utf8(ord(escaped[0]) - 0xDC00)
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        return f"columns are separated by commas; this is one column, {named(header[0])}"
    if problem := unknown_fields("column", header):
        return f"{problem} (the first line is the header)"
    if twice := next((name for name, count in Counter(header).items() if count > 1), None):
        return f"the column {named(twice)} is there twice"
    return None if "prompt" in header else "there is no column 'prompt'"


def _csv_row(line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if escaped := _ESCAPED.search("".join(cells)):
        return BadRow(line, not_utf8(ord(escaped[0]) - 0xDC00))
    if len(cells) != len(header):
        advice = "; a prompt with commas in it needs quotes around it" if len(cells) > len(header) else ""
        return BadRow(line, f"{len(cells)} cells where the header names {len(header)}{advice}")
    given = dict(zip(header, cells, strict=True))
    fields: dict[str, str | int | None] = {"prompt": given.pop("prompt"), "id": given.pop("id", "") or None}
    for name, cell in given.items():
        if cell.strip():
            whole = _WHOLE.fullmatch(cell)
            if whole is None:
                return BadRow(line, f"{name}: not a whole number of pixels: {named(cell)}")
            fields[name] = int(whole[1])
    return checked(line, fields)


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
