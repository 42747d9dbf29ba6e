"""What is written down, and the budget that bounds nothing.

Which states give way to which, and what a request is charged with.
"""

import asyncio
import dataclasses
import math

import pytest

from flux_klein_async.journal.base import (
    ENDED,
    GIVES_WAY_TO,
    Action,
    Charge,
    Claim,
    Entry,
    EntryState,
    NoBudget,
    SpendingLimit,
    charge,
    from_nano,
    heeds,
    to_nano,
)
from flux_klein_async.models import ModelInfo

ENTRY = Entry(state=EntryState.SUBMITTING, key="k-1", model="a/b", body=b'{"prompt": "a"}')


async def price(model: str) -> ModelInfo:
    raise AssertionError(model)


def test_the_default_budget_allows_everything_without_asking_the_price() -> None:
    budget: SpendingLimit = NoBudget()
    asyncio.run(budget.reserve("k-1", "a/b", price))
    budget.accepted("k-1", "r-1")
    budget.settle("r-1", 0.004)
    budget.settle("r-2", None)
    budget.release("k-2")


def test_an_entry_is_empty_but_for_its_state() -> None:
    assert dataclasses.asdict(Entry(state=EntryState.FAILED)) == {
        "state": "failed",
        "key": None,
        "item": None,
        "request_id": None,
        "model": None,
        "body": None,
        "reservation": None,
        "cost_usd": None,
        "answer": None,
        "files": (),
        "error": None,
    }


def test_what_is_shown_holds_no_prompt() -> None:
    assert repr(ENTRY) == "Entry(state=submitting, key='k-1', model='a/b')"
    claim = Claim(item="1", action=Action.RECALL, request_id="r", answer=b'{"prompt": "a"}')
    assert repr(claim) == "Claim(item='1', action=recall, request_id='r')"
    assert repr(NoBudget()) == "NoBudget()"


def test_an_entry_cannot_be_changed() -> None:
    for field in dataclasses.fields(ENTRY):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(ENTRY, field.name, None)


def test_the_words_of_a_journal_stay_what_they_are() -> None:
    assert [state.value for state in EntryState] == [
        "submitting",
        "refused",
        "uncertain",
        "submitted",
        "completed",
        "downloaded",
        "failed",
        "cancelled",
    ]


# A row for the state that a request is in, a column for the entry that comes: what the request is then.
_HEADINGS = [state.value for state in EntryState]
_TABLE = """
submitting  submitting  refused    uncertain   submitted   completed   downloaded  failed     cancelled
refused     refused     refused    refused     submitted   completed   downloaded  failed     cancelled
uncertain   uncertain   refused    uncertain   submitted   completed   downloaded  failed     cancelled
submitted   submitted   submitted  submitted   submitted   completed   downloaded  failed     cancelled
completed   completed   completed  completed   completed   completed   downloaded  completed  completed
downloaded  downloaded  downloaded downloaded  downloaded  downloaded  downloaded  downloaded downloaded
failed      failed      failed     failed      failed      completed   downloaded  failed     failed
cancelled   cancelled   cancelled  cancelled   cancelled   completed   downloaded  cancelled  cancelled
"""
ROWS = {row.split()[0]: row.split()[1:] for row in _TABLE.strip().splitlines()}
CELLS = [(now, entry, then) for now, row in ROWS.items() for entry, then in zip(_HEADINGS, row, strict=True)]


@pytest.mark.parametrize(("now", "entry", "then"), CELLS)
def test_what_is_known_for_certain_never_gives_way_to_what_is_known_less_well(now: str, entry: str, then: str) -> None:
    assert (entry if heeds(EntryState(now), EntryState(entry)) else now) == then


def test_the_table_is_whole() -> None:
    assert set(GIVES_WAY_TO) == set(EntryState)
    assert len(CELLS) == len(EntryState) ** 2


def test_nobody_has_anything_under_way_for_an_order_that_ended() -> None:
    assert set(EntryState) - ENDED == {EntryState.SUBMITTING, EntryState.SUBMITTED}


@pytest.mark.parametrize(
    ("state", "unknown", "known"),
    [
        ("submitting", Charge(0, 7), Charge(5, 0)),
        ("uncertain", Charge(0, 7), Charge(5, 0)),
        ("submitted", Charge(0, 7), Charge(5, 0)),
        ("completed", Charge(0, 7), Charge(5, 0)),
        ("downloaded", Charge(0, 7), Charge(5, 0)),
        ("failed", Charge(0, 7), Charge(5, 0)),
        ("refused", Charge(0, 0), Charge(0, 0)),
        ("cancelled", Charge(0, 0), Charge(0, 0)),
    ],
)
def test_an_order_counts_with_its_cost_or_else_with_what_was_set_aside(
    state: str, unknown: Charge, known: Charge
) -> None:
    assert charge(EntryState(state), 7, None) == unknown
    assert charge(EntryState(state), 7, 5) == known
    assert charge(EntryState(state), None, None) == Charge(0, 0)


@pytest.mark.parametrize(
    ("usd", "nano"),
    [(0.0, 0), (0.01, 10_000_000), (0.1 + 0.2, 300_000_000), (1e-9, 1), (1e9, 10**18)]
    + [(usd, None) for usd in (-0.01, math.nan, math.inf, -math.inf, 1e300, 1e10)],
)
def test_money_is_counted_in_whole_billionths(usd: float, nano: int | None) -> None:
    assert to_nano(usd) == nano


def test_billionths_are_dollars_again() -> None:
    assert from_nano(10_000_000) == 0.01
