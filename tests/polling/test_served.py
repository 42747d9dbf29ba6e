"""The service's own account: believed where it agrees with what was seen, from wherever it counts."""

import math
import random

import pytest

from flux_klein_async.polling.served import ServedTimes


def waits(count: int, *, gap: float = 0.06, seed: int = 0):
    """Ends, and the looks before and after each."""
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
