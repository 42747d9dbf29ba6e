"""What was paid for: the protocols of journals and budgets; by default nothing is written and nothing bounded.

Both are called where money moves: the budget reserves and the journal writes the intent before a submit leaves, the
id is written before anyone waits on it. What a journal raises ends the call before anything is paid.

What an entry makes of a request: which states give way to which, and what a request is charged with. Pure.

Entries may come late, twice and in any order, from several processes. What is known for certain never gives way to what
is known less well, so that the order in which they are written down does not matter to the money.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Final, NamedTuple, Protocol, runtime_checkable

from flux_klein_async.models import ModelInfo, SavedFile, brief_repr

__all__ = [
    "ENDED",
    "GIVES_WAY_TO",
    "NANO",
    "AccountJournal",
    "Action",
    "Charge",
    "Claim",
    "Entry",
    "EntryState",
    "ItemClaims",
    "ItemJournal",
    "Journal",
    "NoBudget",
    "Reservation",
    "SpendingLimit",
    "charge",
    "from_nano",
    "heeds",
    "to_nano",
]


class EntryState(StrEnum):
    """Where a request stands, as far as it was written down."""

    SUBMITTING = "submitting"
    REFUSED = "refused"
    UNCERTAIN = "uncertain"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    DOWNLOADED = "downloaded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Money set aside for one submit.

    Attributes:
        usd: What it is expected to cost, in USD.
        max_usd: What all submits together may cost, in USD.
    """

    usd: float
    max_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a journal.

    Attributes:
        state: Where the request stands.
        key: Identifies one submit before it has a request id; None for requests that another process made.
        item: With the intent only: which claimed item it is submitted for, where it is one's.
        request_id: The service's id, once known.
        model: The model's id, where known.
        body: With the intent only: the submit's JSON.
        reservation: With the intent only: the money set aside for it, where a budget bounds the spending.
        cost_usd: USD, as the result reports them.
        answer: With a result only: the service's answer as JSON, by which the result can be read again.
        files: When downloaded; their paths are absolute.
        error: What went wrong, as a sentence.
    """

    state: EntryState
    key: str | None = None
    item: str | None = None
    request_id: str | None = None
    model: str | None = None
    body: bytes | None = None
    reservation: Reservation | None = None
    cost_usd: float | None = None
    answer: bytes | None = None
    files: tuple[SavedFile, ...] = ()
    error: str | None = None

    def __repr__(self) -> str:
        shown = (name for name in self.__slots__ if name not in {"body", "answer"})  # they hold the prompt
        return brief_repr(self, {name: getattr(self, name) for name in shown})


class Journal(Protocol):
    """Writes entries down durably. What it raises besides errors of this package becomes a `JournalError`."""

    async def record(self, entry: Entry) -> None:
        """Return once the entry is durable.

        Raises:
            JournalError: It could not be written.
            BudgetExceededError: The money to be reserved with an intent is more than is left.
        """
        ...


class Action(StrEnum):
    """What is to be done with an item of which a journal knows."""

    SUBMIT = "submit"  # nothing was accepted for it yet
    RESUME = "resume"  # it was submitted: wait for that request
    RECALL = "recall"  # its result is known
    FAILED = "failed"  # it ended without a result, and is left at that
    UNCERTAIN = "uncertain"  # its submit may or may not have been accepted
    CLAIMED = "claimed"  # another run works on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An item, and what its journal knows of it.

    Attributes:
        item: How the journal calls it: goes into the `Entry` of its intent.
        action: What to do with the item.
        request_id: With all actions but SUBMIT, where known.
        answer: With KEEP: the service's answer as JSON, if it was written down.
        files: With KEEP: what was saved, whether or not it is still there.
        error: With FAILED and UNCERTAIN: what was written down of it.
    """

    item: str
    action: Action
    request_id: str | None = None
    answer: bytes | None = None
    files: tuple[SavedFile, ...] = ()
    error: str | None = None

    def __repr__(self) -> str:
        shown = (name for name in self.__slots__ if name != "answer")
        return brief_repr(self, {name: getattr(self, name) for name in shown})


class ItemClaims(Protocol):
    """One pass over many items, each known by its id or else by its content and how often that came before."""

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        """Take an item for this process, if nobody else has it under way, and say what is known of it.

        Raises:
            JournalError: The journal cannot be read or written, or knows another input by this id.
            InvalidInputError: The id came before in this pass, or is none.
        """
        ...

    def release(self, claim: Claim) -> None:
        """This process has nothing under way for the item any more. Never raises, returns at once."""
        ...


