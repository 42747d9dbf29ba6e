"""A journal in an SQLite file, which several processes on one machine may share.

Each run holds a lock on a small file beside the journal until its process ends, which tells that it is alive. The
system drops the lock of a killed process at once, also across containers on one kernel, where process ids say nothing.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import sqlite3
import stat
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final, NoReturn

from flux_klein_async.errors import JournalError
from flux_klein_async.journal.sql import ODD_VALUE, VERSION, JournalStore, Location
from flux_klein_async.journal.writer import FORKED, StoredJournal
from flux_klein_async.misuse import named_arguments
from flux_klein_async.paths import user_path

__all__ = [
    "APPLICATION_ID",
    "BUSY",
    "Lease",
    "SqliteJournal",
    "SqliteLocation",
    "SqliteStore",
    "connect",
    "is_alive",
    "sweep",
    "to_error",
]

BUSY: Final = 5.0  # seconds that another process may hold the file
APPLICATION_ID: Final = 0x464B4A31  # "FKJ1"

_LOCKED: Final = (
    "is locked: another program has been writing to it for too long; close it, or give each a journal of its own"
)
_FULL: Final = "cannot grow: the disk is full; make room, then go on with the same journal"
_FORBIDDEN: Final = "cannot be written: make the file and its directory writable, or name another journal"
_DAMAGED: Final = "is damaged: keep the file, and go on with a backup or with what `sqlite3 FILE .recover` saves"
_DEVICE: Final = "cannot be read or written: the device reports an error; check the disk before going on"
_NO_DIRECTORY: Final = "cannot be made: its directory does not exist; make it, or name another journal"
_TOO_MANY: Final = "cannot be opened: this process has too many files open; raise its limit (ulimit -n)"
_NO_LOCKS: Final = (
    "is on a file system without working locks, as network and shared folders often are: name a journal on a local disk"
)
# By SQLite's result code (https://www.sqlite.org/rescode.html), extended or primary; and by the system's error number.
_CODES: Final[Mapping[int, str]] = {
    **dict.fromkeys(
        (
            sqlite3.SQLITE_PROTOCOL,
            sqlite3.SQLITE_NOLFS,
            sqlite3.SQLITE_IOERR_LOCK,
            sqlite3.SQLITE_IOERR_RDLOCK,
            sqlite3.SQLITE_IOERR_UNLOCK,
            sqlite3.SQLITE_IOERR_BLOCKED,
            sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
            sqlite3.SQLITE_IOERR_SHMLOCK,
            sqlite3.SQLITE_IOERR_SHMMAP,
            sqlite3.SQLITE_IOERR_SHMOPEN,
            sqlite3.SQLITE_IOERR_SHMSIZE,
        ),
        _NO_LOCKS,
    ),
    **dict.fromkeys((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED), _LOCKED),
    **dict.fromkeys((sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN), _FORBIDDEN),
    **dict.fromkeys((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT), _DAMAGED),
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _DEVICE,
}
_NUMBERS: Final[Mapping[int | None, str]] = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _NO_DIRECTORY),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _TOO_MANY),
    **dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS), _NO_LOCKS),
    errno.EIO: _DEVICE,
}


def to_error(path: Path, error: Exception) -> JournalError:
    """The error to raise for an exception while using the file."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        advice = _NUMBERS.get(error.errno)
        said = error.strerror or type(error).__name__
    elif isinstance(error, ODD_VALUE):
        advice = _DAMAGED
    else:
        code = getattr(error, "sqlite_errorcode", 0)
        advice = _CODES.get(code) or _CODES.get(code & 0xFF)
    return JournalError(f"The journal {path} {advice or 'cannot be used'}", cause=said[:300])


