"""Samples of log time, and the grid that turns them into a table."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.polling.histogram import BIN, Grid, Histogram


def filled(*seconds: float) -> Histogram:
    histogram = Histogram()
    for value in seconds:
        histogram.add(value, 1.0)
    return histogram


def test_a_sample_lands_within_a_percent() -> None:
    (place,) = filled(0.57).bins
    assert place * BIN <= math.log(0.57) < (place + 1) * BIN


@pytest.mark.parametrize(("seconds", "entered"), [(0.0, 1e-3), (1e-300, 1e-3), (1e300, 1e6)])
def test_what_no_generation_takes_is_entered_at_the_end_of_the_scale(seconds: float, entered: float) -> None:
    assert filled(seconds).bins == filled(entered).bins


def test_quantiles_rise_with_their_chances() -> None:
    histogram = filled(*(0.1 * 1.1**step for step in range(40)))
    found = histogram.quantiles(0.0, 0.25, 0.5, 0.5, 0.75, 1.0)
    assert found == sorted(found)
    assert math.exp(found[2]) == pytest.approx(0.1 * 1.1**19.5, rel=0.06)


def test_a_chance_past_the_rounding_is_the_last_sample() -> None:
    histogram = filled(1.0, 2.0)
    histogram.total += 1e-9
    assert math.exp(histogram.quantiles(1.0)[0]) == pytest.approx(2.0, rel=BIN)


def test_memory_is_bounded_and_old_samples_fade() -> None:
    histogram = filled(*[0.5] * 1000)
    assert histogram.total <= 256
    for _ in range(1000):
        histogram.add(1.0, 1.0)
    assert math.exp(histogram.quantiles(0.02)[0]) == pytest.approx(1.0, rel=0.02)


def test_fading_forgets_what_weighs_nothing() -> None:
    histogram = filled(*(0.01 * 1.02**step for step in range(500)))
    histogram.fade(0.1)
    assert histogram.bins == {}
    assert histogram.total == 0
    histogram.fade(5.0)
    assert histogram.total == 0


def test_smoothing_keeps_the_middle_and_spreads_by_the_width() -> None:
    grid = Grid(-2.0, 0.02, 200)
    masses = [0.0] * 200
    masses[100] = 1.0
    for width in (0.001, 0.03, 0.05, 0.2, 0.4):
        smoothed = grid.smoothed(masses, width)
        assert len(smoothed) == 200
        mean = sum(step * mass for step, mass in enumerate(smoothed))
        spread = math.sqrt(sum((step - mean) ** 2 * mass for step, mass in enumerate(smoothed))) * grid.step
        assert sum(smoothed) == pytest.approx(1.0)
        assert mean == pytest.approx(100)
        assert spread == pytest.approx(width, abs=0.012)


def test_masses_before_the_grid_are_early_and_those_behind_are_left_to_the_tail() -> None:
    grid = Grid(math.log(0.5), 0.1, 10)
    masses = grid.masses(filled(0.1, 0.51, 0.9, 100.0))
    assert masses[0] == 2
    assert sum(masses) == 3


@given(st.floats(-8, 4), st.floats(0.01, 0.1), st.floats(-9, 9))
def test_bell_and_tail_are_parts_of_a_whole(start: float, step: float, middle: float) -> None:
    grid = Grid(start, step, 112)
    for masses in (grid.bell(middle, 0.45), grid.tail(middle)):
        assert len(masses) == 112
        assert all(mass >= 0 for mass in masses)
        assert sum(masses) <= 1.05


@pytest.mark.parametrize("middle", [-9.0, -1.0, 0.0])
def test_a_bell_before_the_grid_is_early_and_not_lost(middle: float) -> None:
    assert sum(Grid(-1.0, 0.05, 112).bell(middle, 0.45)) == pytest.approx(1.0, abs=2e-3)


def test_the_tail_is_what_the_tables_behind_it_go_on_with() -> None:
    grid = Grid(math.log(0.5), 0.05, 80)
    found = grid.table(grid.tail(0.0))
    for seconds in (2.0, 5.0, 20.0, 200.0):
        assert 1 - found.at(seconds) == pytest.approx(1 / seconds, rel=0.06)


def test_a_table_rounds_no_higher_than_one() -> None:
    grid = Grid(0.0, 0.1, 10)
    table = grid.table([random.Random(1).random()] * 10)
    assert max(table.cdf) == 1.0
    assert len(table.times) == 12
