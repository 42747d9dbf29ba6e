"""The file of a journal: how it is made, recognized, migrated and checked.

A file is made under another name and then linked into place whole: one that is there is a journal, or is none of
ours and left alone.
"""

import contextlib
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger.base import EntryState
from flux_klein_async.ledger.connections import header
from flux_klein_async.ledger.troubles import damaged

__all__ = ["APPLICATION_ID", "STEPS", "check", "make", "migrate", "recognize", "salt_of"]

APPLICATION_ID: Final = 0x464B4A31  # "FKJ1"
_MAGIC: Final = b"SQLite format 3\x00"
_STATES: Final = ", ".join(f"'{state.value}'" for state in EntryState)


def _column(name: str, kind: str) -> str:
    """A column that holds nothing but its type or NULL, by which damage is noticed."""
    return f"{name} {kind} CHECK (typeof({name}) IN ('{kind.split(maxsplit=1)[0].lower()}', 'null'))"


# One step for each version: what makes it of the version before. A step that was released is never changed.
STEPS: Final[tuple[Sequence[str], ...]] = (
    (
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID",
        # settled, held: what the account's orders are charged with (billionths of a USD); pruned: the part of settled
        # whose orders are no longer here.
        """CREATE TABLE accounts (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
            settled INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0, pruned INTEGER NOT NULL DEFAULT 0)""",
        "CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, began REAL NOT NULL)",
        # run: who claimed it last; seen: the newest order that was there already when it was claimed to be submitted.
        f"""CREATE TABLE orders (
            id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, {_column("item", "INTEGER")},
            {_column("key", "TEXT")}, {_column("request_id", "TEXT")},
            state TEXT NOT NULL CHECK (state IN ({_STATES})), run INTEGER NOT NULL,
            {_column("reserved", "INTEGER")}, {_column("cost", "INTEGER")},
            created REAL NOT NULL, updated REAL NOT NULL, {_column("model", "TEXT")}, {_column("error", "TEXT")},
            {_column("files", "TEXT")}, {_column("answer", "BLOB")}, {_column("digest", "INTEGER")},
            {_column("body", "BLOB")})""",
        "CREATE UNIQUE INDEX orders_by_key ON orders (account, key) WHERE key IS NOT NULL",
        "CREATE INDEX orders_by_request ON orders (account, request_id) WHERE request_id IS NOT NULL",
        "CREATE INDEX orders_by_item ON orders (item) WHERE item IS NOT NULL",
        "CREATE INDEX orders_on_their_way ON orders (run) WHERE state = 'submitting'",
        f"""CREATE TABLE items (
            id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, {_column("name", "BLOB NOT NULL")},
            {_column("content", "BLOB NOT NULL")}, run INTEGER NOT NULL, seen INTEGER NOT NULL,
            UNIQUE (account, name))""",
    ),
)

_CHARGED_NOT = "state IN ('refused', 'cancelled')"
# Each account's totals beside the sums over its orders.
_BALANCE = f"""
    SELECT accounts.name, settled - pruned, held, coalesce(sums.settled_sum, 0), coalesce(sums.held_sum, 0)
    FROM accounts LEFT JOIN (
        SELECT account,
            sum(CASE WHEN {_CHARGED_NOT} THEN 0 ELSE coalesce(cost, 0) END) AS settled_sum,
            sum(CASE WHEN {_CHARGED_NOT} OR cost IS NOT NULL THEN 0 ELSE coalesce(reserved, 0) END) AS held_sum
        FROM orders GROUP BY account
    ) AS sums ON sums.account = accounts.id
"""  # noqa: S608  # of constants


