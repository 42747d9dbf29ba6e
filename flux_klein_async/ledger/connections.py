"""Connections to a journal's file, which this process opens through SQLite alone.

POSIX drops every lock that a process has on a file as soon as it closes any descriptor of that file; SQLite takes care
of its own (https://www.sqlite.org/howtocorrupt.html, 2.2). So a header is read only while no connection has the file.
"""

import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Final

__all__ = ["BUSY", "Connection", "connect", "header"]

BUSY: Final = 5.0  # seconds that another process may hold the file
_HEADER: Final = 100  # bytes of an SQLite file's header (https://www.sqlite.org/fileformat2.html, 1.3)
_PRAGMAS: Final = (
    "synchronous = FULL",  # every commit is on the disk when it returns
    "fullfsync = ON",  # on macOS, where fsync alone does not say so
    "temp_store = FILE",
    "cache_size = -16000",  # KiB: the newest orders and the upper pages of indexes
    "trusted_schema = OFF",
)

# Of the process, as its locks are: files (device and inode) that have connections, and how many.
_guard = threading.Lock()
_open: Counter[tuple[int, int]] = Counter()


class Connection(sqlite3.Connection):
    """A connection that lets others know when it is closed."""

    file: tuple[int, int] | None = None

    def close(self) -> None:
        """Close it; once is enough."""
        with _guard:
            super().close()
            if self.file is not None:
                _open[self.file] -= 1
                self.file = None


def connect(path: Path) -> Connection:
    """A connection to a journal that is there.

    Raises:
        OSError, sqlite3.Error: It cannot be opened.
    """
    with _guard:
        file = _identity(path)  # first, for SQLite would make one that is not there
        db: Connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None, factory=Connection)
        db.file = file
        _open[file] += 1
    try:
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def header(path: Path) -> bytes | None:
    """The first bytes of a file that may be no database at all; None where this process has it open as one.

    Raises:
        OSError: It is not there, or cannot be read and written: a WAL is needed to read it, too.
    """
    with _guard:
        if _open[_identity(path)]:
            return None
        with path.open("r+b") as file:
            return file.read(_HEADER)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
