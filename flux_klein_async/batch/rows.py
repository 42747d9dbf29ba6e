"""A file of prompts, row by row: whatever its length and content, in constant memory.

Blocking: on a loop, take rows in a thread. Reads any binary stream, and gives each row as soon as it is there. A bad
row is given too, with what is wrong with it.
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
    "FileFormat",
    "Line",
    "Readable",
    "Row",
    "Seen",
    "kind_of",
    "lines",
    "read_rows",
]

LONGEST: Final = 128 * 1024
"""Bytes of a line or a CSV record. A prompt that the model follows in full is some fifty times shorter."""
CHECKED_FIRST: Final = 1000
"""Rows that are checked before the first of them is submitted."""
FIELDS: Final = ("prompt", "width", "height", "id")
"""What a row may hold."""

_PIECE: Final = 64 * 1024  # bytes of a line that is skipped, at a time
_LONGEST_ID: Final = 200  # characters
_SHOWN: Final = 60  # characters of a foreign text in a message
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_OTHER_MARKS: Final = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # UTF-16 and UTF-32
# A prompt may hold tabs and line breaks. Terminals obey the other control characters (ECMA-48), and half a surrogate
# pair is no text.
_NOT_IN_PROMPTS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_IDS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_WHOLE: Final = re.compile(r"\s*([+-]?[0-9]{1,9})\s*")


class Row(NamedTuple):
    """A row that can be submitted.

    Attributes:
        line: Where it begins in its file, from 1.
        id: The user's own id for it, or None.
        fields: What is posted: `prompt`, and `width` and `height` where they are given.
        number: Among all rows of the file, from 0.
    """

    line: int
    id: str | None
    fields: dict[str, Any]
    number: int = 0


class BadRow(NamedTuple):
    """A row that cannot be submitted.

    Attributes:
        problem: What is wrong with it, in a sentence; it shows the user's text as `repr` does.
        fatal: What follows could not be read; this is the last row.
    """

    line: int
    problem: str
    fatal: bool = False


class FileFormat(StrEnum):
    """The format of a file of prompts."""

    TXT = "txt"
    JSONL = "jsonl"
    CSV = "csv"


def kind_of(path: "str | os.PathLike[str]") -> FileFormat:
    """The format of a file, by the end of its name.

    Raises:
        InvalidInputError: The name has no known ending.
    """
    suffix = PurePath(path).suffix.lower().removeprefix(".")
    if suffix not in set(FileFormat):
        known = ", ".join(f".{kind}" for kind in FileFormat)
        raise InvalidInputError(f"{_quoted(PurePath(path).name)} does not end in {known}: name its format (--format)")
    return FileFormat(suffix)


# --- lines


class Readable(Protocol):
    """What lines are read from: any binary file, pipe or `io.BytesIO`."""

    def readline(self, size: int, /) -> bytes:
        """At most so many bytes, to the end of the line; none at the end of the file."""
        ...


class Line(NamedTuple):
    """One line of a file, with its line end; `cut`: it is longer than the bound, and the rest was skipped."""

    number: int
    data: bytes
    cut: bool = False


def lines(stream: Readable, longest: int = LONGEST) -> Iterator[Line]:
    """The lines of a stream, numbered from 1; they end at line feeds."""
    number = 0
    while data := stream.readline(longest + 1):
        number += 1
        cut = len(data) > longest
        piece = data
        while cut and piece and not piece.endswith(b"\n"):
            piece = stream.readline(_PIECE)
        yield Line(number, data, cut)


class _UnreadableError(Exception):
    """Nothing can be read from here on."""


def _utf8_lines(stream: Readable) -> Iterator[Line]:
    """The lines, without a byte order mark; refuses the other encodings of Unicode."""
    number = 0
    try:
        for number, data, cut in lines(stream):
            if number == 1:
                if data.startswith(_OTHER_MARKS) or 4 * data.count(0) >= len(data):
                    raise _UnreadableError("the file is not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8")
                data = data.removeprefix(_UTF8_MARK)  # noqa: PLW2901
            yield Line(number, data, cut)
    except OSError as error:
        raise _UnreadableError(f"the rest cannot be read: {error.strerror or error}", number + 1) from error


# --- rows


def read_rows(stream: Readable, kind: FileFormat) -> Iterator[Row | BadRow]:
    """The rows of a file, bad ones included. A row whose id came before is bad too; a fatal one is the last.

    Raises:
        JournalError: There is no room for the temporary file that remembers the ids.
    """
    with closing(Seen()) as seen:
        try:
            for number, row in enumerate(_READERS[kind](_utf8_lines(stream))):
                if isinstance(row, BadRow):
                    yield row
                    continue
                before = None if row.id is None else seen.add(row.id.encode(), row.line)
                twice = BadRow(row.line, f"its id is that of line {before!r} too")
                yield row._replace(number=number) if before is None else twice
        except _UnreadableError as error:
            problem, line = (*error.args, 1)[:2]
            yield BadRow(line, problem, fatal=True)


def _checked(line: int, given: Mapping[str, Any]) -> Row | BadRow:
    """A row of these fields, if they can be submitted; None counts as not given."""
    if problem := _unknown("field", given):
        return BadRow(line, problem)
    # Always in the same order: a row without an id is recognised by what is posted.
    fields = {name: given[name] for name in FIELDS if given.get(name) is not None}
    row_id = fields.pop("id", None)
    row_id = str(row_id) if type(row_id) is int else row_id
    problem = _id_problem(row_id) or _input_problem(fields)
    return BadRow(line, problem) if problem else Row(line, row_id, fields)


def _unknown(word: str, names: Iterable[str]) -> str | None:
    unknown = [_quoted(name) for name in names if name not in FIELDS][:5]
    plural = "" if len(unknown) == 1 else "s"
    return f"unknown {word}{plural} {', '.join(unknown)}; known are {', '.join(FIELDS)}" if unknown else None


def _id_problem(row_id: object) -> str | None:
    if row_id is None:
        return None
    if not isinstance(row_id, str):
        return "id: neither text nor a whole number"
    if not row_id.strip():
        return "id: blank; leave it out if the row has none"
    if len(row_id) > _LONGEST_ID:
        return f"id: longer than {_LONGEST_ID} characters"
    found = _NOT_IN_IDS.search(row_id)
    return f"id: the control character U+{ord(found[0]):04X} is not allowed" if found else None


def _input_problem(fields: dict[str, Any]) -> str | None:
    prompt = fields.get("prompt")
    if isinstance(prompt, str) and (found := _NOT_IN_PROMPTS.search(prompt)):
        return f"prompt: the control character U+{ord(found[0]):04X} is not allowed"
    try:
        TextToImageInput(**fields)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problems)
    return None


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _text_of(data: bytes) -> str:
    """Decoded.

    Raises:
        ValueError: It is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte 0x{data[error.start]:02X}); if the file is Latin-1 or Windows-1252, "
            "convert it first: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _each_line(found: Iterable[Line]) -> Iterator[tuple[int, str] | BadRow]:
    """The lines of a file in which each is a row, without their ends; blank ones are passed over."""
    for line in found:
        if line.cut:
            yield BadRow(line.number, f"longer than {LONGEST} bytes")
            continue
        try:
            text = _text_of(line.data).removesuffix("\n").removesuffix("\r")
        except ValueError as error:
            yield BadRow(line.number, str(error))
            continue
        if text.strip():
            yield line.number, text


