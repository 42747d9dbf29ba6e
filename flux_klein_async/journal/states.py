"""What each state of a request means, and what the request counts with. Pure.

Entries may arrive late, twice, in any order and from several processes. `STATES` therefore ranks the states by how much
is known: an entry changes a request only to a state of higher rank, so the order of arrival does not affect the money.

Quick to import: the command line offers the states.
"""

from collections.abc import Mapping
from enum import StrEnum
from math import isfinite
from typing import Final, NamedTuple

__all__ = [
    "FULL",
    "LARGEST_COST",
    "STATES",
    "Action",
    "Charge",
    "EntryState",
    "StateRule",
    "charge",
    "from_nano",
    "supersedes",
    "to_nano",
]


class EntryState(StrEnum):
    """The state of a request as the journal knows it."""

    SUBMITTING = "submitting"  #: The submit may have been sent; its answer is not recorded.
    REPEATED = "repeated"  #: The submit was refused for now, or never sent; the same call submits again.
    REFUSED = "refused"  #: The submit was not accepted: refused by the service, or never sent.
    UNCERTAIN = "uncertain"  #: The submit may or may not have been accepted.
    SUBMITTED = "submitted"  #: The submit was accepted and the request id is known.
    COMPLETED = "completed"  #: The result is known.
    DOWNLOADED = "downloaded"  #: The files were saved.
    FAILED = "failed"  #: The generation ended without a result.
    CANCELLED = "cancelled"  #: The request was cancelled.

    __hash__ = str.__hash__  # an enumeration's own is written in Python


class Action(StrEnum):
    """What to do with an item that was claimed from a journal."""

    SUBMIT = "submit"  #: Submit it: no request of it was accepted, or the last one may be repeated.
    RESUME = "resume"  #: Wait for the request that was submitted earlier.
    RECALL = "recall"  #: Use the result that the journal knows.
    FAILED = "failed"  #: Leave it: its generation failed.
    UNCERTAIN = "uncertain"  #: Leave it: its submit may or may not have been accepted.
    CLAIMED = "claimed"  #: Leave it: another run works on it.


class StateRule(NamedTuple):
    """What a state of a request means."""

    rank: int  # an entry changes a request's state only to one of higher rank
    ended: bool  # whether no run has anything under way for the request
    charged: bool  # whether the request counts against the budget
    action: Action  # what a later run does with the item


# A result outranks every other end; between the other two ends, the first one recorded stands. A failed generation may
# be charged, so its reservation is kept.
STATES: Final[Mapping[EntryState, StateRule]] = {
    EntryState.SUBMITTING: StateRule(0, ended=False, charged=True, action=Action.UNCERTAIN),
    EntryState.UNCERTAIN: StateRule(1, ended=True, charged=True, action=Action.UNCERTAIN),
    EntryState.REPEATED: StateRule(2, ended=False, charged=False, action=Action.SUBMIT),
    EntryState.REFUSED: StateRule(3, ended=True, charged=False, action=Action.SUBMIT),
    EntryState.SUBMITTED: StateRule(4, ended=False, charged=True, action=Action.RESUME),
    EntryState.FAILED: StateRule(5, ended=True, charged=True, action=Action.FAILED),
    EntryState.CANCELLED: StateRule(5, ended=True, charged=False, action=Action.SUBMIT),
    EntryState.COMPLETED: StateRule(6, ended=True, charged=True, action=Action.RECALL),
    EntryState.DOWNLOADED: StateRule(7, ended=True, charged=True, action=Action.RECALL),
}


def supersedes(new: EntryState, old: EntryState) -> bool:
    """Whether an entry of the state `new` changes a request of the state `old`."""
    return STATES[new].rank > STATES[old].rank


_NANO: Final = 1_000_000_000  # money is counted in whole billionths of a USD, because sums of floats drift
# USD that one request can cost: more is a cost in a wrong unit. The dearest models take some tens of USD.
LARGEST_COST: Final = 10_000.0
FULL: Final = 2**62  # a total in billionths stays as it is from here on; a 64-bit column holds it and any cost


class Charge(NamedTuple):
    """What a request counts with, in billionths of a USD: its cost once that is known, until then its reservation."""

    settled: int
    held: int


def charge(state: EntryState, reserved: int | None, cost: int | None) -> Charge:
    """What a request in this state counts with."""
    if not STATES[state].charged:
        return Charge(0, 0)
    return Charge(0, reserved or 0) if cost is None else Charge(cost, 0)


def to_nano(usd: float, most: float = LARGEST_COST) -> int | None:
    """Convert USD to billionths; None if the number is not an amount of money, or more than `most`."""
    if not isfinite(usd) or not 0 <= usd <= most:
        return None
    return round(usd * _NANO)


def from_nano(amount: float) -> float:
    """Convert billionths to USD."""
    return amount / _NANO
