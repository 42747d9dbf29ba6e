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
    """F, linear between `times`, which increase from 0; there it is `cdf`, and its integral from 0 `areas`.

    What the last entry lacks to 1 lies in the tail behind it.
    """

    def __init__(self, times: Sequence[float], cdf: Sequence[float]) -> None:
        self.times, self.cdf = times, cdf
        steps = zip(times, times[1:], cdf, cdf[1:], strict=False)
        self.areas = list(
            accumulate(((end - start) * (low + high) / 2 for start, end, low, high in steps), initial=0.0)
        )

    def at(self, time: float) -> float:
        """F(t), the probability of an end by then."""
        if time >= self.times[-1]:
            return 1.0 - (1.0 - self.cdf[-1]) * self.times[-1] / time
        return _interpolated(time, self.times, self.cdf)

    def quantile(self, probability: float) -> float:
        """The time t with F(t) = `probability`, which is below 1."""
        if probability >= self.cdf[-1]:
            return self.times[-1] * (1.0 - self.cdf[-1] or 1.0) / (1.0 - probability or 1.0)
        return _interpolated(probability, self.cdf, self.times)


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    index = max(bisect_right(xs, x), 1)
    start, low = xs[index - 1], ys[index - 1]
    return low + (ys[index] - low) * max(x - start, 0.0) / (xs[index] - start)


class Schedule:
    """The best next poll for every age; `cost` is J from age 0 on, in seconds."""

    def __init__(self, distribution: Distribution, price: float) -> None:
        times, cdf, areas = distribution.times, distribution.cdf, distribution.areas
        last = len(times) - 1
        # Between two entries, use the poll of the nearer one.
        self._ages = [(start + end) / 2 for start, end in pairwise(times[:-1])]
        self._gaps = [0.0] * last  # Keller's, 1 / n, at each entry; at most the distance to the next
        self._polls = [0.0] * last  # at each entry; 0 where Keller's gap is used
        self._tail = 2 * price / TAIL
        # Keller's cost of the tail: the integral of sqrt(2 * price * density * survival).
        value = (1.0 - cdf[last]) * math.sqrt(2 * price * TAIL * times[last]) / (TAIL - 0.5)
        # The hull: height at F = 0 and downward slope (the entry's time) of each line. Lines before `head` are done.
        heights, slopes, head = [areas[last] + value], [times[last]], 0
        for entry in range(last - 1, -1, -1):
            low, time = cdf[entry], times[entry]
            while head + 1 < len(heights) and (
                heights[head + 1] - heights[head] <= low * (slopes[head + 1] - slopes[head])
            ):
                head += 1
            step, mass = times[entry + 1] - time, cdf[entry + 1] - low
            gap = min(step, math.sqrt(2 * price * (1.0 - low) * step / mass)) if mass > 0 else step
            self._gaps[entry] = gap
            self._polls[entry] = slopes[head] if slopes[head] > times[entry + 1] or gap >= step else 0.0
            value = price * (1.0 - low) - areas[entry] + low * time + heights[head] - low * slopes[head]
            height = areas[entry] + value
            while len(heights) > head + 1 and (
                (height - heights[-1]) * (slopes[-2] - slopes[-1]) <= (heights[-1] - heights[-2]) * (slopes[-1] - time)
            ):
                del heights[-1], slopes[-1]
            heights.append(height)
            slopes.append(time)
        self.cost = value

    def after(self, age: float) -> float:
        """The age of the next poll, above `age`, if nothing has ended by `age`."""
        index = bisect_left(self._ages, age)
        poll = self._polls[index]
        if poll > age:
            return poll
        return age + (self._gaps[index] if index < len(self._ages) else math.sqrt(self._tail * age))
