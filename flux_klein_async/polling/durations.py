"""How long generations take: a distribution of durations, learned from samples. Pure arithmetic on seconds.

`ModelEstimate` keeps a `Histogram` of log time for each picture size of a model, and makes a `Distribution` from them:
a mixture of

1. the samples, smoothed by a kernel of width 0.9 * spread * n ** -0.2 (Silverman 1986, "Density Estimation", eq. 3.31),
2. a normal prior of log time around the published time; it counts as one sample, and then ever less,
3. a Pareto tail with weight 1 / (n + 20).

Sizes lend samples to each other; the median of a size comes from a Bayesian linear regression over the medians of all.
A sample is interval-censored: it lies between two polls. It is entered at quantiles of the current estimate between
them (the self-consistent estimate: Turnbull 1976, J. R. Stat. Soc. B 38(3), 290-295). Entered at the time of the last
poll instead, estimate and polls would drift later and later.

`QueueSpeed` learns how fast a queue moves; `ServiceClock` decides whether to trust the durations that it reports.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from operator import mul
from typing import Final, NamedTuple

from flux_klein_async.polling.policies import Queued

__all__ = ["TAIL", "Distribution", "Histogram", "ModelEstimate", "QueueSpeed", "ServiceClock", "Size", "size_of"]

# Exponent of the Pareto tail: behind the table, survival falls as t ** -TAIL, and the hazard is TAIL / t. At 1, the
# expected rest of a wait grows with its age, and the integral of the tail is a logarithm (`Distribution.area`).
TAIL: Final = 1.0


class Distribution:
    """A cumulative distribution, linear between table entries.

    The mass that the last entry lacks to 1 lies in the tail behind it.

    Attributes:
        times: Seconds, increasing from 0.
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

    def at(self, seconds: float) -> float:
        """F(t), the probability of an end by then."""
        times, cdf = self.times, self.cdf
        if seconds >= times[-1]:
            return 1.0 - (1.0 - cdf[-1]) * times[-1] / seconds
        if seconds <= 0:
            return 0.0
        index = bisect_right(times, seconds)
        start, low = times[index - 1], cdf[index - 1]
        return low + (cdf[index] - low) * (seconds - start) / (times[index] - start)

    def quantile(self, probability: float) -> float:
        """The time t with F(t) = `probability`, which is below 1."""
        times, cdf = self.times, self.cdf
        if probability >= cdf[-1]:
            return times[-1] * (1.0 - cdf[-1]) / (1.0 - probability) if cdf[-1] < 1 else times[-1]
        index = max(bisect_right(cdf, probability), 1)
        start, low = times[index - 1], cdf[index - 1]
        return start + (times[index] - start) * max(probability - low, 0.0) / (cdf[index] - low)

    def area(self, seconds: float) -> float:
        """The integral of F from 0 to t: the mean time that has passed since the end."""
        times, cdf = self.times, self.cdf
        if seconds <= 0:
            return 0.0
        if seconds >= times[-1]:
            missing = (1.0 - cdf[-1]) * times[-1] * math.log(seconds / times[-1])
            return self.areas[-1] + seconds - times[-1] - missing
        index = bisect_right(times, seconds) - 1
        step = seconds - times[index]
        slope = (cdf[index + 1] - cdf[index]) / (times[index + 1] - times[index])
        return self.areas[index] + step * (cdf[index] + slope * step / 2)

    def delayed(self, width: float) -> "Distribution":
        """The distribution after a delay that is uniform from 0 to `width`: the mean of F over a sliding window."""
        # The entries lie where both the delay and the duration are resolved.
        times = [time + width * low for time, low in zip(self.times, self.cdf, strict=True)]
        return Distribution(times, [(self.area(time) - self.area(time - width)) / width for time in times])


BIN: Final = 0.01  # width of a histogram's bins in log time: 1 %
_HISTOGRAM_SAMPLES: Final = 256.0  # when a histogram weighs this much, its samples are halved
_SHORTEST, _LONGEST = 1e-3, 1e6  # seconds; samples outside are entered here


