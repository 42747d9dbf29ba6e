"""Many items through one callable: structured, bounded, lazy; and which errors end the submitting of all of them.

What is done for an item is not known here (`items`).

Leaving the `async with` ends every task that it started. Not an `asyncio.TaskGroup`: that would wrap the body's own
exception in a group. Not an async generator: one that holds tasks across `yield` breaks cancellation (PEP 789).
"""

import asyncio
import copy
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import isfunction
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel

from flux_klein_async.errors import (
    AuthenticationError,
    BudgetExceededError,
    ConfigurationError,
    FanOutHaltedError,
    FluxKleinError,
    InsufficientBalanceError,
    InvalidInputError,
    ItemClaimedError,
    JournalError,
    PermissionDeniedError,
    by_known_code,
)
from flux_klein_async.misuse import NEEDS_ASYNCIO, NotForLoop, NotWith, slip
from flux_klein_async.models import GenerationResult, Outcome, SavedFile

__all__ = ["FanOut", "Product", "dooms", "ends_only_submits", "not_submitted"]

_TAKE = "generate_many and generate_all take"  # `items`

T = TypeVar("T")


def dooms(error: FluxKleinError) -> bool:
    """Whether every further submit would end in this error too."""
    if isinstance(error, PermissionDeniedError):
        # On a submit, and by the service itself: a refusal of one request says nothing about the others, and a 403 of
        # a firewall nothing about the account.
        return error.request_id is None and by_known_code(error)
    if isinstance(error, JournalError):  # nothing is submitted that cannot be written down
        return not isinstance(error, ItemClaimedError)
    return isinstance(error, ConfigurationError | AuthenticationError | InsufficientBalanceError | BudgetExceededError)


def ends_only_submits(error: BaseException | None) -> bool:
    """Whether what an earlier run submitted can still be waited for, and its files fetched, which costs nothing."""
    return isinstance(error, BudgetExceededError | InsufficientBalanceError | FanOutHaltedError)


def not_submitted(error: FluxKleinError) -> FluxKleinError:
    """The same error for an item that was not submitted."""
    twin = copy.copy(error)
    twin.request_id, twin.paid_by_this_call = None, False
    twin._charged = "no"  # noqa: SLF001
    return twin


@dataclass(frozen=True, slots=True)
class Product:
    """What was made of an item, or its error; `from_journal` if an earlier run had submitted it and this did not."""

    result: GenerationResult | None = None
    error: FluxKleinError | None = None
    files: tuple[SavedFile, ...] = ()
    from_journal: bool = False


