"""Distributions and their tails, histograms, the estimate of a model, a queue's speed, the service's reports."""

import math
import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.polling.durations import (
    BIN,
    Distribution,
    Histogram,
    LogGrid,
    ModelEstimate,
    QueueSpeed,
    ServiceClock,
    Size,
    size_of,
)
from flux_klein_async.polling.policies import Queued

from .known import KNOWN, table

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


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.5, 1.7, 3.0, 4.0, 9.0])
def test_an_area_is_the_integral(seconds: float) -> None:
    steps = 40_000
    width = max(seconds, 0.0) / steps
    summed = sum(RAMP.at((step + 0.5) * width) for step in range(steps)) * width
    assert RAMP.area(seconds) == pytest.approx(summed, abs=1e-6)


@pytest.mark.parametrize("width", [0.02, 0.5, 10.0])
def test_a_uniform_delay_is_the_mean_over_a_window(width: float) -> None:
    known = table("log-normal", 300)
    delayed = known.delayed(width)
    for chance in (0.05, 0.3, 0.5, 0.9, 0.99):
        seconds = delayed.quantile(chance)
        parts = 2000
        mean = sum(known.at(seconds - width * (part + 0.5) / parts) for part in range(parts)) / parts
        assert delayed.at(seconds) == pytest.approx(mean, abs=0.01)
    assert list(delayed.times) == sorted(delayed.times)
    assert list(delayed.cdf) == pytest.approx(sorted(delayed.cdf))


def filled(*seconds: float) -> Histogram:
    histogram = Histogram()
    for value in seconds:
        histogram.add(value, 1.0)
    return histogram


def test_a_sample_is_in_a_bin_of_one_percent() -> None:
    (place,) = filled(0.57).bins
    assert place * BIN <= math.log(0.57) < (place + 1) * BIN


@pytest.mark.parametrize(("seconds", "entered"), [(0.0, 1e-3), (1e-300, 1e-3), (1e300, 1e6)])
def test_an_extreme_sample_is_entered_at_the_end_of_the_scale(seconds: float, entered: float) -> None:
    assert filled(seconds).bins == filled(entered).bins


def test_quantiles_rise_with_their_probabilities() -> None:
    histogram = filled(*(0.1 * 1.1**step for step in range(40)))
    found = histogram.quantiles(0.0, 0.25, 0.5, 0.5, 0.75, 1.0)
    assert found == sorted(found)
    assert math.exp(found[2]) == pytest.approx(0.1 * 1.1**19.5, rel=0.06)


def test_a_probability_beyond_rounding_is_the_last_sample() -> None:
    histogram = filled(1.0, 2.0)
    histogram.total += 1e-9
    assert math.exp(histogram.quantiles(1.0)[0]) == pytest.approx(2.0, rel=BIN)


def test_memory_is_bounded_and_old_samples_fade() -> None:
    histogram = filled(*[0.5] * 1000)
    assert histogram.total <= 256
    for _ in range(1000):
        histogram.add(1.0, 1.0)
    assert math.exp(histogram.quantiles(0.02)[0]) == pytest.approx(1.0, rel=0.02)


def test_fading_drops_negligible_samples() -> None:
    histogram = filled(*(0.01 * 1.02**step for step in range(500)))
    histogram.fade(0.1)
    assert histogram.bins == {}
    assert histogram.total == 0
    histogram.fade(5.0)
    assert histogram.total == 0


def test_smoothing_keeps_the_mean_and_spreads_by_the_width() -> None:
    grid = LogGrid(-2.0, 0.02, 200)
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


def test_samples_before_the_grid_are_in_its_first_step_and_those_behind_in_the_tail() -> None:
    grid = LogGrid(math.log(0.5), 0.1, 10)
    masses = grid.masses(filled(0.1, 0.51, 0.9, 100.0))
    assert masses[0] == 2
    assert sum(masses) == 3


@given(st.floats(-8, 4), st.floats(0.01, 0.1), st.floats(-9, 9))
def test_normal_and_pareto_masses_sum_to_at_most_one(start: float, step: float, middle: float) -> None:
    grid = LogGrid(start, step, 112)
    for masses in (grid.normal(middle, 0.45), grid.pareto(middle)):
        assert len(masses) == 112
        assert all(mass >= 0 for mass in masses)
        assert sum(masses) <= 1.05


