"""Schedules are optimal: against brute force, against theory, and on tables as coarse as those of waits.

Predictions are made again when enough samples are new.
"""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import expected_cost, optimum

from flux_klein_async.polling.durations import TAIL, Distribution, ModelEstimate, Size, size_of
from flux_klein_async.polling.schedule import Prediction, Schedule

from .known import KNOWN, table

PRICES = [0.001, 0.01, 0.1]


def brute_force(known: Distribution, price: float) -> float:
    """The same problem: every entry is tried after every other."""
    times, cdf, areas = known.times, known.cdf, known.areas
    last = len(times) - 1
    values = [0.0] * last + [(1 - cdf[last]) * math.sqrt(2 * price * TAIL * times[last]) / (TAIL - 0.5)]
    for age in range(last - 1, -1, -1):
        values[age] = price * (1 - cdf[age]) + min(
            areas[poll] - areas[age] - cdf[age] * (times[poll] - times[age]) + values[poll]
            for poll in range(age + 1, last + 1)
        )
    return values[0]


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("name", KNOWN)
def test_it_costs_what_brute_force_finds(name: str, price: float) -> None:
    known = table(name, 150)
    assert Schedule(known, price).cost == pytest.approx(brute_force(known, price), rel=1e-9)


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 1)), min_size=1, max_size=25), st.floats(0.0001, 10))
def test_it_costs_what_brute_force_finds_on_any_table(steps: list[tuple[float, float]], price: float) -> None:
    times, masses = [0.0], [0.0]
    for width, mass in steps:
        times.append(times[-1] + width)
        masses.append(masses[-1] + mass)
    known = Distribution(times, [mass / (masses[-1] + 0.1) for mass in masses])
    assert Schedule(known, price).cost == pytest.approx(brute_force(known, price), rel=1e-6)


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("name", KNOWN)
def test_a_table_as_coarse_as_those_of_waits_costs_two_percent_at_most(name: str, price: float) -> None:
    fine = table(name, 4000)
    coarse = Schedule(table(name, 112), price)
    assert expected_cost(fine, coarse.after).total(price) <= 1.02 * optimum(fine, price).total(price)


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("name", KNOWN)
def test_its_cost_is_that_of_its_polls(name: str, price: float) -> None:
    fine = table(name, 4000)
    assert Schedule(fine, price).cost == pytest.approx(optimum(fine, price).total(price), rel=2e-3)


@pytest.mark.parametrize("factor", [0.9, 0.97, 1.03, 1.1])
@pytest.mark.parametrize("name", KNOWN)
def test_other_polls_cost_more(name: str, factor: float) -> None:
    fine = table(name, 2000)
    best = Schedule(fine, 0.01)
    assert expected_cost(fine, lambda age: best.after(age / factor) * factor).total(0.01) > best.cost


def test_an_exponential_duration_is_polled_evenly() -> None:
    price = 0.01
    schedule = Schedule(table("exponential", 8000), price)
    low, high = 0.0, 1.0
    for _ in range(60):  # the even gap d that is best: exp(d) - d - 1 = price
        middle = (low + high) / 2
        low, high = (middle, high) if math.exp(middle) - middle - 1 < price else (low, middle)
    age = schedule.after(0.0)
    for _ in range(20):
        poll = schedule.after(age)
        assert poll - age == pytest.approx(low, rel=0.05)
        age = poll
    assert schedule.cost == pytest.approx((low + price) / (1 - math.exp(-low)) - 1, rel=1e-3)


@pytest.mark.parametrize("name", ["log-normal", "exponential"])
def test_with_cheap_polls_it_costs_what_keller_s_density_costs(name: str) -> None:
    price, fine = 1e-5, table(name, 4000)
    rows = zip(fine.times, fine.times[1:], fine.cdf, fine.cdf[1:], strict=False)
    keller = sum(
        math.sqrt(2 * price * (high - low) / (after - before) * (1 - (low + high) / 2)) * (after - before)
        for before, after, low, high in rows
        if high > low
    )
    assert optimum(fine, price).total(price) == pytest.approx(keller, rel=0.02)


