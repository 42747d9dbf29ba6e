"""From a distribution of durations and the price of a poll to the best times to poll.

With F the distribution of the duration T, and `price` seconds a poll, polls at t1 < t2 < ... cost

    J = E[(first ti >= T) - T] + price * E[number of polls]

This is the optimum-checking problem of reliability theory. Barlow, Hunter and Proschan (1963, "Optimum checking
procedures", J. SIAM 11(4), 1078-1095) solve it exactly; Keller (1974, "Optimum checking schedules for systems subject
to random failure", Management Science 21(3), 256-260) gives the smooth answer, n(t) = sqrt(r(t) / (2 * price)) polls a
second, where r is the hazard. Here the discrete problem is solved by backward induction over the entries of the table.
With v(a) the cost from age a on, times the probability S(a) = 1 - F(a) of reaching it, and A the integral of F,

    v(a) = price * S(a) + min over t > a of [A(t) - A(a) - F(a) * (t - a) + v(t)]

Without the terms in a alone, the bracket is a line in F(a) for each t, so the minimum is the lower hull of these lines.
Backwards, F(a) falls and the lines come in the order of their slopes, so one pass builds the hull and walks along it.
Keller's density is used where polls should be closer together than the entries, and behind the table (r = TAIL / t).
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

__all__ = ["TAIL", "Distribution", "Schedule"]

# Exponent of the Pareto tail: behind the table, survival falls as t ** -TAIL, and the hazard is TAIL / t. At 1, the
# expected rest of a wait grows with its age.
TAIL: Final = 1.0


class Distribution:
    """A cumulative distribution, linear between table entries.

    The mass that the last entry lacks to 1 lies in the tail behind it.

    Attributes:
        times: Increasing from 0.
        cdf: F at each of `times`, never decreasing, from 0 to at most 1.
        areas: The integral of F from 0 to each of `times`.
    """

    def __init__(self, times: Sequence[float], cdf: Sequence[float]) -> None:
        self.times = times
        self.cdf = cdf
        steps = zip(times, times[1:], cdf, cdf[1:], strict=False)
        self.areas = list(
            accumulate(((end - start) * (low + high) / 2 for start, end, low, high in steps), initial=0.0)
        )

    def at(self, time: float) -> float:
        """F(t), the probability of an end by then."""
        times, cdf = self.times, self.cdf
        if time >= times[-1]:
            return 1.0 - (1.0 - cdf[-1]) * times[-1] / time
        if time <= 0:
            return 0.0
        index = bisect_right(times, time)
        start, low = times[index - 1], cdf[index - 1]
        return low + (cdf[index] - low) * (time - start) / (times[index] - start)

    def quantile(self, probability: float) -> float:
        """The time t with F(t) = `probability`, which is below 1."""
        times, cdf = self.times, self.cdf
        if probability >= cdf[-1]:
            return times[-1] * (1.0 - cdf[-1]) / (1.0 - probability) if cdf[-1] < 1 else times[-1]
        index = max(bisect_right(cdf, probability), 1)
        start, low = times[index - 1], cdf[index - 1]
        return start + (times[index] - start) * max(probability - low, 0.0) / (cdf[index] - low)


class Schedule:
    """The best next poll for every age.

    Attributes:
        cost: J from age 0 on, in seconds.
    """

    def __init__(self, distribution: Distribution, price: float) -> None:
        times, cdf = distribution.times, distribution.cdf
        entries, self.cost = _solve(distribution, price)
        # Between two entries, use the poll of the nearer one.
        self._ages = [(start + end) / 2 for start, end in pairwise(times[:-1])]
        self._gaps: list[float] = []  # Keller's, 1 / n, at each entry; at most the distance to the next
        self._polls: list[float] = []  # at each entry; 0 where Keller's gap is used
        for entry, poll in enumerate(entries):
            step, mass = times[entry + 1] - times[entry], cdf[entry + 1] - cdf[entry]
            gap = min(step, math.sqrt(2 * price * (1.0 - cdf[entry]) * step / mass)) if mass > 0 else step
            self._gaps.append(gap)
            self._polls.append(0.0 if poll == entry + 1 and times[entry] + gap < times[poll] else times[poll])
        self._tail = 2 * price / TAIL

    def after(self, age: float) -> float:
        """The age of the next poll, above `age`, if nothing has ended by `age`."""
        index = bisect_left(self._ages, age)
        poll = self._polls[index]
        if poll > age:
            return poll
        return age + (self._gaps[index] if index < len(self._ages) else math.sqrt(self._tail * age))


def _solve(distribution: Distribution, price: float) -> tuple[list[int], float]:
    """For each entry but the last, which entry to poll next; and v(0)."""
    times, cdf, areas = distribution.times, distribution.cdf, distribution.areas
    last = len(times) - 1
    # Keller's cost of the tail: the integral of sqrt(2 * price * density * survival).
    value = (1.0 - cdf[last]) * math.sqrt(2 * price * TAIL * times[last]) / (TAIL - 0.5)
    polls = [last] * last
    # The hull: height at F = 0, downward slope (the entry's time) and entry of each line. Lines before `head` are done.
    heights, slopes, entries = [areas[last] + value], [times[last]], [last]
    head = 0
    for entry in range(last - 1, -1, -1):
        low, time = cdf[entry], times[entry]
        while head + 1 < len(heights) and heights[head + 1] - heights[head] <= low * (slopes[head + 1] - slopes[head]):
            head += 1
        polls[entry] = entries[head]
        value = price * (1.0 - low) - areas[entry] + low * time + heights[head] - low * slopes[head]
        height = areas[entry] + value
        while len(heights) > head + 1 and (
            (height - heights[-1]) * (slopes[-2] - slopes[-1]) <= (heights[-1] - heights[-2]) * (slopes[-1] - time)
        ):
            del heights[-1], slopes[-1], entries[-1]
        heights.append(height)
        slopes.append(time)
        entries.append(entry)
    return polls, value
