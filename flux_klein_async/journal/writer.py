"""The asynchronous side of a journal, whatever its store: the thread that writes, and the accounts that clients use."""

import asyncio
import itertools
import logging
import os
import time
import warnings
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Self, TypeVar

from flux_klein_async.api.credentials import Secret
from flux_klein_async.api.urls import ApiUrls
from flux_klein_async.errors import FluxKleinError, JournalError
from flux_klein_async.journal.base import Claim, Entry
from flux_klein_async.journal.sql import JournalStore, Location
from flux_klein_async.journal.states import EntryState, from_nano
from flux_klein_async.misuse import NEEDS_ASYNCIO, NotWith
from flux_klein_async.options import from_environ

__all__ = ["EMULATED_TOKEN", "FORKED", "ItemPass", "JournalAccount", "Spending", "StoredJournal", "Writer"]

T = TypeVar("T")
_log = logging.getLogger("flux_klein_async")
EMULATED_TOKEN: Final = "emulator-token"  # noqa: S105  # not a secret
"""The emulator's token, unless it is given another: nothing was charged to it."""
_MOST: Final = 500  # operations in one transaction: other processes wait for its end
# Seconds between the beginnings of two transactions that several callers share: a commit takes as much CPU as ten
# entries, and other callers arrive while one lasts.
_INTERVAL: Final = 0.01
_MANY: Final = 8  # callers of one transaction, soon after which a lone caller waits an interval for others, too
_SOON: Final = 0.1  # seconds
FORKED: Final = "The journal was opened before this process was forked: open it in the process that uses it"
_NOT_SENT: Final = "The journal was lost before the submit was sent"
_AGAIN: Final = 1.0  # seconds until what could not be written is tried again
_CLOSING: Final = 10.0  # seconds for which closing tries to write it; an attempt under way is not cut short
_NOBODY: Final = Secret("")  # the account without a token


class _Operation(NamedTuple):
    """An operation that waits for a transaction.

    Attributes:
        account: The one that it uses; None for all.
        kept: It is tried again until it is written.
        withdraw: What is written, and kept, if the run was lost: the operation may have been written, although its
            caller was told that it was not.
    """

    run: Callable[[JournalStore], Any]
    future: "asyncio.Future[Any]"
    account: Secret | None
    kept: bool
    withdraw: Callable[[JournalStore], Any] | None

    def later(self, *, lost: bool) -> "_Operation | None":
        """What is still to be written after a failure; `lost`: with the run."""
        if lost and self.withdraw is not None:
            return self._replace(run=self.withdraw, kept=True, withdraw=None)
        return self if self.kept else None


class _Done(NamedTuple):
    """How an operation ended; `later`: what is still to be written."""

    operation: _Operation
    value: Any
    error: BaseException | None
    later: _Operation | None = None


