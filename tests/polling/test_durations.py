"""A table and its tail: chances, quantiles, areas and delays agree with each other.

Samples of log time, and the grid that turns them into a table.

What is believed of each size, from nothing to thousands of samples.

A queue's pace, and the interval in which a queued request starts.

The service's own account: believed where it agrees with what was seen, from wherever it counts.
"""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.polling.durations import (
    BIN,
    Distribution,
    Durations,
    Grid,
    Histogram,
    QueuePace,
    ServedTimes,
    Size,
    shape,
)
from flux_klein_async.polling.policies import Queued

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


SMALL, USUAL, LARGE = (Size.of(side * side) for side in (512, 1024, 2048))


def published(size: Size) -> float:
    return math.exp(shape(size))


def taught(durations: Durations, size: Size, seconds: Iterable[float]) -> Durations:
    estimate = durations.distribution(size)
    for value in seconds:
        durations.add(size, value, value, estimate)
    return durations


def drawn(median: float, count: int, *, spread: float = 0.15, seed: int = 0) -> list[float]:
    chance = random.Random(seed)
    return [median * chance.lognormvariate(0, spread) for _ in range(count)]


def median(durations: Durations, size: Size) -> float:
    return durations.distribution(size).quantile(0.5)


def width(estimate: Distribution) -> float:
    """Of log time, between the quartiles, as a bell's spread."""
    return math.log(estimate.quantile(0.75) / estimate.quantile(0.25)) / 1.349


@pytest.mark.parametrize("pixels", [None, 0, -5])
def test_pixels_that_are_none_are_a_size_of_their_own(pixels: int | None) -> None:
    assert Size.of(pixels) == Size(None)
    assert Size.of(pixels).megapixels == pytest.approx(1.048576)


def test_sizes_nearly_equal_are_one_and_there_are_few() -> None:
    assert Size.of(1024 * 1024) == Size.of(1016 * 1032)
    assert Size.of(1024 * 1024) != Size.of(1024 * 1152)
    assert Size.of(1024 * 1024) != Size.of(1024 * 1024, queued=True)
    assert len({Size.of(pixels) for pixels in range(64 * 64, 2048 * 2048, 97)}) <= 82
    assert Size.of(10**400).megapixels < math.inf


@pytest.mark.parametrize("size", [SMALL, USUAL, LARGE])
def test_before_any_history_it_is_the_published_time_and_wide(size: Size) -> None:
    prior = Durations().distribution(size)
    assert prior.quantile(0.5) == pytest.approx(published(size), rel=0.06)
    assert 0.4 < width(prior) < 0.55
    assert prior.at(published(size) * 2) < 0.95


@pytest.mark.parametrize("slow", [0.3, 1.0, 2.0, 20.0])
def test_a_few_samples_outweigh_the_prior(slow: float) -> None:
    durations = taught(Durations(), USUAL, drawn(0.57 * slow, 8))
    assert median(durations, USUAL) == pytest.approx(0.57 * slow, rel=0.2)


@pytest.mark.parametrize("spread", [0.02, 0.05, 0.15, 0.6])
def test_with_enough_of_them_it_is_as_wide_as_they_are(spread: float) -> None:
    durations = taught(Durations(), USUAL, drawn(0.57, 250, spread=spread))
    assert width(durations.distribution(USUAL)) == pytest.approx(spread, rel=0.25)


def test_two_modes_stay_two() -> None:
    durations = taught(Durations(), USUAL, [*drawn(0.57, 120), *drawn(0.19, 120)])
    estimate = durations.distribution(USUAL)
    assert estimate.at(0.4) - estimate.at(0.28) < 0.08
    assert estimate.at(0.28) == pytest.approx(0.5, abs=0.05)


def test_a_heavy_tail_never_goes_away() -> None:
    durations = taught(Durations(), USUAL, drawn(0.57, 5000))
    assert durations.distribution(USUAL).at(5.7) < 0.9999


def test_one_size_teaches_another_how_fast_the_service_is() -> None:
    durations = taught(Durations(), USUAL, drawn(2 * published(USUAL), 100))
    for size in (SMALL, LARGE):
        assert median(durations, size) == pytest.approx(2 * published(size), rel=0.1)


