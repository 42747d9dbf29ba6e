"""How long many generations will take."""

import itertools

import pytest

from flux_klein_async.batch.estimate import Estimate, published

MEGAPIXEL = {"width": 1024, "height": 1024}
QUARTER = {"width": 512, "height": 512}


def test_the_published_times_are_those_of_the_wire_page() -> None:
    assert published(512 * 512) == pytest.approx(0.19, abs=0.005)
    assert published(1024 * 1024) == pytest.approx(0.57, abs=0.005)


@pytest.mark.parametrize(
    ("inputs", "concurrency", "seconds"),
    [
        ([], 4, 0.0),
        ([MEGAPIXEL], 4, published(1 << 20)),
        ([MEGAPIXEL] * 3, 64, published(1 << 20)),
        ([MEGAPIXEL, QUARTER], 64, published(1 << 20)),
        ([MEGAPIXEL] * 100, 4, 25 * published(1 << 20)),
        ([{}] * 100, 1, 100 * published(1 << 20)),
        ([{"width": 512}] * 8, 2, 4 * published(1 << 19)),
        ([MEGAPIXEL, QUARTER] * 50, 10, 5 * (published(1 << 20) + published(1 << 18))),
    ],
)
def test_all_together_take_the_sum_over_how_many_run_at_once(inputs, concurrency, seconds) -> None:
    estimate = Estimate()
    for each in inputs:
        estimate.add({"prompt": "a", **each})
    assert estimate.count == len(inputs)
    assert estimate.seconds(concurrency) == pytest.approx(seconds)


def test_what_was_learned_counts_where_something_was() -> None:
    estimate = Estimate(lambda pixels: 3.0 if pixels > 500_000 else None)
    for each in (MEGAPIXEL, QUARTER):
        estimate.add(each)
    assert estimate.seconds(1) == pytest.approx(3.0 + published(1 << 18))


def test_what_is_learned_to_take_no_time_takes_none() -> None:
    estimate = Estimate(lambda _: 0.0)
    estimate.add(MEGAPIXEL)
    assert estimate.seconds(1) == 0.0


def test_a_million_sizes_are_few_buckets_and_lose_nothing() -> None:
    estimate = Estimate()
    total = 0.0
    for width, height in itertools.product(range(64, 2049, 31), repeat=2):
        estimate.add({"width": width, "height": height})
        total += published(width * height)
    assert len(estimate._buckets) <= 10 * 16 + 1
    assert estimate.seconds(1) == pytest.approx(total)
