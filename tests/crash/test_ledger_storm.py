"""A small storm over a journal: three processes share it, one is killed, and the books are right at every end."""

import asyncio

import pytest
from ledger_storm import LEFT_OUT, SLOW, Plan, Raged, rage

pytestmark = pytest.mark.slow

PLAN = Plan(
    count=120,
    processes=3,
    concurrency=12,
    seed=7,
    max_usd=0.8,
    killed_at=40,
    probability=0.2,
    without=LEFT_OUT | SLOW,
    timeout=10.0,
    profile="fixed:0.05",
)


@pytest.fixture(scope="module")
def raged(tmp_path_factory: pytest.TempPathFactory) -> Raged:
    return asyncio.run(rage(PLAN, tmp_path_factory.mktemp("storm")))


def test_nothing_is_lost_nothing_is_paid_twice_and_the_budget_holds(raged: Raged) -> None:
    assert raged.found == dict.fromkeys(raged.found, 0), raged.told
    assert len(raged.found) == 23


def test_it_was_a_storm(raged: Raged) -> None:
    codes, _ = raged.codes
    assert sorted(code == -9 for code in codes) == [False, False, True]
    assert 60 < raged.accepted[0] <= 80, "the budget ended it, with some of it set aside for what is uncertain"
    assert {"submit", "status", "result", "file"} <= set(raged.faults)
    assert raged.ends[1]["downloaded"] > 80
    assert raged.ends[1]["uncertain"] > 0
