"""What was paid for: the `Journal` and `Budget` protocols; by default nothing is written and nothing bounded.

Both are called where money moves: the budget reserves and the journal writes the intent before a submit leaves, the
id is written before anyone waits on it. What a journal raises ends the call before anything is paid.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from flux_klein_async.models import ModelInfo
from flux_klein_async.reprs import known

__all__ = ["Budget", "Entry", "EntryState", "Journal", "NoBudget"]


class EntryState(StrEnum):
    """Where an order stands, as far as it was written down."""

    SUBMITTING = "submitting"
    REFUSED = "refused"
    UNCERTAIN = "uncertain"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    DOWNLOADED = "downloaded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a journal.

    Attributes:
        state: Where the order stands.
        key: Identifies one submit before it has a request id; None for requests that another process made.
        request_id: The service's id, once known.
        model: The model's id, where known.
        body: The submit's JSON, with the intent only.
        cost_usd: USD, as the result reports them.
        files: Absolute paths, when downloaded.
        error: What went wrong, as a sentence.
    """

    state: EntryState
    key: str | None = None
    request_id: str | None = None
    model: str | None = None
    body: bytes | None = None
    cost_usd: float | None = None
    files: tuple[str, ...] = ()
    error: str | None = None

    def __repr__(self) -> str:
        shown = (name for name in self.__slots__ if name != "body")  # it holds the prompt
        return known(self, {name: getattr(self, name) for name in shown})


class Journal(Protocol):
    """Writes entries down durably.

    Raises of `record`: `JournalError`, where it could not be written.
    """

    async def record(self, entry: Entry) -> None:
        """Return once the entry is durable."""
        ...


class Budget(Protocol):
    """Bounds what may be spent.

    Raises of `reserve`: `BudgetExceededError`, where the next submit could spend too much.
    """

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> None:
        """Set aside the price of one submit before it leaves; `price` reads the catalogue."""
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

    async def reserve(self, key: str, model: str, price: Callable[[str], Awaitable[ModelInfo]]) -> None:
        """Do nothing."""

    def release(self, key: str) -> None:
        """Do nothing."""

    def accepted(self, key: str, request_id: str) -> None:
        """Do nothing."""

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        """Do nothing."""
