"""Reads a file of prompts row by row: text, JSON lines or CSV, of any length and content, in constant memory.

A row that cannot be submitted is given too, with what is wrong with it. `read_rows` blocks: `read_ahead` reads in a
thread, so that neither a slow pipe nor a slow disk blocks the event loop.
"""

import asyncio
import csv
import json
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, NoReturn

from pydantic import ValidationError

from flux_klein_async.api.requests import InputFile, encode_input
from flux_klein_async.batch.formats import FileFormat, foreign
from flux_klein_async.errors import InvalidInputError, JournalError
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
    TextToImageInput,
    findings,
    from_float,
)
from flux_klein_async.operations.inputs import check_files
from flux_klein_async.operations.submit import TYPED
from flux_klein_async.options import Limits
from flux_klein_async.paths import user_path
from flux_klein_async.text import cut, shown

if TYPE_CHECKING:
    import os

__all__ = [
    "LONGEST",
    "Columns",
    "DiskMap",
    "Row",
    "check_prompt",
    "count_rows",
    "lines",
    "local_file",
    "next_rows",
    "read_ahead",
    "read_rows",
    "with_files",
]

LONGEST: Final = 128 * 1024
"""Bytes of a line or a CSV record. A prompt that the model follows in full is some fifty times shorter."""

_AHEAD: Final = 256  # rows that a thread reads before they are wanted
_COLUMNS: Final = ("prompt", "width", "height", "id")  # of CSV, which has no types
_OTHER_FIELDS: Final = (
    '; a row of a .jsonl file has any field of the model: {"prompt": "at night", "image_urls": [{"file": "in.png"}]}'
)
_TAKEN_BY: Final = {
    **dict.fromkeys(("image_urls", "seed"), "blackforestlabs/flux-2/dev/edit"),
    "steps": KLEIN_9B_TEXT_TO_IMAGE,
}
_LISTED: Final = 5  # names in a message
_PIECE: Final = 64 * 1024  # bytes read at a time of a line that is skipped
_LONGEST_ID: Final = 200  # characters
_SHOWN: Final = 60  # characters of a user's text in a message
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_SEPARATORS: Final = ",;\t|"  # spreadsheets write the second where a comma is the decimal point
_BLANK: Final = f'{_SEPARATORS}" \r\n'.encode()  # what a row without content is made of
_UNNAMED: Final = re.compile(r"(unnamed: [0-9]+)?", re.IGNORECASE)  # as data frames write and read their index
# A prompt may hold tabs and line breaks. Terminals obey the other control characters (ECMA-48), and half a surrogate
# pair is not text.
_NOT_IN_PROMPTS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_IDS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
# Data frames write 1024.0 beside an empty cell, and spreadsheets 1024,0 where the comma is the decimal point.
_WHOLE: Final = re.compile(r"\s*([+-]?[0-9]{1,9})(?:\.0*|,0{1,2})?\s*")


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        line: Where it begins in the file, from 1.
        fields: What is posted, with an `InputFile` in place of each local file; of a bad row its prompt.
        id: The user's own id for it, or None.
        number: Its place among all rows of the file, from 0.
        problem: Why it cannot be submitted, in a printable sentence; None for a good row.
        is_told: An earlier row of the file has this problem, which is one of the whole file.
    """

    line: int
    fields: dict[str, Any]
    id: str | None = None
    number: int = 0
    problem: str | None = None
    is_told: bool = False

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"Line {self.line}" if self.id is None else f"Line {self.line} ({shown(cut(self.id, _SHOWN))})"


class Columns(NamedTuple):
    """How the columns of a CSV file are read.

    Attributes:
        prompt: The name of the column with the prompts.
        ignore_extra: Ignore columns that no field is named after, instead of refusing the file.
    """

    prompt: str = "prompt"
    ignore_extra: bool = False


def read_rows(
    stream: BinaryIO,
    file_format: FileFormat,
    *,
    model: str = KLEIN_4B_TEXT_TO_IMAGE,
    folder: "str | os.PathLike[str]" = "",
    columns: Columns | None = None,
) -> Generator[Row, None, None]:
    """Read the rows of a file, bad ones included, each as soon as it is there.

    Rows have the fields of the model's typed input; for a model without one, any field. `{"file": "ref.png"}` in place
    of a value is a local file, whose relative path begins at `folder`.

    A row with the id of an earlier row is bad. Where a file cannot be read any further, its last row says why.

    Raises:
        JournalError: There is no room for the temporary file that remembers the ids.
    """
    with closing(DiskMap()) as lines_of_ids:
        check = partial(_checked, TYPED.get(model), Path(folder).absolute(), lines_of_ids)
        hint = "" if model in TYPED else _OTHER_FIELDS
        for number, row in enumerate(_rows(stream, file_format, columns or Columns(), hint, check)):
            yield row._replace(number=number)


def count_rows(stream: BinaryIO, file_format: FileFormat) -> int:
    """How many rows a file has, as far as it can be read; none of them is checked."""
    is_csv, count = file_format is FileFormat.CSV, 0
    with suppress(_UnreadableError):  # `read_rows` says so
        for line, record in _records(stream, multiline=is_csv):
            said = is_csv and line == 1 and record.startswith(b"sep=")  # which separator there is
            count += not said and bool(record.strip(_BLANK if is_csv else None))
    return max(count - is_csv, 0)  # without the header


# --- lines and records


def lines(stream: BinaryIO, longest: int = LONGEST) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream with their numbers, from 1; they end at line feeds.

    A line of more than `longest` bytes is cut after one byte more, and its rest is skipped.
    """
    number = 0
    while data := stream.readline(longest + 1):
        number += 1
        piece = data
        while len(data) > longest and piece and not piece.endswith(b"\n"):
            piece = stream.readline(_PIECE)
        yield number, data


