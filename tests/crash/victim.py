"""`flux-klein` with a place in itself at which it kills itself.

Each run is a fork of a process that has imported this module, and with it all that a run imports, which takes longer
than the run. The hooks are in calls of the standard library that the package makes, not in the package: which of them
it makes, and in what request, is its own affair. With `bytes` as the place nothing is hooked: the system ends the
process in the write that would take a file beyond so many bytes, of which those up to there are on the disk.
"""

import builtins
import io
import os
import resource
import signal
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

import flux_klein_async.cli.batch
import flux_klein_async.journal.postgres  # noqa: F401  # see above
from flux_klein_async.__main__ import main

__all__ = ["NOTES", "PLACES", "run"]

NOTES = "stderr"  # the file, beside the prompts, with what a run told

_STEP = 50  # instructions of SQLite's machine

# What is hooked, and what each place means.
PLACES = {
    "making": "before a new journal gets its name",
    "made": "when it has it",
    "begin": "before a transaction",
    "intent": "when an intent is written, and not committed",
    "change": "when a request is changed, and not committed",
    "step": "anywhere within a statement of a transaction",
    "commit": "before a commit",
    "committed": "when a commit is durable, and nobody was told",
    "half a file": "with half of a picture written",
    "sync": "before a picture is synced",
    "naming": "before a picture gets its name",
    "named": "when it has it, and the journal does not know",
    "half a line": "with half of a line of the manifest written",
    "line": "when a line of the manifest is written",
    "bytes": "within a write of the journal",
}

place, number = "", 0
passed: Counter[str] = Counter()


def here(name: str) -> None:
    """Die, if this is the place."""
    if due(name):
        die()


def due(name: str) -> bool:
    passed[name] += name == place
    return name == place and passed[name] == number


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly(sqlite3.Connection):
    """A connection that may not live to its commit."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.startswith("COMMIT"):
            here("commit")
        if sql.startswith("BEGIN"):
            here("begin")
            self.set_progress_handler(lambda: here("step"), _STEP)
        cursor = super().execute(sql, *values)
        if sql.startswith("INSERT INTO requests"):
            here("intent")
        if sql.startswith("UPDATE requests"):
            here("change")
        if sql.startswith("COMMIT"):
            here("committed")
        return cursor


class DeadlySession:
    """The same for a session with a server; a journal is made by the transaction that makes its schema."""

    def __init__(self) -> None:
        self._execute = psycopg.Connection.execute
        self._making = False

    def execute(self, session: Any, sql: str, *values: Any) -> Any:
        self._making |= sql.startswith("CREATE SCHEMA")
        ends = sql.startswith("COMMIT")
        if ends:
            here("making" if self._making else "commit")
        here("begin" if sql.startswith("BEGIN") else "step")
        cursor = self._execute(session, sql, *values)
        if sql.startswith("INSERT INTO requests"):
            here("intent")
        if sql.startswith("UPDATE requests"):
            here("change")
        if ends:
            here("made" if self._making else "committed")
            self._making = False
        return cursor


class HalfWritten(io.BufferedWriter):
    """A file that may not live to its end."""

    def write(self, data: Any) -> int:
        if due("half a file"):
            super().write(data[: len(data) // 2])
            self.flush()
            die()
        return super().write(data)


class Appended(io.FileIO):
    """A manifest that may not live to the end of a line."""

    def write(self, data: Any) -> int:
        if due("half a line"):
            super().write(data[: len(data) // 2])
            die()
        written = super().write(data)
        here("line")
        return written


def hook() -> None:
    connect, opened, link, sync = sqlite3.connect, io.open, os.link, os.fsync

    def deadly_open(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if more.get("buffering") == 0:
            return Appended(file, mode, opener=more.get("opener"))
        handle = opened(file, mode, *rest, **more)
        return HalfWritten(handle.detach()) if mode == "xb" else handle

    def deadly_link(*paths: Any, **more: Any) -> None:
        before, after = ("naming", "named") if str(paths[0]).endswith(".part") else ("making", "made")
        here(before)
        link(*paths, **more)
        here(after)

    def deadly_sync(handle: int) -> None:
        here("sync")
        sync(handle)

    def deadly_connect(*given: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **more: Any) -> Any:
        return connect(*given, factory=type("Doomed", (Deadly, factory), {}), **more)

    deadly = DeadlySession()
    psycopg.Connection.execute = lambda *given, **_: deadly.execute(*given)  # type: ignore[method-assign]
    sqlite3.connect = deadly_connect  # type: ignore[assignment]
    builtins.open = io.open = deadly_open
    os.link, os.fsync = deadly_link, deadly_sync


def run(at: str, count: int, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run the command line; `at`: the place where it dies, the `count`-th time; "" is nowhere."""
    global place, number
    place, number = at, count
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, os.devnull), (2, NOTES)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if place == "bytes":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    elif place:
        hook()
    sys.exit(main(arguments))
