"""The explicit policies: which intervals they return, and which settings they refuse."""

import math
from typing import Any

import pytest
import simulation
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.polling.policies import (
    ExponentialPolling,
    FixedPolling,
    Observation,
    PollPolicy,
)

NAN, INF, HUGE = math.nan, math.inf, 10**400


def schedule(policy: PollPolicy, polls: int) -> list[float]:
    return [policy.next_poll(simulation.progress(number, 0.0)) for number in range(polls)]


@pytest.mark.parametrize(
    ("policy", "intervals"),
    [
        (FixedPolling(2.0), [2.0, 2.0, 2.0]),
        (FixedPolling(2.0, first=0.5), [0.5, 2.0, 2.0]),
        (FixedPolling(2.0, first=0), [0, 2.0, 2.0]),
        (FixedPolling(1, first=3), [3, 1, 1]),
        (ExponentialPolling(jitter=0), [0.1, 0.125, 0.15625, 0.1953125]),
        (ExponentialPolling(0.5, 2, 3, jitter=0), [0.5, 1.0, 2.0, 3.0, 3.0]),
        (ExponentialPolling(0.5, 1, 3, jitter=0), [0.5, 0.5, 0.5]),
        (ExponentialPolling(4.0, 2, 3, jitter=0), [3.0, 3.0]),
        (ExponentialPolling(0.5, 2, 3, jitter=0.1, spread=lambda: 0.0), [0.45, 0.9, 1.8, 2.7, 2.7]),
        (ExponentialPolling(0.5, 2, 3, jitter=0.1, spread=lambda: 0.5), [0.5, 1.0, 2.0, 3.0, 3.0]),
        (ExponentialPolling(0.5, 2, 3, jitter=0.1, spread=lambda: 1.0), [0.55, 1.1, 2.2, 3.3, 3.3]),
    ],
    ids=repr,
)
def test_returns_these_intervals(policy: PollPolicy, intervals: list[float]) -> None:
    assert schedule(policy, len(intervals)) == pytest.approx(intervals)


def test_no_number_of_polls_is_too_many() -> None:
    assert [ExponentialPolling(jitter=0).next_poll(simulation.progress(10**power, 0.0)) for power in (3, 6, 9)] == [
        5.0
    ] * 3


def test_waits_that_began_together_do_not_poll_together() -> None:
    policy = ExponentialPolling()
    intervals = {policy.next_poll(simulation.progress(0, 0.0)) for _ in range(20)}
    assert len(intervals) > 1
    assert all(0.09 <= interval <= 0.11 for interval in intervals)


@given(
    st.floats(1e-6, 1e6),
    st.floats(1, 1e6),
    st.floats(1e-6, 1e6),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_an_interval_stays_within_its_bounds(
    initial: float, multiplier: float, maximum: float, jitter: float, spread: float, polls: int
) -> None:
    policy = ExponentialPolling(initial, multiplier, maximum, jitter, lambda: spread)
    interval = policy.next_poll(simulation.progress(polls, 0.0))
    least, most = min(initial, maximum) * (1 - jitter), maximum * (1 + jitter)
    assert least * (1 - 1e-9) <= interval <= most * (1 + 1e-9)


@pytest.mark.parametrize("policy", [FixedPolling(2.0), ExponentialPolling(jitter=0)])
def test_an_explicit_policy_learns_nothing(policy: PollPolicy) -> None:
    before = schedule(policy, 5)
    policy.observe(
        Observation(None, None, not_before=0.0, not_after=9.0, running_since=None, served=None, polls=3, sent=9.0)
    )
    assert schedule(policy, 5) == before


NO_NUMBERS = (-1, NAN, INF, HUGE, True, "1", None)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *[(FixedPolling, {"interval": value}) for value in (0, 0.0, *NO_NUMBERS)],
        *[(FixedPolling, {"interval": 1.0, "first": value}) for value in NO_NUMBERS[:-1]],
        *[(ExponentialPolling, {"initial": value}) for value in (0, *NO_NUMBERS)],
        *[(ExponentialPolling, {"multiplier": value}) for value in (0.99, 0, *NO_NUMBERS)],
        *[(ExponentialPolling, {"maximum": value}) for value in (0, 0.0, *NO_NUMBERS)],
        *[(ExponentialPolling, {"jitter": value}) for value in (1, 1.5, [0.1], *NO_NUMBERS)],
    ],
    ids=lambda value: str(value)[:40],
)
def test_refuses_a_setting_out_of_range(kind: type, settings: dict[str, Any]) -> None:
    (*_, name) = settings
    with pytest.raises(ConfigurationError, match=rf"^{name} must be "):
        kind(**settings)
