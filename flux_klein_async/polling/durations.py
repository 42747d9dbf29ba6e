"""How long something takes: a distribution learned from samples, and the schedules made from it. Pure arithmetic.

`Prediction` keeps a histogram of log time and makes a `Distribution` from it, a mixture of

1. the samples, smoothed by a kernel of width 0.9 * spread * n ** -0.2 (Silverman 1986, "Density Estimation", eq. 3.31),
2. a normal prior of log time around what is expected; it counts as one sample, and then ever less,
3. a Pareto tail with weight 1 / (n + 20).

A sample is interval-censored: it lies between two polls. It is entered at quantiles of the current estimate between
them (the self-consistent estimate: Turnbull 1976, J. R. Stat. Soc. B 38(3), 290-295). Entered at the time of the last
poll instead, estimate and polls would drift later and later.

All times are in units of what is expected, so that one estimate serves every picture size.
"""

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise, repeat
from operator import mul
from typing import Final

from flux_klein_async.polling.schedule import TAIL, Distribution, Schedule

__all__ = ["Prediction"]

BIN: Final = 0.01  # width of a histogram's bins in log time: 1 %
_MOST_SAMPLES: Final = 128.0  # when a histogram weighs this much, its samples are halved
_SHORTEST, _LONGEST = 1e-5, 1e6  # samples outside are entered here
# Spreads are standard deviations of log time.
_STEPS: Final = (40, 44)  # of a table, before and after the median; each costs 2 us of CPU whenever the table is made
_PRIOR_SPREAD: Final = 0.45  # the service may well be twice as slow as expected
_PRIOR_SAMPLES: Final = 4.0  # with so many samples the prior weighs half a sample
_SPREAD: Final = 0.2  # before any sample
_SPREAD_SAMPLES: Final = 4.0  # samples that this guess is worth
_QUANTILES: Final = (0.05, 0.125, 0.375, 0.5, 0.625, 0.875, 0.95)
_PARTS: Final = 4  # quantiles at which a censored sample is entered
_NEGLIGIBLE: Final = 1e-6  # probability between two polls below which a sample is spread evenly between them
# If the estimate expects more than this between two polls, the sample says next to nothing, and the estimate would only
# confirm itself. A part of the sample then goes to the middle.
_UNINFORMATIVE, _MIDDLE = 0.4, 0.1
_DRIFT_GAIN, _DRIFT_LIMIT = 0.15, 0.35
_AFTER_RESET: Final = 0.3  # total weight of the samples after a reset
_SCHEDULES: Final = 64  # kept of one distribution
_MOST_NEW: Final = 192.0  # samples after which any distribution is out of date