class _NotUtf8Error(ValueError):
    """A record is in another encoding."""


class _UnreadableError(Exception):
    """The file cannot be read any further; its arguments are a line and the problem."""


def _records(stream: BinaryIO, *, multiline: bool) -> Iterator[tuple[int, bytes]]:
    """The records of a file with the lines where they begin, without a byte order mark.

    A record is a line, or with `multiline` (CSV, RFC 4180) all lines until the quotes are balanced.
    """
    number = begun = quotes = 0
    record = bytearray()
    try:
        for number, line in lines(stream):
            if number == 1 and (what := foreign(line)) is not None:
                raise _UnreadableError(1, f"the file is {what}")
            begun = begun if record else number
            record += line.removeprefix(_UTF8_MARK) if number == 1 else line
            if multiline and len(record) > LONGEST:
                raise _UnreadableError(begun, f"a record longer than {LONGEST} bytes: is a quote not closed?")
            quotes += line.count(b'"')
            if not (multiline and quotes % 2):
                yield begun, bytes(record)
                quotes = 0
                record.clear()
    except OSError as error:
        raise _UnreadableError(number + 1, f"the rest cannot be read: {error.strerror or error}") from error
    if record:
        raise _UnreadableError(begun, "a quote that opens in this record is never closed")


def _rows(
    stream: BinaryIO,
    file_format: FileFormat,
    columns: Columns,
    hint: str,
    checked: Callable[[int, dict[str, Any]], Row],
) -> Iterator[Row]:
    """`hint`: what to do about the columns that no field is named after."""
    is_csv, is_told = file_format is FileFormat.CSV, False
    records = _records(stream, multiline=is_csv)
    try:
        is_json = file_format is FileFormat.JSONL
        parse = _csv_parser(records, columns, hint) if is_csv else _json_fields if is_json else _text_fields
        for line, data in records:
            try:
                text = _decoded(data)
                if is_json and line == 1 and text.lstrip().startswith("["):
                    raise _UnreadableError(1, "a JSON array; write an object on each line: jq -c '.[]' FILE")
                if text.strip() and (fields := parse(text)) is not None:
                    yield checked(line, fields)
            except _NotUtf8Error as error:
                yield Row(line, {}, problem=str(error), is_told=is_told)
                is_told = True
            except ValueError as error:
                yield Row(line, {}, problem=_sentence(error))
            except RecursionError:
                yield Row(line, {}, problem="nested too deeply")
    except _UnreadableError as error:
        line, problem = error.args
        yield Row(line, {}, problem=problem)


