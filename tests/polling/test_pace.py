"""A queue's pace, and the interval in which a queued request starts."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.polling.pace import Pace
from flux_klein_async.polling.policies import Queued


def queued(position: int | None, at: float = 0.0, *, until: float | None = None) -> Queued:
    return Queued(at, position, at, position, at if until is None else until)


def taught(seconds: float, *, spread: float = 0.0, count: int = 60) -> Pace:
    pace, chance = Pace(), random.Random(0)
    for number in range(count):
        position = number % 9
        waited = (position + 1) * seconds + spread * seconds * math.sqrt(position + 1) * chance.gauss(0, 1)
        pace.learn(queued(position, 1.0), 1.0 + max(waited, 0.0))
    return pace


@pytest.mark.parametrize("seconds", [0.01, 0.14, 3.0])
def test_the_pace_is_learned_from_waits(seconds: float) -> None:
    assert taught(seconds).seconds == pytest.approx(seconds, rel=0.1)
    assert taught(seconds, spread=0.3).seconds == pytest.approx(seconds, rel=0.25)


def test_a_changed_pace_is_followed() -> None:
    pace = taught(0.1)
    for _ in range(40):
        pace.learn(queued(4), 5.0)
    assert pace.seconds == pytest.approx(1.0, rel=0.1)


def test_a_wait_without_a_position_teaches_nothing() -> None:
    pace = Pace()
    pace.learn(queued(None), 100.0)
    assert (pace.seconds, pace.count) == (Pace().seconds, 1)


def test_a_window_lies_where_the_pace_puts_it() -> None:
    pace = taught(0.2, spread=0.3, count=300)
    low, high = pace.window(queued(9, 1.0), None)
    assert (low + high) / 2 == pytest.approx(3.0, rel=0.15)
    assert 0.2 < high - low < 2.0
    assert pace.window(queued(0), None)[1] < low


def test_a_steady_queue_is_known_better_than_a_restless_one() -> None:
    steady, restless = (taught(0.2, spread=spread, count=300).window(queued(9), None) for spread in (0.05, 0.8))
    assert steady[1] - steady[0] < (restless[1] - restless[0]) / 2


def test_the_look_that_saw_it_running_ends_the_window() -> None:
    pace = taught(0.2, spread=0.3)
    free, seen = pace.window(queued(9), None), pace.window(queued(9), 2.0)
    assert seen == (free[0], 2.0)
    assert pace.window(queued(9), 0.5) == (0.5, 0.5)  # earlier than thought: just before that look


def test_a_queue_that_stands_still_is_believed_to_stand_as_long_again() -> None:
    pace = taught(0.2)
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
def test_any_window_is_finite_and_lies_after_the_last_look_in_the_queue(
    waits: list[tuple[int | None, float, float]], position: int | None, at: float, more: float, left: float | None
) -> None:
    pace = Pace()
    for waited_at, entered, lasted in waits:
        pace.learn(queued(waited_at, entered), entered + lasted)
    until = at + more
    low, high = pace.window(queued(position, at, until=until), None if left is None else until + left)
    assert until * (1 - 1e-9) - 1e-9 <= low <= high < math.inf
    assert left is None or high <= until + left