def test_a_higher_price_means_fewer_polls_and_more_delay() -> None:
    fine = table("stragglers", 2000)
    costs = [optimum(fine, price) for price in (0.001, 0.01, 0.1, 1.0)]
    assert [cost.polls for cost in costs] == sorted((cost.polls for cost in costs), reverse=True)
    assert [cost.excess for cost in costs] == sorted(cost.excess for cost in costs)


@given(st.sampled_from(sorted(KNOWN)), st.floats(1e-6, 1e3), st.floats(0, 1e6), st.integers(1, 150))
def test_the_next_poll_is_always_ahead(name: str, price: float, age: float, entries: int) -> None:
    poll = Schedule(table(name, entries), price).after(age)
    assert age < poll < math.inf


def test_behind_the_table_intervals_grow() -> None:
    schedule = Schedule(Distribution([0.0, 1.0, 2.0], [0.0, 0.5, 0.9]), 0.01)
    ages = [2.0]
    for _ in range(50):
        ages.append(schedule.after(ages[-1]))
    gaps = [after - before for before, after in pairwise(ages)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(math.sqrt(2 * 0.01 * ages[-2]))


ONE, OTHER = size_of(1024 * 1024), size_of(512 * 512)
PRICE = 0.01


def taught(prediction: Prediction, count: int, median: float = 0.57, *, seed: int = 0) -> Prediction:
    rng = random.Random(seed)
    for _ in range(count):
        seconds = median * rng.lognormvariate(0, 0.15)
        prediction.add(seconds, seconds)
    return prediction


def made(prediction: Prediction, count: int) -> int:
    """How many distributions are made during so many samples."""
    kept = []
    for seed in range(count):
        kept.append(taught(prediction, 1, seed=seed).distribution())
    return len({id(distribution) for distribution in kept})


def predictions(*sizes: Size) -> list[Prediction]:
    """Of one model."""
    estimate = ModelEstimate()
    return [Prediction(estimate, size) for size in sizes]


def test_a_distribution_is_made_again_ever_more_rarely() -> None:
    (prediction,) = predictions(ONE)
    counts = [made(prediction, samples) for samples in (8, 200, 640)]
    assert counts[0] >= 4
    assert counts[1] <= 12
    assert 4 <= counts[2] <= 8
    assert prediction.distribution() is prediction.distribution()


def test_a_size_with_few_samples_of_its_own_follows_the_others() -> None:
    one, other = predictions(ONE, OTHER)
    taught(one, 1)
    before = other.distribution()
    taught(one, 40)
    assert other.distribution() is not before
    settled = taught(other, 10, 0.19).distribution()
    taught(one, 100, seed=1)
    assert other.distribution() is settled


@pytest.mark.parametrize("factor", [0.4, 0.6, 1.7, 2.0, 5.0])
def test_a_changed_service_is_believed_within_fifty_samples_at_every_size(factor: float) -> None:
    one, other = predictions(ONE, OTHER)
    taught(one, 400)
    before = taught(other, 100, 0.19).distribution()
    taught(one, 50, 0.57 * factor, seed=1)
    assert one.distribution().quantile(0.5) == pytest.approx(0.57 * factor, rel=0.08)
    assert other.distribution() is not before
    assert abs(math.log(other.distribution().quantile(0.5) / 0.19)) > 0.2


def test_schedules_are_kept_by_price_and_by_how_well_the_start_is_known() -> None:
    (prediction,) = predictions(ONE)
    plain = taught(prediction, 50).schedule(PRICE)
    for same in ((1.0,), (1.1,), (0.1,), (math.nan,), (1.0, 0.005)):
        assert prediction.schedule(PRICE, *same) is plain
    assert prediction.schedule(PRICE, 4.0).cost > plain.cost
    assert prediction.schedule(PRICE, math.inf) is prediction.schedule(PRICE, 1024.0)
    assert prediction.schedule(PRICE, 1.0, 0.5).after(0) > plain.after(0)
    for step in range(300):
        prediction.schedule(PRICE + step / 1000)
    assert prediction.schedule(PRICE) is not plain, "only so many are kept"
