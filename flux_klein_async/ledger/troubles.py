"""What went wrong with a journal's file, in a sentence that says what to do. Pure."""

import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flux_klein_async.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["damaged", "trouble"]

_TEXT = 300  # characters of what SQLite says

# By SQLite's primary result code (https://www.sqlite.org/rescode.html): what it means here, and what to do.
_CODES: dict[int, str] = {
    code: text
    for codes, text in (
        (
            (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
            "is locked: another program has been writing to it for too long; close it, or give each its own journal",
        ),
        ((sqlite3.SQLITE_FULL,), "cannot grow: the disk is full; make room, then go on with the same journal"),
        (
            (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH),
            "cannot be written: make the file and its directory writable, or name another journal",
        ),
        (
            (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH),
            "is damaged: keep the file, and go on with a copy from a backup or with what `sqlite3 FILE .recover` saves",
        ),
        (
            (sqlite3.SQLITE_IOERR,),
            "cannot be read or written: the device reports an error; check the disk before going on",
        ),
    )
    for code in codes
}


def trouble(path: "Path", error: Exception) -> JournalError:
    """The error to raise for one of SQLite's or the system's."""
    if isinstance(error, OSError):
        return JournalError(f"The journal {path} cannot be opened", cause=error.strerror or type(error).__name__)
    code = getattr(error, "sqlite_errorcode", None)
    text = _CODES.get(code & 0xFF) if code is not None else None
    if text is None:  # without a code it is Python's own: text that is no UTF-8, a number out of range
        text = "cannot be used"
    return JournalError(f"The journal {path} {text}", cause=f"{type(error).__name__}: {error}"[:_TEXT])


def damaged(path: "Path", findings: Iterable[str]) -> JournalError:
    """The error for a file in which something contradicts something else."""
    return JournalError(f"The journal {path} {_CODES[sqlite3.SQLITE_CORRUPT]}", cause="; ".join(findings)[:_TEXT])
