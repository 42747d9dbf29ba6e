"""What is written down, and the budget that bounds nothing."""

import asyncio
import dataclasses

import pytest

from flux_klein_async.ledger.base import Action, Claim, Entry, EntryState, NoBudget, SpendingLimit
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
    claim = Claim(item="1", action=Action.KEEP, request_id="r", answer=b'{"prompt": "a"}')
    assert repr(claim) == "Claim(item='1', action=keep, request_id='r')"
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
