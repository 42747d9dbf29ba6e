"""The journal behind the cells: what it says of a request, and whether that agrees with what the service did."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from flux_klein_async.emulator import InProcessEmulator
from flux_klein_async.journal.base import Claim, Entry, Journal, NoBudget, Reservation
from flux_klein_async.journal.sqlite import SqliteJournal, SqliteStore
from flux_klein_async.journal.states import EntryState, from_nano
from flux_klein_async.models import ModelInfo

__all__ = ["NOTHING", "SUBMITTED_AGAIN", "Books", "Fixed", "OnDisk", "Written", "agree", "written"]

NOTHING = "nothing"
_PRICE = 0.01  # USD: the emulator's for a picture
# The next run submits the item once more: nothing was accepted for it, or it was cancelled unpaid.
SUBMITTED_AGAIN = {NOTHING, "repeated", "refused", "cancelled"}
_WITHOUT_ID = {NOTHING, "repeated", "refused", "uncertain"}
# "failed" is also one that completed without a file.
_ENDS = {"completed": ("completed",), "downloaded": ("completed",), "failed": ("failed", "completed")}


class Books:
    """The package's own rules on one file for all cells, without what makes `SqliteJournal` slow: thread and disk.

    Each token has its own account.
    """

    def __init__(self, path: Path) -> None:
        self._database = SqliteStore.open(path, lambda: 0.0)
        self._database.db.execute("PRAGMA synchronous = OFF")
        self._passes = itertools.count()

    def close(self) -> None:
        self._database.close()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Journal]:
        """One run's journal."""
        yield self

    @contextmanager
    def opened(self) -> Iterator[SqliteStore]:
        """What the journal holds so far."""
        yield self._database

    def for_account(self, token: str, base_url: str | None = None) -> "_Account":  # one service
        return _Account(self._database, token, self._passes)

    async def record(self, entry: Entry) -> None:
        await self.for_account("").record(entry)


class _Account:
    """An account, and a pass over its items."""

    def __init__(self, database: SqliteStore, token: str, passes: Iterator[int]) -> None:
        self._database = database
        self._token = token
        self._passes = passes
        self._pass = 0

    async def record(self, entry: Entry) -> None:
        with self._database.writing():
            self._database.record(self._token, entry)

    def items(self) -> Self:
        self._pass = next(self._passes)
        return self

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        again = frozenset({EntryState.REFUSED})
        with self._database.writing():
            return self._database.claim(self._token, self._pass, model, body, item_id, again)

    def release(self, claimed: Claim) -> None:
        self._database.release(claimed)


class OnDisk:
    """The real journal, opened anew for each run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Journal]:
        """One run's journal."""
        async with SqliteJournal(self._path) as journal:
            yield journal

    @contextmanager
    def opened(self) -> Iterator[SqliteStore]:
        """What the journal holds so far."""
        with closing(SqliteStore.open(self._path, lambda: 0.0)) as database:
            yield database


class Fixed(NoBudget):
    """Reserves the price without asking the catalogue: that call would meet the faults meant for others."""

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Reservation:
        return Reservation(usd=_PRICE, max_usd=1.0)


class Written(NamedTuple):
    """What a journal says of the last request of an account; `usd` is what it counts."""

    state: str
    request_id: str | None
    usd: float


def written(books: Books | OnDisk, token: str) -> Written:
    """Read what the journal holds for a token."""
    with books.opened() as database:
        with database.writing():
            name = database.account_name(token)  # of any service: a token has one
        of_token = "SELECT id FROM accounts WHERE name = ? OR name LIKE ?"
        [account] = database.db.execute(of_token, (name, f"{name}@%")).fetchone() or (None,)
        requests = "SELECT state, request_id FROM requests WHERE account = ? ORDER BY id"
        *earlier, last = [(NOTHING, None), *database.db.execute(requests, (account,))]
        totals = "SELECT settled + held FROM accounts WHERE id = ?"
        [nano] = database.db.execute(totals, (account,)).fetchone() or (0,)
    assert {state for state, _ in earlier} <= SUBMITTED_AGAIN, "it was submitted again, and should not have been"
    return Written(*last, from_nano(nano))


def agree(journal: Written, emulator: InProcessEmulator, *, accepted: int) -> None:
    """Assert that the journal says what the service did, or that this is unknown; `accepted`: of the last request."""
    jobs = emulator.service.queue.jobs
    state, request_id, usd = journal
    assert (request_id is None) == (state in _WITHOUT_ID), journal
    if request_id is None:
        assert state == "uncertain" or not accepted, "it was accepted, and the journal says that it was not"
    else:
        assert accepted, "it was not accepted, and the journal says that it was"
        assert request_id in jobs, "an id that the service never gave"
    if state in _ENDS:
        assert jobs[request_id or ""].state in _ENDS[state]
    if state != "cancelled":  # a cancel that the service only claims cannot be checked
        # Until its result was seen, a generation costs what the catalogue says, as far as anybody knows.
        costs = {job: job.cost if state in _ENDS else job.model.price for job in jobs.values()}
        paid = sum(cost for job, cost in costs.items() if job.state != "cancelled")
        assert usd >= paid, "the journal counts less than the service"
