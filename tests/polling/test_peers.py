"""What a schedule costs on a known distribution.

How others wait, poll by poll.

Waits in pure numbers.
"""

import random
from itertools import islice, pairwise

import pytest
from peers import PEERS, Cost, GrowingPolling, expected, optimum, polls, rehearse, weigh

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import ExponentialPolling, FixedPolling, Observation, Progress

from .lab import KNOWN, bell, lab, table


def test_a_cost_is_excess_and_priced_polls() -> None:
    assert Cost(0.05, 7.0).total(0.01) == pytest.approx(0.12)


def test_a_fixed_interval_costs_what_drawing_says() -> None:
    chance = random.Random(1)
    ends = [0.57 * chance.lognormvariate(0, 0.15) for _ in range(100_000)]
    polls = [int(end / 0.1) + 1 for end in ends]
    cost = weigh(table("log-normal", 2000), lambda age: (round(age / 0.1) + 1) * 0.1)
    assert cost.polls == pytest.approx(sum(polls) / len(ends), rel=0.005)
    assert cost.excess == pytest.approx(
        sum(n * 0.1 - end for n, end in zip(polls, ends, strict=True)) / len(ends), rel=0.01
    )


@pytest.mark.parametrize("name", KNOWN)
def test_nothing_that_today_s_clients_do_costs_less(name: str) -> None:
    known = table(name, 2000)
    best = optimum(known, 0.01).total(0.01)
    assert all(weigh(known, lambda age, gap=gap: age + gap).total(0.01) > best for gap in (0.05, 0.1, 0.25, 0.5, 2, 5))


def test_the_bench_has_the_same_optimum() -> None:
    assert lab.optimum(0.57, 0.0) == pytest.approx(optimum(table("log-normal", 4000), 0.01).total(0.01), rel=1e-3)
    assert bell(0.57, 0.15)(0.57) == 0.5


def test_polls_that_lead_nowhere_end() -> None:
    assert weigh(table("uniform", 10), lambda age: age + 1e-9).polls == pytest.approx(100_000)


def test_only_polls_before_the_last_instant_count() -> None:
    known = table("exponential", 2000)
    every = weigh(known, lambda age: age + 0.1)
    short = weigh(known, lambda age: age + 0.1, until=0.95)
    assert short.polls == pytest.approx(sum(1 - known.at(number / 10) for number in range(10)))
    assert short.polls < every.polls
    assert short.excess < every.excess


# docs/waiting.md, "How others wait", written down once more: the first five polls.
FIRST = {
    "vendor CLI": [0, 2, 4, 6, 8],
    "vendor plugin": [0, 5, 10, 15, 20],
    "vendor httpx client": [0, 3, 6, 9, 12],
    "fal-client": [0, 0.1, 0.2, 0.3, 0.4],
    "replicate": [0.5, 1, 1.5, 2, 2.5],
    "comfy-sdk": [0, 0.5, 1.25, 2.375, 4.0625],
    "runware-sdk": [1, 1.5, 2.25, 3.375, 5.0625],
}

LONGEST = {"comfy-sdk": 5, "runware-sdk": 10}


@pytest.mark.parametrize("name", FIRST)
def test_a_peer_polls_when_its_source_says(name):
    assert list(islice(polls(PEERS[name]()), 5)) == pytest.approx(FIRST[name])


@pytest.mark.parametrize("name", LONGEST)
def test_growing_intervals_end_at_the_longest(name):
    ages = list(islice(polls(PEERS[name]()), 100))
    assert {round(after - before, 9) for before, after in pairwise(ages[10:])} == {LONGEST[name]}


def test_random_intervals_are_drawn_below_what_doubles_up_to_two_seconds():
    policy = PEERS["random exponential"]()
    runs = [list(islice(polls(policy), 12)) for _ in range(300)]
    for number in range(12):
        gaps = [run[number] - (run[number - 1] if number else 0) for run in runs]
        most = min(0.1 * 2**number, 2)
        assert 0.9 * most < max(gaps) <= most
        assert sum(gaps) / len(gaps) == pytest.approx(most / 2, rel=0.15)


def test_each_policy_is_fresh_and_draws_the_same():
    first, second = (list(islice(polls(PEERS["random exponential"]()), 9)) for _ in range(2))
    assert first == second


def test_a_wait_without_end_overflows_nothing():
    ages = list(islice(polls(GrowingPolling(0.0, 1.0, 2.0, 9.0)), 2000))
    assert ages[-1] - ages[-2] == 9.0


class Written:
    """Polls every quarter of a second, and keeps what it is asked and told."""

    def __init__(self) -> None:
        self.asked: list[Progress] = []
        self.told: list[Observation] = []

    def next_poll(self, progress: Progress) -> float:
        self.asked.append(progress)
        return 0.25

    def observe(self, observation: Observation) -> None:
        self.told.append(observation)


def test_a_policy_is_asked_as_by_a_wait_without_round_trips() -> None:
    policy = Written()
    assert list(islice(polls(policy, model="a/b", pixels=64), 3)) == [0.25, 0.5, 0.75]
    assert [(ask.polls, ask.age, ask.sent, ask.last_interval) for ask in policy.asked] == [
        (0, 0.0, 0.0, None),
        (1, 0.25, 0.25, 0.25),
        (2, 0.5, 0.5, 0.25),
    ]
    assert {(ask.model, ask.pixels) for ask in policy.asked} == {("a/b", 64)}
    assert [ask.round_trip for ask in policy.asked] == [None, 0.0, 0.0]


def test_a_rehearsal_tells_between_which_polls_each_ended() -> None:
    policy = Written()
    rehearse(policy, [0.1, 0.5, 0.6004], model="a/b", pixels=64)
    assert [(told.not_before, told.not_after, told.polls, told.served) for told in policy.told] == [
        (0.0, 0.25, 1, 0.1),
        (0.25, 0.5, 2, 0.5),
        (0.5, 0.75, 3, 0.6),
    ]
    assert all(told.sent == told.not_after for told in policy.told)


def test_a_rehearsed_policy_knows_what_it_was_shown() -> None:
    policy, chance = AdaptivePolling(), random.Random(0)
    rehearse(policy, (chance.uniform(2.0, 3.0) for _ in range(100)), model="a/b", pixels=64)
    estimate = policy.prediction("a/b", 64).distribution()
    assert estimate.quantile(0.5) == pytest.approx(2.5, rel=0.05)


def test_a_policy_without_chance_costs_what_its_polls_cost() -> None:
    known = table("log-normal", 500)
    assert expected(FixedPolling(0.25), known) == weigh(known, lambda age: age + 0.25)
    assert expected(FixedPolling(0.25), known, until=0.5) == weigh(known, lambda age: age + 0.25, until=0.5)


def test_a_policy_that_draws_is_averaged_over_its_draws() -> None:
    def jittered() -> ExponentialPolling:
        return ExponentialPolling(jitter=0.5, spread=random.Random(0).random)

    known, ages = table("log-normal", 500), polls(jittered())
    cost = expected(jittered(), known)
    assert cost != weigh(known, lambda _: next(ages))
    assert cost.polls == pytest.approx(expected(ExponentialPolling(jitter=0.0), known).polls, rel=0.1)
