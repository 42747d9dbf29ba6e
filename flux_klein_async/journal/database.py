"""The SQLite file of a journal: making, opening and checking it, errors in words, and `Database`, one run's use of it.

A file is made under another name and then linked into place whole. A file that exists is a journal, or belongs to
somebody else and is left alone.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from flux_klein_async.errors import JournalError
from flux_klein_async.journal.base import EntryState
from flux_klein_async.journal.lease import Lease

__all__ = ["APPLICATION_ID", "BUSY", "VERSION", "Database", "check", "connect", "make", "trouble"]


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


def _meaning(error: Exception) -> str:
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno, _OTHERWISE)
    if isinstance(error, ValueError):  # text that is no UTF-8, a state that is none
        return _DAMAGED
    code = getattr(error, "sqlite_errorcode", None)
    return _OTHERWISE if code is None else _CODES.get(code & 0xFF, _OTHERWISE)


BUSY: Final = 5.0  # seconds that another process may hold the file
APPLICATION_ID: Final = 0x464B4A31  # "FKJ1"
VERSION: Final = 1  # of the schema, in user_version
_PRAGMAS: Final = (
    "synchronous = FULL",  # every commit is on disk when it returns
    "fullfsync = ON",  # on macOS, where fsync alone does not mean that
    "temp_store = FILE",
    "cache_size = -16000",  # KiB: the newest requests and the upper pages of indexes
    "trusted_schema = OFF",
)
_STATES: Final = ", ".join(f"'{state.value}'" for state in EntryState)
_SCHEMA: Final = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    # settled, held: what the account's requests are charged with (billionths of a USD); pruned: the part of settled
    # whose requests were pruned.
    """CREATE TABLE accounts (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        settled INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0, pruned INTEGER NOT NULL DEFAULT 0)""",
    "CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, began REAL NOT NULL)",
    f"""CREATE TABLE requests (
        id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, item INTEGER, key TEXT, request_id TEXT,
        state TEXT NOT NULL CHECK (state IN ({_STATES})), run INTEGER NOT NULL, reserved INTEGER, cost INTEGER,
        created REAL NOT NULL, updated REAL NOT NULL, model TEXT, error TEXT, files TEXT, answer BLOB, body BLOB)""",
    "CREATE UNIQUE INDEX requests_by_key ON requests (account, key) WHERE key IS NOT NULL",
    "CREATE INDEX requests_by_id ON requests (account, request_id) WHERE request_id IS NOT NULL",
    "CREATE INDEX requests_by_item ON requests (item) WHERE item IS NOT NULL",
    "CREATE INDEX requests_submitting ON requests (run) WHERE state = 'submitting'",
    # run: the run that claimed it last; seen: the newest request that existed when it was claimed to be submitted.
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, name BLOB NOT NULL, content BLOB NOT NULL,
        run INTEGER NOT NULL, seen INTEGER NOT NULL, UNIQUE (account, name))""",
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


def connect(path: Path) -> sqlite3.Connection | None:
    """A connection to a journal; None if there is no file. Takes the same time whatever the size of the file.

    Raises:
        JournalError: The file is no journal, or one from a newer version; it is left as it is.
        OSError, sqlite3.Error: It cannot be opened.
    """
    if path.is_dir():
        raise JournalError(f"{path} is a directory: a journal is a file")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    if not size:
        raise JournalError(f"{path} is empty: delete it if it is not needed, or name another file")
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # SQLite would open it for reading alone
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY, isolation_level=None)
    try:
        _set_up(path, db)
    except BaseException:
        db.close()
        raise
    return db


def _set_up(path: Path, db: sqlite3.Connection) -> None:
    try:
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        [application] = db.execute("PRAGMA application_id").fetchone()
        [version] = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise _foreign(path) from error
        raise
    if application != APPLICATION_ID:
        raise _foreign(path)
    if version > VERSION:
        raise JournalError(
            f"The journal {path} is from a newer version of this package (its format is {version}, "
            f"known here is {VERSION}): update the package, or name another journal"
        )


def make(path: Path, run: str) -> None:
    """Make the file where there is none, whole or not at all; only its owner may read it, since prompts are in it."""
    new = path.with_name(f"{path.name}-{run}.new")
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO facts VALUES ('salt', ?)", (secrets.token_bytes(24),))
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
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
    except OSError:  # a file system without links
        if not path.exists():
            new.rename(path)


def check(path: Path, db: sqlite3.Connection) -> None:
    """Check the whole file: SQLite's own integrity check, and each account's totals against its requests.

    Raises:
        JournalError: Something in the file contradicts something else.
    """
    findings = [text for [text] in db.execute("PRAGMA integrity_check(3)") if text != "ok"]
    for name, settled, held, settled_sum, held_sum in db.execute(_BALANCE):
        if (settled, held) != (settled_sum, held_sum):
            findings.append(f"account {name or 'without a name'}: {settled}+{held}, not {settled_sum}+{held_sum}")
    if findings:
        raise JournalError(f"The journal {path} {_DAMAGED}", cause="; ".join(findings)[:_TEXT])


def _foreign(path: Path) -> JournalError:
    return JournalError(f"{path} is no journal of this package; it was left alone: name another file")


def _sync_directory(folder: Path) -> None:
    """Make a new name in a directory durable, where the system can."""
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
        [self._salt] = db.execute("SELECT value FROM facts WHERE name = 'salt'").fetchone()
        self._accounts: dict[str, int] = {}

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float]) -> "Database":
        """Open the file, or make it, and begin a run.

        Raises:
            JournalError: It is none, damaged, or from a newer version.
            OSError, sqlite3.Error: It cannot be read or written.
        """
        db = connect(path)
        try:
            lease = Lease.take(path)
        except BaseException:
            if db is not None:
                db.close()
            raise
        try:
            if db is None:
                make(path, lease.run)
                db = connect(path)
                assert db is not None, "it was made just now"  # noqa: S101
            database = cls(path, db, lease, clock)
            database._begin()
        except BaseException:
            if db is not None:
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
