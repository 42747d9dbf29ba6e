"""Journals as tests use them: opened in the test's own thread, or by another process."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flux_klein_async.journal.base import Claim, Entry
from flux_klein_async.journal.reader import JournalReader, locate
from flux_klein_async.journal.sql import JournalStore, Location
from flux_klein_async.journal.sqlite import SqliteJournal, SqliteLocation
from flux_klein_async.journal.states import Action, EntryState
from flux_klein_async.journal.writer import StoredJournal

__all__ = [
    "AGAIN",
    "Run",
    "check",
    "child",
    "content",
    "entry",
    "files",
    "item",
    "journal_at",
    "journal_named",
    "known",
    "named",
    "set_version",
    "states",
    "write",
]

AGAIN = frozenset({EntryState.REFUSED})


def entry(state: str, **facts: Any) -> Entry:
    return Entry(state=EntryState(state), **facts)


def write(store: JournalStore, *entries: Entry, token: str = "") -> None:
    for one in entries:
        with store.writing():
            store.record(token, one)


class Run:
    """A run in this process; each claim is a pass over items of its own, unless `number` says otherwise."""

    def __init__(self, journal: Path | Location, *, now: float = 1000.0) -> None:
        self.now = now
        self.location = locate(journal)
        self.store: Any = self.location.open(lambda: self.now)
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
            claim = self.store.preview("", self.passes, "a/b", body, None, again)
        self.store.release(claim)  # as for a caller that was cancelled: it is nobody's
        return claim.action

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


def journal_at(location: Any, **options: Any) -> StoredJournal:
    """The public object for a place of either store."""
    return journal_named(named(location), **options)


def named(location: Any) -> str:
    """A place in the words of a command line, for `journal_named`."""
    if isinstance(location, SqliteLocation):
        return str(location)
    return f"{location.schema} {location._conninfo.text}"


def journal_named(name: str, **options: Any) -> StoredJournal:
    """In another process: the journal that `named` names."""
    schema, _, conninfo = name.partition(" ")
    if not conninfo:
        return SqliteJournal(name, **options)
    from flux_klein_async.journal.postgres import PostgresJournal

    return PostgresJournal(conninfo, schema=schema, **options)


def check(journal: Path | Location) -> None:
    with JournalReader(journal) as reader:
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


def known(journal: Path | Location) -> list[tuple[str, str | None]]:
    """State and id of each request, as another program reads them, which sees what was committed."""
    with closing(locate(journal).read()) as store:
        return list(store.execute("SELECT state, request_id FROM requests ORDER BY id").fetchall())


def states(journal: Path | Location) -> list[str]:
    return [state for state, _ in known(journal)]


def item(claim: Claim) -> str:
    """What is the same in each claim of an item."""
    return claim.item.partition("-")[2]


def set_version(location: Location, version: int, *statements: str) -> None:
    """Make a journal one of another version of the package."""
    with closing(location.open(time.time)) as store:
        for statement in statements:
            store.execute(statement)
        if isinstance(location, SqliteLocation):
            store.execute(f"PRAGMA user_version = {version}")
        else:
            store.execute("UPDATE settings SET value = ? WHERE name = 'version'", (b"%d" % version,))


def files(path: Path) -> list[str]:
    """The names in a path's directory."""
    return sorted(found.name for found in path.parent.iterdir())


def content(path: Path) -> bytes:
    """The bytes of all files in a path's directory."""
    return b"".join(found.read_bytes() for found in sorted(path.parent.iterdir()) if found.is_file())
