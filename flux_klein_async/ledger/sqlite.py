"""A journal in one SQLite file, which several processes on one machine may share; the loop is never blocked."""

import asyncio
import itertools
import os
import sqlite3
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from flux_klein_async.errors import FluxKleinError, JournalError
from flux_klein_async.ledger.base import Action, Claim, Entry, EntryState
from flux_klein_async.ledger.claims import WORKING, claim, forget_pass, look
from flux_klein_async.ledger.database import Database
from flux_klein_async.ledger.entries import record
from flux_klein_async.ledger.transitions import from_nano
from flux_klein_async.ledger.troubles import trouble

__all__ = ["Account", "Pass", "Spending", "SqliteJournal"]

T = TypeVar("T")
_MOST: Final = 500  # operations in one transaction: other processes wait for its end
_Operation = tuple[Callable[[Database], Any], "asyncio.Future[Any]"]
_Done = tuple["asyncio.Future[Any]", Any, BaseException | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What an account's orders count with.

    Attributes:
        settled_usd: What the service says that they cost.
        held_usd: What is set aside for those whose cost is not known.
    """

    settled_usd: float
    held_usd: float

    @property
    def usd(self) -> float:
        """Both together, which is what a budget bounds."""
        return self.settled_usd + self.held_usd


class SqliteJournal:
    """What was paid for, in an SQLite file: durable, shared by processes, and gone on with after any end.

    Use it as `async with SqliteJournal("run.sqlite") as journal, FluxKleinClient(journal=journal) as client`.

    When `record` returns, the entry is on the disk (WAL with `synchronous=FULL`: it survives a power cut as far as the
    disk keeps its word). What is recorded at the same time shares one transaction. The file is made at the first use,
    readable by its owner alone, for the prompts are in it; the token is not. It belongs on a disk of this machine:
    SQLite's WAL does not work over a network file system. Beside it, each process that uses it holds a lock on a small
    file of its own, by which the others know that it is alive.

    Args:
        path: The file.
        retry_failed: Whether items whose generation failed are submitted again.
        resubmit_uncertain: Whether items whose submit may have been accepted are submitted again, and maybe paid twice.
        clock: Gives the instants that are written down, in seconds since 1970.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        retry_failed: bool = False,
        resubmit_uncertain: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._thread: ThreadPoolExecutor | None = None  # first: `__del__` asks for them, whatever comes of the rest
        self._closing: asyncio.Task[None] | None = None
        self.path = Path(path).absolute()
        again = {EntryState.REFUSED}
        if retry_failed:
            again.add(EntryState.FAILED)
        if resubmit_uncertain:
            again.add(EntryState.UNCERTAIN)
        self._again = frozenset(again)
        self._clock = clock
        self._passes = itertools.count(1)
        self._ended_passes: list[int] = []
        self._waiting: list[_Operation] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database: Database | None = None
        self._job: asyncio.Future[list[_Done]] | None = None
        self._nameless = Account(self, "")

    def __repr__(self) -> str:
        return f"SqliteJournal({str(self.path)!r})"

    def __del__(self) -> None:
        if self._thread is not None and self._closing is None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    # --- life

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Open the file now, not at the first entry; it is made if it is not there.

        Raises:
            JournalError: It cannot be read or written, or is none.
        """
        await self.operate(lambda _: None)

    async def aclose(self) -> None:
        """Write what is still to be written, and close the file; once is enough.

        Raises:
            JournalError: It could not be closed as it should.
        """
        if self._closing is None:
            self._bind()
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        while self._job is not None:
            await asyncio.wait([self._job])
        if self._thread is None:
            return
        try:
            await self._bind().run_in_executor(self._thread, self._close_database)
        finally:
            self._thread.shutdown(wait=False)

    def _close_database(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            try:
                database.close()
            except (OSError, sqlite3.Error) as error:
                raise trouble(self.path, error) from error

    # --- what a client uses

    async def record(self, entry: Entry) -> None:
        """Return once the entry is on the disk, in the account without a name.

        Raises:
            JournalError: It could not be written.
            BudgetExceededError: The money to be reserved with an intent is more than is left.
        """
        await self._nameless.record(entry)

    def items(self) -> "Pass":
        """Begin a pass over items, in the account without a name."""
        return self._nameless.items()

    async def spent(self) -> Spending:
        """What the account without a name has spent.

        Raises:
            JournalError: The file cannot be read.
        """
        return await self._nameless.spent()

    def for_account(self, token: str) -> "Account":
        """The entries and items of one account; its token is not written down, a salted hash of it is."""
        return Account(self, token)

    # --- one thread, one transaction for all that came meanwhile

    async def operate(self, operation: Callable[[Database], T]) -> T:
        """Run an operation in the thread, in a transaction; it is run to its end even if its caller gives up.

        Raises:
            JournalError: The file cannot be read or written; then nothing of it was written.
        """
        if self._closing is not None:
            raise JournalError(f"The journal {self.path} is closed")
        future: asyncio.Future[T] = self._bind().create_future()
        self._waiting.append((operation, future))
        if self._job is None:
            self._go_on()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._unclaim(future.result())  # it came in the very instant in which its caller was cancelled
            raise

    def new_pass(self) -> int:
        """A number for a pass over items."""
        return next(self._passes)

    def end_pass(self, number: int) -> None:
        """What came in a pass can be forgotten. Callable from any thread."""
        self._ended_passes.append(number)

    def claim_as(self, account: str, number: int, model: str, body: bytes, item_id: str | None) -> Callable[..., Claim]:
        """The operation that claims an item."""

        def operation(database: Database) -> Claim:
            return claim(database, account, number, model, body, item_id, self._again)

        return operation

    def look_as(self, account: str, number: int, model: str, body: bytes, item_id: str | None) -> Callable[..., Action]:
        """The operation that looks at an item."""

        def operation(database: Database) -> Action:
            return look(database, account, number, model, body, item_id, self._again)

        return operation

    def release_item(self, claim: Claim) -> None:
        """This run has nothing under way for the item any more."""
        if self._database is not None and claim.action in WORKING:
            self._database.taken.discard(int(claim.item))

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise JournalError(
                f"The journal {self.path} was first used in another event loop; make one object for each loop"
            )
        return loop

    def _go_on(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="flux-klein-journal")
        batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        self._job = self._bind().run_in_executor(self._thread, self._commit, batch)
        self._job.add_done_callback(self._committed)

    def _committed(self, job: "asyncio.Future[list[_Done]]") -> None:
        self._job = None
        for future, value, error in job.result():
            if future.done():  # its caller has given up
                self._unclaim(value)
            elif error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        if self._waiting:
            self._go_on()

    def _unclaim(self, value: object) -> None:
        if isinstance(value, Claim):
            self.release_item(value)

    def _commit(self, batch: list[_Operation]) -> list[_Done]:
        """In the thread: all operations in one transaction. What one refuses concerns it alone."""
        done: list[_Done] = []
        try:
            database = self._opened()
            with database.writing():
                while self._ended_passes:
                    forget_pass(database, self._ended_passes.pop())
                for operation, future in batch:
                    done.append(_attempt(database, operation, future))
        except Exception as error:  # noqa: BLE001  # whatever it is, each caller gets to know
            for _, value, _ in done:
                self._unclaim(value)
            return [(future, None, self._failure(error)) for _, future in batch]
        return done

    def _opened(self) -> Database:
        if self._database is None:
            self._database = Database.open(self.path.resolve(), self._clock)
        return self._database

    def _failure(self, error: Exception) -> JournalError:
        """One for each caller: an error that is raised twice mixes up their tracebacks."""
        if isinstance(error, JournalError):
            return JournalError(*error.args, cause=error.cause)
        failure = trouble(self.path, error)
        failure.__cause__ = error
        return failure


class Account:
    """The entries and items of one account in a journal."""

    def __init__(self, journal: SqliteJournal, token: str) -> None:
        self._journal = journal
        self._token = token

    def __repr__(self) -> str:
        return f"Account({self._journal!r})"

    async def record(self, entry: Entry) -> None:
        """Return once the entry is on the disk.

        Raises:
            JournalError: It could not be written.
            BudgetExceededError: The money to be reserved with an intent is more than is left.
        """
        token = self._token
        await self._journal.operate(lambda database: record(database, token, entry))

    def items(self) -> "Pass":
        """Begin a pass over items."""
        return Pass(self._journal, self._token)

    async def spent(self) -> Spending:
        """What the account has spent.

        Raises:
            JournalError: The file cannot be read.
        """
        return await self._journal.operate(self._spent)

    def _spent(self, database: Database) -> Spending:
        account = database.account(self._token)
        settled, held = database.db.execute("SELECT settled, held FROM accounts WHERE id = ?", (account,)).fetchone()
        return Spending(settled_usd=from_nano(settled), held_usd=from_nano(held))


class Pass:
    """One pass over items."""

    def __init__(self, journal: SqliteJournal, token: str) -> None:
        self._journal = journal
        self._token = token
        self._number = journal.new_pass()
        weakref.finalize(self, journal.end_pass, self._number).atexit = False

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        """As `Items` says."""
        return await self._journal.operate(self._journal.claim_as(self._token, self._number, model, body, item_id))

    async def look(self, model: str, body: bytes, item_id: str | None) -> Action:
        """What `claim` would say is to be done with an item; it is not taken."""
        return await self._journal.operate(self._journal.look_as(self._token, self._number, model, body, item_id))

    def release(self, claim: Claim) -> None:
        """As `Items` says."""
        self._journal.release_item(claim)


def _attempt(database: Database, operation: Callable[[Database], Any], future: "asyncio.Future[Any]") -> _Done:
    try:
        return future, operation(database), None
    except FluxKleinError as error:
        return future, None, error
    except (UnicodeEncodeError, OverflowError) as error:  # what SQLite cannot hold, found before anything was written
        return future, None, JournalError("An entry cannot be written down", cause=f"{type(error).__name__}: {error}")