class Histogram:
    """Weighted samples of log time by bin; `total` is the sum of the weights."""

    def __init__(self, bins: Mapping[int, float] | None = None) -> None:
        self.bins: dict[int, float] = dict(bins or {})
        self.total = sum(self.bins.values())
        self.fade(_HISTOGRAM_SAMPLES)

    def add(self, seconds: float, weight: float) -> None:
        """Adds a sample; halves all weights when there are too many."""
        index = math.floor(math.log(min(max(seconds, _SHORTEST), _LONGEST)) / BIN)
        self.bins[index] = self.bins.get(index, 0.0) + weight
        self.total += weight
        if self.total > _HISTOGRAM_SAMPLES:
            self.fade(_HISTOGRAM_SAMPLES / 2)

    def fade(self, total: float) -> None:
        """Scales the weights down to this total, if they exceed it, and drops negligible ones."""
        if self.total > total:
            scale = total / self.total
            self.bins = {index: scaled for index, weight in self.bins.items() if (scaled := weight * scale) > 1e-3}
            self.total = sum(self.bins.values())

    def quantiles(self, *probabilities: float) -> list[float]:
        """The log times at these probabilities, which must not decrease."""
        found: list[float] = []
        indices = sorted(self.bins)
        for index, below in zip(indices, accumulate(self.bins[index] for index in indices), strict=True):
            while len(found) < len(probabilities) and below >= probabilities[len(found)] * self.total:
                found.append((index + 0.5) * BIN)
        return found + [(indices[-1] + 0.5) * BIN] * (len(probabilities) - len(found))


