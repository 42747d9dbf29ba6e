"""A table and its tail: chances, quantiles, areas and delays agree with each other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.polling.distribution import Distribution

from .lab import KNOWN, table

RAMP = Distribution([0.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.5, 0.75])


@pytest.mark.parametrize(
    ("seconds", "chance"),
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
def test_chances_are_straight_between_entries_and_pareto_behind(seconds: float, chance: float) -> None:
    assert RAMP.at(seconds) == pytest.approx(chance)


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 4.0), (0.875, 8.0)])
def test_a_quantile_is_the_instant_of_a_chance(chance: float, seconds: float) -> None:
    assert RAMP.quantile(chance) == pytest.approx(seconds)


def test_a_table_that_holds_everything_has_no_tail() -> None:
    whole = Distribution([0.0, 1.0, 2.0], [0.0, 0.5, 1.0])
    assert whole.quantile(1.0) == 2.0
    assert whole.at(3.0) == 1.0


@given(st.sampled_from(sorted(KNOWN)), st.floats(0.001, 0.999))
def test_the_chance_of_a_quantile_is_the_chance(name: str, chance: float) -> None:
    known = table(name, 200)
    assert known.at(known.quantile(chance)) == pytest.approx(chance, abs=1e-6)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.5, 1.7, 3.0, 4.0, 9.0])
def test_an_area_is_the_integral_of_the_chances(seconds: float) -> None:
    steps = 40_000
    width = max(seconds, 0.0) / steps
    summed = sum(RAMP.at((step + 0.5) * width) for step in range(steps)) * width
    assert RAMP.area(seconds) == pytest.approx(summed, abs=1e-6)


@pytest.mark.parametrize("width", [0.02, 0.5, 10.0])
def test_a_delay_anywhere_in_a_width_is_the_mean_over_it(width: float) -> None:
    known = table("log-normal", 300)
    delayed = known.delayed(width)
    for chance in (0.05, 0.3, 0.5, 0.9, 0.99):
        seconds = delayed.quantile(chance)
        parts = 2000
        mean = sum(known.at(seconds - width * (part + 0.5) / parts) for part in range(parts)) / parts
        assert delayed.at(seconds) == pytest.approx(mean, abs=0.01)
    assert list(delayed.times) == sorted(delayed.times)
    assert list(delayed.cdf) == pytest.approx(sorted(delayed.cdf))


def test_the_tail_never_ends() -> None:
    assert RAMP.at(1e6) < 1
    assert math.isfinite(RAMP.area(1e12))
