"""The thread that writes a journal: what many callers want at the same time is one transaction."""

import asyncio
import itertools
import sqlite3
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from flux_klein_async.errors import FluxKleinError, JournalError
from flux_klein_async.journal.base import Claim
from flux_klein_async.journal.database import Database, trouble
from flux_klein_async.journal.records import WORKING, forget_pass

__all__ = ["Writer"]


T = TypeVar("T")
_MOST: Final = 500  # operations in one transaction: other processes wait for its end
# Seconds between the beginnings of two transactions that several callers share: a commit takes the CPU of some ten
# entries, and as long as one lasts others gather.
_PACE: Final = 0.01
_Operation = tuple[Callable[[Database], Any], "asyncio.Future[Any]"]
_Done = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Writer:
    """Runs operations on a journal's file in a thread of its own, all that are waiting in one transaction.

    It belongs to one event loop, which it never blocks. The jobs go through `run_in_executor`, which a loop in virtual
    time waits for.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self._clock = clock
        self._waiting: list[_Operation] = []
        self._passes = itertools.count(1)
        self._ended_passes: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._database: Database | None = None
        self._job: asyncio.Future[list[_Done]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0  # the loop's instant before which no transaction begins
        self._closing: asyncio.Task[None] | None = None

    def __del__(self) -> None:
        if self._thread is not None and self._closing is None:
            warnings.warn(f"unclosed SqliteJournal({str(self.path)!r})", ResourceWarning, source=self, stacklevel=2)

    async def operate(self, operation: Callable[[Database], T]) -> T:
        """Run an operation in a transaction; it is run to its end even if its caller gives up.

        What it refuses, by an error of this package that it raises before it writes anything, concerns it alone.

        Raises:
            JournalError: The file cannot be read or written; then nothing of it was written.
        """
        if self._closing is not None:
            raise JournalError(f"The journal {self.path} is closed")
        future: asyncio.Future[T] = self._bind().create_future()
        self._waiting.append((operation, future))
        if self._job is None and self._timer is None:
            self._go_on_in_time()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._unclaim(future.result())  # it came in the very instant in which its caller was cancelled
            raise

    async def aclose(self) -> None:
        """Write what is still to be written, and close the file; once is enough.

        Raises:
            JournalError: It could not be closed as it should.
        """
        if self._closing is None:
            self._bind()
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def release(self, claim: Claim) -> None:
        """This run has nothing under way for an item any more."""
        if self._database is not None and claim.action in WORKING:
            self._database.taken.discard(int(claim.item))

    def begin_pass(self) -> int:
        """A number for a pass over items."""
        return next(self._passes)

    def end_pass(self, number: int) -> None:
        """What came in a pass can be forgotten. Callable from any thread."""
        self._ended_passes.append(number)

    # --- in the loop

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
        loop, self._timer = self._bind(), None
        batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        self._next = loop.time() + _PACE if len(batch) > 1 else 0.0  # a lone caller never waits
        self._job = loop.run_in_executor(self._thread, self._commit, batch)
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
            self._go_on_in_time()

    def _go_on_in_time(self) -> None:
        """At once, unless a transaction for several began just now: then those who come soon share the next."""
        loop = self._bind()
        if self._closing is None and loop.time() < self._next:
            self._timer = loop.call_at(self._next, self._go_on)
        else:
            self._go_on()

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._go_on()
        while self._job is not None:
            await asyncio.wait([self._job])
        if self._thread is None:
            return
        try:
            await self._bind().run_in_executor(self._thread, self._close_database)
        finally:
            self._thread.shutdown(wait=False)

    def _unclaim(self, value: object) -> None:
        if isinstance(value, Claim):
            self.release(value)

    # --- in the thread

    def _commit(self, batch: list[_Operation]) -> list[_Done]:
        """All operations in one transaction."""
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

    def _close_database(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            try:
                database.close()
            except (OSError, sqlite3.Error) as error:
                raise trouble(self.path, error) from error

    def _failure(self, error: Exception) -> JournalError:
        """One for each caller: an error that is raised twice mixes up their tracebacks."""
        if isinstance(error, JournalError):
            return JournalError(*error.args, cause=error.cause)
        failure = trouble(self.path, error)
        failure.__cause__ = error
        return failure


def _attempt(database: Database, operation: Callable[[Database], Any], future: "asyncio.Future[Any]") -> _Done:
    try:
        return future, operation(database), None
    except FluxKleinError as error:
        return future, None, error
    except (UnicodeEncodeError, OverflowError) as error:  # what SQLite cannot hold, found before anything was written
        return future, None, JournalError("An entry cannot be written down", cause=f"{type(error).__name__}: {error}")