class Connection(sqlite3.Connection):
    """A connection that a forked process does not use, and does not close: both could damage the file.

    See https://www.sqlite.org/howtocorrupt.html, "Carrying an open database file across a fork()".
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _connections.add(self)

    def abandon(self) -> None:  # pragma: no cover  # in a forked process
        """In a forked process: use and close it no more."""
        vars(self).update(execute=_refuse, close=_leave_open)  # not asked before each statement, which takes longer
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # one that is collected would be closed


def _refuse(*_: object) -> NoReturn:  # pragma: no cover  # in a forked process
    raise JournalError(FORKED)


def _leave_open() -> None:  # pragma: no cover  # in a forked process
    pass


_connections: Final["weakref.WeakSet[Connection]"] = weakref.WeakSet()


def connect(path: Path) -> sqlite3.Connection:
    """Open the file of a journal; this takes the same time at any size.

    Raises:
        JournalError: It is not a journal, or one from a newer version; it is left as it is.
        FileNotFoundError: There is no file.
        OSError, sqlite3.Error: It cannot be opened.
    """
    if stat.S_ISDIR(path.stat().st_mode):
        raise JournalError(f"{path} is a directory: a journal is a file")
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # SQLite would open it for reading alone
    with contextlib.ExitStack() as stack:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        db = sqlite3.connect(uri, uri=True, timeout=BUSY, isolation_level=None, factory=Connection)
        stack.callback(db.close)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            [application] = db.execute("PRAGMA application_id").fetchone()
            [version] = db.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                raise
            application = version = 0
        if application != APPLICATION_ID:
            raise JournalError(f"{path} is not a journal of this package and was left as it is: name another file")
        if version > VERSION:
            raise JournalError(
                f"The journal {path} is from a newer version of this package (its format is {version}, "
                f"known here is {VERSION}): update the package, or name another journal"
            )
        stack.pop_all()
    return db


def _make(path: Path, run: str) -> None:
    """Make the file, whole or not at all; only its owner can read it, because it contains the prompts."""
    new = path.with_name(f"{path.name}-{run}.new")
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            for statement in SqliteStore.upgrade(0):
                db.execute(statement)
            db.execute("INSERT INTO settings VALUES ('salt', ?)", (secrets.token_bytes(24),))
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
            db.execute("PRAGMA journal_mode = WAL")
        try:
            os.link(new, path)  # SQLite makes the name durable with the first transaction
        except FileExistsError:  # another process was first
            pass
        except OSError:  # a file system without links
            if not path.exists():
                new.rename(path)
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                new.with_name(new.name + ending).unlink()


# --- which runs are alive

_RUN = re.compile(r"[0-9a-f]{16}")
_held: Final[set[int]] = set()  # the open locks of this process's runs
_changing = Lock()  # no fork comes between opening a lock and noting it

if sys.platform == "win32":  # pragma: no cover  # the same tests run there
    import msvcrt

    def _try_lock(handle: int, *, shared: bool) -> bool:  # noqa: ARG001  # Windows has no shared lock
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _close(handle: int, remove: Callable[[], None]) -> None:
        os.close(handle)  # an open file cannot be removed
        remove()

else:
    import fcntl

    def _try_lock(handle: int, *, shared: bool) -> bool:
        try:
            fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)  # as SQLite will
            fcntl.lockf(handle, fcntl.LOCK_UN)
        except (BlockingIOError, PermissionError):  # locks of both kinds are one on some file systems
            pass
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _close(handle: int, remove: Callable[[], None]) -> None:
        remove()  # still locked, so that a run that begins with the same file notices
        os.close(handle)

    def _forked() -> None:  # pragma: no cover  # as a forked process
        """In a forked process: the runs are its parent's, and a copy of a lock would keep a dead run alive.

        Closing the copy leaves the lock.
        """
        for handle in _held:
            with contextlib.suppress(OSError):  # a daemon closes every descriptor that it finds, these too
                os.close(handle)
        _held.clear()
        _changing.release()
        for connection in _connections:
            connection.abandon()

    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_forked)


class Lease:
    """The lock that shows that this run is alive."""

    def __init__(self, journal: Path, run: str, handle: int) -> None:
        self.run = run
        self._journal = journal
        self._handle: int | None = handle
        self._process = os.getpid()

    @classmethod
    def take(cls, journal: Path) -> "Lease":
        """Begin a run.

        Raises:
            OSError: The directory does not exist or cannot be written.
        """
        while True:
            run = secrets.token_hex(8)
            path = _lock_path(journal, run)
            with _changing:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
                try:
                    # A process that sweeps may lock or remove the file before it is locked here.
                    taken = _try_lock(handle, shared=False) and is_same_file(path, os.fstat(handle))
                except OSError:
                    _close(handle, lambda: _remove(path))  # noqa: B023  # called here
                    raise
                if taken:
                    _held.add(handle)
                    return cls(journal, run, handle)
                os.close(handle)

    def release(self) -> None:
        """End the run. Later calls do nothing, and so does a forked process's."""
        if self._handle is None or self._process != os.getpid():
            return
        with _changing:
            handle, self._handle = self._handle, None
            _held.discard(handle)
            _close(handle, lambda: _remove(_lock_path(self._journal, self.run)))