def _txt_rows(found: Iterable[Line]) -> Iterator[Row | BadRow]:
    for entry in _each_line(found):
        if isinstance(entry, BadRow):
            yield entry
        elif "\r" in entry[1]:
            yield BadRow(entry[0], "a carriage return within the line: save the file with line ends of LF or CRLF")
        else:
            yield _checked(entry[0], {"prompt": entry[1]})


# --- JSON lines


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; json alone would let the last of two equal names win."""
    if twice := next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), None):
        raise ValueError(f"the field {_quoted(twice)} is there twice")
    return dict(pairs)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number in JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)


def _jsonl_rows(found: Iterable[Line]) -> Iterator[Row | BadRow]:
    for entry in _each_line(found):
        if isinstance(entry, BadRow):
            yield entry
            continue
        number, text = entry
        try:
            given = _DECODER.decode(text)
        except json.JSONDecodeError as error:
            yield BadRow(number, f"no JSON: {error.msg} (character {error.colno})")
        except RecursionError:
            yield BadRow(number, "nested too deeply")
        except ValueError as error:
            yield BadRow(number, str(error) if "digits" not in str(error) else "a number has too many digits")
        else:
            problem = 'no JSON object: write a row as {"prompt": "a snow leopard"}'
            yield _checked(number, given) if isinstance(given, dict) else BadRow(number, problem)


# --- CSV (RFC 4180)


def _records(found: Iterable[Line]) -> Iterator[tuple[int, list[str]] | BadRow]:
    """The records: a header, then a row each. A record ends with the line at which its quotes are balanced."""
    number, data, quotes = 0, bytearray(), 0
    for line in found:
        number = number if data else line.number
        data += line.data
        quotes += line.data.count(b'"')
        if line.cut or len(data) > LONGEST:
            raise _UnreadableError(f"a record longer than {LONGEST} bytes: is a quote not closed?", number)
        if quotes % 2:
            continue
        whole, quotes = bytes(data), 0
        data.clear()
        try:
            cells = next(csv.reader([_text_of(whole)], strict=True), [])
        except csv.Error as error:
            hint = ": save the file with line ends of LF or CRLF" if b"\r" in whole.rstrip(b"\r\n") else ""
            yield BadRow(number, f"no CSV: {error}{hint}")
        except ValueError as error:
            yield BadRow(number, str(error))
        else:
            if any(map(str.strip, cells)):
                yield number, cells
    if data:
        raise _UnreadableError("a quote that opens in this record is never closed", number)


def _csv_rows(found: Iterable[Line]) -> Iterator[Row | BadRow]:
    records = _records(found)
    first = next(records, BadRow(1, "there is no header with the columns prompt, and optionally width, height, id"))
    if isinstance(first, BadRow):
        yield first._replace(fatal=True)
        return
    header = [name.strip() for name in first[1]]
    if problem := _header_problem(header):
        yield BadRow(first[0], problem, fatal=True)
        return
    for entry in records:
        yield entry if isinstance(entry, BadRow) else _csv_row(entry[0], header, entry[1])


def _header_problem(header: list[str]) -> str | None:
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        return f"columns are separated by commas; this is one column, {_quoted(header[0])}"
    if problem := _unknown("column", header):
        return f"{problem} (the first line is the header)"
    if twice := next((name for name, count in Counter(header).items() if count > 1), None):
        return f"the column {_quoted(twice)} is there twice"
    return None if "prompt" in header else "there is no column 'prompt'"


def _csv_row(line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        hint = "; put quotes around a prompt with commas" if len(cells) > len(header) else ""
        return BadRow(line, f"{len(cells)} cells, but the header has {len(header)}{hint}")
    given: dict[str, Any] = dict(zip(header, cells, strict=True))
    given["id"] = given.get("id") or None
    for name in ("width", "height"):
        cell = given.get(name, "")
        whole = _WHOLE.fullmatch(cell)
        if cell.strip() and whole is None:
            return BadRow(line, f"{name}: not a whole number of pixels: {_quoted(cell)}")
        given[name] = int(whole[1]) if whole else None
    return _checked(line, given)


_READERS: Final = {FileFormat.TXT: _txt_rows, FileFormat.JSONL: _jsonl_rows, FileFormat.CSV: _csv_rows}


# --- what reads ahead and remembers


class Ahead:
    """The rows of a file, of which the first are read at once, to be checked before anything is submitted.

    Attributes:
        bad: The bad ones of the first rows.
        total: How many rows there are, if the first are all.
    """

    def __init__(self, rows: Iterable[Row | BadRow], count: int = CHECKED_FIRST) -> None:
        rest = iter(rows)
        first = list(islice(rest, count))
        self.bad = [row for row in first if isinstance(row, BadRow)]
        self.total = len(first) if len(first) < count else None
        self._all = chain(first, rest)

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self

    def __next__(self) -> Row | BadRow:
        return next(self._all)


class Seen:
    """A map in constant memory: a temporary SQLite database that nobody else sees. For one thread at a time.

    Raises of all its calls: `JournalError` if the directory for temporary files is full.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE seen (key BLOB PRIMARY KEY, value) WITHOUT ROWID",
            "BEGIN",  # never committed: only this connection reads it
        ):
            self._do(statement)

    def add(self, key: bytes, value: int | bytes) -> int | bytes | None:
        """Set a value; return the one before, or None."""
        before = self.get(key)
        self._do("INSERT OR REPLACE INTO seen VALUES (?, ?)", key, value)
        return before

    def get(self, key: bytes) -> int | bytes | None:
        """The value of a key, or None."""
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
                "There is no room for temporary files; make some, or set SQLITE_TMPDIR to another directory",
                cause=f"{type(error).__name__}: {error}",
            ) from error
