"""What benchmarks and tests compare with: exact costs, the other clients' poll times, the simulator's optimum."""

import random
from itertools import islice, pairwise

import pytest
import simulation
from simulation import PEERS, Cost, GrowingPolling, expected_cost, optimum, policy_cost, poll_times

from flux_klein_async.polling.policies import ExponentialPolling, FixedPolling

from .known import KNOWN, table


def test_a_cost_is_excess_plus_priced_polls() -> None:
    assert Cost(0.05, 7.0).total(0.01) == pytest.approx(0.12)


def test_an_exact_cost_is_the_mean_over_drawn_waits() -> None:
    rng = random.Random(1)
    ends = [0.57 * rng.lognormvariate(0, 0.15) for _ in range(100_000)]
    polls = [int(end / 0.1) + 1 for end in ends]
    cost = expected_cost(table("log-normal", 2000), lambda age: (round(age / 0.1) + 1) * 0.1)
    assert cost.polls == pytest.approx(sum(polls) / len(ends), rel=0.005)
    assert cost.excess == pytest.approx(
        sum(n * 0.1 - end for n, end in zip(polls, ends, strict=True)) / len(ends), rel=0.01
    )


@pytest.mark.parametrize("name", KNOWN)
def test_no_fixed_interval_costs_less_than_the_optimum(name: str) -> None:
    known = table(name, 2000)
    best = optimum(known, 0.01).total(0.01)
    for gap in (0.05, 0.1, 0.25, 0.5, 2, 5):
        assert expected_cost(known, lambda age, gap=gap: age + gap).total(0.01) > best


def test_the_simulator_has_the_same_optimum() -> None:
    best = optimum(table("log-normal", 4000), 0.01).total(0.01)
    assert simulation._optimum(0.57, 0.15, ((1.0, 1.0),)) == pytest.approx(best, rel=1e-3)


def test_a_schedule_that_gets_nowhere_ends() -> None:
    assert expected_cost(table("uniform", 10), lambda age: age + 1e-9).polls == pytest.approx(100_000)


# docs/waiting.md, "How others wait": the first five polls, and the longest interval where intervals grow.
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
def test_other_clients_poll_when_their_sources_say(name: str) -> None:
    assert list(islice(poll_times(PEERS[name]()), 5)) == pytest.approx(FIRST[name])
    if name in LONGEST:
        ages = list(islice(poll_times(PEERS[name]()), 100))
        assert {round(after - before, 9) for before, after in pairwise(ages[10:])} == {LONGEST[name]}


def test_random_intervals_double_up_to_two_seconds_and_repeat_for_each_new_policy() -> None:
    policy = PEERS["random exponential"]()
    runs = [list(islice(poll_times(policy), 12)) for _ in range(300)]
    for number in range(12):
        gaps = [run[number] - (run[number - 1] if number else 0) for run in runs]
        most = min(0.1 * 2**number, 2)
        assert 0.9 * most < max(gaps) <= most
        assert sum(gaps) / len(gaps) == pytest.approx(most / 2, rel=0.15)
    assert list(islice(poll_times(PEERS["random exponential"]()), 12)) == runs[0]


def test_a_wait_without_end_does_not_overflow() -> None:
    ages = list(islice(poll_times(GrowingPolling(0.0, 1.0, 2.0, 9.0)), 2000))
    assert ages[-1] - ages[-2] == 9.0


def test_the_cost_of_a_policy_is_that_of_its_polls_averaged_over_random_ones() -> None:
    known = table("log-normal", 500)
    assert policy_cost(FixedPolling(0.25), known) == expected_cost(known, lambda age: age + 0.25)
    jittered = policy_cost(ExponentialPolling(jitter=0.5, spread=random.Random(0).random), known)
    assert jittered.polls == pytest.approx(policy_cost(ExponentialPolling(jitter=0.0), known).polls, rel=0.1)