def is_alive(journal: Path, run: str) -> bool:
    """Whether a run has not ended; removes what a dead run left behind.

    Raises:
        OSError: The lock cannot be read.
    """
    try:
        handle = os.open(_lock_path(journal, run), os.O_RDWR)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's file: treat the run as alive
        return True
    try:
        ended = _try_lock(handle, shared=True)  # shared: two processes that check at once both succeed
    except OSError:
        os.close(handle)
        raise
    if not ended:
        os.close(handle)
        return True
    _close(handle, lambda: _clear(journal, run))
    return False


def sweep(journal: Path) -> None:
    """Remove what dead runs left behind."""
    for path in list(journal.parent.iterdir()):
        run = path.name[len(journal.name) + 1 : -len(".lock")]
        if _RUN.fullmatch(run) and path == _lock_path(journal, run):
            is_alive(journal, run)


def _lock_path(journal: Path, run: str) -> Path:
    return journal.with_name(f"{journal.name}-{run}.lock")


def _clear(journal: Path, run: str) -> None:
    """Remove the files of a dead run: a journal that it was making, and last its lock."""
    for ending in (".new", ".new-journal", ".new-wal", ".new-shm", ".lock"):
        _remove(journal.with_name(f"{journal.name}-{run}{ending}"))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # already gone, or left behind as a file without meaning
        path.unlink()


def is_same_file(path: Path, file: os.stat_result) -> bool:
    """Whether a path still names this file."""
    try:
        return os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False


# --- the journal


