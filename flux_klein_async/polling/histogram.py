"""Samples of log time, and how a mass over log time becomes a distribution.

In log time services spread evenly whatever their speed. Pure arithmetic: knows no models, sizes or looks.
"""

import math
from collections.abc import Mapping
from itertools import accumulate, repeat
from operator import mul
from typing import Final

from flux_klein_async.polling.distribution import TAIL, Distribution

__all__ = ["BIN", "Grid", "Histogram"]

BIN: Final = 0.01
"""Width of a histogram's bins: 1 %."""
_MEMORY: Final = 256.0  # samples after which the older ones count half
_SHORTEST, _LONGEST = 1e-3, 1e6  # seconds; what lies outside is entered there


class Histogram:
    """Samples of log time; `total` is what they weigh."""

    __slots__ = ("bins", "total")

    def __init__(self, bins: Mapping[int, float] | None = None) -> None:
        self.bins: dict[int, float] = dict(bins or {})
        self.total = sum(self.bins.values())
        self.fade(_MEMORY)

    def add(self, seconds: float, weight: float) -> None:
        """Enter a sample."""
        place = math.floor(math.log(min(max(seconds, _SHORTEST), _LONGEST)) / BIN)
        self.bins[place] = self.bins.get(place, 0.0) + weight
        self.total += weight
        if self.total > _MEMORY:
            self.fade(_MEMORY / 2)

    def fade(self, total: float) -> None:
        """Let the samples weigh this much together, if they weigh more; forget those that weigh nothing."""
        if self.total > total:
            scale = total / self.total
            self.bins = {place: kept for place, weight in self.bins.items() if (kept := weight * scale) > 1e-3}
            self.total = sum(self.bins.values())

    def quantiles(self, *chances: float) -> list[float]:
        """Log times below which these parts of the samples lie, in the order of the chances, which rise."""
        found: list[float] = []
        places = sorted(self.bins)
        for place, below in zip(places, accumulate(self.bins[place] for place in places), strict=True):
            while len(found) < len(chances) and below >= chances[len(found)] * self.total:
                found.append((place + 0.5) * BIN)
        return found + [(places[-1] + 0.5) * BIN] * (len(chances) - len(found))


class Grid:
    """Equal steps of log time; mass before the first is counted there, mass behind the last is left to the tail.

    Attributes:
        start: Log time of the first step's beginning.
        step: Width of a step.
        size: Number of steps.
    """

    __slots__ = ("size", "start", "step")

    def __init__(self, start: float, step: float, size: int) -> None:
        self.start = start
        self.step = step
        self.size = size

    def masses(self, samples: Histogram) -> list[float]:
        """What lies in each step."""
        masses = [0.0] * (self.size + 1)
        scale, last = BIN / self.step, self.size
        offset = 0.5 * scale - self.start / self.step
        for place, weight in samples.bins.items():
            index = int(place * scale + offset)
            masses[index if 0 <= index < last else 0 if index < 0 else last] += weight
        return masses[:last]

    def smoothed(self, masses: list[float], width: float) -> list[float]:
        """Two running means, left and right of each step, that together spread by `width`."""
        reach = round(math.sqrt(6 * (width / self.step) ** 2 + 1))
        if reach <= 1:
            return masses
        for left in (reach // 2, reach - 1 - reach // 2):
            sums = list(accumulate(masses, initial=0.0))
            sums = [0.0] * left + sums + [sums[-1]] * (reach - 1 - left)
            masses = [(after - before) / reach for before, after in zip(sums, sums[reach:], strict=False)]
        return masses

    def bell(self, middle: float, spread: float) -> list[float]:
        """The normal distribution of log time."""
        scale, offset = self.step / spread / math.sqrt(2 * math.pi), self.start + self.step / 2 - middle
        masses = [scale * math.exp(-(((offset + index * self.step) / spread) ** 2) / 2) for index in range(self.size)]
        masses[0] += (1 + math.erf((self.start - middle) / spread / math.sqrt(2))) / 2
        return masses

    def tail(self, middle: float) -> list[float]:
        """Pareto from the middle on: in log time, a geometric series."""
        begin = min(max(round((middle - self.start) / self.step), 0), self.size)
        kept = math.exp(-TAIL * self.step)
        return [0.0] * begin + [(1 - kept) * kept**index for index in range(self.size - begin)]

    def table(self, masses: list[float]) -> Distribution:
        """The distribution with these masses."""
        times = accumulate(repeat(math.exp(self.step), self.size), mul, initial=math.exp(self.start))
        return Distribution([0.0, *times], [0.0, *(min(below, 1.0) for below in accumulate(masses, initial=0.0))])
