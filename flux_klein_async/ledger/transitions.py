"""What an entry makes of an order: which states give way to which, and what an order is charged with. Pure.

Entries may come late, twice and in any order, from several processes. What is known for certain never gives way to what
is known less well, so that the order in which they are written down does not matter to the money.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Final, NamedTuple

from flux_klein_async.ledger.base import EntryState

__all__ = ["ENDED", "GIVES_WAY_TO", "NANO", "Charge", "charge", "from_nano", "heeds", "to_nano"]

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

# Nobody has anything under way for an order in one of these.
ENDED: Final = _ENDS | {_REFUSED, _UNCERTAIN}


def heeds(now: EntryState, entry: EntryState) -> bool:
    """Whether an order in one state takes on the state of an entry."""
    return entry in GIVES_WAY_TO[now]


class Charge(NamedTuple):
    """What an order counts with, in billionths of a USD: its cost once that is known, till then what was set aside."""

    settled: int
    held: int


def charge(state: EntryState, reserved: int | None, cost: int | None) -> Charge:
    """What an order in this state counts with; one that failed keeps what was set aside, for it may be charged."""
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