@pytest.mark.parametrize("middle", [-9.0, -1.0, 0.0])
def test_a_normal_before_the_grid_is_in_its_first_step(middle: float) -> None:
    assert sum(LogGrid(-1.0, 0.05, 112).normal(middle, 0.45)) == pytest.approx(1.0, abs=2e-3)


def test_pareto_masses_continue_in_the_tail_behind_the_table() -> None:
    grid = LogGrid(math.log(0.5), 0.05, 80)
    found = grid.distribution(grid.pareto(0.0))
    for seconds in (2.0, 5.0, 20.0, 200.0):
        assert 1 - found.at(seconds) == pytest.approx(1 / seconds, rel=0.06)


def test_a_distribution_never_exceeds_one() -> None:
    grid = LogGrid(0.0, 0.1, 10)
    table = grid.distribution([random.Random(1).random()] * 10)
    assert max(table.cdf) == 1.0
    assert len(table.times) == 12


SMALL, USUAL, LARGE = (size_of(side * side) for side in (512, 1024, 2048))


def published(size: Size) -> float:
    return math.exp(size.log_published)


def taught(estimate: ModelEstimate, size: Size, seconds: Iterable[float]) -> ModelEstimate:
    """Exact samples, without a check for drift."""
    for value in seconds:
        estimate.histograms[size].add(value, 1.0)
    return estimate