def test_a_size_never_seen_lies_between_those_seen_whatever_their_line() -> None:
    durations = taught(Durations(), SMALL, drawn(1.0, 100, seed=1))  # time goes by the root of the pixels
    taught(durations, LARGE, drawn(4.0, 100, seed=2))
    assert median(durations, USUAL) == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("small", [0.02, 0.19, 1.9])
@pytest.mark.parametrize("count", [30, 300])
def test_a_small_size_teaches_nothing_false_to_a_large_one(small: float, count: int) -> None:
    durations = taught(Durations(), LARGE, drawn(2.1, count, seed=1))
    taught(durations, SMALL, drawn(small, 3000, seed=2))
    estimate = durations.distribution(LARGE)
    assert estimate.quantile(0.5) == pytest.approx(2.1, rel=0.04)
    assert width(estimate) < 0.22


def test_a_size_with_enough_of_its_own_borrows_nothing() -> None:
    alone = taught(Durations(), LARGE, drawn(2.1, 200, seed=1))
    beside = taught(Durations(), LARGE, drawn(2.1, 200, seed=1))
    taught(beside, SMALL, drawn(0.19, 200, spread=0.9, seed=2))
    assert list(beside.distribution(LARGE).cdf) == list(alone.distribution(LARGE).cdf)


def test_it_says_what_other_sizes_lend() -> None:
    durations = taught(Durations(), USUAL, drawn(0.5, 40))
    assert (durations.lent(USUAL), durations.lent(SMALL)) == (0.0, pytest.approx(40.0))
    taught(durations, SMALL, drawn(0.2, 64))
    assert durations.lent(SMALL) == pytest.approx(20.0), "half of what it needs is its own"
    taught(durations, LARGE, drawn(2.0, 200))
    assert durations.lent(Size.of(640 * 640)) == pytest.approx(64.0), "all others count so much at most"
    taught(durations, SMALL, drawn(0.2, 64))
    assert durations.lent(SMALL) == 0.0


def test_the_spread_is_shared_before_a_size_has_its_own() -> None:
    durations = taught(Durations(), SMALL, drawn(published(SMALL), 200, spread=0.05, seed=1))
    assert width(durations.distribution(LARGE)) < 0.45
    taught(durations, LARGE, drawn(published(LARGE), 3, spread=0.05, seed=2))
    assert width(durations.distribution(LARGE)) < 0.15


def test_a_middle_that_is_only_guessed_at_makes_it_wider() -> None:
    durations = taught(Durations(), USUAL, drawn(published(USUAL), 200, spread=0.02))
    assert width(durations.distribution(USUAL)) < 0.04
    assert width(durations.distribution(LARGE)) > 0.12


def test_many_samples_of_others_do_not_outvote_a_few_of_its_own() -> None:
    durations = taught(Durations(), LARGE, drawn(2.1, 60, spread=0.05, seed=1))
    for other in (512, 640, 768, 896, 1280, 1536):
        size = Size.of(other * other)
        taught(durations, size, drawn(published(size), 200, spread=0.6, seed=other))
    assert width(durations.distribution(LARGE)) < 0.25


def test_a_peak_on_a_broad_ground_keeps_both() -> None:
    ground = [0.02 * 1.05**step for step in range(120)]  # 0.02 s to 6.6 s
    durations = taught(Durations(), USUAL, [*drawn(0.57, 120, spread=0.02), *ground])
    estimate = durations.distribution(USUAL)
    assert estimate.at(0.1) == pytest.approx(0.5 * 33 / 120, abs=0.03)
    assert estimate.at(0.7) - estimate.at(0.45) > 0.45
    assert estimate.at(3.0) == pytest.approx(1 - 0.5 * 17 / 120, abs=0.03)


def test_a_sample_between_two_polls_is_entered_where_the_estimate_says() -> None:
    durations = taught(Durations(), USUAL, drawn(0.57, 200))
    estimate = durations.distribution(USUAL)
    other = Durations()
    rank = other.add(USUAL, 0.3, 0.57, estimate)
    assert rank == pytest.approx((estimate.at(0.3) + estimate.at(0.57)) / 2)
    entered = [math.exp(place * 0.01) for place in dict(other.weights())[USUAL]]
    assert max(entered) <= 0.57
    assert sum(entered) / len(entered) > 0.48  # not in the middle, 0.435, but where such samples lie