class Writer:
    """Runs operations on a store in a thread of its own; all that are waiting share a transaction.

    It belongs to one event loop, which it never blocks. The jobs go through `run_in_executor`, which a loop in virtual
    time waits for.

    An operation that is kept and cannot be written, because another program holds the file or the disk is full, fails
    for its caller, and is tried again each second and while closing.

    A run that is lost (its server let go of it) claims and submits nothing more. The next operation begins another run,
    which also writes what the lost one could not.
    """

    def __init__(
        self, name: str, open_store: Callable[[], JournalStore], to_error: Callable[[Exception], JournalError]
    ) -> None:
        self.name = name
        self._open_store = open_store
        self._to_error = to_error
        self._waiting: list[_Operation] = []
        self._unwritten: list[_Operation] = []  # kept, and failed before
        self.passes = itertools.count(1)  # numbers the passes over items
        self.first_pass = 0  # passes with a lower number began in a run that is lost
        self.ended_passes: list[int] = []  # to be forgotten with the next transaction; any thread can append
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._store: JournalStore | None = None
        self._job: asyncio.Future[list[_Done]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0  # the loop time before which no transaction begins
        self._company_until = 0.0  # the loop time until which a lone caller waits for others
        self._closing: asyncio.Task[None] | None = None
        self._process = os.getpid()  # the one that has the thread
        self.mark = ""  # this run's, once somebody asked for it

    def __del__(self) -> None:
        if self._thread is not None and self._closing is None and self._process == os.getpid():
            warnings.warn(f"unclosed {self.name}", ResourceWarning, source=self, stacklevel=2)

    async def run(
        self,
        operation: Callable[[JournalStore], T],
        account: Secret | None = _NOBODY,
        *,
        keep: bool = False,
        withdraw: Callable[[JournalStore], Any] | None = None,
    ) -> T:
        """Run an operation in a transaction, to its end even if its caller is cancelled.

        An error of this package must be raised before anything is written: it fails this operation alone.

        Args:
            operation: What to do with the store.
            account: The one that it uses; None for all.
            keep: If the store cannot be written, raise, and try again in the background and while closing.
            withdraw: What to write so if the run is lost: the operation may have been written all the same.

        Raises:
            JournalError: The store cannot be read or written; nothing of the operation was written.
        """
        if self._closing is not None:
            raise JournalError(f"{self.name} is closed")
        loop = self._bind()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Operation(operation, future, account, keep, withdraw))
        if self._job is None and (self._timer is None or len(self._waiting) == 1):
            if (now := loop.time()) < self._company_until:
                self._next = max(self._next, now + _INTERVAL)
            self._schedule(loop)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # it arrived as its caller was cancelled
            raise

    async def aclose(self) -> None:
        """Run the pending operations and close the store. Later calls do nothing.

        Raises:
            JournalError: An entry could not be written, though it was tried for 10 s; or the store could not be closed
                properly.
        """
        if self._closing is None:
            self._bind()
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def release(self, value: object) -> None:
        """End this run's work on an item, if the value is a claim of one."""
        if self._store is not None and isinstance(value, Claim):
            self._store.release(value)

    # --- in the loop

    def _bind(self) -> asyncio.AbstractEventLoop:
        if self._thread is not None and self._process != os.getpid():
            raise JournalError(FORKED)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise JournalError(NEEDS_ASYNCIO) from None
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise JournalError(f"{self.name} was first used in another event loop; make one object for each loop")
        return loop

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin a transaction now, or a little after the last if several callers shared that one."""
        if self._timer is not None:
            self._timer.cancel()
        if self._closing is None and loop.time() < self._next:
            self._timer = loop.call_at(self._next, self._begin, loop)
        else:
            self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="flux-klein-journal")
            self._process = os.getpid()
        self._timer = None
        batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        self._next = loop.time() + _INTERVAL if len(batch) > 1 else 0.0
        if len(batch) >= _MANY:
            self._company_until = loop.time() + _SOON
        again, self._unwritten = self._unwritten, []
        try:
            self._job = loop.run_in_executor(self._thread, self._commit, again + batch)
        except RuntimeError as error:  # at the first use; what waits in the executor would be written later
            self._thread = None
            raise JournalError(f"{self.name} cannot be used", cause=f"{type(error).__name__}: {error}") from error
        self._job.add_done_callback(self._committed)

    def _committed(self, job: "asyncio.Future[list[_Done]]") -> None:
        loop, self._job = job.get_loop(), None
        for operation, value, error, later in job.result():
            if later is not None:
                self._unwritten.append(later)
            if operation.future.done():  # its caller was cancelled, or heard of an earlier failure
                self.release(value)
            elif error is None:
                operation.future.set_result(value)
            else:
                operation.future.set_exception(error)
        if self._waiting:
            self._schedule(loop)
        elif self._unwritten and self._closing is None:
            self._timer = loop.call_later(_AGAIN, self._begin, loop)

    async def _close(self) -> None:
        loop = self._bind()
        end = loop.time() + _CLOSING
        if self._timer is not None:
            self._timer.cancel()
            self._begin(loop)
        while self._job is not None:
            await asyncio.wait([self._job])
            if self._job is None and self._unwritten and loop.time() < end:
                await asyncio.sleep(_AGAIN)
                self._begin(loop)
        if self._thread is None:
            return
        try:
            await loop.run_in_executor(self._thread, self._close_store)
        finally:
            self._thread.shutdown(wait=False)
        if self._unwritten:
            count = len(self._unwritten)
            raise JournalError(f"{self.name} could not be written: {count} of its entries are lost")

    # --- in the thread

    def _commit(self, batch: list[_Operation]) -> list[_Done]:
        """Run all operations in one transaction."""
        done: list[_Done] = []
        try:
            if self._store is None:
                self._store = self._open_store()
            tokens = [operation.account.text for operation in batch if operation.account is not None]
            with self._store.writing(tokens if len(tokens) == len(batch) else None):
                while self.ended_passes:
                    self._store.end_pass(self.ended_passes.pop())
                for operation in batch:
                    done.append(_attempt(self._store, operation))  # noqa: PERF401  # what was done before an error counts
        except Exception as error:  # noqa: BLE001  # whatever it is, each caller must hear of it
            for ended in done:
                self.release(ended.value)
            lost = self._store is not None and self._store.is_lost()
            if self._store is not None and lost:
                self._lose(self._store)
            failures = [_Done(operation, None, self._failure(error)) for operation in batch]
            if isinstance(error, JournalError):  # final: a deleted file, or one that is no journal
                return failures
            return [failed._replace(later=failed.operation.later(lost=lost)) for failed in failures]
        return done

    def _lose(self, store: JournalStore) -> None:
        """The run is dead: its passes are over, and the next operation begins another."""
        self._store, self.mark, self.first_pass = None, "", next(self.passes)
        store.close()

    def _close_store(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            try:
                store.close()
            except Exception as error:
                raise self._failure(error) from error

    def _failure(self, error: Exception) -> JournalError:
        """A new error for each caller: an error that is raised twice mixes up their tracebacks."""
        if isinstance(error, JournalError):
            return JournalError(*error.args, cause=error.cause)
        failure = self._to_error(error)
        error.__context__ = None
        failure.__cause__ = error.with_traceback(None)  # the frames hold the token
        return failure


def _attempt(store: JournalStore, operation: _Operation) -> _Done:
    try:
        return _Done(operation, operation.run(store), None)
    except FluxKleinError as error:
        return _Done(operation, None, error.with_traceback(None))  # its frames hold the token


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What an account has spent.

    Attributes:
        settled_usd: The cost of its requests in USD, as the service reports it.
        held_usd: USD reserved for requests whose cost is not known.
        unpriced: How many requests may be charged at an unknown cost for which nothing is reserved. A budget reserves
            for each what its next submit may cost.
        highest_usd: The highest cost of a generation of the model in USD, if it was more than was reserved for it; a
            budget reserves that much for the next ones. 0 if there was none, or no model was asked for.
    """

    settled_usd: float
    held_usd: float
    unpriced: int = 0
    highest_usd: float = 0.0

    @property
    def usd(self) -> float:
        """The sum of both, which a budget limits."""
        return self.settled_usd + self.held_usd