def drawn(median: float, count: int, *, spread: float = 0.15, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [median * rng.lognormvariate(0, spread) for _ in range(count)]


def median(estimate: ModelEstimate, size: Size) -> float:
    return estimate.distribution(size).quantile(0.5)


def width(known: Distribution) -> float:
    """Of log time, between the quartiles, as the spread of a normal distribution."""
    return math.log(known.quantile(0.75) / known.quantile(0.25)) / 1.349


def entered(estimate: ModelEstimate) -> list[float]:
    return [math.exp(index * BIN) for index in estimate.histograms[USUAL].bins]


@pytest.mark.parametrize("pixels", [None, 0, -5])
def test_unknown_pixels_are_a_size_of_their_own(pixels: int | None) -> None:
    assert size_of(pixels) == Size(None)
    assert size_of(pixels).megapixels == pytest.approx(1.048576)


def test_nearly_equal_sizes_are_one_and_there_are_few() -> None:
    assert size_of(1024 * 1024) == size_of(1016 * 1032)
    assert len({size_of(1024 * 1024), size_of(1024 * 1152), size_of(1024 * 1024, queued=True)}) == 3
    assert len({size_of(pixels) for pixels in range(64 * 64, 2048 * 2048, 97)}) <= 82
    assert size_of(10**400).megapixels < math.inf


@pytest.mark.parametrize("size", [SMALL, USUAL, LARGE])
def test_without_samples_it_is_the_published_time_and_wide(size: Size) -> None:
    prior = ModelEstimate().distribution(size)
    assert prior.quantile(0.5) == pytest.approx(published(size), rel=0.06)
    assert 0.4 < width(prior) < 0.55
    assert prior.at(published(size) * 2) < 0.95


@pytest.mark.parametrize("slow", [0.3, 1.0, 2.0, 20.0])
def test_a_few_samples_outweigh_the_prior(slow: float) -> None:
    estimate = taught(ModelEstimate(), USUAL, drawn(0.57 * slow, 8))
    assert median(estimate, USUAL) == pytest.approx(0.57 * slow, rel=0.2)


@pytest.mark.parametrize("spread", [0.02, 0.05, 0.15, 0.6])
def test_with_enough_samples_it_is_as_wide_as_they_are(spread: float) -> None:
    estimate = taught(ModelEstimate(), USUAL, drawn(0.57, 250, spread=spread))
    assert width(estimate.distribution(USUAL)) == pytest.approx(spread, rel=0.25)


def test_two_modes_stay_two() -> None:
    known = taught(ModelEstimate(), USUAL, [*drawn(0.57, 120), *drawn(0.19, 120)]).distribution(USUAL)
    assert known.at(0.4) - known.at(0.28) < 0.08
    assert known.at(0.28) == pytest.approx(0.5, abs=0.05)


def test_a_peak_on_a_broad_ground_keeps_both() -> None:
    ground = [0.02 * 1.05**step for step in range(120)]  # 0.02 s to 6.6 s
    known = taught(ModelEstimate(), USUAL, [*drawn(0.57, 120, spread=0.02), *ground]).distribution(USUAL)
    assert known.at(0.1) == pytest.approx(0.5 * 33 / 120, abs=0.03)
    assert known.at(0.7) - known.at(0.45) > 0.45
    assert known.at(3.0) == pytest.approx(1 - 0.5 * 17 / 120, abs=0.03)


def test_the_tail_never_disappears() -> None:
    assert taught(ModelEstimate(), USUAL, drawn(0.57, 5000)).distribution(USUAL).at(5.7) < 0.9999


def test_one_size_teaches_another_how_fast_the_service_is() -> None:
    estimate = taught(ModelEstimate(), USUAL, drawn(2 * published(USUAL), 100))
    for size in (SMALL, LARGE):
        assert median(estimate, size) == pytest.approx(2 * published(size), rel=0.1)


def test_a_size_without_samples_lies_between_others_whatever_their_line() -> None:
    estimate = taught(ModelEstimate(), SMALL, drawn(1.0, 100, seed=1))  # time grows with the root of the pixels
    assert median(taught(estimate, LARGE, drawn(4.0, 100, seed=2)), USUAL) == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("small", [0.02, 0.19, 1.9])
@pytest.mark.parametrize("count", [30, 300])
def test_a_small_size_does_not_distort_a_large_one(small: float, count: int) -> None:
    estimate = taught(ModelEstimate(), LARGE, drawn(2.1, count, seed=1))
    known = taught(estimate, SMALL, drawn(small, 3000, seed=2)).distribution(LARGE)
    assert known.quantile(0.5) == pytest.approx(2.1, rel=0.04)
    assert width(known) < 0.22


def test_a_size_with_enough_samples_borrows_nothing() -> None:
    alone = taught(ModelEstimate(), LARGE, drawn(2.1, 200, seed=1))
    cdf = list(alone.distribution(LARGE).cdf)
    beside = taught(alone, SMALL, drawn(0.19, 200, spread=0.9, seed=2))
    assert list(beside.distribution(LARGE).cdf) == cdf


def test_the_spread_is_shared_until_a_size_has_its_own() -> None:
    estimate = taught(ModelEstimate(), SMALL, drawn(published(SMALL), 200, spread=0.02, seed=1))
    assert width(estimate.distribution(SMALL)) < 0.04
    assert 0.12 < width(estimate.distribution(LARGE)) < 0.45, "a guessed median makes it wider"
    taught(estimate, LARGE, drawn(published(LARGE), 3, spread=0.02, seed=2))
    assert width(estimate.distribution(LARGE)) < 0.15


def test_many_borrowed_samples_do_not_outweigh_a_few_own() -> None:
    estimate = taught(ModelEstimate(), LARGE, drawn(2.1, 60, spread=0.05, seed=1))
    for other in (512, 640, 768, 896, 1280, 1536):
        size = size_of(other * other)
        taught(estimate, size, drawn(published(size), 200, spread=0.6, seed=other))
    assert width(estimate.distribution(LARGE)) < 0.25


def test_a_sample_between_two_polls_is_entered_where_the_estimate_expects_it() -> None:
    known = taught(ModelEstimate(), USUAL, drawn(0.57, 200)).distribution(USUAL)
    estimate = ModelEstimate()
    estimate.add(USUAL, 0.3, 0.57, known)
    assert max(entered(estimate)) <= 0.57
    assert sum(entered(estimate)) / len(entered(estimate)) > 0.48, "not in the middle, 0.435"


def test_a_sample_where_the_estimate_expects_none_is_spread_evenly() -> None:
    estimate = ModelEstimate()
    estimate.add(USUAL, 50.0, 90.0, Distribution([0.0, 1.0, 2.0], [0.0, 0.5, 1.0]))
    assert entered(estimate) == pytest.approx([55, 65, 75, 85], rel=0.02)


def test_chance_alone_resets_nothing_and_eight_samples_at_one_end_do() -> None:
    ramp, rng, estimate = Distribution([0.0, 1.0], [0.0, 1.0]), random.Random(0), ModelEstimate()
    for _ in range(20_000):
        estimate.add(USUAL, *[rng.random()] * 2, ramp)
    assert estimate.resets <= 1
    for seconds in (0.001, 0.999):
        estimate = ModelEstimate()
        for _ in range(8):
            assert (estimate.resets, estimate.histograms[USUAL].total) == (0, estimate.samples)
            estimate.add(USUAL, seconds, seconds, ramp)
        assert estimate.resets == 1
        assert estimate.histograms[USUAL].total == pytest.approx(0.3)


def test_histograms_faded_to_nothing_are_as_good_as_none() -> None:
    estimate = taught(taught(ModelEstimate(), USUAL, [0.57]), LARGE, [2.1])
    for histogram in estimate.histograms.values():
        histogram.fade(1e-4)
    assert list(estimate.distribution(USUAL).cdf) == list(ModelEstimate().distribution(USUAL).cdf)


seconds = st.one_of(st.floats(0, 10), st.floats(0, 1e308), st.sampled_from([0.0, 1e-300, 5e-324, 0.57, 1e300]))
pixels = st.one_of(st.none(), st.integers(-5, 5_000_000), st.integers(1, 10**30))


@given(st.lists(st.tuples(pixels, seconds, seconds), max_size=12), pixels)
def test_any_samples_give_a_distribution(samples: list[tuple[int | None, float, float]], asked: int | None) -> None:
    estimate = ModelEstimate()
    for given_pixels, one, other in samples:
        size = size_of(given_pixels)
        estimate.add(size, min(one, other), max(one, other), estimate.distribution(size))
    known = estimate.distribution(size_of(asked))
    assert all(before < after for before, after in pairwise(known.times))
    assert all(before <= after for before, after in pairwise(known.cdf))
    assert 0 <= known.cdf[0] <= known.cdf[-1] <= 1
    assert math.isfinite(known.times[-1])


def queued(position: int | None, at: float = 0.0, *, until: float | None = None) -> Queued:
    return Queued(at, position, at, position, at if until is None else until)


def learned(seconds: float, *, spread: float = 0.0, count: int = 60) -> QueueSpeed:
    queue, rng = QueueSpeed(), random.Random(0)
    for number in range(count):
        position = number % 9
        waited = (position + 1) * seconds + spread * seconds * math.sqrt(position + 1) * rng.gauss(0, 1)
        queue.add(queued(position, 1.0), 1.0 + max(waited, 0.0))
    return queue


@pytest.mark.parametrize("seconds", [0.01, 0.14, 3.0])
def test_a_queue_s_speed_is_learned_from_waits(seconds: float) -> None:
    assert learned(seconds).seconds == pytest.approx(seconds, rel=0.1)
    assert learned(seconds, spread=0.3).seconds == pytest.approx(seconds, rel=0.25)


def test_a_changed_speed_is_followed() -> None:
    queue = learned(0.1)
    for _ in range(40):
        queue.add(queued(4), 5.0)
    assert queue.seconds == pytest.approx(1.0, rel=0.1)


def test_a_wait_without_a_position_teaches_nothing() -> None:
    queue = QueueSpeed()
    queue.add(queued(None), 100.0)
    assert (queue.seconds, queue.count) == (QueueSpeed().seconds, 1)


def test_a_start_lies_where_the_speed_puts_it() -> None:
    queue = learned(0.2, spread=0.3, count=300)
    low, high = queue.start(queued(9, 1.0), None)
    assert (low + high) / 2 == pytest.approx(3.0, rel=0.15)
    assert 0.2 < high - low < 2.0
    assert queue.start(queued(0), None)[1] < low


def test_a_steady_queue_is_known_better_than_a_restless_one() -> None:
    steady, restless = (learned(0.2, spread=spread, count=300).start(queued(9), None) for spread in (0.05, 0.8))
    assert steady[1] - steady[0] < (restless[1] - restless[0]) / 2


def test_a_start_is_before_the_poll_that_reported_it_running() -> None:
    queue = learned(0.2, spread=0.3)
    free, running = queue.start(queued(9), None), queue.start(queued(9), 2.0)
    assert running == (free[0], 2.0)
    assert queue.start(queued(9), 0.5) == (0.5, 0.5)  # earlier than thought: just before that poll


def test_a_stuck_queue_is_expected_to_be_stuck_as_long_again() -> None:
    queue = learned(0.2)
    for stood in (5.0, 50.0, 500.0):
        low, high = queue.start(queued(3, 1.0, until=1.0 + stood), None)
        assert (low + high) / 2 == pytest.approx(1.0 + 2 * stood)


numbers = st.floats(0, 1e9)


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(-5, 10**12)), numbers, numbers), max_size=8),
    st.one_of(st.none(), st.integers(-5, 10**12)),
    numbers,
    numbers,
    st.one_of(st.none(), numbers),
)
def test_any_start_is_finite_and_after_the_last_poll_in_the_queue(
    waits: list[tuple[int | None, float, float]], position: int | None, at: float, more: float, left: float | None
) -> None:
    queue = QueueSpeed()
    for waited_at, entered, lasted in waits:
        queue.add(queued(waited_at, entered), entered + lasted)
    until = at + more
    low, high = queue.start(queued(position, at, until=until), None if left is None else until + left)
    assert until * (1 - 1e-9) - 1e-9 <= low <= high < math.inf
    assert left is None or high <= until + left


