"""Rows of a CSV file (RFC 4180): a header that names the columns, then a row a record. Pure.

The csv module does the reading. Here is what it leaves open: how long a record may be, where it began, and what is
done when one is broken. A record that cannot be told from the next is the end: what stands in the middle of a prompt
must never be taken for a row, and be paid for.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from flux_klein_async.ledger.lines import LONGEST, Line
from flux_klein_async.ledger.rows import BadRow, Row, checked, named, not_utf8, unknown_fields

__all__ = ["csv_rows"]

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
            yield _row(records.line, header, record)
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


def _row(line: int, header: list[str], cells: list[str]) -> Row | BadRow:
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