def recognize(path: Path) -> bool:
    """Whether the file is there; nothing of it is changed.

    Raises:
        JournalError: It is no journal, or one from a newer version.
        OSError: It cannot be read or written.
    """
    if path.is_dir():
        raise JournalError(f"{path} is a directory: a journal is a file")
    try:
        found = header(path)
    except FileNotFoundError:
        return False
    if found is None:
        return True
    if not found:
        raise JournalError(
            f"{path} is empty, which no journal ever is: delete it if nothing was in it, or name another"
        )
    if not found.startswith(_MAGIC):
        raise _foreign(path)
    _check_ours(path, int.from_bytes(found[68:72], "big"), int.from_bytes(found[60:64], "big"))
    return True


def make(path: Path, run: str) -> None:
    """Make the file where there is none, whole or not at all; only its owner may read it, since prompts are in it."""
    new = path.with_name(f"{path.name}-{run}.new")
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = FULL")
            with _writing(db):
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                _step(db, 0)
                salt = secrets.token_bytes(24)
                db.execute("INSERT INTO facts VALUES ('salt', ?, ?)", (salt, _digest(salt)))
            db.execute("PRAGMA journal_mode = WAL")
        _into_place(new, path)
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                new.with_name(new.name + ending).unlink()
    _sync_directory(path.parent)


def _into_place(new: Path, path: Path) -> None:
    try:
        os.link(new, path)
    except FileExistsError:  # another process was first
        return
    except OSError:  # this file system knows no links
        if not path.exists():
            new.rename(path)


def migrate(path: Path, db: sqlite3.Connection, is_alive: Callable[[str], bool]) -> None:
    """Bring a file of an earlier version up to this one; `is_alive` tells it of a run's name.

    Raises:
        JournalError: It is none, or from a newer version, or another run uses it as the earlier version that it is.
    """
    [application] = db.execute("PRAGMA application_id").fetchone()
    [version] = db.execute("PRAGMA user_version").fetchone()
    _check_ours(path, application, version)
    if version == len(STEPS):
        return
    with _writing(db):
        [version] = db.execute("PRAGMA user_version").fetchone()  # another process may have been at it
        if version < len(STEPS) and any(is_alive(run) for [run] in db.execute("SELECT name FROM runs").fetchall()):
            raise JournalError(f"The journal {path} is used by an earlier version of this package: wait for it to end")
        _step(db, version)


def check(path: Path, db: sqlite3.Connection) -> None:
    """Hold everything in the file against everything else: indexes against tables, totals against orders.

    Raises:
        JournalError: Something contradicts something else.
    """
    findings = [text for [text] in db.execute("PRAGMA integrity_check(3)") if text != "ok"]
    for name, settled, held, settled_sum, held_sum in db.execute(_BALANCE):
        if (settled, held) != (settled_sum, held_sum):
            findings.append(f"account {name or 'without a name'}: {settled}+{held}, not {settled_sum}+{held_sum}")
    if findings:
        raise damaged(path, findings)


def salt_of(path: Path, db: sqlite3.Connection) -> bytes:
    """What accounts are told apart with.

    Raises:
        JournalError: It is damaged: another salt would make every account a new one.
    """
    row = db.execute("SELECT value, digest FROM facts WHERE name = 'salt'").fetchone()
    if row is None or not isinstance(row[0], bytes) or _digest(row[0]) != row[1]:
        raise damaged(path, ["the salt"])
    return row[0]


def _foreign(path: Path) -> JournalError:
    return JournalError(f"{path} is no journal of this package; it was left alone: name another file")


def _check_ours(path: Path, application: int, version: int) -> None:
    if application != APPLICATION_ID:
        raise _foreign(path)
    if version > len(STEPS):
        raise JournalError(
            f"The journal {path} is from a newer version of this package (its format is {version}, "
            f"known here is {len(STEPS)}): update the package, or name another journal"
        )


def _step(db: sqlite3.Connection, version: int) -> None:
    for statements in STEPS[version:]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(STEPS)}")


@contextlib.contextmanager
def _writing(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()[:8]


def _sync_directory(folder: Path) -> None:
    """Make a new name in a directory durable, where the system has a way to say so."""
    if os.name == "nt":  # pragma: no cover
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
