"""What went wrong with a journal's file, in a sentence that says what to do. Pure."""

import errno
import sqlite3
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from flux_klein_async.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["damaged", "trouble"]

_TEXT: Final = 300  # characters of what SQLite says

_LOCKED: Final = (
    "is locked: another program has been writing to it for too long; close it, or give each a journal of its own"
)
_FULL: Final = "cannot grow: the disk is full; make room, then go on with the same journal"
_FORBIDDEN: Final = "cannot be written: make the file and its directory writable, or name another journal"
_DAMAGED: Final = "is damaged: keep the file, and go on with a backup or with what `sqlite3 FILE .recover` saves"
_DEVICE: Final = "cannot be read or written: the device reports an error; check the disk before going on"
_NOWHERE: Final = "cannot be made: its directory is not there; make it, or name another journal"
_CROWDED: Final = "cannot be opened: this process has too many files open; raise its limit (ulimit -n)"
_OTHERWISE: Final = "cannot be used"

# By SQLite's primary result code (https://www.sqlite.org/rescode.html).
_CODES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_PERM: _FORBIDDEN,
    sqlite3.SQLITE_CANTOPEN: _FORBIDDEN,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_CONSTRAINT: _DAMAGED,
    sqlite3.SQLITE_IOERR: _DEVICE,
}
_ERRNOS: Final[Mapping[int | None, str]] = {
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: _DEVICE,
    errno.ENOENT: _NOWHERE,
    errno.ENOTDIR: _NOWHERE,
    errno.EMFILE: _CROWDED,
    errno.ENFILE: _CROWDED,
}


def trouble(path: "Path", error: Exception) -> JournalError:
    """The error to raise for what using the file ended in."""
    text = f"The journal {path} {_meaning(error)}"
    if isinstance(error, OSError):
        return JournalError(text, cause=error.strerror or type(error).__name__)
    return JournalError(text, cause=f"{type(error).__name__}: {error}"[:_TEXT])


def damaged(path: "Path", findings: Iterable[str]) -> JournalError:
    """The error for a file in which something contradicts something else."""
    return JournalError(f"The journal {path} {_DAMAGED}", cause="; ".join(findings)[:_TEXT])


def _meaning(error: Exception) -> str:
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno, _OTHERWISE)
    if isinstance(error, ValueError):  # text that is no UTF-8, a state that is none
        return _DAMAGED
    code = getattr(error, "sqlite_errorcode", None)
    return _OTHERWISE if code is None else _CODES.get(code & 0xFF, _OTHERWISE)