def _spending(store: JournalStore, model: str | None, *accounts: int) -> Spending:
    settled, held = store.totals(*accounts)
    return Spending(
        settled_usd=from_nano(settled),
        held_usd=from_nano(held),
        unpriced=store.unpriced(*accounts),
        highest_usd=from_nano(store.highest_cost(model, *accounts)),
    )


def _account_of(token: Secret, base_url: str | None) -> Secret:
    """Name the account of a token at a service, for a store; no token has a blank.

    Raises:
        ConfigurationError: A bad base URL.
    """
    address = from_environ(os.environ).base_url if base_url is None else base_url
    service = ApiUrls(address, allow_insecure=True).service  # the client has refused what is insecure
    return Secret(f"{token.text} {service}")


class JournalAccount:
    """The entries and items of one account in a journal."""

    def __init__(self, writer: Writer, account: Secret, again: frozenset[EntryState]) -> None:
        """`again`: the states of a request after which its item is submitted again."""
        self._writer = writer
        self._account = account
        self._again = again
        self._has_submitted = False

    def __repr__(self) -> str:
        return f"JournalAccount({self._writer.name})"

    async def record(self, entry: Entry) -> None:
        """Return once the entry is durable.

        An entry that cannot be written now is written as soon as it can be, also while closing; an intent is not,
        because nothing is sent for it. Before the first, a token that may have been renewed is logged.

        Raises:
            JournalError: The entry could not be written; with `charged` "unknown", its request id belongs to another
                submit.
            BudgetExceededError: The intent reserves more money than is left.
        """
        if entry.state is not EntryState.SUBMITTING:
            await self._writer.run(partial(self._write, entry), self._account, keep=True)
            return
        intend, withdraw = partial(self._intend, entry), partial(self._withdraw, entry)
        if await self._writer.run(intend, self._account, withdraw=withdraw):
            _log.warning(
                "%s holds what another token of this service paid for, and nothing of this one: its items are paid for "
                "again, and a budget starts at zero. If you renewed the token, first call "
                "await journal.for_account(token, base_url).take_over()",
                self._writer.name,
            )
        self._has_submitted = True

    def _write(self, entry: Entry, store: JournalStore) -> None:
        store.record(self._account.text, entry)

    def _intend(self, entry: Entry, store: JournalStore) -> bool:
        """Write an intent; whether it is the first of a token that may have been renewed."""
        renewed = not self._has_submitted and self._may_be_renewed(store)
        self._write(entry, store)
        return renewed

    def _withdraw(self, entry: Entry, store: JournalStore) -> None:
        """Nothing is sent for an intent of which its caller hears that it was not written."""
        self._write(Entry(state=EntryState.REFUSED, key=entry.key, error=_NOT_SENT), store)

    def _may_be_renewed(self, store: JournalStore) -> bool:
        """Whether other tokens of this account's service may have been charged, and this one not."""
        token, _, service = self._account.text.partition(" ")
        others = [] if token in {"", EMULATED_TOKEN} else store.other_accounts(self._account.text, [EMULATED_TOKEN])
        return any(name.partition("@")[2] == service for name in others)

    def items(self) -> "ItemPass":
        """Begin a pass over items."""
        return ItemPass(self._writer, self._account, self._again)

    async def spent(self, model: str | None = None) -> Spending:
        """What the account has spent, and what a generation of a model has cost at most.

        Raises:
            JournalError: The journal cannot be read.
        """
        account = self._account
        return await self._writer.run(lambda store: _spending(store, model, store.account(account.text)), account)

    async def run_mark(self) -> str:
        """The mark with which this run names its unfinished files.

        Raises:
            JournalError: The journal cannot be read.
        """
        self._writer.mark = self._writer.mark or await self._writer.run(lambda store: store.mark())
        return self._writer.mark

    async def ended_runs(self, marks: Collection[str]) -> set[str]:
        """Those of the marks that are of this journal's runs, and of runs that have ended.

        Raises:
            JournalError: The journal cannot be read.
        """
        return await self._writer.run(lambda store: store.ended_runs(marks))

    async def known_requests(self, request_ids: Collection[str]) -> set[str]:
        """Those of the ids that are of the journal's requests, whichever account made them.

        Raises:
            JournalError: The journal cannot be read.
        """
        return await self._writer.run(lambda store: store.known_requests(request_ids))

    async def has_request(self, request_id: str) -> bool:
        """Whether a request is of this account.

        Raises:
            JournalError: The journal cannot be read.
        """
        return await self._writer.run(lambda store: store.has_request(self._account.text, request_id), self._account)

    async def is_stranger(self, *, ignored: tuple[str, ...] = (EMULATED_TOKEN,)) -> bool:
        """Whether other accounts of the journal may have been charged, and this one not; `ignored` tokens do not count.

        Raises:
            JournalError: The journal cannot be read.
        """
        others, ignored = [Secret(token) for token in ignored], ()
        known = await self._writer.run(
            lambda store: store.other_accounts(self._account.text, [other.text for other in others])
        )
        return bool(known)

    async def take_over(self, *, ignored: tuple[str, ...] = (EMULATED_TOKEN,)) -> None:
        """Use the only other account from now on: the token was renewed, or the service moved to another address.

        Does nothing if this account was used before.

        Raises:
            JournalError: The journal cannot be written, or knows several other accounts.
        """
        others, ignored = [Secret(token) for token in ignored], ()
        await self._writer.run(
            lambda store: store.take_over(self._account.text, [other.text for other in others]), None
        )


