"""A small storm over a journal: three processes share it, one is killed, and the books are right at every end.

On PostgreSQL they come from two machines, one of them behind a port of its own, and share no file but the pictures.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from faulty_batches import LEFT_OUT, SLOW, BatchesRun, BatchPlan, run_batches

from tests.databases import Cluster, forwarded

pytestmark = pytest.mark.slow

PLAN = BatchPlan(
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


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def raged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, get_cluster: Callable[[], Cluster]
) -> BatchesRun:
    async def run() -> BatchesRun:
        folder = tmp_path_factory.mktemp("storm")
        if request.param == "sqlite":
            return await run_batches(PLAN, folder)
        cluster = get_cluster()
        database = cluster.new_database()
        async with forwarded(cluster.port) as link:
            other = cluster.dsn(database.split("?")[0].rpartition("/")[2], port=link.port)
            return await run_batches(replace(PLAN, journals=(database, other)), folder)

    return asyncio.run(run())


def test_nothing_is_lost_nothing_is_paid_twice_and_the_budget_holds(raged: BatchesRun) -> None:
    assert {what: count for what, count in raged.found.items() if count} == {}, raged.stderr
    assert len(raged.found) == 23


def test_it_was_a_storm(raged: BatchesRun) -> None:
    codes, _ = raged.codes
    assert sorted(code == -9 for code in codes) == [False, False, True]
    assert 60 < raged.accepted[0] <= 80, "the budget ended it, with some of it reserved for what is uncertain"
    assert {"submit", "status", "result", "file"} <= set(raged.faults)
    assert raged.ends[1]["downloaded"] > 80
    assert raged.ends[1]["uncertain"] > 0
