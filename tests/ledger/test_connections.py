"""A journal's file is opened so that commits are durable and no lock is lost."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_klein_async.ledger.connections import connect, header
from flux_klein_async.ledger.reading import JournalReader

from .helpers import Run, entry


def test_a_commit_is_on_the_disk_when_it_returns(run: Run) -> None:
    names = ("synchronous", "fullfsync", "journal_mode", "temp_store")
    pragmas = {name: run.database.db.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    assert pragmas == {"synchronous": 2, "fullfsync": 1, "journal_mode": "wal", "temp_store": 1}


def test_a_connection_that_cannot_be_set_up_is_closed(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        connect(path)
    assert header(path) == (b"nonsense" * 13)[:100]
    with pytest.raises(FileNotFoundError):
        connect(path.with_name("none"))
    assert not path.with_name("none").exists()


def test_a_header_is_read_only_while_this_process_has_no_connection(start: Callable[[], Run], path: Path) -> None:
    one, other = start(), start()
    assert header(path) is None
    one.close()
    one.close()
    assert header(path) is None
    other.close()
    found = header(path)
    assert found is not None
    assert found.startswith(b"SQLite format 3")


LOCKED = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    # The byte range in which connections share a lock: https://www.sqlite.org/fileformat2.html, "the lock-byte page"
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000000 + 2)
    except OSError:
        sys.exit(3)
"""


def locked(path: Path) -> bool:
    """Whether another process sees a connection's lock on the file."""
    return subprocess.run([sys.executable, "-c", LOCKED, str(path)], check=False).returncode == 3


def test_who_opens_a_file_again_takes_no_lock_from_those_who_have_it(start: Callable[[], Run], path: Path) -> None:
    run = start()
    run.write(entry("submitting", key="k"))
    assert locked(path)
    start().close()
    JournalReader(path).__exit__()
    assert locked(path)
    run.close()
    assert not locked(path)
