"""Waits in pure numbers."""

import random
from itertools import islice

import pytest

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.optimum import weigh
from flux_klein_async.polling.policies import ExponentialPolling, FixedPolling, Observation, Progress
from flux_klein_async.polling.rehearsal import expected, looks, rehearse

from .lab import table


class Written:
    """Looks every quarter of a second, and keeps what it is asked and told."""

    def __init__(self) -> None:
        self.asked: list[Progress] = []
        self.told: list[Observation] = []

    def next_look(self, progress: Progress) -> float:
        self.asked.append(progress)
        return 0.25

    def observe(self, observation: Observation) -> None:
        self.told.append(observation)


def test_a_policy_is_asked_as_by_a_wait_without_round_trips() -> None:
    policy = Written()
    assert list(islice(looks(policy, model="a/b", pixels=64), 3)) == [0.25, 0.5, 0.75]
    assert [(ask.looks, ask.age, ask.sent, ask.last_interval) for ask in policy.asked] == [
        (0, 0.0, 0.0, None),
        (1, 0.25, 0.25, 0.25),
        (2, 0.5, 0.5, 0.25),
    ]
    assert {(ask.model, ask.pixels) for ask in policy.asked} == {("a/b", 64)}
    assert [ask.round_trip for ask in policy.asked] == [None, 0.0, 0.0]


def test_a_rehearsal_tells_between_which_looks_each_ended() -> None:
    policy = Written()
    rehearse(policy, [0.1, 0.5, 0.6004], model="a/b", pixels=64)
    assert [(told.not_before, told.not_after, told.looks, told.served) for told in policy.told] == [
        (0.0, 0.25, 1, 0.1),
        (0.25, 0.5, 2, 0.5),
        (0.5, 0.75, 3, 0.6),
    ]
    assert all(told.sent == told.not_after for told in policy.told)


def test_a_rehearsed_policy_knows_what_it_was_shown() -> None:
    policy, chance = AdaptivePolling(), random.Random(0)
    rehearse(policy, (chance.uniform(2.0, 3.0) for _ in range(100)), model="a/b", pixels=64)
    estimate = policy.outlook("a/b", 64).distribution()
    assert estimate.quantile(0.5) == pytest.approx(2.5, rel=0.05)


def test_a_policy_without_chance_costs_what_its_looks_cost() -> None:
    known = table("log-normal", 500)
    assert expected(FixedPolling(0.25), known) == weigh(known, lambda age: age + 0.25)
    assert expected(FixedPolling(0.25), known, until=0.5) == weigh(known, lambda age: age + 0.25, until=0.5)


def test_a_policy_that_draws_is_averaged_over_its_draws() -> None:
    def jittered() -> ExponentialPolling:
        return ExponentialPolling(jitter=0.5, spread=random.Random(0).random)

    known, ages = table("log-normal", 500), looks(jittered())
    cost = expected(jittered(), known)
    assert cost != weigh(known, lambda _: next(ages))
    assert cost.looks == pytest.approx(expected(ExponentialPolling(jitter=0.0), known).looks, rel=0.1)
