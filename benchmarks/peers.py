"""The least that waiting can cost on a known distribution, and what any schedule or policy costs on it.

For proofs, benchmarks and `explain`; no wait uses it. On a fine table `Schedule` is the optimum: its polls fall on the
table's entries, so that the error is of the second order in their distance.

How other clients of such services wait, as policies: what to compare with. Pure; no wait of ours uses it.

The intervals are those of docs/waiting.md, "How others wait", from the clients' own sources.

Waits in pure numbers: no service, no clock, no round trip, no queue. For proofs, benchmarks and `explain`.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from flux_klein_async.models import RequestState
from flux_klein_async.polling.durations import Distribution
from flux_klein_async.polling.policies import FixedPolling, Observation, PollPolicy, Progress
from flux_klein_async.polling.schedule import Schedule

__all__ = ["PEERS", "Cost", "GrowingPolling", "expected", "optimum", "polls", "rehearse", "weigh"]


_LEFT: Final = 1e-9  # chance of getting further that counts as none

_POLLS: Final = 100_000


class Cost(NamedTuple):
    """Means: seconds from the end to the poll that sees it, and polls."""

    excess: float
    polls: float

    def total(self, price: float) -> float:
        """J, in seconds, at this price of a poll."""
        return self.excess + price * self.polls


def weigh(distribution: Distribution, after: Callable[[float], float], *, until: float = math.inf) -> Cost:
    """What it costs to poll `after(0)`, `after` of that, and so on, as long as the age is below `until`."""
    excess = polls = age = 0.0
    for _ in range(_POLLS):
        chance = distribution.at(age)
        if 1.0 - chance <= _LEFT or age >= until:
            break
        poll = after(age)
        polls += 1.0 - chance
        excess += distribution.area(poll) - distribution.area(age) - chance * (poll - age)
        age = poll
    return Cost(excess, polls)


def optimum(distribution: Distribution, price: float) -> Cost:
    """J*, in its two parts, for a poll that costs `price` seconds."""
    return weigh(distribution, Schedule(distribution, price).after)


_BOUNDED: Final = 60  # growths after which every interval is at its longest: no power overflows


@dataclass(frozen=True, slots=True)
class GrowingPolling:
    """Polls after `first`, then after `start`, each interval `factor` times longer, at most `most`; all in seconds.

    With `chance`, every interval is drawn evenly between 0 and what it would be, the first one from `start`; `first`
    then counts for nothing.
    """

    first: float
    start: float
    factor: float
    most: float
    chance: random.Random | None = None

    def next_poll(self, progress: Progress) -> float:
        """The interval for this many polls."""
        if progress.polls == 0 and self.chance is None:
            return self.first
        grown = min(progress.polls - (self.chance is None), _BOUNDED)
        interval = min(self.start * self.factor**grown, self.most)
        return interval if self.chance is None else interval * self.chance.random()

    def observe(self, observation: Observation) -> None:
        """Nothing to learn."""


PEERS: Final = MappingProxyType[str, Callable[[], PollPolicy]](
    {
        "vendor CLI": lambda: FixedPolling(2.0, first=0),
        "vendor plugin": lambda: FixedPolling(5.0, first=0),
        "vendor httpx client": lambda: FixedPolling(3.0, first=0),
        "fal-client": lambda: FixedPolling(0.1, first=0),
        "replicate": lambda: FixedPolling(0.5),
        "comfy-sdk": lambda: GrowingPolling(0.0, 0.5, 1.5, 5.0),
        "runware-sdk": lambda: GrowingPolling(1.0, 0.5, 1.5, 10.0),
        # The usual recipe: tenacity's wait_random_exponential(multiplier=0.1, max=2).
        "random exponential": lambda: GrowingPolling(0.0, 0.1, 2.0, 2.0, random.Random(0)),
    }
)

"""By name, each time a fresh policy; those that draw begin with the same seed."""

_RUNS: Final = 32  # waits over whose draws a policy is averaged that may draw its intervals


def polls(policy: PollPolicy, *, model: str | None = None, pixels: int | None = None) -> Iterator[float]:
    """The ages, in seconds, at which a wait is polled that does not end."""
    age, interval = 0.0, None
    count = 0
    while True:
        interval = policy.next_poll(
            Progress(
                model=model,
                pixels=pixels,
                polls=count,
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
    costs = [weigh(distribution, _one_after_the_other(polls(policy)), until=until) for _ in range(runs)]
    return Cost(sum(cost.excess for cost in costs) / runs, sum(cost.polls for cost in costs) / runs)


def _one_after_the_other(ages: Iterator[float]) -> Callable[[float], float]:
    return lambda _age: next(ages)


def rehearse(policy: PollPolicy, durations: Iterable[float], *, model: str, pixels: int | None) -> None:
    """Let a policy wait for generations that take so many seconds, one after the other, and learn from each.

    The service tells its own times, in whole milliseconds (docs/wire.md).
    """
    for seconds in durations:
        ages = polls(policy, model=model, pixels=pixels)
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
                polls=count,
                sent=age,
            )
        )