class LogGrid(NamedTuple):
    """`size` equal steps of log time, from `start` on. A density on it is a list of the mass in each step."""

    start: float
    step: float
    size: int

    def masses(self, samples: Histogram) -> list[float]:
        """The samples; those before the grid go to its first step, and those behind it are left to the tail."""
        masses = [0.0] * (self.size + 1)
        scale, last = BIN / self.step, self.size
        offset = 0.5 * scale - self.start / self.step
        for place, weight in samples.bins.items():
            index = int(place * scale + offset)
            masses[index if 0 <= index < last else 0 if index < 0 else last] += weight
        return masses[:last]

    def smoothed(self, masses: list[float], width: float) -> list[float]:
        """Two running means, one to each side, that together are a kernel with standard deviation `width`."""
        reach = round(math.sqrt(6 * (width / self.step) ** 2 + 1))
        if reach <= 1:
            return masses
        for left in (reach // 2, reach - 1 - reach // 2):
            sums = list(accumulate(masses, initial=0.0))
            sums = [0.0] * left + sums + [sums[-1]] * (reach - 1 - left)
            masses = [(high - low) / reach for low, high in zip(sums, sums[reach:], strict=False)]
        return masses

    def normal(self, mean: float, spread: float) -> list[float]:
        """A normal distribution of log time."""
        scale, offset = self.step / spread / math.sqrt(2 * math.pi), self.start + self.step / 2 - mean
        masses = [scale * math.exp(-(((offset + index * self.step) / spread) ** 2) / 2) for index in range(self.size)]
        masses[0] += (1 + math.erf((self.start - mean) / spread / math.sqrt(2))) / 2
        return masses

    def pareto(self, begin: float) -> list[float]:
        """A Pareto distribution from log time `begin` on: a geometric series."""
        index = min(max(round((begin - self.start) / self.step), 0), self.size)
        ratio = math.exp(-TAIL * self.step)
        return [0.0] * index + [(1 - ratio) * ratio**power for power in range(self.size - index)]

    def distribution(self, masses: list[float]) -> Distribution:
        """The distribution with these masses."""
        times = accumulate(repeat(math.exp(self.step), self.size), mul, initial=math.exp(self.start))
        return Distribution([0.0, *times], [0.0, *(min(below, 1.0) for below in accumulate(masses, initial=0.0))])


_SPEED_GAIN: Final = 0.1
_FASTEST, _SLOWEST = 1e-4, 1e4


@dataclass
class QueueSpeed:
    """How fast a queue moves: exponentially weighted means over finished waits."""

    seconds: float = 0.15  # from one place to the next; the first guess: four workers at the published 0.57 s
    variance: float = 1.0  # of the wait for n places, in units of n * seconds ** 2
    count: int = 1  # samples, the first guess included

    def add(self, queued: Queued, started: float) -> None:
        """Adds the wait of a queued request that started then."""
        if queued.entered_position is None:
            return
        places, waited = _places(queued.entered_position), started - queued.entered
        self.count += 1
        gain = max(1 / self.count, _SPEED_GAIN)
        deviation = (waited / self.seconds - places) ** 2 / places
        self.variance += gain * (min(deviation, 9.0) - self.variance)
        self.seconds *= (min(max(waited / places, _FASTEST), _SLOWEST) / self.seconds) ** gain

    def start(self, queued: Queued, left: float | None) -> tuple[float, float]:
        """The interval in which the request starts or started.

        `left` is when the first poll that no longer reported it as queued was sent. A position that has not changed for
        some time is expected to stay as long again, so that a stuck queue is polled ever more rarely.
        """
        places = _places(queued.position)
        remaining = max(places * self.seconds, queued.until - queued.since)
        half = min(math.sqrt(3 * places * self.variance) * self.seconds, remaining)
        low, high = queued.until + remaining - half, queued.until + remaining + half
        if left is None:
            return low, high
        low = min(low, left)
        return low, min(max(high, low), left)


def _places(position: int | None) -> int:
    return min(max(position or 0, 0), 10**6) + 1


_TOLERANCE: Final = 0.003  # seconds: the service reports whole milliseconds
_OFFSET_GAIN: Final = 0.5  # of a disagreement, by which the offset moves, ...
_MAX_STEP: Final = 0.002  # ... at most so many seconds, so that one wrong report does not spoil it, ...
_SEARCH_STEP: Final = 0.030  # ... and more while reports disagree
_TRUST_GAIN: Final = 0.05
_MIN_TRUST: Final = 0.7


@dataclass
class ServiceClock:
    """Narrows a censored sample to the duration that the service reports, while its reports agree with the polls."""

    trust: float = 1.0  # exponentially weighted fraction of reports that agreed
    trusted: bool = True  # whether that is enough to use the reports
    offset: float | None = None  # between the service's clock and ours, the way to the service included

    def narrow(self, low: float, high: float, reported: float, round_trip: float) -> tuple[float, float]:
        """The part of (low, high] in which the end lies; `round_trip` is that of the poll that reported it."""
        agrees = False
        if 0 <= reported < math.inf:
            if self.offset is None:
                self.offset = round_trip
            end = reported - self.offset
            nearest = min(max(end, low), high)
            agrees = abs(end - nearest) <= _TOLERANCE
            step = _MAX_STEP + _SEARCH_STEP * (1.0 - self.trust)
            self.offset += min(max(_OFFSET_GAIN * (end - nearest), -step), step)
            if agrees and self.trusted:
                low = high = nearest
        self.trust += _TRUST_GAIN * (agrees - self.trust)
        self.trusted = self.trust >= _MIN_TRUST
        return low, high


_LARGEST: Final = 8 * 50  # 2 ** 50 pixels, so that no arithmetic overflows


class Size(NamedTuple):
    """What histograms are kept by.

    Attributes:
        octave: log2 of the pixels in eighths; None where unknown.
        queued: Whether durations count from the step to running, as those of queued requests do, not from acceptance.
    """

    octave: int | None
    queued: bool = False

    @property
    def megapixels(self) -> float:
        """Unknown sizes count as 1024 x 1024."""
        return 2.0 ** (20 if self.octave is None else self.octave / 8) / 1e6

    @property
    def log_published(self) -> float:
        """The logarithm of the published seconds (docs/wire.md, "How long a generation takes")."""
        return math.log(0.063 + 0.483 * self.megapixels)


def size_of(pixels: int | None, queued: bool = False) -> Size:
    """The size with so many pixels."""
    return Size(min(round(8 * math.log2(pixels)), _LARGEST) if pixels and pixels > 0 else None, queued)


# Spreads are standard deviations of log time.
_STEPS: Final = (40, 44)  # of a table, before and after the median; each costs 2 us of CPU whenever the table is made
_PRIOR_SPREAD: Final = 0.45  # the service may well be twice as slow as published
_PRIOR_SAMPLES: Final = 4.0  # with so many samples the prior weighs half a sample
_SPREAD: Final = 0.2  # of one size, before any sample
_SPREAD_SAMPLES: Final = 4.0  # samples that this guess is worth
_SIZE_SPREAD: Final = 0.1  # of the sizes' medians around the regression line
_SLOPE_SPREAD: Final = 0.15  # of the line's exponent around that of the published times
_QUANTILES: Final = (0.05, 0.125, 0.375, 0.5, 0.625, 0.875, 0.95)
_BORROWED: Final = 64.0  # weight of all borrowed samples together, at most
_OWN: Final = 128.0  # own samples at which a size stops borrowing
_PARTS: Final = 4  # quantiles at which a censored sample is entered
_NEGLIGIBLE: Final = 1e-6  # probability between two polls below which a sample is spread evenly between them
# If the estimate expects more than this between two polls, the sample says next to nothing, and the estimate would only
# confirm itself. A part of the sample then goes to the middle.
_UNINFORMATIVE, _MIDDLE = 0.4, 0.1
_DRIFT_GAIN, _DRIFT_LIMIT = 0.15, 0.35
_AFTER_RESET: Final = 0.3  # total weight of the samples of each size after a reset


@dataclass(eq=False)
class ModelEstimate:
    """What was learned about one model: durations by size, and the speed of its queue.

    The service has changed when the mean rank of new samples in the estimate leaves 1/2. The mean is exponentially
    weighted (a control chart: Roberts 1959, Technometrics 1(3), 239-250). The eighth sample of a service that becomes
    twice as slow crosses the limit; chance hardly ever does.
    """

    histograms: defaultdict[Size, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    queue: QueueSpeed = field(default_factory=QueueSpeed)
    samples: int = 0  # added so far
    resets: int = 0  # how often the service has changed
    drift: float = 0.0  # the mean of rank - 1/2

    def add(self, size: Size, low: float, high: float, estimate: Distribution) -> None:
        """Adds a duration between `low` and `high` seconds; forgets the earlier ones if the service has changed."""
        histogram = self.histograms[size]
        before, after = estimate.at(low), estimate.at(high)
        if low >= high:
            histogram.add(low, 1.0)
        else:
            weight = 1.0
            if after - before > _UNINFORMATIVE:
                histogram.add((low + high) / 2, _MIDDLE)
                weight -= _MIDDLE
            for part in range(_PARTS):
                share = (part + 0.5) / _PARTS
                even, expected = low + (high - low) * share, before + (after - before) * share
                seconds = estimate.quantile(expected) if after - before > _NEGLIGIBLE else even
                histogram.add(seconds, weight / _PARTS)
        self.samples += 1
        self.drift += _DRIFT_GAIN * ((before + after) / 2 - 0.5 - self.drift)
        if abs(self.drift) >= _DRIFT_LIMIT:
            self.drift = 0.0
            self.resets += 1
            for histogram in self.histograms.values():
                histogram.fade(_AFTER_RESET)

    def distribution(self, size: Size) -> Distribution:
        """The current estimate for a size."""
        samples, uncertainty = self._pooled(size)
        total = samples.total
        if total > 0:
            least, low, below, median, above, high, most = samples.quantiles(*_QUANTILES)
            # The narrowest of three parts, each over its width in a standard normal: of several modes, that of one.
            measured = min((below - low) / 0.831, (above - below) / 0.637, (high - above) / 0.831)
        else:
            least = median = most = size.log_published
            measured = 0.0
        spread = math.sqrt((_SPREAD_SAMPLES * _SPREAD**2 + total * measured**2) / (_SPREAD_SAMPLES + total))
        width = math.hypot(0.9 * spread * max(total, 1.0) ** -0.2, uncertainty)
        step = min(max(math.hypot(spread, uncertainty) / 5, (most - least) / 56, BIN), 0.1)
        grid = LogGrid(median - _STEPS[0] * step, step, sum(_STEPS))
        kernel = grid.smoothed(grid.masses(samples), width) if total > 0 else [0.0] * grid.size
        prior_weight = 1.0 / (1.0 + total / _PRIOR_SAMPLES)
        tail_weight = 1.0 / (total + 20.0)
        scale = (1 - tail_weight) / (total + prior_weight)
        parts = zip(kernel, grid.normal(size.log_published, _PRIOR_SPREAD), grid.pareto(median), strict=True)
        return grid.distribution(
            [scale * (sampled + prior_weight * prior) + tail_weight * tail for sampled, prior, tail in parts]
        )

    def _pooled(self, size: Size) -> tuple[Histogram, float]:
        """A size's own and borrowed samples, moved to its median, and the standard deviation of that median."""
        own = self.histograms.get(size) or Histogram()
        others = {other: kept for other, kept in self.histograms.items() if other != size and kept.total > 0}
        lent = sum(histogram.total for histogram in others.values())
        share = max(1 - own.total / _OWN, 0.0) * min(1.0, _BORROWED / lent) if lent else 0.0  # of each lent sample
        if not share:
            return own, 0.0
        known = {**others, size: own} if own.total > 0 else others
        medians = {other: histogram.quantiles(0.5)[0] for other, histogram in known.items()}
        median, variance = self._median(size, medians)
        pooled = Histogram()
        pooled.bins = dict(own.bins)
        for other, histogram in others.items():
            shift = round((median - medians[other]) / BIN)
            for index, weight in histogram.bins.items():
                pooled.bins[index + shift] = pooled.bins.get(index + shift, 0.0) + weight * share
        pooled.total = own.total + lent * share
        return pooled, math.sqrt(variance * lent * share / pooled.total)

    def _median(self, size: Size, medians: dict[Size, float]) -> tuple[float, float]:
        """The log median of a size and its variance, from the medians of all sizes and its own.

        Bayesian linear regression of y = median - log_published on x = log megapixels. The prior of both coefficients
        has mean 0, so the posterior precision is [[p00, p01], [p01, p11]], and its inverse is written out.
        """
        p00, p01, p11, sum_y, sum_xy = 1 / _PRIOR_SPREAD**2, 0.0, 1 / _SLOPE_SPREAD**2, 0.0, 0.0
        for other, median in medians.items():
            weight = 1 / (_SPREAD**2 / self.histograms[other].total + _SIZE_SPREAD**2)
            x, y = math.log(other.megapixels), median - other.log_published
            p00 += weight
            p01 += weight * x
            p11 += weight * x * x
            sum_y += weight * y
            sum_xy += weight * x * y
        determinant = p00 * p11 - p01 * p01
        x = math.log(size.megapixels)
        line = ((p11 * sum_y - p01 * sum_xy) + x * (p00 * sum_xy - p01 * sum_y)) / determinant + size.log_published
        variance = (p11 - 2 * x * p01 + x * x * p00) / determinant + _SIZE_SPREAD**2
        if size not in medians:
            return line, variance
        precision = self.histograms[size].total / _SPREAD**2
        total = 1 / variance + precision
        return (line / variance + medians[size] * precision) / total, 1 / total
