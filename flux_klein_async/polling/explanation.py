"""What a learning policy believes of one model and size, when it will therefore look, and what that costs. Pure."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.distribution import Distribution
from flux_klein_async.polling.durations import Size
from flux_klein_async.polling.optimum import Cost, weigh
from flux_klein_async.polling.peers import PEERS
from flux_klein_async.polling.policies import ExponentialPolling, PollPolicy
from flux_klein_async.polling.rehearsal import expected

__all__ = ["OURS", "QUANTILES", "UNTIL", "Explanation", "Look", "Step", "explain"]

OURS: Final = "AdaptivePolling"
QUANTILES: Final = (0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
UNTIL: Final = 120.0
"""Seconds of the longest wait that counts: the command line's own. Without an end, a tail that heavy costs any sum."""

_STEPS: Final = 12
_MOST: Final = (0.004, 0.96)  # the quantiles between which the steps are of equal ratio
_LATER, _LAST = 1.5, 0.005  # behind them each is so many times longer, until hardly any get further
_RARE: Final = 0.002  # chance of getting further than the last look that is told
_LOOKS: Final = 40


class Step(NamedTuple):
    """From `start` to `end` seconds: the chance of an end in it, of getting to its start, and the hazard a second."""

    start: float
    end: float
    chance: float
    survival: float
    hazard: float


class Look(NamedTuple):
    """A look `at` so many seconds, `gap` after the one before: the chance that it sees the end, and that it does not.

    Both are seen from the beginning, so that the chances of all looks add up to 1.
    """

    at: float
    gap: float
    sees: float
    survival: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All in seconds.

    Attributes:
        samples: What the samples of this size weigh, and `lent` what those of other sizes count besides.
        otherwise: What the samples of this size weigh whose clock began at the other end of the queue.
        quantiles: By chance.
        steps: The distribution and its hazard over time, in steps.
        looks: The first ones, until hardly a wait gets further.
        costs: By name, the cheapest first: this policy (`OURS`) and how others wait, all on this distribution.
    """

    look_cost: float
    samples: float
    lent: float
    otherwise: float
    distribution: Distribution
    quantiles: Mapping[float, float]
    steps: tuple[Step, ...]
    looks: tuple[Look, ...]
    costs: Mapping[str, Cost]

    @property
    def known(self) -> bool:
        """Whether anything has been learned of this."""
        return self.samples + self.lent > 0


def explain(policy: AdaptivePolling, model: str | None, pixels: int | None, *, queued: bool = False) -> Explanation:
    """Explain the waits for this model and size; `queued`: counted from the start of those that were seen queued."""
    outlook = policy.outlook(model, pixels, queued=queued)
    distribution = outlook.distribution()
    schedule = outlook.schedule(policy.look_cost)
    durations, size = outlook.history.durations, Size.of(pixels, queued=queued)

    def after(age: float) -> float:
        return age + min(policy.maximum, max(policy.minimum, schedule.after(age) - age))

    return Explanation(
        look_cost=policy.look_cost,
        samples=durations.weight(size),
        lent=durations.lent(size),
        otherwise=durations.weight(Size.of(pixels, queued=not queued)),
        distribution=distribution,
        quantiles={chance: distribution.quantile(chance) for chance in QUANTILES},
        steps=_steps(distribution),
        looks=_looks(distribution, after),
        costs=_costs(distribution, policy.look_cost, after),
    )


def _steps(distribution: Distribution) -> tuple[Step, ...]:
    start, end = map(distribution.quantile, _MOST)
    edges = [start * (end / start) ** (edge / _STEPS) for edge in range(_STEPS + 1)]
    while 1.0 - distribution.at(edges[-1]) > _LAST:
        edges.append(_LATER * edges[-1])
    steps = []
    for low, high in pairwise(edges):
        survival, left = 1.0 - distribution.at(low), 1.0 - distribution.at(high)
        steps.append(Step(low, high, survival - left, survival, math.log(survival / left) / (high - low)))
    return tuple(steps)


def _looks(distribution: Distribution, after: Callable[[float], float]) -> tuple[Look, ...]:
    looks: list[Look] = []
    at, survival = 0.0, 1.0
    while survival > _RARE and len(looks) < _LOOKS:
        before, reached = at, survival
        at = after(before)
        survival = 1.0 - distribution.at(at)
        looks.append(Look(at, at - before, reached - survival, survival))
    return tuple(looks)


def _costs(distribution: Distribution, price: float, after: Callable[[float], float]) -> dict[str, Cost]:
    others: dict[str, PollPolicy] = {name: make() for name, make in PEERS.items()}
    others["ExponentialPolling"] = ExponentialPolling(spread=random.Random(0).random)
    costs = {name: expected(policy, distribution, until=UNTIL) for name, policy in others.items()}
    costs[OURS] = weigh(distribution, after, until=UNTIL)
    return dict(sorted(costs.items(), key=lambda entry: entry[1].total(price)))
