"""Schedules are optimal: against brute force, against theory, and on tables as coarse as those of waits."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import expected_cost, optimum

from flux_klein_async.polling.durations import TAIL, Distribution, Schedule

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


# --- distributions


RAMP = Distribution([0.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.5, 0.75])


@pytest.mark.parametrize(
    ("seconds", "probability"),
    [
        (-1.0, 0.0),
        (0.0, 0.0),
        (1.0, 0.0),
        (1.5, 0.25),
        (2.0, 0.5),
        (3.0, 0.625),
        (4.0, 0.75),
        (8.0, 0.875),
        (400, 0.9975),
    ],
)
def test_it_is_linear_between_entries_and_pareto_behind_them(seconds: float, probability: float) -> None:
    assert RAMP.at(seconds) == pytest.approx(probability)


@pytest.mark.parametrize(("probability", "seconds"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 4.0), (0.875, 8.0)])
def test_a_quantile_is_the_time_of_a_probability(probability: float, seconds: float) -> None:
    assert RAMP.quantile(probability) == pytest.approx(seconds)


def test_a_table_that_reaches_one_has_no_tail() -> None:
    whole = Distribution([0.0, 1.0, 2.0], [0.0, 0.5, 1.0])
    assert (whole.quantile(1.0), whole.at(3.0)) == (2.0, 1.0)


@given(st.sampled_from(sorted(KNOWN)), st.floats(0.001, 0.999))
def test_a_quantile_is_the_inverse(name: str, probability: float) -> None:
    known = table(name, 200)
    assert known.at(known.quantile(probability)) == pytest.approx(probability, abs=1e-6)