# --- one record: each function raises ValueError with the problem


def _decoded(data: bytes) -> str:
    if len(data) > LONGEST:
        raise ValueError(f"longer than {LONGEST} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _NotUtf8Error(
            f"not UTF-8 (byte 0x{data[error.start]:02X}); if the file is Latin-1 or Windows-1252, "
            "convert it first: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _text_fields(text: str) -> dict[str, Any]:
    prompt = text.removesuffix("\n").removesuffix("\r")
    if "\r" in prompt:
        raise ValueError("a carriage return within the line: save the file with line ends of LF or CRLF")
    return {"prompt": prompt}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no field is there twice; json alone would let the last one win."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"the field {_twice(name for name, _ in pairs)} is there twice: remove one of them")
    return fields


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number, parse_float=from_float)


def _json_fields(text: str) -> dict[str, Any]:
    try:
        fields = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (character {error.colno})") from None
    except ValueError as error:
        raise ValueError("a number has too many digits" if "digits" in str(error) else str(error)) from None
    if not isinstance(fields, dict):
        raise ValueError('not a JSON object: write a row as {"prompt": "a snow leopard"}')  # noqa: TRY004
    return fields


def _cells(text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=separator, strict=True), [])
    except csv.Error as error:
        if "\r" in text.rstrip("\r\n"):
            raise ValueError(f"not CSV: {error}: save the file with line ends of LF or CRLF") from None
        if "new-line character" in str(error):  # the record went on to the next line, because of one of its quotes
            raise ValueError('not CSV: a quote within a field: write the field as "a 12"" screen"') from None
        raise ValueError(f"not CSV: {error}") from None


class _Header(NamedTuple):
    """The header of a CSV file: for each column its field, "" for one without a name, None for one to ignore."""

    fields: list[str | None]
    separator: str


def _csv_parser(
    records: Iterator[tuple[int, bytes]], columns: Columns, hint: str
) -> Callable[[str], dict[str, Any] | None]:
    """Read the header; without a good one nothing else can be read."""
    separators = _SEPARATORS
    for line, data in records:
        try:
            text = _decoded(data)
            if line == 1 and (said := re.fullmatch(r"sep=(.)\s*", text)):  # Excel's own way to say it
                separators = said[1]
            elif text.strip(f"{_SEPARATORS} \r\n"):
                return partial(_csv_fields, _header(text, separators, columns, hint))
        except ValueError as error:
            raise _UnreadableError(line, str(error)) from None
    raise _UnreadableError(1, "there is no header with the columns prompt, and optionally width, height, id")


def _header(text: str, separators: str, columns: Columns, hint: str) -> _Header:
    """The fields of the columns. The separator is the one with which there is a column of prompts."""
    found = list[tuple[str, list[str]]]()
    for separator in separators:
        with suppress(ValueError):  # quoted names are no CSV with another separator
            found.append((separator, [name.strip() for name in _cells(text, separator)]))
    if not found:
        _cells(text, separators[0])  # raises
    wanted = columns.prompt.casefold()
    separator, names = next((each for each in found if wanted in map(str.casefold, each[1])), ("", []))
    if not separator:
        names = max((names for _, names in found), key=len)
        listed = ", ".join(_quoted(name) for name in names[:_LISTED])
        raise ValueError(
            f"there is no column {_quoted(columns.prompt)}; the first line names {listed}: "
            "name the column of prompts 'prompt', or pass --prompt-column"
        )
    known = {name: name for name in _COLUMNS if name != "prompt"} | {wanted: "prompt"}
    fields, extra = list[str | None](), list[str]()
    for name in names:
        field = known.get(name.casefold())
        if field is None and not columns.ignore_extra:
            field = ""
            if _UNNAMED.fullmatch(name) is None:
                extra.append(_quoted(name))
        fields.append(field)
    if extra:
        raise ValueError(
            f"unknown column{'' if len(extra) == 1 else 's'} {', '.join(extra[:_LISTED])}; known are "
            f"{', '.join(_COLUMNS)} (the first line is the header): --ignore-extra-columns leaves out the others{hint}"
        )
    named = [field for field in fields if field]
    if len(set(named)) < len(named):
        raise ValueError(f"the column {_twice(named)} is there twice: remove or rename one of them")
    return _Header(fields, separator)


