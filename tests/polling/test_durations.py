"""What is learned from samples: as wide as they are, with a tail, soon, without drifting, and not for ever."""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.polling.durations import BIN, Prediction


def taught(samples: Iterable[float], prediction: Prediction | None = None) -> Prediction:
    prediction = Prediction() if prediction is None else prediction
    for sample in samples:
        prediction.add(sample, sample)
    return prediction


def drawn(median: float, count: int, *, spread: float = 0.15, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [median * rng.lognormvariate(0, spread) for _ in range(count)]


def width(prediction: Prediction) -> float:
    """The standard deviation of log time, from the quantiles of a normal distribution."""
    known = prediction.distribution()
    return math.log(known.quantile(0.841) / known.quantile(0.159)) / 2


def test_without_samples_it_is_what_is_expected_and_wide() -> None:
    known = Prediction().distribution()
    assert known.quantile(0.5) == pytest.approx(1.0, rel=0.05)
    assert known.quantile(0.9) / known.quantile(0.1) > 2.5


@pytest.mark.parametrize("slow", [0.05, 0.3, 1.0, 2.0, 20.0])
def test_a_few_samples_outweigh_the_prior(slow: float) -> None:
    assert taught([slow] * 12).distribution().quantile(0.5) == pytest.approx(slow, rel=0.1)


@pytest.mark.parametrize("spread", [0.02, 0.05, 0.15, 0.6])
def test_with_enough_samples_it_is_as_wide_as_they_are(spread: float) -> None:
    assert width(taught(drawn(1.0, 150, spread=spread))) == pytest.approx(max(spread, 0.02), rel=0.35)


def test_two_modes_stay_two() -> None:
    known = taught([*drawn(1.0, 75), *drawn(1 / 3, 75, seed=1)]).distribution()
    assert known.at(0.7) - known.at(0.5) < 0.1


def test_the_tail_never_disappears() -> None:
    assert taught([1.0] * 2000).distribution().at(50.0) < 1 - 1e-5


def test_a_sample_between_two_polls_is_entered_where_the_estimate_expects_it() -> None:
    prediction = taught(drawn(1.0, 100))
    before = dict(prediction.bins)
    prediction.add(0.5, 1.05)
    entered = {math.exp(place * BIN) for place in prediction.bins if prediction.bins[place] != before.get(place)}
    assert min(entered) > 0.7, "not spread evenly"
    prediction = taught([1.0] * 100)
    prediction.add(40.0, 50.0)  # expected nowhere between them: spread evenly
    assert sum(weight for place, weight in prediction.bins.items() if 40 < math.exp(place * BIN) < 50) > 0.9


def test_a_sample_that_says_nothing_is_partly_in_the_middle() -> None:
    prediction = Prediction()
    for _ in range(400):  # the first poll reports every end, and always would
        prediction.add(0.0, 1.0)
    assert prediction.distribution().quantile(0.5) < 0.7


def test_chance_changes_nothing_and_eight_samples_at_one_end_do() -> None:
    prediction = taught(drawn(1.0, 400))
    assert prediction.total > 60
    taught(drawn(2.0, 12, seed=1), prediction)
    assert prediction.distribution().quantile(0.5) == pytest.approx(2.0, rel=0.15)


def test_a_change_that_is_not_charted_is_followed_slowly() -> None:
    prediction = taught(drawn(1.0, 100))
    for sample in drawn(2.0, 12, seed=1):
        prediction.add(sample, sample, charted=False)
    assert prediction.distribution().quantile(0.5) == pytest.approx(1.0, rel=0.1)


def test_memory_is_bounded_and_the_distribution_is_made_ever_more_rarely() -> None:
    prediction, kept = Prediction({0: 1e6, 1: 1e-9}), []
    assert prediction.bins.keys() == {0}
    for sample in drawn(1.0, 2000):
        prediction.add(sample, sample)
        kept.append(prediction.distribution())
    assert prediction.total <= 128
    assert len({id(made) for made in kept[-400:]}) <= 8
    assert len({id(made) for made in taught_one_by_one(8)}) >= 4


def taught_one_by_one(count: int) -> list[object]:
    prediction, kept = Prediction(), []
    for sample in drawn(1.0, count):
        prediction.add(sample, sample)
        kept.append(prediction.distribution())
    return kept


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), max_size=12))
def test_any_samples_give_a_distribution(samples: list[tuple[float, float]]) -> None:
    prediction = Prediction()
    for pair in samples:
        prediction.add(*sorted(pair))
    known = prediction.distribution()
    assert known.cdf[0] == 0
    assert list(known.cdf) == sorted(known.cdf)
    assert known.cdf[-1] < 1
    assert prediction.after(0.3, 0.57, 0.01) > 0.3


def test_schedules_scale_with_what_is_expected_and_are_kept_by_price() -> None:
    prediction = taught(drawn(1.0, 100))
    assert prediction.after(0.0, 5.7, 0.1) == pytest.approx(10 * prediction.after(0.0, 0.57, 0.01))
    assert prediction.after(0.0, 1.0, 0.0175) == prediction.after(0.0, 1.0, 0.018)
    for step in range(100):
        prediction.after(0.0, 0.57, 0.001 * 1.3**step)
    assert prediction._schedule.cache_info().currsize <= 64


def test_a_sample_where_nothing_was_expected_enters_no_part_without_weight() -> None:
    """A store refuses parts without weight."""
    prediction = Prediction()
    prediction.add(1e9, 1e9 + 1)
    assert min(prediction.bins.values()) > 0
    assert prediction.total == pytest.approx(1)
