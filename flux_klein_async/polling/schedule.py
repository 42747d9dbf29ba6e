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
from bisect import bisect_left
from itertools import pairwise
from typing import Final

from flux_klein_async.polling.durations import TAIL, Distribution, ModelEstimate, Size

__all__ = ["Prediction", "Schedule"]


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


_MAX_NEW: Final = 192.0  # new samples after which any prediction is out of date
_FEW_OWN: Final = 4.0  # own samples below which samples of other sizes make a prediction out of date too
_SCHEDULES: Final = 256  # kept by a prediction
_MAX_PRICE: Final = 1024.0
_MIN_WIDTH: Final = 0.01  # seconds; if the start is known better than this, it counts as known


class Prediction:
    """The current distribution for one size of a model, and the schedules made from it.

    It is made again after each sample at first, then after as many samples as it was made from.
    """

    def __init__(self, estimate: ModelEstimate, size: Size) -> None:
        self.estimate = estimate
        self.size = size
        self._schedules: dict[tuple[float, int], Schedule] = {}
        self._distribution: Distribution | None = None
        self._new_left = self._expires_at = 0.0
        self._resets = 0

    def add(self, low: float, high: float) -> None:
        """Adds a generation that took between `low` and `high` seconds."""
        self.estimate.add(self.size, low, high, self.distribution())
        self._new_left -= 1
        if self._new_left <= 0:
            self._distribution = None

    def distribution(self) -> Distribution:
        """The distribution of durations, made again if it is out of date."""
        estimate, known = self.estimate, self._distribution
        if known is None or estimate.samples >= self._expires_at or self._resets != estimate.resets:
            known = self._distribution = estimate.distribution(self.size)
            self._schedules.clear()
            own = estimate.histograms[self.size].total if self.size in estimate.histograms else 0.0
            self._new_left = min(max(1.0, own), _MAX_NEW)
            self._expires_at = estimate.samples + (math.inf if own >= _FEW_OWN else max(2.0, estimate.samples))
            self._resets = estimate.resets
        return known

    def schedule(self, poll_cost: float, price: float = 1.0, width: float = 0.0) -> Schedule:
        """The best polls at `poll_cost * price` seconds a poll, after a start within `width` seconds.

        Price and width are rounded to half octaves, so that few schedules are made.
        """
        distribution = self.distribution()
        if price != 1.0:
            price = 2 ** (round(2 * math.log2(min(price, _MAX_PRICE))) / 2) if price > 1 else 1.0
        steps = max(round(2 * math.log2(width / _MIN_WIDTH)), 0) if width > _MIN_WIDTH else 0
        found = self._schedules.get((poll_cost * price, steps))
        if found is None:
            if steps:
                distribution = distribution.delayed(_MIN_WIDTH * 2 ** (steps / 2))
            if len(self._schedules) >= _SCHEDULES:
                self._schedules.clear()
            found = self._schedules[poll_cost * price, steps] = Schedule(distribution, poll_cost * price)
        return found
