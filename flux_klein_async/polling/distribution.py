"""The distribution of an instant: a cumulative table with a heavy tail behind it.

Pure arithmetic on seconds. Knows neither where the figures come from nor what is done with them.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

__all__ = ["TAIL", "Distribution"]

TAIL: Final = 1.0
"""Exponent of the tail: behind the table, survival sinks as time to the power of minus this (Pareto, or Lomax).

At 1 the hazard of a straggler is 1 / age: the longer it has taken, the longer it will. Half of this module is written
for 1.
"""


class Distribution:
    """When something ends: `cdf[i]` is the chance of an end by `times[i]`, straight in between.

    What is missing to 1 at the last entry lies in the tail behind it.

    Attributes:
        times: Seconds, increasing, the first 0.
        cdf: Never decreasing, the first 0, the last below 1 or 1.
        areas: The integral of `cdf` from 0 to `times[i]`.
    """

    __slots__ = ("areas", "cdf", "times")

    def __init__(self, times: Sequence[float], cdf: Sequence[float]) -> None:
        self.times = times
        self.cdf = cdf
        steps = [
            (after - before) * (low + high) / 2
            for before, after, low, high in zip(times, times[1:], cdf, cdf[1:], strict=False)
        ]
        self.areas = list(accumulate(steps, initial=0.0))

    @classmethod
    def of(cls, cdf: Callable[[float], float], times: Sequence[float]) -> "Distribution":
        """Tabulate a function at these times, 0 aside."""
        return cls([0.0, *times], [0.0, *map(cdf, times)])

    def at(self, seconds: float) -> float:
        """The chance of an end by then."""
        times, cdf = self.times, self.cdf
        if seconds >= times[-1]:
            return 1.0 - (1.0 - cdf[-1]) * times[-1] / seconds
        if seconds <= 0:
            return 0.0
        place = bisect_right(times, seconds)
        before, low = times[place - 1], cdf[place - 1]
        return low + (cdf[place] - low) * (seconds - before) / (times[place] - before)

    def quantile(self, chance: float) -> float:
        """The instant by which the end comes with this chance, which is below 1."""
        times, cdf = self.times, self.cdf
        if chance >= cdf[-1]:
            return times[-1] * (1.0 - cdf[-1]) / (1.0 - chance) if cdf[-1] < 1 else times[-1]
        place = max(bisect_right(cdf, chance), 1)
        before, low = times[place - 1], cdf[place - 1]
        return before + (times[place] - before) * max(chance - low, 0.0) / (cdf[place] - low)

    def area(self, seconds: float) -> float:
        """The integral of the chance of an end, from 0 to then: the mean time that has passed since the end."""
        times, cdf = self.times, self.cdf
        if seconds <= 0:
            return 0.0
        if seconds >= times[-1]:
            missing = (1.0 - cdf[-1]) * times[-1] * math.log(seconds / times[-1])  # of the tail, at its exponent of 1
            return self.areas[-1] + seconds - times[-1] - missing
        place = bisect_right(times, seconds) - 1
        step = seconds - times[place]
        slope = (cdf[place + 1] - cdf[place]) / (times[place + 1] - times[place])
        return self.areas[place] + step * (cdf[place] + slope * step / 2)

    def delayed(self, width: float) -> "Distribution":
        """The same after a delay that may be anything from 0 to `width`, all equally likely.

        The mean of the table over a sliding window; its entries lie where both the delay and the end are resolved.
        """
        times = [time + width * chance for time, chance in zip(self.times, self.cdf, strict=True)]
        return Distribution(times, [(self.area(time) - self.area(time - width)) / width for time in times])