def waits(count: int, *, gap: float = 0.06, seed: int = 0):
    """Ends, and the polls before and after each."""
    rng = random.Random(seed)
    for _ in range(count):
        end = 0.57 * rng.lognormvariate(0, 0.15)
        low = end - gap * rng.random()
        yield end, low, low + gap


@pytest.mark.parametrize(("offset", "round_trip"), [(0.0, 0.0), (0.04, 0.04), (0.04, 0.0), (0.5, 0.04), (-0.3, 0.04)])
def test_the_offset_between_the_clocks_is_learned(offset: float, round_trip: float) -> None:
    clock, errors, narrowed = ServiceClock(), [], 0
    for number, (end, low, high) in enumerate(waits(400)):
        found = clock.narrow(low, high, end + offset, round_trip)
        assert low <= found[0] <= found[1] <= high
        if number >= 200:
            narrowed += found[0] == found[1]
            errors.append(sum(found) / 2 - end)
    assert clock.trusted
    assert narrowed > 180
    assert abs(sum(errors) / len(errors)) < 0.02
    assert max(errors) - min(errors) < 0.065


def test_a_long_round_trip_is_no_contradiction() -> None:
    clock = ServiceClock()
    for end, low, high in waits(100):
        clock.narrow(low, high, end + 0.3, 0.3)
        assert clock.trust > 0.9


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
def test_reports_that_contradict_the_polls_are_soon_ignored(lie) -> None:
    clock, used = ServiceClock(), 0
    for end, low, high in waits(300, gap=0.03):
        found = clock.narrow(low, high, lie(end), 0.0)
        assert low <= found[0] <= found[1] <= high
        used += found[0] == found[1]
    assert not clock.trusted
    assert used < 30


def test_one_wrong_report_costs_neither_trust_nor_offset() -> None:
    clock = ServiceClock()
    for number, (end, low, high) in enumerate(waits(300)):
        found = clock.narrow(low, high, 1e9 if number % 50 == 49 else end, 0.0)
        if number > 10 and number % 50 > 5 and found[0] == found[1]:
            assert found[0] == pytest.approx(end, abs=0.03)
    assert clock.trusted


def test_trust_recovers() -> None:
    clock = ServiceClock()
    for _, low, high in waits(60):
        clock.narrow(low, high, -1.0, 0.0)
    assert not clock.trusted
    for end, low, high in waits(60, seed=1):
        clock.narrow(low, high, end, 0.0)
    assert clock.trusted
