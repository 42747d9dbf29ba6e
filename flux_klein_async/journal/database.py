"""What went wrong with a journal's file, in a sentence that says what to do. Pure.

Connections to a journal's file, which this process opens through SQLite alone.

POSIX drops every lock that a process has on a file as soon as it closes any descriptor of that file; SQLite takes care
of its own (https://www.sqlite.org/howtocorrupt.html, 2.2). So a header is read only while no connection has the file.

The file of a journal: how it is made, recognized, migrated and checked.

A file is made under another name and then linked into place whole: one that is there is a journal, or is none of
ours and left alone.

A journal's file, open in the one thread that uses it: transactions, accounts, and which runs are alive.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from flux_klein_async.errors import JournalError
from flux_klein_async.journal.base import EntryState
from flux_klein_async.journal.lease import Lease

__all__ = [
    "APPLICATION_ID",
    "BUSY",
    "STEPS",
    "Connection",
    "Database",
    "check",
    "connect",
    "damaged",
    "header",
    "make",
    "migrate",
    "recognize",
    "salt_of",
    "trouble",
]


_TEXT: Final = 300  # characters of what SQLite says

_LOCKED: Final = (
    "is locked: another program has been writing to it for too long; close it, or give each a journal of its own"
)
_FULL: Final = "cannot grow: the disk is full; make room, then go on with the same journal"
_FORBIDDEN: Final = "cannot be written: make the file and its directory writable, or name another journal"
_DAMAGED: Final = "is damaged: keep the file, and go on with a backup or with what `sqlite3 FILE .recover` saves"
_DEVICE: Final = "cannot be read or written: the device reports an error; check the disk before going on"
_NOWHERE: Final = "cannot be made: its directory is not there; make it, or name another journal"
_CROWDED: Final = "cannot be opened: this process has too many files open; raise its limit (ulimit -n)"
_OTHERWISE: Final = "cannot be used"

# By SQLite's primary result code (https://www.sqlite.org/rescode.html).
_CODES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_PERM: _FORBIDDEN,
    sqlite3.SQLITE_CANTOPEN: _FORBIDDEN,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_CONSTRAINT: _DAMAGED,
    sqlite3.SQLITE_IOERR: _DEVICE,
}
_ERRNOS: Final[Mapping[int | None, str]] = {
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: _DEVICE,
    errno.ENOENT: _NOWHERE,
    errno.ENOTDIR: _NOWHERE,
    errno.EMFILE: _CROWDED,
    errno.ENFILE: _CROWDED,
}


def trouble(path: "Path", error: Exception) -> JournalError:
    """The error to raise for what using the file ended in."""
    text = f"The journal {path} {_meaning(error)}"
    if isinstance(error, OSError):
        return JournalError(text, cause=error.strerror or type(error).__name__)
    return JournalError(text, cause=f"{type(error).__name__}: {error}"[:_TEXT])


def damaged(path: "Path", findings: Iterable[str]) -> JournalError:
    """The error for a file in which something contradicts something else."""
    return JournalError(f"The journal {path} {_DAMAGED}", cause="; ".join(findings)[:_TEXT])


def _meaning(error: Exception) -> str:
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno, _OTHERWISE)
    if isinstance(error, ValueError):  # text that is no UTF-8, a state that is none
        return _DAMAGED
    code = getattr(error, "sqlite_errorcode", None)
    return _OTHERWISE if code is None else _CODES.get(code & 0xFF, _OTHERWISE)


BUSY: Final = 5.0  # seconds that another process may hold the file
_HEADER: Final = 100  # bytes of an SQLite file's header (https://www.sqlite.org/fileformat2.html, 1.3)
_PRAGMAS: Final = (
    "synchronous = FULL",  # every commit is on the disk when it returns
    "fullfsync = ON",  # on macOS, where fsync alone does not say so
    "temp_store = FILE",
    "cache_size = -16000",  # KiB: the newest requests and the upper pages of indexes
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
        # settled, held: what the account's requests are charged with (billionths of a USD); pruned: the part of settled
        # whose requests are no longer here.
        """CREATE TABLE accounts (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
            settled INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0, pruned INTEGER NOT NULL DEFAULT 0)""",
        "CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, began REAL NOT NULL)",
        # run: who claimed it last; seen: the newest request that was there already when it was claimed to be submitted.
        f"""CREATE TABLE requests (
            id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, {_column("item", "INTEGER")},
            {_column("key", "TEXT")}, {_column("request_id", "TEXT")},
            state TEXT NOT NULL CHECK (state IN ({_STATES})), run INTEGER NOT NULL,
            {_column("reserved", "INTEGER")}, {_column("cost", "INTEGER")},
            created REAL NOT NULL, updated REAL NOT NULL, {_column("model", "TEXT")}, {_column("error", "TEXT")},
            {_column("files", "TEXT")}, {_column("answer", "BLOB")}, {_column("digest", "INTEGER")},
            {_column("body", "BLOB")})""",
        "CREATE UNIQUE INDEX orders_by_key ON requests (account, key) WHERE key IS NOT NULL",
        "CREATE INDEX orders_by_request ON requests (account, request_id) WHERE request_id IS NOT NULL",
        "CREATE INDEX orders_by_item ON requests (item) WHERE item IS NOT NULL",
        "CREATE INDEX orders_on_their_way ON requests (run) WHERE state = 'submitting'",
        f"""CREATE TABLE items (
            id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, {_column("name", "BLOB NOT NULL")},
            {_column("content", "BLOB NOT NULL")}, run INTEGER NOT NULL, seen INTEGER NOT NULL,
            UNIQUE (account, name))""",
    ),
)

_CHARGED_NOT = "state IN ('refused', 'cancelled')"
# Each account's totals beside the sums over its requests.
_BALANCE = f"""
    SELECT accounts.name, settled - pruned, held, coalesce(sums.settled_sum, 0), coalesce(sums.held_sum, 0)
    FROM accounts LEFT JOIN (
        SELECT account,
            sum(CASE WHEN {_CHARGED_NOT} THEN 0 ELSE coalesce(cost, 0) END) AS settled_sum,
            sum(CASE WHEN {_CHARGED_NOT} OR cost IS NOT NULL THEN 0 ELSE coalesce(reserved, 0) END) AS held_sum
        FROM requests GROUP BY account
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
    """Hold everything in the file against everything else: indexes against tables, totals against requests.

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


_GONE: Final = "The process ended before the service's answer was written down"


# What came before in a pass over items. On the disk, in a file without a name: there may be a million of them.
_SEEN: Final = (
    "PRAGMA temp.journal_mode = MEMORY",
    "PRAGMA temp.cache_size = -8000",
    "CREATE TEMP TABLE seen (pass INTEGER, name BLOB, count INTEGER NOT NULL, PRIMARY KEY (pass, name)) WITHOUT ROWID",
)


class Database:
    """The file, as one run uses it; all in one thread, but for `taken`, from which the loop releases items.

    Attributes:
        run: This run's number in the file.
        taken: The items that this run claimed to work on, and has not released.
        priced: By account, the newest request when something was set aside for all that were made without a budget.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, lease: Lease, clock: Callable[[], float]) -> None:
        self.path = path
        self.db = db
        self.clock = clock
        self.run = 0
        self.taken: set[int] = set()
        self.priced: dict[int, int] = {}
        self._lease = lease
        self._file = path.stat()
        self._salt = salt_of(path, db)
        self._accounts: dict[str, int] = {}

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float]) -> "Database":
        """Open the file, or make it, and begin a run.

        Raises:
            JournalError: It is none, damaged, or from a newer version.
            OSError, sqlite3.Error: It cannot be read or written.
        """
        there = recognize(path)
        lease = Lease.take(path)
        try:
            if not there:
                make(path, lease.run)
            db = connect(path)
        except BaseException:
            lease.release()
            raise
        try:
            migrate(path, db, lease.is_alive)
            check(path, db)
            database = cls(path, db, lease, clock)
            database._begin()
        except BaseException:
            db.close()
            lease.release()
            raise
        return database

    def close(self) -> None:
        """End the run; the last to close leaves one file behind."""
        try:
            self.db.close()
        finally:
            self._lease.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction: durable when left, undone when left by an exception."""
        self._check_still_there()
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            self._accounts.clear()  # what was added in this transaction is not there
            self.priced.clear()
            if self.db.in_transaction:  # a full disk may have ended it already
                self.db.execute("ROLLBACK")
            raise

    def account(self, token: str) -> int:
        """The number of an account, within a transaction; its token is not written down."""
        number = self._accounts.get(token)
        if number is None:
            name = self.account_name(token)
            self.db.execute("INSERT OR IGNORE INTO accounts (name) VALUES (?)", (name,))
            [number] = self.db.execute("SELECT id FROM accounts WHERE name = ?", (name,)).fetchone()
            self._accounts[token] = number
        return number

    def account_name(self, token: str) -> str:
        """What an account is called in the file: a salted hash of its token."""
        if not token:
            return ""
        return hashlib.blake2b(token.encode(), key=self._salt, digest_size=16).hexdigest()

    def rename_account(self, name: str, token: str) -> None:
        """Give an account to another token, of which the file knows nothing yet; within a transaction."""
        new = self.account_name(token)
        self.db.execute("DELETE FROM accounts WHERE name = ?", (new,))
        self.db.execute("UPDATE accounts SET name = ? WHERE name = ?", (new, name))
        self._accounts.clear()

    def is_alive(self, run: int) -> bool:
        """Whether a run has not ended, within a transaction; what a dead one had on its way is uncertain now."""
        if run == self.run:
            return True
        row = self.db.execute("SELECT name FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            return False
        if self._lease.is_alive(row[0]):
            return True
        self.db.execute(
            "UPDATE requests SET state = ?, error = ?, updated = ? WHERE run = ? AND state = 'submitting'",
            (EntryState.UNCERTAIN.value, _GONE, self.clock(), run),
        )
        self.db.execute("DELETE FROM runs WHERE id = ?", (run,))
        return False

    def _begin(self) -> None:
        for statement in _SEEN:
            self.db.execute(statement)
        with self.writing():
            for [run] in self.db.execute("SELECT id FROM runs").fetchall():
                self.is_alive(run)
            cursor = self.db.execute("INSERT INTO runs (name, began) VALUES (?, ?)", (self._lease.run, self.clock()))
            self.run = cursor.lastrowid or 0
        self._lease.sweep()

    def _check_still_there(self) -> None:
        """What is written into a file that was deleted is lost."""
        try:
            there = os.path.samestat(self.path.stat(), self._file)
        except FileNotFoundError:
            there = False
        if not there:
            raise JournalError(f"The journal {self.path} was deleted or replaced while it was in use")
