"""Remembers any number of things in constant memory: in a temporary database that nobody else sees."""

import sqlite3
from typing import Any

from flux_klein_async.errors import JournalError

__all__ = ["Seen"]


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
