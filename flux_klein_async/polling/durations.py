"""How long something takes, learned from samples, and the best times to poll for it. Pure arithmetic.

A `Prediction` keeps a histogram of log time, in units of what is expected, so that it serves every picture size. It
makes a `Distribution` of it, a mixture of

1. the samples, smoothed by a kernel of width 0.9 * spread * n ** -0.2 (Silverman 1986, "Density Estimation", eq. 3.31),
2. a normal prior of log time around what is expected; it counts as one sample, and then ever less,
3. a Pareto tail from the median on.

A sample lies somewhere between two polls. It is entered at quantiles of the current estimate between them (Turnbull
1976, J. R. Stat. Soc. B 38(3), 290-295); entered at the last poll, estimate and polls would drift later and later. If
the estimate expects much between the two polls, it would confirm itself, so a part is entered in the middle.

A `Schedule` has the polls of least cost (docs/waiting.md). With F the distribution, S = 1 - F, A the integral of F, and
v(a) the cost from age a on, times S(a), it solves at each entry of the distribution's table

    v(a) = price * S(a) + min over t > a of [A(t) - A(a) - F(a) * (t - a) + v(t)]

(Barlow, Hunter and Proschan 1963, J. SIAM 11(4), 1078-1095). For each t the bracket is a line in F(a), so the minimum
is the lower hull of these lines. Backwards, F(a) falls and the lines come in the order of their slopes: one pass builds
the hull and walks along it. Where polls should be closer together than the entries, and behind the table, they have
Keller's density (1974, Management Science 21(3), 256-260): sqrt(r / (2 * price)) a second, where r is the hazard.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final

__all__ = ["BIN", "TAIL", "Distribution", "Prediction", "Schedule"]

# Exponent of the Pareto tail: behind the table, survival falls as t ** -TAIL, and the hazard is TAIL / t. At 1, the
# expected rest of a wait grows with its age.
TAIL: Final = 1.0
BIN: Final = 0.01  # width of a histogram's bins in log time: 1 %
_MOST_SAMPLES: Final = 128.0  # when a histogram weighs this much, its samples are halved
_SHORTEST, _LONGEST = 1e-5, 1e6  # samples outside are entered here
# Spreads are standard deviations of log time.
_STEPS: Final = (40, 44)  # of a table, before and after the median; each costs 2 us of CPU whenever the table is made
_PRIOR_SPREAD: Final = 0.45  # the service may well be twice as slow as expected
_PRIOR_SAMPLES: Final = 4.0  # with so many samples the prior weighs half a sample
_TAIL_WEIGHT: Final = 0.01
_SPREAD: Final = 0.2  # before any sample
_SPREAD_SAMPLES: Final = 4.0  # samples that this guess is worth
_QUANTILES: Final = (0.05, 0.125, 0.375, 0.5, 0.625, 0.875, 0.95)
_PARTS: Final = 4  # quantiles at which a censored sample is entered
_MIDDLE: Final = 0.3  # the part in the middle between two polls, times the square of what is expected between them
_DRIFT_GAIN, _DRIFT_LIMIT = 0.15, 0.35
_AFTER_RESET: Final = 0.3  # total weight of the samples after a reset
_ABOUT: Final = 0.02  # seconds around an end that is known better, for its likelihood
_LEAD_GAIN, _LEAD_STEP = 0.05, 4.0


class Distribution:
    """F is `cdf` at `times`, which increase from 0, and linear between them; the tail has what the last lacks to 1."""

    def __init__(self, times: Sequence[float], cdf: Sequence[float]) -> None:
        self.times, self.cdf = times, cdf
        entries = zip(times, times[1:], cdf, cdf[1:], strict=False)
        steps = ((end - start) * (low + high) / 2 for start, end, low, high in entries)
        self.areas = list(accumulate(steps, initial=0.0))  # the integral of F up to each of the times

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


class Prediction:
    """What was learned of one duration.

    The service has changed when the exponentially weighted mean rank of new samples in the estimate leaves 1/2 (a
    control chart: Roberts 1959, Technometrics 1(3), 239-250): after eight samples of one that becomes twice as slow.
    """

    def __init__(self, bins: Mapping[int, float] | None = None, *, lead: float = 0.0) -> None:
        self.bins: dict[int, float] = dict(bins or {})  # weighted samples, by bin of log time
        self.total = sum(self.bins.values())
        self.lead = lead  # by how much it predicted better than another: the mean gain in log likelihood
        self._drift = 0.0  # the mean of rank - 1/2
        self._made: Distribution | None = None
        self._new_left = 0.0
        self._fade(_MOST_SAMPLES)

    def add(self, low: float, high: float, expected: float = 1.0, *, charted: bool = True) -> float:
        """Adds a duration between `low` and `high`, and returns how likely it was: the logarithm of the probability.

        If it is charted and the service has changed, the earlier samples are forgotten. The distribution is made again
        after each sample at first, then after as many as it was made from.
        """
        known = self.distribution()
        low, high, about = low / expected, high / expected, max(_ABOUT - (high - low), 0.0) / 2 / expected
        before, after = known.at(low - about), known.at(high + about)
        entered = 1.0 if low >= high else _MIDDLE * (after - before) ** 2
        if entered > 0:
            self._enter((low + high) / 2, entered)
        for part in range(_PARTS) if entered < 1 else ():
            time = known.quantile(before + (after - before) * (part + 0.5) / _PARTS)
            self._enter(min(max(time, low), high), (1 - entered) / _PARTS)
        self._new_left -= 1
        if charted:
            self._drift += _DRIFT_GAIN * ((before + after) / 2 - 0.5 - self._drift)
            if abs(self._drift) >= _DRIFT_LIMIT:
                self._drift = self._new_left = 0.0
                self._fade(_AFTER_RESET)
        if self._new_left <= 0:
            self._made = None
        return math.log(after - before + 1e-6)

    def score(self, gain: float) -> None:
        """Counts by how much a sample was likelier than under another prediction."""
        self.lead += _LEAD_GAIN * (min(max(gain, -_LEAD_STEP), _LEAD_STEP) - self.lead)

    def _enter(self, time: float, weight: float) -> None:
        index = math.floor(math.log(min(max(time, _SHORTEST), _LONGEST)) / BIN)
        self.bins[index] = self.bins.get(index, 0.0) + weight
        self.total += weight
        if self.total > _MOST_SAMPLES:
            self._fade(_MOST_SAMPLES / 2)

    def _fade(self, total: float) -> None:
        """Scales the weights down to this total, if they exceed it, and drops negligible ones."""
        if self.total > total:
            scale = total / self.total
            self.bins = {index: scaled for index, weight in self.bins.items() if (scaled := weight * scale) > 1e-3}
            self.total = sum(self.bins.values())

    def distribution(self) -> Distribution:
        """The current estimate, in units of what is expected."""
        if self._made is None:
            self._made = made = self._mixture()
            self._schedule = lru_cache(64)(lambda quarters: Schedule(made, 2 ** (quarters / 4)))
            self._new_left = max(1.0, self.total)
        return self._made

    def median(self, expected: float) -> float:
        """The median of the current estimate."""
        return self.distribution().quantile(0.5) * expected

    def _mixture(self) -> Distribution:
        total, places = self.total, sorted(self.bins) or [0]
        below = list(accumulate(self.bins.get(place, 0.0) for place in places))
        least, lowest, low, median, high, highest, most = (
            (places[bisect_left(below, share * below[-1])] + 0.5) * BIN for share in _QUANTILES
        )
        # The narrowest of three parts, each over its width in a standard normal: of several modes, that of one.
        measured = min((low - lowest) / 0.831, (high - low) / 0.637, (highest - high) / 0.831)
        spread = math.sqrt((_SPREAD_SAMPLES * _SPREAD**2 + total * measured**2) / (_SPREAD_SAMPLES + total))
        step = min(max(spread / 5, (most - least) / 50, BIN), 0.1)
        start, masses = median - _STEPS[0] * step, [0.0] * sum(_STEPS)
        for place in places:  # samples before the table are in its first step, those behind it are left to the tail
            index = max(math.floor(((place + 0.5) * BIN - start) / step), 0)
            if index < len(masses):
                masses[index] += self.bins.get(place, 0.0)
        masses = _smoothed(masses, 0.9 * spread * max(total, 1.0) ** -0.2 / step)
        prior = 1.0 / (1.0 + total / _PRIOR_SAMPLES)
        times, cdf = [0.0], [0.0]
        for index, sampled in enumerate(accumulate(masses, initial=0.0)):
            at = start + index * step
            expected = prior * (1 + math.erf(at / _PRIOR_SPREAD / math.sqrt(2))) / 2
            tail = 1 - math.exp(TAIL * (median - at)) if at > median else 0.0
            times.append(math.exp(at))
            cdf.append((1 - _TAIL_WEIGHT) * (sampled + expected) / (total + prior) + _TAIL_WEIGHT * tail)
        return Distribution(times, cdf)

    def after(self, age: float, expected: float, price: float) -> float:
        """The age of the next poll, where a poll costs `price` seconds.

        Prices are rounded to quarters of an octave, so that few schedules are made; those of 64 prices are kept.
        """
        self.distribution()  # and with it its schedules
        quarters = round(4 * math.log2(price / expected))
        return self._schedule(quarters).after(age / expected) * expected


def _smoothed(masses: list[float], width: float) -> list[float]:
    """Two running means, one to each side, that together are a kernel with a standard deviation of `width` steps."""
    reach = round(math.sqrt(6 * width**2 + 1))
    for left in (reach // 2, reach - 1 - reach // 2):
        sums = list(accumulate(masses, initial=0.0))
        sums = [0.0] * left + sums + [sums[-1]] * (reach - 1 - left)
        masses = [(high - low) / reach for low, high in zip(sums, sums[reach:], strict=False)]
    return masses
