"""Journals as tests use them: opened in the test's own thread, or by another process."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flux_klein_async.journal.base import Action, Claim, Entry, EntryState
from flux_klein_async.journal.reader import JournalReader
from flux_klein_async.journal.sqlite import SqliteStore

__all__ = ["AGAIN", "Run", "check", "child", "content", "entry", "files", "states", "write"]

AGAIN = frozenset({EntryState.REFUSED})


def entry(state: str, **facts: Any) -> Entry:
    return Entry(state=EntryState(state), **facts)


def write(store: SqliteStore, *entries: Entry, token: str = "") -> None:
    for one in entries:
        with store.writing():
            store.record(token, one)


class Run:
    """A run in this process; each claim is a pass over items of its own, unless `number` says otherwise."""

    def __init__(self, path: Path, *, now: float = 1000.0) -> None:
        self.now = now
        self.store = SqliteStore.open(path, lambda: self.now)
        self.passes = 1000

    def claim(
        self,
        body: bytes = b"{}",
        item_id: str | None = None,
        *,
        again: frozenset[EntryState] = AGAIN,
        model: str = "a/b",
        token: str = "",
        number: int | None = None,
    ) -> Claim:
        self.passes += 1
        with self.store.writing():
            return self.store.claim(token, number or self.passes, model, body, item_id, again)

    def preview(self, body: bytes = b"{}", *, again: frozenset[EntryState] = AGAIN) -> Action:
        self.passes += 1
        with self.store.writing():
            return self.store.preview("", self.passes, "a/b", body, None, again)

    def write(self, *entries: Entry) -> None:
        write(self.store, *entries)

    def submit(self, key: str = "k", *, body: bytes = b"{}") -> Claim:
        """Claim an item and record that it was submitted, as request `r-<key>`."""
        claimed = self.claim(body)
        assert claimed.action is Action.SUBMIT
        self.write(entry("submitting", key=key, item=claimed.item), entry("submitted", key=key, request_id=f"r-{key}"))
        return claimed

    def requests(self) -> list[dict[str, Any]]:
        """All columns of every request, oldest first."""
        cursor = self.store.execute("SELECT * FROM requests ORDER BY id")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def request(self) -> dict[str, Any]:
        [only] = self.requests()
        return only

    def states(self) -> list[str]:
        return [request["state"] for request in self.requests()]

    def money(self) -> tuple[float, float]:
        """Settled and held, in thousandths of a USD, of the only account."""
        [(settled, held)] = self.store.execute("SELECT settled, held FROM accounts").fetchall()
        return settled / 10**6, held / 10**6

    def close(self) -> None:
        self.store.close()


def check(path: Path) -> None:
    with JournalReader(path) as reader:
        reader.check()


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
    with closing(sqlite3.connect(path)) as db:
        return [state for [state] in db.execute("SELECT state FROM requests ORDER BY id")]


def files(path: Path) -> list[str]:
    """The names in a path's directory."""
    return sorted(found.name for found in path.parent.iterdir())


def content(path: Path) -> bytes:
    """The bytes of all files in a path's directory."""
    return b"".join(found.read_bytes() for found in sorted(path.parent.iterdir()) if found.is_file())
