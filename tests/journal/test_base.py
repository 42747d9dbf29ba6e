"""What is written down, and the budget that limits nothing."""

import asyncio

import pytest

from flux_klein_async.journal.base import Claim, Entry, NoBudget, SpendingLimit
from flux_klein_async.journal.states import Action, EntryState
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
    values = entry._asdict()
    assert (values.pop("state"), values.pop("files"), set(values.values())) == ("failed", (), {None})
    with pytest.raises(AttributeError):
        entry.state = EntryState.COMPLETED  # type: ignore[misc]


def test_a_repr_shows_no_prompt() -> None:
    entry = Entry(state=EntryState.SUBMITTING, key="k-1", model="a/b", body=b'{"prompt": "a"}')
    assert repr(entry) == "Entry(state=submitting, key='k-1', model='a/b')"
    claim = Claim(item="1", action=Action.RECALL, request_id="r", answer=b'{"prompt": "a"}')
    assert repr(claim) == "Claim(item='1', action=recall, request_id='r', resubmits=False, pays_again=False)"
    assert repr(NoBudget()) == "NoBudget()"
