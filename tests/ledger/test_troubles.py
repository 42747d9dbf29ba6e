"""What a user reads when the file of a journal fails."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from flux_klein_async.ledger.troubles import damaged, trouble

PATH = Path("run.sqlite")


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_BUSY, "close it, or give each its own journal"),
        (sqlite3.SQLITE_LOCKED, "close it, or give each its own journal"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "close it, or give each its own journal"),
        (sqlite3.SQLITE_FULL, "make room, then go on with the same journal"),
        (sqlite3.SQLITE_READONLY, "make the file and its directory writable"),
        (sqlite3.SQLITE_READONLY_DBMOVED, "make the file and its directory writable"),
        (sqlite3.SQLITE_CANTOPEN, "make the file and its directory writable"),
        (sqlite3.SQLITE_CORRUPT, "is damaged: keep the file"),
        (sqlite3.SQLITE_NOTADB, "is damaged: keep the file"),
        (sqlite3.SQLITE_IOERR_FSYNC, "check the disk"),
        (sqlite3.SQLITE_ERROR, "cannot be used"),
    ],
)
def test_what_sqlite_reports_becomes_advice(code: int, advice: str) -> None:
    text = str(trouble(PATH, sqlite_error(code)))
    assert text.startswith("The journal run.sqlite ")
    assert advice in text
    assert text.endswith(": OperationalError: as SQLite says it")


def test_an_error_without_a_code_is_told_as_it_is() -> None:
    assert str(trouble(PATH, sqlite3.InterfaceError("odd"))) == (
        "The journal run.sqlite cannot be used: InterfaceError: odd"
    )


def test_the_systems_own_errors_keep_their_words() -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert str(trouble(PATH, error)) == "The journal run.sqlite cannot be opened: Permission denied"
    assert str(trouble(PATH, OSError("odd"))) == "The journal run.sqlite cannot be opened: OSError"


def test_damage_is_named_shortly() -> None:
    text = str(damaged(PATH, ["page 3 is never used", "x" * 1000]))
    assert "is damaged" in text
    assert "page 3 is never used; xxx" in text
    assert len(text) < 500