def _csv_fields(header: _Header, text: str) -> dict[str, Any] | None:
    cells = _cells(text, header.separator)
    if not any(map(str.strip, cells)):
        return None
    while len(cells) > len(header.fields) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(header.fields):
        mark = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(header.separator, repr(header.separator))
        hint = f"; put quotes around a prompt with {mark}" if len(cells) > len(header.fields) else ""
        raise ValueError(f"{len(cells)} cells, but the header has {len(header.fields)}{hint}")
    fields: dict[str, Any] = {}
    for number, (name, cell) in enumerate(zip(header.fields, cells, strict=True), 1):
        if name:
            fields[name] = cell
        elif name == "" and cell.strip() and _WHOLE.fullmatch(cell) is None:  # else empty, or the index of a data frame
            raise ValueError(
                f"column {number} has no name and holds {_quoted(cell)}; --ignore-extra-columns ignores it"
            )
    fields["id"] = fields.get("id") or None
    for name in ("width", "height"):
        cell = fields.get(name, "")
        whole = _WHOLE.fullmatch(cell)
        fields[name] = int(whole[1]) if whole else cell.strip() or None  # a text is refused with the row's other fields
    return fields


def local_file(path: str, folder: Path) -> InputFile:
    """A local file; `~` is the home directory, and a relative path begins at the folder."""
    return InputFile(str(folder / user_path(path)))


def with_files(value: Any, folder: Path) -> Any:
    """A value of JSON, with a local file in place of each object that has the one field `file`."""
    if isinstance(value, dict):
        if value.keys() == {"file"} and isinstance(value["file"], str):
            return local_file(value["file"], folder)
        return {name: with_files(part, folder) for name, part in value.items()}
    return [with_files(part, folder) for part in value] if isinstance(value, list) else value


def _checked(
    typed: type[TextToImageInput] | None, folder: Path, lines_of_ids: "DiskMap", line: int, given: dict[str, Any]
) -> Row:
    """The row of these fields, of which None counts as not given."""
    row_id = given.get("id")
    row_id = str(row_id) if type(row_id) is int else row_id
    _check_id(row_id)
    if row_id is not None and (before := lines_of_ids.get(row_id.encode())) is not None:
        raise ValueError(f"line {before!r} has the same id, {row_id!r:.80}")
    prompt = given.get("prompt")
    names = tuple(given) if typed is None else (*typed.model_fields, "id")
    try:
        _refuse_unknown(given, names)
        fields = {name: with_files(given[name], folder) for name in names if given.get(name) is not None}
        fields.pop("id", None)
        check_prompt(prompt)
        if typed is not None:
            typed(**fields)
        else:
            check_files(encode_input(fields), Limits())
    except ValueError as error:
        asked = {"prompt": prompt} if isinstance(prompt, str) else {}  # other fields may hold what is no JSON
        return Row(line, asked, row_id, problem=_sentence(error))
    if row_id is not None:
        lines_of_ids.put(row_id.encode(), line)
    return Row(line, fields, row_id)


def check_prompt(prompt: object) -> None:
    """Refuse a prompt with control characters: they come from a terminal or a wrong encoding, and describe nothing.

    Raises:
        InvalidInputError: It has one.
    """
    if isinstance(prompt, str):
        _refuse_control("prompt", prompt, _NOT_IN_PROMPTS)