class SqliteStore(JournalStore):
    """One run's use of the file."""

    row_id = "INTEGER PRIMARY KEY AUTOINCREMENT"
    blob = "BLOB"

    def __init__(
        self, path: Path, db: sqlite3.Connection, lease: Lease | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Without a lease it is not a run."""
        super().__init__(clock)
        self.path = path
        self.db = db
        self._lease = lease
        self._file = path.stat()

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float]) -> "SqliteStore":
        """Open the file, or make it, and begin a run.

        Raises:
            JournalError: It is not a journal, or one from a newer version.
            OSError, sqlite3.Error: It cannot be read or written.
        """
        with contextlib.ExitStack() as stack:
            lease = Lease.take(path)
            stack.callback(lease.release)
            try:
                db = connect(path)
            except FileNotFoundError:
                _make(path, lease.run)
                db = connect(path)
            stack.callback(db.close)
            for pragma in (
                "synchronous = FULL",  # every commit is on the disk when it returns
                "fullfsync = ON",  # on macOS, where fsync alone does not ensure that
                "temp_store = FILE",
                "cache_size = -16000",  # KiB: the newest requests and the upper pages of indexes
                "temp.journal_mode = MEMORY",
                "temp.cache_size = -8000",
            ):
                db.execute(f"PRAGMA {pragma}")
            store = cls(path, db, lease, clock)
            with store.writing():
                [version] = db.execute("PRAGMA user_version").fetchone()
                for statement in cls.upgrade(version):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
                store.begin(lease.run)
            sweep(path)
            stack.pop_all()
        return store

    def place(self) -> str:
        """Where the journal is."""
        return os.fsencode(self.path).hex()  # a path may be no text

    def close(self) -> None:
        """End the run; the last run to end leaves a single file."""
        try:
            self.db.close()
        finally:
            if self._lease is not None:
                self._lease.release()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.db.execute(sql, values)

    def insert(self, sql: str, values: Sequence[Any]) -> int | None:
        """Insert a row and return its id; None if there was a conflict."""
        cursor = self.db.execute(sql, values)
        return cursor.lastrowid if cursor.rowcount else None

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, which may be more than fit in memory."""
        return iter(self.db.execute(sql, values))

    @contextlib.contextmanager
    def writing(self, tokens: Collection[str] | None = None) -> Iterator[None]:  # noqa: ARG002  # locks the whole file
        """A transaction: durable at its end, undone by an exception."""
        if not is_same_file(self.path, self._file):  # what is written to a deleted file is lost
            raise JournalError(f"The journal {self.path} was deleted or replaced while it was in use")
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._settle()
            self.db.execute("COMMIT")
        except BaseException:
            self._undone()
            if self.db.in_transaction:  # a full disk may have ended it already
                self.db.execute("ROLLBACK")
            raise

    def holds_lease(self, name: str) -> bool:
        """Whether the run of this name is alive."""
        return is_alive(self.path, name)

    def is_lost(self) -> bool:
        """Whether this run has died while it was in use: its lock goes only with its process."""
        return False

    def damage(self) -> list[str]:
        """What is wrong with the file."""
        return [text for [text] in self.db.execute("PRAGMA integrity_check(3)") if text != "ok"]


class SqliteLocation(Location):
    """The path of a journal's file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.path.exists()

    def open(self, clock: Callable[[], float]) -> SqliteStore:
        """Open the file, or make it, and begin a run."""
        return SqliteStore.open(self.path.resolve(), clock)

    def read(self) -> SqliteStore:
        """Open the file to read it.

        Raises:
            JournalError: There is none.
        """
        path = self.path.resolve()
        try:
            db = connect(path)
        except FileNotFoundError:
            raise JournalError(f"There is no journal {self.path}") from None
        db.execute("PRAGMA query_only = ON")
        return SqliteStore(path, db)

    def to_error(self, error: Exception) -> JournalError:
        """The error to raise for an exception while using the file."""
        return to_error(self.path, error)


@named_arguments({})
class SqliteJournal(StoredJournal):
    """A journal in an SQLite file: durable, shared by processes, and resumed after a crash.

    Use it as `async with SqliteJournal("run.sqlite") as journal, FluxKleinClient(journal=journal) as client`.

    An entry is on the disk when `record` returns, and survives a power cut if the disk does what it promises.
    Concurrent entries share a transaction. The file is made at the first use, and only its owner can read it: it
    contains the prompts, but never the token. Keep it on a local disk: on a network or shared folder locks may not
    work, and `JournalError` then says so. Each process that uses the file holds a lock on a small file beside it, which
    shows that it is alive; a forked process cannot use its parent's object. `PostgresJournal` is for several machines.

    A client uses the account of its token at its service: what another token, or the same token at another address,
    submitted is neither resumed nor recalled. Used directly, the journal is an account without a token; `spent` alone
    is of all accounts.

    Args:
        path: The file.
        retry_failed: Whether to submit items again whose generation failed, or completed (and is charged) without a
            file that the service could give since: you pay for them again.
        resubmit_uncertain: Whether to submit items again whose submit may have been accepted: you may pay twice.
        clock: Gives the times that are recorded, in seconds since 1970.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        retry_failed: bool = False,
        resubmit_uncertain: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = user_path(path).absolute()
        super().__init__(
            SqliteLocation(self.path), retry_failed=retry_failed, resubmit_uncertain=resubmit_uncertain, clock=clock
        )
