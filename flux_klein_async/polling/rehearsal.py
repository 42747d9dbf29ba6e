"""Waits in pure numbers: no service, no clock, no round trip, no queue. For proofs, benchmarks and `explain`."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from flux_klein_async.models import RequestState
from flux_klein_async.polling.distribution import Distribution
from flux_klein_async.polling.optimum import Cost, weigh
from flux_klein_async.polling.policies import FixedPolling, Observation, PollPolicy, Progress

__all__ = ["expected", "looks", "rehearse"]

_RUNS: Final = 32  # waits over whose draws a policy is averaged that may draw its intervals


def looks(policy: PollPolicy, *, model: str | None = None, pixels: int | None = None) -> Iterator[float]:
    """The ages, in seconds, at which a wait is looked at that does not end."""
    age, interval = 0.0, None
    count = 0
    while True:
        interval = policy.next_look(
            Progress(
                model=model,
                pixels=pixels,
                looks=count,
                age=age,
                state=RequestState.IN_PROGRESS if count else None,
                state_age=age,
                queue_position=None,
                last_interval=interval,
                round_trip=0.0 if count else None,
                sent=age,
            )
        )
        age += interval
        count += 1
        yield age


def expected(policy: PollPolicy, distribution: Distribution, *, until: float = math.inf) -> Cost:
    """What a policy costs that learns nothing, in waits of at most `until` seconds."""
    runs = 1 if isinstance(policy, FixedPolling) else _RUNS
    costs = [weigh(distribution, _one_after_the_other(looks(policy)), until=until) for _ in range(runs)]
    return Cost(sum(cost.excess for cost in costs) / runs, sum(cost.looks for cost in costs) / runs)


def _one_after_the_other(ages: Iterator[float]) -> Callable[[float], float]:
    return lambda _age: next(ages)


def rehearse(policy: PollPolicy, durations: Iterable[float], *, model: str, pixels: int | None) -> None:
    """Let a policy wait for generations that take so many seconds, one after the other, and learn from each.

    The service tells its own times, in whole milliseconds (docs/wire.md).
    """
    for seconds in durations:
        ages = looks(policy, model=model, pixels=pixels)
        before, age, count = 0.0, next(ages), 1
        while age < seconds:
            before, age, count = age, next(ages), count + 1
        policy.observe(
            Observation(
                model=model,
                pixels=pixels,
                not_before=before,
                not_after=age,
                running_since=None,
                served=math.floor(seconds * 1000) / 1000,
                looks=count,
                sent=age,
            )
        )