def test_a_sample_where_the_estimate_says_nothing_is_spread_evenly() -> None:
    durations = Durations()
    durations.add(USUAL, 50.0, 90.0, Distribution([0.0, 1.0, 2.0], [0.0, 0.5, 1.0]))
    entered = [math.exp(place * 0.01) for place in dict(durations.weights())[USUAL]]
    assert entered == pytest.approx([55, 65, 75, 85], rel=0.02)


def test_what_is_kept_can_be_taken_up_again() -> None:
    durations = taught(Durations(), USUAL, drawn(0.57, 200))
    again = Durations()
    for size, bins in durations.weights():
        again.restore(size, bins)
    assert list(again.distribution(USUAL).cdf) == pytest.approx(list(durations.distribution(USUAL).cdf))


def test_what_is_taken_up_weighs_no_more_than_what_is_remembered() -> None:
    durations = Durations()
    durations.restore(USUAL, dict.fromkeys(range(-60, -50), 1000.0))
    assert durations.weight(USUAL) == pytest.approx(256)


def test_what_has_faded_to_nothing_is_as_if_it_had_never_been() -> None:
    durations = taught(Durations(), USUAL, [0.57])
    taught(durations, LARGE, [2.1])
    durations.fade(1e-4)
    assert durations.weights() == []
    assert list(durations.distribution(USUAL).cdf) == list(Durations().distribution(USUAL).cdf)


seconds = st.one_of(st.floats(0, 10), st.floats(0, 1e308), st.sampled_from([0.0, 1e-300, 5e-324, 0.57, 1e300]))

pixels = st.one_of(st.none(), st.integers(-5, 5_000_000), st.integers(1, 10**30))


@given(st.lists(st.tuples(pixels, seconds, seconds), max_size=12), pixels)
def test_any_history_gives_a_distribution(history: list[tuple[int | None, float, float]], asked: int | None) -> None:
    durations = Durations()
    for given_pixels, one, other in history:
        size = Size.of(given_pixels)
        rank = durations.add(size, min(one, other), max(one, other), durations.distribution(size))
        assert 0 <= rank <= 1
    estimate = durations.distribution(Size.of(asked))
    assert all(before < after for before, after in zip(estimate.times, estimate.times[1:], strict=False))
    assert all(before <= after for before, after in zip(estimate.cdf, estimate.cdf[1:], strict=False))
    assert 0 <= estimate.cdf[0] <= estimate.cdf[-1] <= 1
    assert math.isfinite(estimate.times[-1])


def queued(position: int | None, at: float = 0.0, *, until: float | None = None) -> Queued:
    return Queued(at, position, at, position, at if until is None else until)


def learned_pace(seconds: float, *, spread: float = 0.0, count: int = 60) -> QueuePace:
    pace, chance = QueuePace(), random.Random(0)
    for number in range(count):
        position = number % 9
        waited = (position + 1) * seconds + spread * seconds * math.sqrt(position + 1) * chance.gauss(0, 1)
        pace.learn(queued(position, 1.0), 1.0 + max(waited, 0.0))
    return pace


@pytest.mark.parametrize("seconds", [0.01, 0.14, 3.0])
def test_the_pace_is_learned_from_waits(seconds: float) -> None:
    assert learned_pace(seconds).seconds == pytest.approx(seconds, rel=0.1)
    assert learned_pace(seconds, spread=0.3).seconds == pytest.approx(seconds, rel=0.25)


def test_a_changed_pace_is_followed() -> None:
    pace = learned_pace(0.1)
    for _ in range(40):
        pace.learn(queued(4), 5.0)
    assert pace.seconds == pytest.approx(1.0, rel=0.1)


def test_a_wait_without_a_position_teaches_nothing() -> None:
    pace = QueuePace()
    pace.learn(queued(None), 100.0)
    assert (pace.seconds, pace.count) == (QueuePace().seconds, 1)


def test_a_window_lies_where_the_pace_puts_it() -> None:
    pace = learned_pace(0.2, spread=0.3, count=300)
    low, high = pace.window(queued(9, 1.0), None)
    assert (low + high) / 2 == pytest.approx(3.0, rel=0.15)
    assert 0.2 < high - low < 2.0
    assert pace.window(queued(0), None)[1] < low


def test_a_steady_queue_is_known_better_than_a_restless_one() -> None:
    steady, restless = (learned_pace(0.2, spread=spread, count=300).window(queued(9), None) for spread in (0.05, 0.8))
    assert steady[1] - steady[0] < (restless[1] - restless[0]) / 2


