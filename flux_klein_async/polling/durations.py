"""How long generations take: what was learned, as a distribution of time. Pure arithmetic on seconds.

The hazard of the distribution decides when to poll (`schedule`). Four parts, in this order:

- `Distribution`: a table of the cumulative distribution with a heavy (Pareto) tail behind it.
- `Histogram` and `Grid`: samples of log time, in which services spread evenly whatever their speed, and the way from
  such samples to a distribution.
- `Durations`: one histogram for each picture size of a model; old samples fade. Sizes lend each other what they do not
  know: the middle of a size never seen comes from a line through the sizes seen, around the published shape
  (docs/wire.md), and they share the spread until a size has enough samples. The distribution is the mixture of the
  samples, smoothed by a kernel (Silverman's width), a prior that one sample outweighs, and a tail that never vanishes.
- `QueuePace` and `ServedTimes`: how fast a queue moves, and how far to trust the service's own account of a duration.

A sample is censored: it lies between two polls. It is entered where the present estimate puts it between them (the
self-consistent estimate: Turnbull 1976), at quantiles of that part. Entered at the time of the poll that saw it, the
estimate would drift later and later with its own polls.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, repeat
from operator import mul
from typing import Final, NamedTuple

from flux_klein_async.polling.policies import Queued

__all__ = ["BIN", "TAIL", "Distribution", "Durations", "Grid", "Histogram", "QueuePace", "ServedTimes", "Size", "shape"]


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


BIN: Final = 0.01
"""Width of a histogram's bins: 1 %."""

_HISTOGRAM_MEMORY: Final = 256.0  # samples after which the older ones count half
_SHORTEST, _LONGEST = 1e-3, 1e6  # seconds; what lies outside is entered there


class Histogram:
    """Samples of log time; `total` is what they weigh."""

    __slots__ = ("bins", "total")

    def __init__(self, bins: Mapping[int, float] | None = None) -> None:
        self.bins: dict[int, float] = dict(bins or {})
        self.total = sum(self.bins.values())
        self.fade(_HISTOGRAM_MEMORY)

    def add(self, seconds: float, weight: float) -> None:
        """Enter a sample."""
        place = math.floor(math.log(min(max(seconds, _SHORTEST), _LONGEST)) / BIN)
        self.bins[place] = self.bins.get(place, 0.0) + weight
        self.total += weight
        if self.total > _HISTOGRAM_MEMORY:
            self.fade(_HISTOGRAM_MEMORY / 2)

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


_LARGEST: Final = 8 * 50  # a size of 2 ** 50 pixels, so that no arithmetic overflows
_POINTS: Final = (40, 44)  # entries of a table, before and after the middle; each costs 2 us of CPU at every renewal
_PRIOR_SPREAD: Final = 0.45  # of log time: the service may well be twice as slow as published
_PRIOR_SAMPLES: Final = 4.0  # with which it counts half a sample; one before, ever less after
_SPREAD: Final = 0.2  # of one size's generations, before they are known
_SPREAD_SAMPLES: Final = 4.0  # what that is worth
_SIZE_SPREAD: Final = 0.1  # of the sizes' middles around the line
_BEND_SPREAD: Final = 0.15  # of the line's exponent around the published shape
_CHANCES: Final = (0.05, 0.125, 0.375, 0.5, 0.625, 0.875, 0.95)
_LENT: Final = 64.0  # samples that all other sizes count at most
_OWN: Final = 128.0  # samples of its own with which a size borrows no more
_PARTS: Final = 4  # places at which a sample known to lie between two polls is entered
_NOTHING: Final = 1e-6  # chance between two polls below which the estimate says nothing: evenly

# Polls that far apart tell next to nothing, and the estimate would confirm itself for ever: some goes to their middle.
_UNSURE: Final = 0.4
_DOUBT: Final = 0.1


class Size(NamedTuple):
    """What a history is kept by: pixels to an eighth of an octave, None where unknown, and where the clock began.

    `queued` histories count from the step to running, the others from acceptance.
    """

    octave: int | None
    queued: bool = False

    @classmethod
    def of(cls, pixels: int | None, *, queued: bool = False) -> "Size":
        """The size of so many pixels."""
        return cls(min(round(8 * math.log2(pixels)), _LARGEST) if pixels and pixels > 0 else None, queued)

    @property
    def megapixels(self) -> float:
        """Unknown sizes count as 1024 x 1024."""
        return 2.0 ** (20 if self.octave is None else self.octave / 8) / 1e6


