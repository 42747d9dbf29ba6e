"""The protocols of journals and budgets, and their values.

Both are called where money moves. The budget reserves, and the journal records the intent, before a submit is sent; the
journal records the request id before anyone waits for the request. If the journal raises, the call ends and nothing is
paid.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from flux_klein_async.journal.states import Action, EntryState
from flux_klein_async.models import ModelInfo, SavedFile, brief_repr

__all__ = [
    "AccountJournal",
    "Claim",
    "Entry",
    "ItemClaims",
    "ItemJournal",
    "Journal",
    "NoBudget",
    "Reservation",
    "RunJournal",
    "SpendingLimit",
]


def _repr_without_prompt(value: "Entry | Claim") -> str:
    return brief_repr(value, {name: part for name, part in value._asdict().items() if name not in {"body", "answer"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Money reserved for one submit.

    Attributes:
        usd: The expected cost of the submit, in USD.
        max_usd: What all submits together may cost, in USD.
    """

    usd: float
    max_usd: float


class Entry(NamedTuple):  # as a frozen dataclass it would take 2 µs more to make
    """What a journal records about a request at one moment.

    Attributes:
        state: The state of the request.
        key: Identifies one submit before it has a request id, and each repeat of a refused one; None for a request that
            another process submitted.
        item: With the intent only: `Claim.item`, if the submit is for a claimed item.
        request_id: The service's id, once known.
        model: The model's id, if known.
        body: With the intent only: the JSON to be posted, with `file` (the path), `size` and `sha256` in place of the
            bytes of each local file.
        reservation: With the intent only: the money reserved for it, if there is a budget.
        cost_usd: The cost in USD, if the result reports it.
        answer: With a result only: the service's answer as JSON, from which the result can be read again.
        files: The downloaded files, with absolute paths.
        error: What went wrong, as a sentence; with a result, that it holds no file.
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
        return _repr_without_prompt(self)


class Claim(NamedTuple):
    """An item, what to do with it, and what its journal knows about it.

    Attributes:
        item: The journal's name for the item; goes into the `Entry` of the intent.
        action: What to do with the item.
        request_id: The newest request of the item, if its id is known; None with SUBMIT.
        answer: The service's answer with the result as JSON, if recorded.
        files: The files that were saved; they may have been moved or deleted since.
        error: The recorded error, with FAILED and UNCERTAIN; with RECALL, that the result held no file.
        resubmits: With RECALL: submit it, if the service's result still holds no file.
        pays_again: With SUBMIT: an earlier submit of the item is or may be charged.
    """

    item: str
    action: Action
    request_id: str | None = None
    answer: bytes | None = None
    files: tuple[SavedFile, ...] = ()
    error: str | None = None
    resubmits: bool = False
    pays_again: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether this run is to work on the item: no other run can claim it until the work ends."""
        return self.resubmits or self.action in {Action.SUBMIT, Action.RESUME}

    def __repr__(self) -> str:
        return _repr_without_prompt(self)


class Journal(Protocol):
    """Records entries durably. An exception that is not an error of this package becomes a `JournalError`."""

    async def record(self, entry: Entry) -> None:
        """Return once the entry is durable.

        Raises:
            JournalError: The entry could not be written; with `charged` "unknown", the request id that the service gave
                belongs to another submit, so this submit is uncertain.
            BudgetExceededError: The intent reserves more money than is left.
        """
        ...


class ItemClaims(Protocol):
    """One pass over many items.

    A journal recognises an item by its id, or else by its content and how many equal items came before it in the pass.
    An id that comes again is the same item: one that a queue delivers twice is harmless.
    """

    async def claim(self, model: str, body: bytes, item_id: str | None) -> Claim:
        """Claim an item for this run, unless it is under way, and return what is known about it.

        Raises:
            JournalError: The journal cannot be read or written.
            InvalidInputError: The id is invalid, or belongs to another input that may be paid for.
        """
        ...

    def release(self, claim: Claim) -> None:
        """End this run's work on the item. Returns at once and never raises."""
        ...


@runtime_checkable
class ItemJournal(Journal, Protocol):
    """A journal that recognises items, so that `generate_many` can resume an earlier run."""

    def items(self) -> ItemClaims:
        """Begin a pass over items."""
        ...


@runtime_checkable
class RunJournal(Protocol):
    """A journal whose runs mark their unfinished files, so that a later run can remove those of a dead one."""

    async def run_mark(self) -> str:
        """The mark of this run: 12 and 16 hexadecimal digits with a hyphen between them."""
        ...

    async def ended_runs(self, marks: Collection[str]) -> set[str]:
        """Those of the marks that are of this journal's runs, and of runs that have ended."""
        ...


@runtime_checkable
class AccountJournal(Protocol):
    """A journal that keeps apart the requests of different tokens, and of different services."""

    def for_account(self, token: str, base_url: str | None = None) -> Journal:
        """Return the journal of this token's account at the service of this address (a client gives both).

        The token itself is never stored.
        """
        ...


class SpendingLimit(Protocol):
    """Limits what a client may spend; `Budget` is one.

    If `reserve` raises something other than an error of this package, the call ends in a `ConfigurationError`. What the
    other methods raise is logged and ignored.
    """

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> Reservation | None:
        """Reserve the price of one submit before it is sent; `price` reads the catalogue.

        Returns:
            What the journal checks against the spending of all its processes; None to check nothing.

        Raises:
            BudgetExceededError: The submit could exceed the limit, or its price is not known.
        """
        ...

    def release(self, key: str) -> None:
        """The submit was not accepted: nothing was spent."""
        ...

    def accepted(self, key: str, request_id: str) -> None:
        """The submit was accepted as this request."""
        ...

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        """The request ended at this cost, or None if the service does not report one."""
        ...


class NoBudget:
    """Limits nothing."""

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
