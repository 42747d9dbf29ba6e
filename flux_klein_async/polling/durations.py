"""How long something takes: a distribution learned from samples, and the schedules made from it. Pure arithmetic.

`Prediction` keeps a histogram of log time and makes a `Distribution` from it, a mixture of

1. the samples, smoothed by a kernel of width 0.9 * spread * n ** -0.2 (Silverman 1986, "Density Estimation", eq. 3.31),
2. a normal prior of log time around what is expected; it counts as one sample, and then ever less,
3. a Pareto tail from the median on.

A sample is interval-censored: it lies between two polls. It is entered at quantiles of the current estimate between
them (the self-consistent estimate: Turnbull 1976, J. R. Stat. Soc. B 38(3), 290-295). Entered at the time of the last
poll instead, estimate and polls would drift later and later. If the estimate expects much between the two polls, the
sample says little and the estimate would confirm itself, so a part is entered in the middle.

The histogram is in units of what is expected, so that one estimate serves every picture size. Arguments are in seconds.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
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
_SCHEDULES: Final = 64  # kept of one distribution


class Prediction:
    """What was learned of one duration.

    The service has changed when the mean rank of new samples in the estimate leaves 1/2. The mean is exponentially
    weighted (a control chart: Roberts 1959, Technometrics 1(3), 239-250). The eighth sample of a service that becomes
    twice as slow crosses the limit; chance hardly ever does.
    """

    def __init__(self, bins: Mapping[int, float] | None = None, *, lead: float = 0.0) -> None:
        self.bins: dict[int, float] = dict(bins or {})  # weighted samples, by bin of log time
        self.total = sum(self.bins.values())
        self.lead = lead  # by how much it predicted better than another: the mean gain in log likelihood
        self._drift = 0.0  # the mean of rank - 1/2
        self._made: Distribution | None = None
        self._new_left = 0.0
        self._schedules: dict[int, Schedule] = {}
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
            self._made = self._mixture()
            self._schedules.clear()
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

        Prices are rounded to quarters of an octave, so that few schedules are made.
        """
        made, rounded = self.distribution(), round(4 * math.log2(price / expected))
        if rounded not in self._schedules:
            if len(self._schedules) >= _SCHEDULES:
                self._schedules.clear()
            self._schedules[rounded] = Schedule(made, 2 ** (rounded / 4))
        return self._schedules[rounded].after(age / expected) * expected


def _smoothed(masses: list[float], width: float) -> list[float]:
    """Two running means, one to each side, that together are a kernel with a standard deviation of `width` steps."""
    reach = round(math.sqrt(6 * width**2 + 1))
    for left in (reach // 2, reach - 1 - reach // 2):
        sums = list(accumulate(masses, initial=0.0))
        sums = [0.0] * left + sums + [sums[-1]] * (reach - 1 - left)
        masses = [(high - low) / reach for low, high in zip(sums, sums[reach:], strict=False)]
    return masses