def shape(size: Size) -> float:
    """The logarithm of the published seconds (docs/wire.md, "How long a generation takes")."""
    return math.log(0.063 + 0.483 * size.megapixels)


class Durations:
    """The history of one model."""

    def __init__(self) -> None:
        self._sizes: dict[Size, Histogram] = {}

    def weight(self, size: Size) -> float:
        """Samples of a size's own."""
        own = self._sizes.get(size)
        return own.total if own else 0.0

    def lent(self, size: Size) -> float:
        """What the samples of all other sizes count besides."""
        total = sum(kept.total for other, kept in self._sizes.items() if other != size)
        return total * _share(self.weight(size), total)

    def weights(self) -> list[tuple[Size, dict[int, float]]]:
        """What there is to keep of each size."""
        return [(size, dict(kept.bins)) for size, kept in self._sizes.items() if kept.bins]

    def restore(self, size: Size, bins: dict[int, float]) -> None:
        """Take a size's samples up again."""
        self._sizes[size] = Histogram(bins)

    def add(self, size: Size, low: float, high: float, estimate: Distribution) -> float:
        """Enter a sample that lies between `low` and `high` seconds; say where it lies in the estimate, from 0 to 1."""
        histogram = self._sizes.get(size)
        if histogram is None:
            histogram = self._sizes[size] = Histogram()
        before = estimate.at(low)
        if low >= high:
            histogram.add(low, 1.0)
            return before
        after = estimate.at(high)
        known = 1.0
        if after - before > _UNSURE:
            histogram.add((low + high) / 2, _DOUBT)
            known -= _DOUBT
        for part in range(_PARTS):
            share = (part + 0.5) / _PARTS
            if after - before > _NOTHING:
                seconds = estimate.quantile(before + (after - before) * share)
            else:
                seconds = low + (high - low) * share
            histogram.add(seconds, known / _PARTS)
        return (before + after) / 2

    def fade(self, total: float) -> None:
        """Let each size's history weigh at most this much."""
        for histogram in self._sizes.values():
            histogram.fade(total)

    def distribution(self, size: Size) -> Distribution:
        """What is believed of this size now."""
        own = self._sizes.get(size) or Histogram()
        samples, unsure = self._pooled(size, own)
        total = samples.total
        if total > 0:
            least, low, below, middle, above, high, most = samples.quantiles(*_CHANCES)
            # The narrowest quarter, each against a bell's of width 1: of several modes, it finds the width of one.
            seen = min((below - low) / 0.831, (above - below) / 0.637, (high - above) / 0.831)
        else:
            least = middle = most = shape(size)
            seen = 0.0
        spread = math.sqrt((_SPREAD_SAMPLES * _SPREAD**2 + total * seen**2) / (_SPREAD_SAMPLES + total))
        width = math.hypot(0.9 * spread * max(total, 1.0) ** -0.2, unsure)
        step = min(max(math.hypot(spread, unsure) / 5, (most - least) / 56, BIN), 0.1)
        grid = Grid(middle - _POINTS[0] * step, step, sum(_POINTS))
        masses = grid.smoothed(grid.masses(samples), width) if total > 0 else [0.0] * grid.size
        prior = grid.bell(shape(size), _PRIOR_SPREAD)
        heavy = grid.tail(middle)
        tail = 1.0 / (total + 20.0)
        doubt = 1.0 / (1.0 + total / _PRIOR_SAMPLES)
        kept = (1 - tail) / (total + doubt)
        mixed = [
            kept * (sample + doubt * before) + tail * late
            for sample, before, late in zip(masses, prior, heavy, strict=True)
        ]
        return grid.table(mixed)

    def _pooled(self, size: Size, own: Histogram) -> tuple[Histogram, float]:
        """A size's own samples and what the others lend it, moved to its middle; and how unsure that middle is."""
        others = [(other, kept) for other, kept in self._sizes.items() if other != size and kept.total > 0]
        lent = sum(kept.total for _, kept in others)
        share = _share(own.total, lent)
        if not share:
            return own, 0.0
        middles = {other: kept.quantiles(0.5)[0] for other, kept in [*others, (size, own)] if kept.total > 0}
        middle, variance = self._predict(size, middles)
        pooled = Histogram()
        pooled.bins = dict(own.bins)
        for other, kept in others:
            shift = round((middle - middles[other]) / BIN)
            for place, weight in kept.bins.items():
                pooled.bins[place + shift] = pooled.bins.get(place + shift, 0.0) + weight * share
        pooled.total = own.total + lent * share
        return pooled, math.sqrt(variance * lent * share / pooled.total)

    def _predict(self, size: Size, middles: dict[Size, float]) -> tuple[float, float]:
        """A size's middle in log time and its variance: a line through the middles seen, then its own middle.

        Bayesian regression of (middle - published) on (1, log megapixels), two unknowns, solved by hand.
        """
        level, cross, bend = 1 / _PRIOR_SPREAD**2, 0.0, 1 / _BEND_SPREAD**2
        up, tilt = 0.0, 0.0
        for other, middle in middles.items():
            weight = 1 / (_SPREAD**2 / self._sizes[other].total + _SIZE_SPREAD**2)
            place, above = math.log(other.megapixels), middle - shape(other)
            level += weight
            cross += weight * place
            bend += weight * place * place
            up += weight * above
            tilt += weight * place * above
        scale = level * bend - cross * cross
        place = math.log(size.megapixels)
        line = ((bend * up - cross * tilt) + place * (level * tilt - cross * up)) / scale + shape(size)
        variance = (bend - 2 * place * cross + place * place * level) / scale + _SIZE_SPREAD**2
        if size not in middles:
            return line, variance
        precision = self._sizes[size].total / _SPREAD**2
        known = 1 / variance + precision
        return (line / variance + middles[size] * precision) / known, 1 / known