def test_the_poll_that_saw_it_running_ends_the_window() -> None:
    pace = learned_pace(0.2, spread=0.3)
    free, seen = pace.window(queued(9), None), pace.window(queued(9), 2.0)
    assert seen == (free[0], 2.0)
    assert pace.window(queued(9), 0.5) == (0.5, 0.5)  # earlier than thought: just before that poll


def test_a_queue_that_stands_still_is_believed_to_stand_as_long_again() -> None:
    pace = learned_pace(0.2)
    for stood in (5.0, 50.0, 500.0):
        low, high = pace.window(queued(3, 1.0, until=1.0 + stood), None)
        assert (low + high) / 2 == pytest.approx(1.0 + 2 * stood)


numbers = st.floats(0, 1e9)


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(-5, 10**12)), numbers, numbers), max_size=8),
    st.one_of(st.none(), st.integers(-5, 10**12)),
    numbers,
    numbers,
    st.one_of(st.none(), numbers),
)
def test_any_window_is_finite_and_lies_after_the_last_poll_in_the_queue(
    waits: list[tuple[int | None, float, float]], position: int | None, at: float, more: float, left: float | None
) -> None:
    pace = QueuePace()
    for waited_at, entered, lasted in waits:
        pace.learn(queued(waited_at, entered), entered + lasted)
    until = at + more
    low, high = pace.window(queued(position, at, until=until), None if left is None else until + left)
    assert until * (1 - 1e-9) - 1e-9 <= low <= high < math.inf
    assert left is None or high <= until + left


def waits(count: int, *, gap: float = 0.06, seed: int = 0):
    """Ends, and the polls before and after each."""
    chance = random.Random(seed)
    for _ in range(count):
        end = 0.57 * chance.lognormvariate(0, 0.15)
        low = end - gap * chance.random()
        yield end, low, low + gap


@pytest.mark.parametrize(("offset", "round_trip"), [(0.0, 0.0), (0.04, 0.04), (0.04, 0.0), (0.5, 0.04), (-0.3, 0.04)])
def test_the_offset_between_the_clocks_is_learned(offset: float, round_trip: float) -> None:
    served, errors, narrowed = ServedTimes(), [], 0
    for number, (end, low, high) in enumerate(waits(400)):
        found = served.narrow(low, high, end + offset, round_trip)
        assert low <= found[0] <= found[1] <= high
        if number >= 200:
            narrowed += found[0] == found[1]
            errors.append(sum(found) / 2 - end)
    assert served.believed
    assert narrowed > 180
    assert abs(sum(errors) / len(errors)) < 0.02
    assert max(errors) - min(errors) < 0.065


def test_a_long_way_to_the_service_is_no_contradiction() -> None:
    served = ServedTimes()
    for end, low, high in waits(100):
        served.narrow(low, high, end + 0.3, 0.3)
        assert served.trust > 0.9


@pytest.mark.parametrize(
    "lie",
    [
        lambda _: 0.0,
        lambda _: -3.0,
        lambda _: math.nan,
        lambda _: math.inf,
        lambda _: 3e8,
        lambda end: 7 * end,
        lambda end: end * (hash(end) % 7),
    ],
    ids=["zeros", "before", "nan", "inf", "years", "another unit", "anything"],
)
def test_an_account_that_contradicts_what_was_seen_is_soon_not_believed(lie) -> None:
    served, taken_in = ServedTimes(), 0
    for end, low, high in waits(300, gap=0.03):
        found = served.narrow(low, high, lie(end), 0.0)
        assert low <= found[0] <= found[1] <= high
        taken_in += found[0] == found[1]
    assert not served.believed
    assert taken_in < 30


def test_one_lie_costs_neither_trust_nor_offset() -> None:
    served = ServedTimes()
    for number, (end, low, high) in enumerate(waits(300)):
        found = served.narrow(low, high, 1e9 if number % 50 == 49 else end, 0.0)
        if number > 10 and number % 50 > 5 and found[0] == found[1]:
            assert found[0] == pytest.approx(end, abs=0.03)
    assert served.believed


def test_trust_comes_back() -> None:
    served = ServedTimes()
    for _, low, high in waits(60):
        served.narrow(low, high, -1.0, 0.0)
    assert not served.believed
    for end, low, high in waits(60, seed=1):
        served.narrow(low, high, end, 0.0)
    assert served.believed