class FanOut(NotWith, NotForLoop, Generic[T]):
    """An async context manager, and the async iterator of outcomes that it gives.

    At most `concurrency` items are under way; at most as many more have ended and wait to be taken, so that a slow
    reader slows the reading of items. Items are read only when there is room for them.

    Attributes:
        reads_on: Once nothing more can be paid for, read all other items all the same, for what an earlier run
            submitted. Of the others no outcome is given (in ordered mode, the error).
    """

    def __init__(
        self,
        items: Iterable[T] | AsyncIterable[T],
        make: Callable[[int, T], Awaitable[Product]],
        *,
        concurrency: int,
        ordered: bool,
        on_stop: Callable[[FluxKleinError | None], None] = lambda _: None,
        halted_by: Callable[[], FluxKleinError | None] = lambda: None,
        unanswered: Callable[[], int] = lambda: 0,
    ) -> None:
        """`make` generates an item.

        `on_stop` is told by which error submitting ends, or None for the user's wish. `halted_by` says, each time that
        an item has ended, by which error all of them together end it. `unanswered` says how many submits are on their
        way.
        """
        self.reads_on = False
        self._make = make
        self._on_stop = on_stop
        self._halted_by = halted_by
        self._unanswered = unanswered
        self._concurrency = concurrency
        self._ordered = ordered
        self._workers: set[asyncio.Task[None]] = set()
        self._hiring = False
        self._reading = asyncio.Lock()
        self._ended: OrderedDict[int, Outcome[T]] = OrderedDict()
        self._read = 0  # items read
        self._held = 0  # items read whose outcome was not taken yet
        self._next = 0  # in ordered mode, the index to give next
        self._failure: BaseException | None = None
        self._exhausted = False
        self._wants_rest = False  # of the items, even if they are not to be submitted
        self._reader: asyncio.Task[Any] | None = None  # the worker that waits for the next item
        self._room = asyncio.Event()
        self._news = asyncio.Event()
        self._entered = False
        self._left = False
        self._next_item = _reader(items)  # last: it may refuse them, and the repr is whole

    def __repr__(self) -> str:
        state = "left" if self._left else "entered" if self._entered else "not entered"
        return f"<FanOut {state}, {len(self._workers)} of {self._concurrency} items under way>"

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("A fan-out can be entered only once")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(NEEDS_ASYNCIO) from None
        self._entered = True
        self._hire(1)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exhausted = self._left = True
        cancelled: asyncio.CancelledError | None = None
        while self._workers:
            for worker in self._workers:
                worker.cancel()
            try:
                await asyncio.wait(set(self._workers))
            except asyncio.CancelledError as error:  # from outside: first leave nothing running
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def __aiter__(self) -> AsyncIterator[Outcome[T]]:
        return self

    async def __anext__(self) -> Outcome[T]:
        if not self._entered:
            raise ConfigurationError("Use it as: async with client.generate_many(...) as outcomes")
        while (outcome := self._take()) is None:
            if not self._workers:
                if self._failure is not None and not self._left:
                    raise self._failure
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._held -= 1
        self._room.set()
        return outcome

    def _take(self) -> Outcome[T] | None:
        """The outcome to give next, if it is there."""
        if not self._ordered:
            return self._ended.popitem(last=False)[1] if self._ended else None
        outcome = self._ended.pop(self._next, None)
        self._next += outcome is not None
        return outcome

    @property
    def unanswered(self) -> int:
        """How many submits are on their way now: each may be accepted, and charged."""
        return self._unanswered()

    def stop(self) -> None:
        """Begin to end in good order: continue taking outcomes, and the iterator ends soon.

        No more items are read and nothing more is submitted; a submit on its way has 5 s to be answered. Queued
        requests are cancelled; running ones, which are paid for in any case, are waited for and saved, each until its
        timeouts end: to bound that, cancel the task that takes the outcomes. May be called from a signal handler of the
        loop, from `on_event` and from the items themselves: the task that calls it is never cancelled. What is
        cancelled ends in a `GenerationCancelledError` that is `retryable`.
        """
        self._wants_rest = False
        if not self._exhausted or self._workers:
            self._read_no_more()
            self._on_stop(None)

    async def all(self) -> list[Outcome[T]]:
        """Every outcome, in the order of the items; an error that dooms the rest is the outcome of all the rest."""
        outcomes = []
        self._wants_rest = self.reads_on = True
        async with self:
            try:
                async for outcome in self:
                    outcomes.append(outcome)  # noqa: PERF401  # those before an error count too
            except FluxKleinError as error:
                while self._wants_rest and (found := await self._numbered()) is not None:
                    outcomes.append(Outcome(index=found[0], item=found[1], error=not_submitted(error)))
        return sorted(outcomes, key=lambda outcome: outcome.index)

    # --- the workers

    def _hire(self, count: int) -> None:
        """Start more workers, up to the concurrency.

        Each that has found work hires two, so that a burst starts at once; what runs in one turn of the loop also
        costs less CPU.
        """
        for _ in range(min(count, self._concurrency - len(self._workers)) if not self._exhausted else 0):
            self._hiring = True
            worker = asyncio.ensure_future(self._work())
            self._hiring = False
            self._workers.add(worker)
            worker.add_done_callback(self._retire)

    def _retire(self, worker: "asyncio.Task[None]") -> None:
        self._workers.discard(worker)
        if worker.cancelled():
            self._fail(asyncio.CancelledError("a worker of the fan-out was cancelled from outside"))
        elif (error := worker.exception()) is not None:
            self._fail(error)
        self._news.set()

    async def _work(self) -> None:
        if self._hiring:  # tasks begin eagerly (Python 3.12): first be counted, and do not nest
            await asyncio.sleep(0)
        while (found := await self._read_one()) is not None:
            self._hire(2)
            index, item = found
            outcome = await self._outcome(index, item)
            if outcome is None:
                self._held -= 1
                self._room.set()
            else:
                self._ended[index] = outcome
                self._news.set()

    async def _read_one(self) -> tuple[int, T] | None:
        """The next item, once there is room for it; None if there is none or no more shall be read."""
        async with self._reading:
            while self._held >= 2 * self._concurrency:
                self._room.clear()
                await self._room.wait()
            if self._exhausted:
                return None
            self._reader = asyncio.current_task()
            try:
                found = await self._numbered()  # an exception of the user's own iterable ends this worker: see _retire
            except asyncio.CancelledError:
                if self._left or not self._exhausted:
                    raise
                return None
            finally:
                self._reader = None
            if found is None:
                self._exhausted = True
            else:
                self._held += 1
            return found

    async def _numbered(self) -> tuple[int, T] | None:
        try:
            item = await self._next_item()
        except StopAsyncIteration:
            return None
        self._read += 1
        return self._read - 1, item

    async def _outcome(self, index: int, item: T) -> Outcome[T] | None:
        """How an item ended; None if it came after the end of all submits, and would have been submitted."""
        before = self._failure  # it came while the item was waited for
        reads_on = self.reads_on and ends_only_submits(before)
        if isinstance(before, FluxKleinError) and not reads_on:
            return Outcome(index=index, item=item, error=not_submitted(before))
        try:
            made = await self._make(index, item)
        except FluxKleinError as error:
            made = Product(error=error)
        if reads_on and type(made.error) is type(before) and not (self._wants_rest or self._ordered):
            return None
        self._end_if(self._halted_by() or (made.error if made.error is not None and dooms(made.error) else None))
        return Outcome(
            index=index,
            item=item,
            result=made.result,
            error=made.error,
            files=made.files,
            from_journal=made.from_journal,
        )

    def _end_if(self, failure: FluxKleinError | None) -> None:
        if failure is not None:
            self._fail(failure)
            self._on_stop(failure)

    def _fail(self, failure: BaseException) -> None:
        """Read no more items, unless for what is free; those under way continue."""
        self._failure = self._failure or failure
        if not (self.reads_on and ends_only_submits(self._failure) and ends_only_submits(failure)):
            self._read_no_more()

    def _read_no_more(self) -> None:
        """Read no more, and do not wait for an item that comes some time."""
        self._exhausted = True
        self._room.set()
        if self._reader is None or self._wants_rest:
            return
        loop = self._reader.get_loop()
        if self._reader is asyncio.current_task(loop):  # called by the items themselves, which may yet give one more
            loop.call_soon(self._read_no_more)
            return
        reader, self._reader = self._reader, None  # cancelled once: its items may take time to clean up
        reader.cancel()


