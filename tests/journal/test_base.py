"""What is written down, which state replaces which, what a request counts with, and the budget that limits nothing."""

import asyncio
import dataclasses
import math

import pytest

from flux_klein_async.journal.base import (
    STATES,
    Action,
    Charge,
    Claim,
    Entry,
    EntryState,
    NoBudget,
    SpendingLimit,
    charge,
    from_nano,
    supersedes,
    to_nano,
)
from flux_klein_async.models import ModelInfo


async def price(model: str) -> ModelInfo:
    raise AssertionError(model)


def test_the_default_budget_allows_everything_without_asking_the_price() -> None:
    budget: SpendingLimit = NoBudget()
    assert asyncio.run(budget.reserve("k-1", "a/b", price)) is None
    budget.accepted("k-1", "r-1")
    budget.settle("r-1", 0.004)
    budget.settle("r-2", None)
    budget.release("k-2")


def test_an_entry_needs_only_its_state_and_cannot_be_changed() -> None:
    entry = Entry(state=EntryState.FAILED)
    values = dataclasses.asdict(entry)
    assert (values.pop("state"), values.pop("files"), set(values.values())) == ("failed", (), {None})
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.state = EntryState.COMPLETED  # type: ignore[misc]


def test_a_repr_shows_no_prompt() -> None:
    entry = Entry(state=EntryState.SUBMITTING, key="k-1", model="a/b", body=b'{"prompt": "a"}')
    assert repr(entry) == "Entry(state=submitting, key='k-1', model='a/b')"
    claim = Claim(item="1", action=Action.RECALL, request_id="r", answer=b'{"prompt": "a"}')
    assert repr(claim) == "Claim(item='1', action=recall, request_id='r', resubmits=False)"
    assert repr(NoBudget()) == "NoBudget()"


# A row for the state that a request is in, a column for the entry that comes: what the request is then.
_TABLE = """
            submitting  refused    uncertain   submitted   completed   downloaded  failed     cancelled
submitting  submitting  refused    uncertain   submitted   completed   downloaded  failed     cancelled
refused     refused     refused    refused     submitted   completed   downloaded  failed     cancelled
uncertain   uncertain   refused    uncertain   submitted   completed   downloaded  failed     cancelled
submitted   submitted   submitted  submitted   submitted   completed   downloaded  failed     cancelled
completed   completed   completed  completed   completed   completed   downloaded  completed  completed
downloaded  downloaded  downloaded downloaded  downloaded  downloaded  downloaded  downloaded downloaded
failed      failed      failed     failed      failed      completed   downloaded  failed     failed
cancelled   cancelled   cancelled  cancelled   cancelled   completed   downloaded  cancelled  cancelled
"""
_HEADINGS, *_ROWS = [row.split() for row in _TABLE.strip().splitlines()]
AFTER = {(row[0], entry): then for row in _ROWS for entry, then in zip(_HEADINGS, row[1:], strict=True)}


def test_what_is_known_for_certain_never_gives_way_to_what_is_known_less_well() -> None:
    assert list(EntryState) == _HEADINGS, "the words in files stay what they are"
    found = {
        (now.value, entry.value): (entry if supersedes(entry, now) else now).value
        for now in EntryState
        for entry in EntryState
    }
    assert found == AFTER
    assert set(STATES) == set(EntryState)
    assert {state for state in STATES if not STATES[state].ended} == {EntryState.SUBMITTING, EntryState.SUBMITTED}


def test_a_request_counts_with_its_cost_or_else_with_its_reservation() -> None:
    for state in EntryState:
        free = state in {EntryState.REFUSED, EntryState.CANCELLED}
        assert charge(state, 7, None) == Charge(0, 0 if free else 7)
        assert charge(state, 7, 5) == Charge(0 if free else 5, 0)
        assert charge(state, 7, 0) == charge(state, None, None) == Charge(0, 0)


@pytest.mark.parametrize(
    ("usd", "nano"),
    [(0.0, 0), (0.01, 10_000_000), (0.1 + 0.2, 300_000_000), (1e-9, 1), (1e4, 10**13)]
    + [(usd, None) for usd in (-0.01, math.nan, math.inf, -math.inf, 1e300, 1e10, 10_000.01)],
)
def test_money_is_counted_in_whole_billionths(usd: float, nano: int | None) -> None:
    assert to_nano(usd) == nano
    assert nano is None or from_nano(nano) == pytest.approx(usd, abs=1e-15)