class StoredJournal(JournalAccount, NotWith):
    """A journal with its store: what `SqliteJournal` and `PostgresJournal` share."""

    def __init__(
        self,
        location: Location,
        *,
        retry_failed: bool = False,
        resubmit_uncertain: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`retry_failed`, `resubmit_uncertain`, `clock`: as for the class."""
        self._name = f"{type(self).__name__}({str(location)!r})"
        again = {EntryState.FAILED: retry_failed, EntryState.UNCERTAIN: resubmit_uncertain}
        self.location = location
        writer = Writer(self._name, lambda: location.open(clock), location.to_error)
        super().__init__(writer, _NOBODY, frozenset(state for state, wanted in again.items() if wanted))

    def __repr__(self) -> str:
        return getattr(self, "_name", f"{type(self).__name__}('')")

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
        """Open the journal now instead of at the first entry; it is made if it does not exist.

        Raises:
            JournalError: It cannot be read or written, or is not a journal.
        """
        await self._writer.run(lambda _: None)

    async def aclose(self) -> None:
        """Write the pending entries and close the journal. Later calls do nothing.

        Raises:
            JournalError: Entries are lost, or the journal could not be closed properly.
        """
        await self._writer.aclose()

    async def spent(self, model: str | None = None) -> Spending:
        """What all accounts of the journal have spent together, and what a generation of a model has cost at most.

        Raises:
            JournalError: The journal cannot be read.
        """
        return await self._writer.run(lambda store: _spending(store, model, *store.accounts()), None)

    def for_account(self, token: str, base_url: str | None = None) -> JournalAccount:
        """Return the account of this token at a service; the journal holds a salted hash of the token, never the token.

        Args:
            token: The token, as the client has it.
            base_url: The address of the service, as the client has it. None: RUNCOMFY_MODEL_API_BASE, then the
                service's own.

        Raises:
            ConfigurationError: A bad base URL.
        """
        secret, token = Secret(token), ""  # no traceback's variable holds it
        return JournalAccount(self._writer, _account_of(secret, base_url), self._again)


class ItemPass:
    """One pass over the items of an account."""

    def __init__(self, writer: Writer, account: Secret, again: frozenset[EntryState]) -> None:
        self._writer = writer
        self._account = account
        self._again = again
        self._number = next(writer.passes)
        weakref.finalize(self, writer.ended_passes.append, self._number).atexit = False

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        """Claim an item for this run, unless another run has it, and return what is known about it.

        Raises:
            JournalError: The journal cannot be read or written.
            InvalidInputError: The id belongs to another input that may be paid for.
        """
        claim = partial(self._ask, JournalStore.claim, model, body, item_id)
        return await self._writer.run(claim, self._account)

    async def preview(self, model: str, body: bytes, item_id: str | None) -> Claim:
        """Return what `claim` would return, without claiming the item; what it `resubmits` is submitted.

        Raises:
            JournalError, InvalidInputError: As `claim`.
        """
        preview = partial(self._ask, JournalStore.preview, model, body, item_id)
        return await self._writer.run(preview, self._account)

    def release(self, claim: Claim) -> None:
        """End this run's work on the item. Returns at once and never raises."""
        self._writer.release(claim)

    def _ask(self, method: Callable[..., T], model: str, body: bytes, item_id: str | None, store: JournalStore) -> T:
        if self._number < self._writer.first_pass:  # what came before in this pass is not known any more
            raise JournalError(f"The run of {self._writer.name} was lost: begin again with the items")
        return method(store, self._account.text, self._number, model, body, item_id, self._again)
