"""A journal's file, open in the one thread that uses it: transactions, accounts, and which runs are alive."""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from flux_klein_async.errors import JournalError
from flux_klein_async.ledger.base import EntryState
from flux_klein_async.ledger.connections import connect
from flux_klein_async.ledger.lease import Lease
from flux_klein_async.ledger.schema import check, make, migrate, recognize, salt_of

__all__ = ["Database"]

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
        priced: By account, the newest order when something was set aside for all that were made without a budget.
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
            "UPDATE orders SET state = ?, error = ?, updated = ? WHERE run = ? AND state = 'submitting'",
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
