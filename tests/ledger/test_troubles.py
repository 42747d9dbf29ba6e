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
        (sqlite3.SQLITE_BUSY, "close it, or give each a journal of its own"),
        (sqlite3.SQLITE_LOCKED, "close it, or give each a journal of its own"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "close it, or give each a journal of its own"),
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


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "make the file and its directory writable"),
        (errno.EROFS, "make the file and its directory writable"),
        (errno.ENOSPC, "make room"),
        (errno.EIO, "check the disk"),
        (errno.ENOENT, "its directory is not there"),
        (errno.ENOTDIR, "its directory is not there"),
        (errno.EMFILE, "ulimit"),
        (errno.ELOOP, "cannot be used"),
    ],
)
def test_the_systems_own_errors_become_advice(number: int, advice: str) -> None:
    text = str(trouble(PATH, OSError(number, os.strerror(number))))
    assert text.startswith("The journal run.sqlite ")
    assert advice in text
    assert text.endswith(f": {os.strerror(number)}")


def test_an_error_of_the_system_without_a_number_is_told_as_it_is() -> None:
    assert str(trouble(PATH, OSError("odd"))) == "The journal run.sqlite cannot be used: OSError"


def test_what_cannot_be_understood_is_damage() -> None:
    assert "is damaged" in str(trouble(PATH, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd")))


def test_damage_is_named_shortly() -> None:
    text = str(damaged(PATH, ["page 3 is never used", "x" * 1000]))
    assert "is damaged" in text
    assert "page 3 is never used; xxx" in text
    assert len(text) < 500