@runtime_checkable
class ItemJournal(Journal, Protocol):
    """A journal that knows items again: what `generate_many` needs to go on where an earlier run ended."""

    def items(self) -> ItemClaims:
        """Begin a pass over items."""
        ...


@runtime_checkable
class AccountJournal(Protocol):
    """A journal that keeps the requests of different tokens apart."""

    def for_account(self, token: str) -> Journal:
        """The journal as the client with this token uses it. The token is never written down."""
        ...


class SpendingLimit(Protocol):
    """Bounds what may be spent; `Budget` is one.

    What `reserve` raises besides errors of this package ends the call in a `ConfigurationError`; what the others raise
    is logged and ignored.
    """

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Reservation | None:
        """Set aside the price of one submit before it leaves; `price` reads the catalogue.

        Returns:
            What the journal, if there is one, is to hold against what all its processes spent; None: nothing.

        Raises:
            BudgetExceededError: The next submit could spend too much, or its price is not known.
        """
        ...

    def release(self, key: str) -> None:
        """The submit was not accepted: nothing was spent."""
        ...

    def accepted(self, key: str, request_id: str) -> None:
        """The submit was accepted as this request."""
        ...

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        """The request ended; what it cost, or None where the service does not say."""
        ...


class NoBudget:
    """Bounds nothing."""

    def __repr__(self) -> str:
        return "NoBudget()"

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Reservation | None:
        """Reserve nothing."""

    def release(self, key: str) -> None:
        """Do nothing."""

    def accepted(self, key: str, request_id: str) -> None:
        """Do nothing."""

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        """Do nothing."""


NANO: Final = 1_000_000_000  # money is counted in whole billionths of a USD: sums of floats would drift
_LARGEST: Final = 2**62  # what SQLite's integers hold with room to add

_SUBMITTING, _REFUSED, _UNCERTAIN = EntryState.SUBMITTING, EntryState.REFUSED, EntryState.UNCERTAIN
_SUBMITTED, _COMPLETED, _DOWNLOADED = EntryState.SUBMITTED, EntryState.COMPLETED, EntryState.DOWNLOADED
_FAILED, _CANCELLED = EntryState.FAILED, EntryState.CANCELLED

_ENDS: Final = frozenset({_COMPLETED, _DOWNLOADED, _FAILED, _CANCELLED})
# A picture that is there wins over every other end; otherwise the first end that was heard of stands.
GIVES_WAY_TO: Final[Mapping[EntryState, frozenset[EntryState]]] = {
    _SUBMITTING: frozenset({_REFUSED, _UNCERTAIN, _SUBMITTED}) | _ENDS,
    _UNCERTAIN: frozenset({_REFUSED, _SUBMITTED}) | _ENDS,
    _REFUSED: frozenset({_SUBMITTED}) | _ENDS,
    _SUBMITTED: _ENDS,
    _FAILED: frozenset({_COMPLETED, _DOWNLOADED}),
    _CANCELLED: frozenset({_COMPLETED, _DOWNLOADED}),
    _COMPLETED: frozenset({_DOWNLOADED}),
    _DOWNLOADED: frozenset(),
}

# Nobody has anything under way for a request in one of these.
ENDED: Final = _ENDS | {_REFUSED, _UNCERTAIN}


def heeds(now: EntryState, entry: EntryState) -> bool:
    """Whether a request in one state takes on the state of an entry."""
    return entry in GIVES_WAY_TO[now]


class Charge(NamedTuple):
    """What a request counts with, in billionths of a USD: its cost once that is known, till then what was set aside."""

    settled: int
    held: int


def charge(state: EntryState, reserved: int | None, cost: int | None) -> Charge:
    """What a request in this state counts with; one that failed keeps what was set aside, for it may be charged."""
    if state is _REFUSED or state is _CANCELLED:
        return Charge(0, 0)
    return Charge(0, reserved or 0) if cost is None else Charge(cost, 0)


def to_nano(usd: float) -> int | None:
    """Billionths of a USD; None for what is no amount of money."""
    if not isfinite(usd) or not 0 <= usd * NANO < _LARGEST:
        return None
    return round(usd * NANO)


def from_nano(amount: int) -> float:
    """USD."""
    return amount / NANO
