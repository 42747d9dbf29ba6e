"""From a distribution and the price of a poll to the instants of the polls: the best there are.

With `price` seconds a poll, polls t1 < t2 < ... cost

    J = E[(first ti >= T) - T] + price * E[number of polls]

Barlow, Hunter and Proschan (1963, "Optimum checking procedures") posed the problem; Keller (1974, "Optimum checking
schedules for systems subject to random failure", Management Science 21(3), 256-260) gave the smooth answer: polls with
a density of n(t) = sqrt(r(t) / (2 * price)), where r is the hazard. Here the discrete problem itself is solved,
backwards, on the table's own instants. With v(a) the cost from age a on, times the chance of getting there,

    v(a) = price * S(a) + min over t > a of [A(t) - A(a) - F(a) * (t - a) + v(t)]

where F is the distribution, S = 1 - F, and A the integral of F. But for a's own terms the bracket is a straight line in
F(a), one for each t; so the minimum lies on the lower hull of these lines. Going backwards F(a) sinks, and the lines
come in the order of their slopes: one pass does it. Where the table is coarser than the best polls, and behind it,
where the hazard is TAIL / t, Keller's density holds.
"""

import math
from bisect import bisect_left
from itertools import pairwise

from flux_klein_async.polling.durations import TAIL, Distribution

__all__ = ["Schedule"]


class Schedule:
    """When to poll next, whatever the age; made once, asked often.

    Attributes:
        cost: J from age 0 on, in seconds.
    """

    __slots__ = ("_ages", "_gaps", "_polls", "_tail", "cost")

    def __init__(self, distribution: Distribution, price: float) -> None:
        times = distribution.times
        entries, values = _solve(distribution, price)
        self.cost = values[0]
        # From an age between two entries, the nearer one's choice.
        self._ages = [(before + after) / 2 for before, after in pairwise(times[:-1])]
        self._gaps = _gaps(distribution, price)
        # Where the best polls are closer together than the entries, Keller's gap holds instead of an entry.
        self._polls = [
            0.0 if poll == entry + 1 and times[entry] + gap < times[poll] else times[poll]
            for entry, (poll, gap) in enumerate(zip(entries, self._gaps, strict=True))
        ]
        self._tail = 2 * price / TAIL

    def after(self, age: float) -> float:
        """The age at which to poll, if nothing has ended by `age`; always above it."""
        place = bisect_left(self._ages, age)
        poll = self._polls[place]
        if poll > age:
            return poll
        return age + (self._gaps[place] if place < len(self._ages) else math.sqrt(self._tail * age))


def _gaps(distribution: Distribution, price: float) -> list[float]:
    """Keller's gap between polls, 1 / n, from each entry on; at most as long as to the next entry."""
    times, cdf = distribution.times, distribution.cdf
    gaps = []
    for before, after, low, high in zip(times, times[1:], cdf, cdf[1:], strict=False):
        step, gained = after - before, high - low
        gaps.append(min(step, math.sqrt(2 * price * (1.0 - low) * step / gained)) if gained > 0 else step)
    return gaps


def _solve(distribution: Distribution, price: float) -> tuple[list[int], list[float]]:
    """For each entry but the last, which entry to poll next; for each entry, the cost from there on (v)."""
    times, cdf, areas = distribution.times, distribution.cdf, distribution.areas
    last = len(times) - 1
    # Keller's cost of a tail: the integral of sqrt(2 * price * density * survival).
    value = (1.0 - cdf[last]) * math.sqrt(2 * price * TAIL * times[last]) / (TAIL - 0.5)
    polls, values = [last] * last, [value] * (last + 1)
    # The hull: each line's height at 0, its slope downwards (the entry's time), its entry; those below `head` are done.
    heights, slopes, entries = [areas[last] + value], [times[last]], [last]
    head = 0
    for entry in range(last - 1, -1, -1):
        chance, time = cdf[entry], times[entry]
        while head + 1 < len(heights) and (
            heights[head + 1] - heights[head] <= chance * (slopes[head + 1] - slopes[head])
        ):
            head += 1
        polls[entry] = entries[head]
        value = price * (1.0 - chance) - areas[entry] + chance * time + heights[head] - chance * slopes[head]
        values[entry] = value
        height = areas[entry] + value
        while len(heights) > head + 1 and (
            (height - heights[-1]) * (slopes[-2] - slopes[-1]) <= (heights[-1] - heights[-2]) * (slopes[-1] - time)
        ):
            del heights[-1], slopes[-1], entries[-1]
        heights.append(height)
        slopes.append(time)
        entries.append(entry)
    return polls, values
