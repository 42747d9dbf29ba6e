"""What is believed of each size, from nothing to thousands of samples."""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.polling.distribution import Distribution
from flux_klein_async.polling.durations import Durations, Size, shape

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


def test_a_sample_between_two_looks_is_entered_where_the_estimate_says() -> None:
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