def _check_id(row_id: object) -> None:
    if row_id is None:
        return
    if not isinstance(row_id, str):
        raise ValueError("id: neither text nor a whole number")  # noqa: TRY004
    if not row_id.strip():
        raise ValueError("id: blank; leave it out if the row has none")
    if len(row_id) > _LONGEST_ID:
        raise ValueError(f"id: {row_id[:20]!r}... has {len(row_id):,} characters, of at most {_LONGEST_ID}: shorten it")
    _refuse_control("id", row_id, _NOT_IN_IDS)


def _refuse_control(name: str, text: str, refused: re.Pattern[str]) -> None:
    if found := refused.search(text):
        raise InvalidInputError(f"{name}: the control character U+{ord(found[0]):04X} is not allowed; remove it")


def _refuse_unknown(names: Iterable[str], known: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in known]:
        listed, plural = ", ".join(map(_quoted, unknown[:_LISTED])), "" if len(unknown) == 1 else "s"
        model = next((_TAKEN_BY[name] for name in unknown if name in _TAKEN_BY), "ID")
        raise ValueError(
            f"unknown field{plural} {listed}; known are {', '.join(known)}; for the fields of another model pass "
            f"--model {model}"
        )


def _sentence(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{name}: {problem}" for name, problem in findings(error).items())


def _twice(names: Iterable[str]) -> str:
    return _quoted(Counter(names).most_common(1)[0][0])


def _quoted(text: str) -> str:
    return repr(cut(text, _SHOWN))


# --- what remembers, and what reads ahead


class DiskMap:
    """A map in constant memory: a temporary SQLite database of its own. For one thread at a time.

    Raises of all its calls: `JournalError` if the directory for temporary files is full.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE map (key BLOB PRIMARY KEY, value) WITHOUT ROWID",
            "BEGIN",  # never committed: only this connection reads it
        ):
            self._do(statement)

    def put(self, key: bytes, value: float | bytes) -> None:
        """Set the value of a key."""
        self._do("INSERT OR REPLACE INTO map VALUES (?, ?)", key, value)

    def get(self, key: bytes) -> Any:
        """The value of a key, or None."""
        row = self._do("SELECT value FROM map WHERE key = ?", key)
        return row[0] if row else None

    def values(self) -> Iterator[Any]:
        """All values, in the order of their keys."""
        for (value,) in self._database.execute("SELECT value FROM map ORDER BY key"):
            yield value

    def close(self) -> None:
        """Delete everything."""
        self._database.close()

    def _do(self, statement: str, *values: float | bytes) -> Any:
        try:
            return self._database.execute(statement, values).fetchone()
        except sqlite3.OperationalError as error:
            raise JournalError(
                "There is no room for temporary files; make some, or set SQLITE_TMPDIR to another directory",
                cause=f"{type(error).__name__}: {error}",
            ) from error


async def next_rows(rows: AsyncIterator[Row], count: int) -> list[Row]:
    """The next rows, at most `count`; none at the end."""
    some: list[Row] = []
    async for row in rows:
        some.append(row)
        if len(some) == count:
            break
    return some


async def read_ahead(rows: Generator[Row, None, None]) -> AsyncGenerator[Row, None]:
    """Iterate over rows in a thread, a few ahead; closed, it closes them too.

    The thread is a daemon: a process that is told to end does not wait for the next line of a terminal.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Row | Exception | None]()
    room, closed = threading.Semaphore(_AHEAD), False

    def put(found: Row | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(queue.put_nowait, found)

    def work() -> None:
        end: Exception | None = None
        try:
            with closing(rows):
                for row in rows:
                    room.acquire()
                    if closed:
                        break
                    put(row)
        except Exception as error:  # noqa: BLE001  # raised on the loop
            end = error
        put(end)

    threading.Thread(target=work, name="batch file", daemon=True).start()
    try:
        while isinstance(found := await queue.get(), Row):
            room.release()
            yield found
        if found is not None:
            raise found
    finally:
        closed = True
        room.release()
