"""The least that waiting can cost on a known distribution, and what any schedule or policy costs on it.

For proofs, benchmarks and `explain`; no wait uses it. On a fine table `Schedule` is the optimum: its looks fall on the
table's entries, so that the error is of the second order in their distance.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from flux_klein_async.polling.distribution import Distribution
from flux_klein_async.polling.schedule import Schedule

__all__ = ["Cost", "optimum", "weigh"]

_LEFT: Final = 1e-9  # chance of getting further that counts as none
_LOOKS: Final = 100_000


class Cost(NamedTuple):
    """Means: seconds from the end to the look that sees it, and looks."""

    excess: float
    looks: float

    def total(self, price: float) -> float:
        """J, in seconds, at this price of a look."""
        return self.excess + price * self.looks


def weigh(distribution: Distribution, after: Callable[[float], float], *, until: float = math.inf) -> Cost:
    """What it costs to look at `after(0)`, `after` of that, and so on, as long as the age is below `until`."""
    excess = looks = age = 0.0
    for _ in range(_LOOKS):
        chance = distribution.at(age)
        if 1.0 - chance <= _LEFT or age >= until:
            break
        look = after(age)
        looks += 1.0 - chance
        excess += distribution.area(look) - distribution.area(age) - chance * (look - age)
        age = look
    return Cost(excess, looks)


def optimum(distribution: Distribution, price: float) -> Cost:
    """J*, in its two parts, for a look that costs `price` seconds."""
    return weigh(distribution, Schedule(distribution, price).after)