class Prediction:
    """What was learned of one duration, in units of what is expected.

    The service has changed when the mean rank of new samples in the estimate leaves 1/2. The mean is exponentially
    weighted (a control chart: Roberts 1959, Technometrics 1(3), 239-250). The eighth sample of a service that becomes
    twice as slow crosses the limit; chance hardly ever does.

    Attributes:
        bins: Weighted samples, by bin of log time.
        total: The sum of their weights.
        drift: The mean of rank - 1/2.
    """

    def __init__(self, bins: Mapping[int, float] | None = None) -> None:
        self.bins: dict[int, float] = dict(bins or {})
        self.total = sum(self.bins.values())
        self.drift = 0.0
        self._made: Distribution | None = None
        self._new_left = 0.0
        self._schedules: dict[int, Schedule] = {}
        self._fade(_MOST_SAMPLES)

    def add(self, low: float, high: float, *, charted: bool = True) -> None:
        """Adds a duration between `low` and `high`; if it is charted and the service has changed, forgets the others.

        The distribution is made again after each sample at first, then after as many as it was made from.
        """
        known = self.distribution()
        before, after = known.at(low), known.at(high)
        if low >= high:
            self._enter(low, 1.0)
        else:
            weight = 1.0
            if after - before > _UNINFORMATIVE:
                self._enter((low + high) / 2, _MIDDLE)
                weight -= _MIDDLE
            for part in range(_PARTS):
                share = (part + 0.5) / _PARTS
                even, expected = low + (high - low) * share, before + (after - before) * share
                self._enter(known.quantile(expected) if after - before > _NEGLIGIBLE else even, weight / _PARTS)
        self._new_left -= 1
        if charted:
            self.drift += _DRIFT_GAIN * ((before + after) / 2 - 0.5 - self.drift)
            if abs(self.drift) >= _DRIFT_LIMIT:
                self.drift = self._new_left = 0.0
                self._fade(_AFTER_RESET)
        if self._new_left <= 0:
            self._made = None

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
        """The current estimate."""
        if self._made is None:
            self._made = self._mixture()
            self._schedules.clear()
            self._new_left = min(max(1.0, self.total), _MOST_NEW)
        return self._made

    def _mixture(self) -> Distribution:
        least, low, below, median, above, high, most = self._quantiles()
        # The narrowest of three parts, each over its width in a standard normal: of several modes, that of one.
        measured = min((below - low) / 0.831, (above - below) / 0.637, (high - above) / 0.831)
        total = self.total
        spread = math.sqrt((_SPREAD_SAMPLES * _SPREAD**2 + total * measured**2) / (_SPREAD_SAMPLES + total))
        step = min(max(spread / 5, (most - least) / 56, BIN), 0.1)
        start, size = median - _STEPS[0] * step, sum(_STEPS)
        prior, tail = 1.0 / (1.0 + total / _PRIOR_SAMPLES), 1.0 / (total + 20.0)
        scale = (1 - tail) / (total + prior)
        sampled = _smoothed(self._masses(start, step, size), 0.9 * spread * max(total, 1.0) ** -0.2 / step)
        masses = [
            scale * (mass + prior * expected)
            for mass, expected in zip(sampled, _normal(start, step, size), strict=True)
        ]
        ratio = math.exp(-TAIL * step)
        for power in range(size - _STEPS[0]):  # a Pareto distribution from the median on: a geometric series
            masses[_STEPS[0] + power] += tail * (1 - ratio) * ratio**power
        times = accumulate(repeat(math.exp(step), size), mul, initial=math.exp(start))
        return Distribution([0.0, *times], [0.0, *(min(below, 1.0) for below in accumulate(masses, initial=0.0))])

    def _quantiles(self) -> list[float]:
        """The log times at `_QUANTILES`."""
        found: list[float] = []
        indices = sorted(self.bins) or [0]
        for index, below in zip(indices, accumulate(self.bins.get(index, 0.0) for index in indices), strict=True):
            while len(found) < len(_QUANTILES) and below >= _QUANTILES[len(found)] * self.total:
                found.append((index + 0.5) * BIN)
        return found + [(indices[-1] + 0.5) * BIN] * (len(_QUANTILES) - len(found))

    def _masses(self, start: float, step: float, size: int) -> list[float]:
        """The samples in steps of log time; those before are in the first step, those behind are left to the tail."""
        masses = [0.0] * (size + 1)
        for place, weight in self.bins.items():
            masses[min(max(math.floor(((place + 0.5) * BIN - start) / step), 0), size)] += weight
        return masses[:size]

    def after(self, age: float, expected: float, price: float) -> float:
        """The age of the next poll, in seconds, where a poll costs `price` seconds."""
        return self._schedule(price / expected).after(age / expected) * expected

    def log_likelihood(self, low: float, high: float, age: float) -> float:
        """The logarithm of the probability of an end between `low` and `high`, given that there was none at `age`."""
        known = self.distribution()
        return math.log((known.at(high) - known.at(low) + 1e-6) / (1.0 - known.at(age) + 1e-6))

    def cost(self, expected: float, price: float) -> float:
        """J from age 0 on, in seconds: the lower, the more it says."""
        return self._schedule(price / expected).cost * expected

    def _schedule(self, price: float) -> Schedule:
        """The best polls at this price, rounded to quarters of an octave, so that few schedules are made."""
        made, rounded = self.distribution(), round(4 * math.log2(price))
        schedule = self._schedules.get(rounded)
        if schedule is None:
            if len(self._schedules) >= _SCHEDULES:
                self._schedules.clear()
            schedule = self._schedules[rounded] = Schedule(made, 2 ** (rounded / 4))
        return schedule


def _smoothed(masses: list[float], width: float) -> list[float]:
    """Two running means, one to each side, that together are a kernel with a standard deviation of `width` steps."""
    reach = round(math.sqrt(6 * width**2 + 1))
    for left in (reach // 2, reach - 1 - reach // 2):
        sums = list(accumulate(masses, initial=0.0))
        sums = [0.0] * left + sums + [sums[-1]] * (reach - 1 - left)
        masses = [(high - low) / reach for low, high in zip(sums, sums[reach:], strict=False)]
    return masses


def _normal(start: float, step: float, size: int) -> list[float]:
    """The prior in steps of log time; what lies before them is in the first."""
    ends = [(1 + math.erf((start + index * step) / _PRIOR_SPREAD / math.sqrt(2))) / 2 for index in range(size + 1)]
    return [ends[1], *(high - low for low, high in pairwise(ends[1:]))]
