"""What `explain` tells is what the policy does."""

import math
import random
from itertools import pairwise

import pytest

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.explanation import OURS, QUANTILES, UNTIL, explain
from flux_klein_async.polling.peers import PEERS
from flux_klein_async.polling.policies import Observation, Queued
from flux_klein_async.polling.rehearsal import looks, rehearse

from .lab import lab

MODEL, SQUARE = lab.MODEL, lab.SQUARE


def rehearsed(count: int = 200, **options: float) -> AdaptivePolling:
    policy, chance = AdaptivePolling(**options), random.Random(1)
    rehearse(policy, (lab.PROFILES["heavy"].draw(chance, 0)[1] for _ in range(count)), model=MODEL, pixels=SQUARE)
    return policy


POLICIES = {
    "fresh": AdaptivePolling(),
    "warm": rehearsed(),
    "dear": rehearsed(look_cost=0.1),
    "bounded": rehearsed(minimum=0.2, maximum=0.3),
}
kinds = pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))


@kinds
def test_the_looks_told_are_those_that_are_made(policy: AdaptivePolling) -> None:
    told = explain(policy, MODEL, SQUARE)
    made = looks(policy, model=MODEL, pixels=SQUARE)
    assert [look.at for look in told.looks] == pytest.approx([next(made) for _ in told.looks])
    assert [look.gap for look in told.looks[1:]] == pytest.approx(
        [later.at - look.at for look, later in pairwise(told.looks)]
    )


@kinds
def test_chances_add_up_to_one(policy: AdaptivePolling) -> None:
    told = explain(policy, MODEL, SQUARE)
    estimate = policy.outlook(MODEL, SQUARE).distribution()
    assert sum(look.sees for look in told.looks) + told.looks[-1].survival == pytest.approx(1.0)
    for look in told.looks:
        assert look.survival == pytest.approx(1 - estimate.at(look.at))
    before, after = estimate.at(told.steps[0].start), 1 - estimate.at(told.steps[-1].end)
    assert before + sum(step.chance for step in told.steps) + after == pytest.approx(1.0)
    assert before < 0.005 > after
    assert all(step.end == later.start for step, later in pairwise(told.steps))


@kinds
def test_the_hazard_is_the_rate_at_which_those_still_running_end(policy: AdaptivePolling) -> None:
    for step in explain(policy, MODEL, SQUARE).steps:
        left = step.survival * math.exp(-step.hazard * (step.end - step.start))
        assert step.survival - left == pytest.approx(step.chance)


@kinds
def test_quantiles_and_costs_are_those_of_the_estimate(policy: AdaptivePolling) -> None:
    told = explain(policy, MODEL, SQUARE)
    assert told.distribution is policy.outlook(MODEL, SQUARE).distribution()
    assert [told.distribution.at(told.quantiles[chance]) for chance in QUANTILES] == pytest.approx(QUANTILES)
    totals = [cost.total(policy.look_cost) for cost in told.costs.values()]
    assert totals == sorted(totals)
    assert set(told.costs) == {OURS, "ExponentialPolling", *PEERS}


@pytest.mark.parametrize("name", ["fresh", "warm", "dear"])
def test_ours_costs_the_least(name: str) -> None:
    assert next(iter(explain(POLICIES[name], MODEL, SQUARE).costs)) == OURS


def test_only_looks_within_the_longest_wait_cost() -> None:
    cost = explain(AdaptivePolling(), MODEL, SQUARE).costs["fal-client"]
    assert cost.looks < UNTIL / 0.1


def test_it_says_how_much_it_knows() -> None:
    policy = rehearsed(100)
    told = explain(policy, MODEL, SQUARE)
    assert (told.samples, told.lent, told.otherwise, told.known) == (pytest.approx(100), 0.0, 0.0, True)
    other = explain(policy, MODEL, 512 * 512)
    assert (other.samples, other.known) == (0.0, True)
    assert 0 < other.lent < 100
    assert not explain(policy, "another/model", SQUARE).known


def test_waits_that_were_seen_queued_are_explained_apart() -> None:
    policy = AdaptivePolling()
    for _ in range(10):
        policy.observe(
            Observation(
                model=MODEL,
                pixels=SQUARE,
                not_before=1.4,
                not_after=1.5,
                running_since=1.0,
                served=None,
                looks=9,
                queued=Queued(0.1, 3, 0.9, 0, 0.95),
            )
        )
    direct, queued = (explain(policy, MODEL, SQUARE, queued=queued) for queued in (False, True))
    assert (direct.samples, direct.otherwise) == (0.0, pytest.approx(10))
    assert (queued.samples, queued.otherwise) == (pytest.approx(10), 0.0)
    assert queued.quantiles[0.5] == pytest.approx(0.5, rel=0.1)
