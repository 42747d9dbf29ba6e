"""Journals as tests use them: opened in the test's own thread, or by another process."""

import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flux_klein_async.journal.base import Action, Claim, Entry, EntryState
from flux_klein_async.journal.database import Database
from flux_klein_async.journal.records import WORKING, claim, preview, record

__all__ = [
    "AGAIN",
    "Run",
    "child",
    "content",
    "delete",
    "entry",
    "files",
    "mode",
    "request",
    "requests",
    "states",
    "write",
]

AGAIN = frozenset({EntryState.REFUSED})


def entry(state: str, **facts: Any) -> Entry:
    return Entry(state=EntryState(state), **facts)


def write(database: Database, *entries: Entry, token: str = "") -> None:
    for one in entries:
        with database.writing():
            record(database, token, one)


def requests(database: Database) -> list[dict[str, Any]]:
    """All that is known of every request, oldest first."""
    cursor = database.db.execute("SELECT * FROM requests ORDER BY id")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def request(database: Database) -> dict[str, Any]:
    [only] = requests(database)
    return only


class Run:
    """A run in this process, with one pass over items."""

    def __init__(self, path: Path, *, now: float = 1000.0) -> None:
        self.now = now
        self.database = Database.open(path, lambda: self.now)
        self.number = 1
        self.previews = 0

    def claim(
        self,
        body: bytes = b"{}",
        item_id: str | None = None,
        *,
        again: frozenset[EntryState] = AGAIN,
        model: str = "a/b",
        token: str = "",
    ) -> Claim:
        with self.database.writing():
            return claim(self.database, token, self.number, model, body, item_id, again)

    def preview(self, body: bytes = b"{}", *, again: frozenset[EntryState] = AGAIN) -> Action:
        """In a pass of its own."""
        self.previews += 1
        with self.database.writing():
            return preview(self.database, "", self.number + self.previews, "a/b", body, None, again)

    def release(self, claimed: Claim) -> None:
        if claimed.action in WORKING:
            self.database.taken.discard(int(claimed.item))

    def write(self, *entries: Entry) -> None:
        write(self.database, *entries)

    def submit(self, key: str = "k", *, body: bytes = b"{}", item_id: str | None = None) -> Claim:
        """Claim an item and write down that it was submitted, as request `r-<key>`."""
        claimed = self.claim(body, item_id)
        assert claimed.action is Action.SUBMIT
        self.write(entry("submitting", key=key, item=claimed.item), entry("submitted", key=key, request_id=f"r-{key}"))
        return claimed

    def close(self) -> None:
        self.database.close()


@contextmanager
def child(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Another process that says "ready" and then waits to be killed."""
    begin = "import sys, time; from pathlib import Path\n"
    end = "\nprint('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", begin + code + end, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def states(path: Path) -> list[str]:
    """As another program reads them, which sees what was committed."""
    db = sqlite3.connect(path)
    found = [state for [state] in db.execute("SELECT state FROM requests ORDER BY id")]
    db.close()
    return found


def files(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(path: Path) -> bytes:
    return b"".join(found.read_bytes() for found in sorted(path.parent.iterdir()) if found.is_file())


def delete(path: Path) -> None:
    path.unlink()
