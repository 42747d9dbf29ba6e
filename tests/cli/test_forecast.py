"""How long a batch takes, from published and learned times."""

import itertools

import pytest

from flux_klein_async.cli.forecast import Estimate, published

MEGAPIXEL = {"width": 1024, "height": 1024}
QUARTER = {"width": 512, "height": 512}


def test_the_published_times_are_those_of_the_wire_page() -> None:
    assert published(512 * 512) == pytest.approx(0.19, abs=0.005)
    assert published(1024 * 1024) == pytest.approx(0.57, abs=0.005)


@pytest.mark.parametrize(
    ("inputs", "concurrency", "seconds"),
    [
        ([], 4, 0.0),
        ([MEGAPIXEL, QUARTER], 64, published(1 << 20)),
        ([MEGAPIXEL] * 100, 4, 25 * published(1 << 20)),
        ([{}] * 100, 1, 100 * published(1 << 20)),
        ([{"width": 512}] * 8, 2, 4 * published(1 << 19)),
        ([MEGAPIXEL, QUARTER] * 50, 10, 5 * (published(1 << 20) + published(1 << 18))),
    ],
)
def test_all_together_take_their_sum_over_how_many_run_at_a_time(inputs, concurrency, seconds) -> None:
    estimate = Estimate()
    for each in inputs:
        estimate.add({"prompt": "a", **each})
    assert estimate.count == len(inputs)
    assert estimate.seconds(concurrency) == pytest.approx(seconds)


def test_learned_times_count_even_zero_and_are_asked_for_once_a_size() -> None:
    asked: list[int] = []

    def learned(pixels: int) -> float | None:
        asked.append(pixels)
        return 3.0 if pixels > 1_000_000 else 0.0 if pixels > 500_000 else None

    estimate = Estimate(learned)
    for width, height in itertools.product(range(64, 2049, 31), repeat=2):
        estimate.add({"width": width, "height": height})
    assert len(asked) <= 10 * 16 + 1
    for each, seconds in ((MEGAPIXEL, 3.0), ({"width": 768, "height": 768}, 0.0), (QUARTER, published(1 << 18))):
        one = Estimate(learned)
        one.add(each)
        assert one.seconds(1) == pytest.approx(seconds)


def test_an_estimate_takes_sizes_that_mean_something_else_for_the_usual_one() -> None:
    usual = Estimate()
    usual.add({})
    for width in ("1024", 0, -5, True, 10**400, None, [64]):
        estimate = Estimate()
        estimate.add({"width": width})
        assert estimate.seconds(1) == usual.seconds(1)
