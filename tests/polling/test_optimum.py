"""What a schedule costs on a known distribution."""

import random

import pytest

from flux_klein_async.polling.optimum import Cost, optimum, weigh

from .lab import KNOWN, bell, lab, table


def test_a_cost_is_excess_and_priced_looks() -> None:
    assert Cost(0.05, 7.0).total(0.01) == pytest.approx(0.12)


def test_a_fixed_interval_costs_what_drawing_says() -> None:
    chance = random.Random(1)
    ends = [0.57 * chance.lognormvariate(0, 0.15) for _ in range(100_000)]
    looks = [int(end / 0.1) + 1 for end in ends]
    cost = weigh(table("log-normal", 2000), lambda age: (round(age / 0.1) + 1) * 0.1)
    assert cost.looks == pytest.approx(sum(looks) / len(ends), rel=0.005)
    assert cost.excess == pytest.approx(
        sum(n * 0.1 - end for n, end in zip(looks, ends, strict=True)) / len(ends), rel=0.01
    )


@pytest.mark.parametrize("name", KNOWN)
def test_nothing_that_today_s_clients_do_costs_less(name: str) -> None:
    known = table(name, 2000)
    best = optimum(known, 0.01).total(0.01)
    assert all(weigh(known, lambda age, gap=gap: age + gap).total(0.01) > best for gap in (0.05, 0.1, 0.25, 0.5, 2, 5))


def test_the_bench_has_the_same_optimum() -> None:
    assert lab.optimum(0.57, 0.0) == pytest.approx(optimum(table("log-normal", 4000), 0.01).total(0.01), rel=1e-3)
    assert bell(0.57, 0.15)(0.57) == 0.5


def test_looks_that_lead_nowhere_end() -> None:
    assert weigh(table("uniform", 10), lambda age: age + 1e-9).looks == pytest.approx(100_000)


def test_only_looks_before_the_last_instant_count() -> None:
    known = table("exponential", 2000)
    every = weigh(known, lambda age: age + 0.1)
    short = weigh(known, lambda age: age + 0.1, until=0.95)
    assert short.looks == pytest.approx(sum(1 - known.at(number / 10) for number in range(10)))
    assert short.looks < every.looks
    assert short.excess < every.excess
