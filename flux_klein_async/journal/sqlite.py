"""A journal in one SQLite file, which several processes on one machine may share."""

import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from flux_klein_async.journal.base import Action, Claim, Entry, EntryState, from_nano
from flux_klein_async.journal.database import Database
from flux_klein_async.journal.records import claim, preview, record, strangers, take_over
from flux_klein_async.journal.writer import Writer

__all__ = ["Account", "Spending", "SqliteClaims", "SqliteJournal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What an account's requests count with.

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
        self.path = Path(path).absolute()
        again = {EntryState.REFUSED}
        if retry_failed:
            again.add(EntryState.FAILED)
        if resubmit_uncertain:
            again.add(EntryState.UNCERTAIN)
        self._writer = Writer(self.path, clock)
        self._nameless = Account(self._writer, "", frozenset(again))

    def __repr__(self) -> str:
        return f"SqliteJournal({str(self.path)!r})"

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
        await self._writer.operate(lambda _: None)

    async def aclose(self) -> None:
        """Write what is still to be written, and close the file; once is enough.

        Raises:
            JournalError: It could not be closed as it should.
        """
        await self._writer.aclose()

    async def record(self, entry: Entry) -> None:
        """Return once the entry is on the disk, in the account without a name.

        Raises:
            JournalError: It could not be written.
            BudgetExceededError: The money to be reserved with an intent is more than is left.
        """
        await self._nameless.record(entry)

    def items(self) -> "SqliteClaims":
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
        return self._nameless.beside(token)


class Account:
    """The entries and items of one account in a journal."""

    def __init__(self, writer: Writer, token: str, again: frozenset[EntryState]) -> None:
        """`again`: the ends after which an item is submitted once more."""
        self._writer = writer
        self._token = token
        self._again = again

    def __repr__(self) -> str:
        return f"Account({str(self._writer.path)!r})"

    def beside(self, token: str) -> "Account":
        """Another account in the same journal."""
        return Account(self._writer, token, self._again)

    async def record(self, entry: Entry) -> None:
        """Return once the entry is on the disk.

        Raises:
            JournalError: It could not be written.
            BudgetExceededError: The money to be reserved with an intent is more than is left.
        """
        token = self._token
        await self._writer.operate(lambda database: record(database, token, entry))

    def items(self) -> "SqliteClaims":
        """Begin a pass over items."""
        return SqliteClaims(self._writer, self._token, self._again)

    async def spent(self) -> Spending:
        """What the account has spent.

        Raises:
            JournalError: The file cannot be read.
        """
        return await self._writer.operate(self._spent)

    async def is_stranger(self, *, ignored: tuple[str, ...] = ()) -> bool:
        """Whether the journal knows nothing of this token, but of others; `ignored`: tokens that do not count.

        Raises:
            JournalError: The file cannot be read.
        """
        token = self._token
        return bool(await self._writer.operate(lambda database: strangers(database, token, ignored)))

    async def take_over(self, *, ignored: tuple[str, ...] = ()) -> None:
        """The token is a new one of the same account: what was submitted with the old one is this one's from now on.

        Nothing changes where something was submitted with the new one already.

        Raises:
            JournalError: The file cannot be written, or knows several other tokens.
        """
        token = self._token
        await self._writer.operate(lambda database: take_over(database, token, ignored))

    def _spent(self, database: Database) -> Spending:
        account = database.account(self._token)
        settled, held = database.db.execute("SELECT settled, held FROM accounts WHERE id = ?", (account,)).fetchone()
        return Spending(settled_usd=from_nano(settled), held_usd=from_nano(held))


class SqliteClaims:
    """One pass over items."""

    def __init__(self, writer: Writer, token: str, again: frozenset[EntryState]) -> None:
        self._writer = writer
        self._token = token
        self._again = again
        self._number = writer.begin_pass()
        weakref.finalize(self, writer.end_pass, self._number).atexit = False

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        """As `Items` says."""
        token, number, again = self._token, self._number, self._again
        return await self._writer.operate(lambda database: claim(database, token, number, model, body, item_id, again))

    async def preview(self, model: str, body: bytes, item_id: str | None) -> Action:
        """What `claim` would say is to be done with an item; it is not taken."""
        token, number, again = self._token, self._number, self._again
        return await self._writer.operate(
            lambda database: preview(database, token, number, model, body, item_id, again)
        )

    def release(self, claim: Claim) -> None:
        """As `Items` says."""
        self._writer.release(claim)