def _share(own: float, lent: float) -> float:
    """The part of a sample that one of another size counts."""
    return max(1 - own / _OWN, 0.0) * min(1.0, _LENT / lent) if lent else 0.0


_FIRST: Final = 0.15  # seconds a place before any is known: four workers at the published 0.57 s
_PACE_MEMORY: Final = 0.1
_FASTEST, _SLOWEST = 1e-4, 1e4


class QueuePace:
    """Learned from finished waits.

    Attributes:
        seconds: From place to place.
        variance: Of a wait for n places, in units of n * seconds ** 2.
        count: Waits so far, the guess before any included.
    """

    __slots__ = ("count", "seconds", "variance")

    def __init__(self) -> None:
        self.seconds = _FIRST
        self.variance = 1.0
        self.count = 1

    def restore(self, seconds: float, variance: float, count: int) -> None:
        """Go on from what was known."""
        self.seconds, self.variance, self.count = min(max(seconds, _FASTEST), _SLOWEST), variance, count

    def learn(self, queued: Queued, started: float) -> None:
        """Take in that a request which was seen queued started then."""
        if queued.entered_position is None:
            return
        places, waited = _places(queued.entered_position), started - queued.entered
        pace = min(max(waited / places, _FASTEST), _SLOWEST)
        self.count += 1
        rate = max(1 / self.count, _PACE_MEMORY)
        strayed = (waited / self.seconds - places) ** 2 / places
        self.variance += rate * (min(strayed, 9.0) - self.variance)
        self.seconds *= (pace / self.seconds) ** rate

    def window(self, queued: Queued, left: float | None) -> tuple[float, float]:
        """The interval in which it starts; `left`: when the first poll that no longer saw it queued was sent.

        A wait at one place that has lasted long is believed to last as long again, so that a queue that stands still is
        polled ever more rarely.
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


_SLACK: Final = 0.003  # seconds: the wire's times are whole milliseconds
_GAIN: Final = 0.5  # of a contradiction, by which the offset moves
_STEP: Final = 0.002  # seconds that it moves at most, so that one lie does not carry it away,
_SEARCH: Final = 0.030  # and those on top where nothing agrees
_TRUST_MEMORY: Final = 0.05  # of trust
_BELIEVED: Final = 0.7


class ServedTimes:
    """Narrows what polls saw to what the service says, as long as the two agree.

    Attributes:
        trust: The recent part of accounts that agreed, 0 to 1.
    """

    __slots__ = ("_offset", "trust")

    def __init__(self) -> None:
        self._offset: float | None = None
        self.trust = 1.0

    @property
    def believed(self) -> bool:
        """Whether accounts are used at all."""
        return self.trust >= _BELIEVED

    def narrow(self, low: float, high: float, served: float, round_trip: float) -> tuple[float, float]:
        """The part of (low, high] in which the end lies; `round_trip` is that of the poll that saw it."""
        agrees = False
        if 0 <= served < math.inf:
            if self._offset is None:
                self._offset = round_trip
            at = served - self._offset
            within = min(max(at, low), high)
            agrees = abs(at - within) <= _SLACK
            step = _STEP + _SEARCH * (1.0 - self.trust)
            self._offset += min(max(_GAIN * (at - within), -step), step)
            if agrees and self.believed:
                low = high = within
        self.trust += _TRUST_MEMORY * (agrees - self.trust)
        return low, high