def _reader(items: Iterable[T] | AsyncIterable[T]) -> Callable[[], Awaitable[T]]:
    """A function that reads the next item; it raises `StopAsyncIteration` after the last."""
    if isinstance(items, str | bytes):
        raise InvalidInputError(f"{_TAKE} many inputs; one string would make a picture of each letter")
    if isinstance(items, Mapping | BaseModel):
        raise InvalidInputError(f"{_TAKE} many inputs; this is one: put it into a list")
    if hasattr(items, "columns") and hasattr(items, "dtypes"):  # of pandas or polars
        raise InvalidInputError(
            f"{_TAKE} inputs, and a data frame gives the names of its columns: pass one of its columns, or "
            "its rows as dictionaries (pandas: frame.to_dict('records'), polars: frame.to_dicts())"
        )
    if isinstance(items, AsyncIterable):
        return items.__aiter__().__anext__
    if not isinstance(items, Iterable):
        queued = ": write an async generator that gets the items from it" if isinstance(items, asyncio.Queue) else ""
        hint = ": call it" if isfunction(items) else queued
        raise InvalidInputError(f"{_TAKE} an iterable or async iterable of inputs, not {slip(items)}{hint}")
    iterator = iter(items)

    async def read() -> T:
        try:
            return next(iterator)
        except StopIteration:
            raise StopAsyncIteration from None

    return read
