"""What is known of how long one model's generations take, and the distribution that it amounts to.

A histogram of log time for each picture size, old samples fading. Sizes lend each other what they do not know
themselves: the middle of a size never seen comes from a line through those seen (around the published shape,
docs/wire.md), and the spread around the middle is shared until a size has enough samples of its own. The distribution
is that mixture smoothed by a kernel (of Silverman's width), with a prior that a sample outweighs and a heavy tail that
never goes away.

A sample is mostly known to lie between two looks. It is entered where the present estimate says it lies within them
(the self-consistent estimate: Turnbull 1976), at quantiles of that part. Entered at the look that saw it, the estimate
would drift later and later with its own looking.
"""

import math
from typing import Final, NamedTuple

from flux_klein_async.polling.distribution import Distribution
from flux_klein_async.polling.histogram import BIN, Grid, Histogram

__all__ = ["Durations", "Size", "shape"]

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
_PARTS: Final = 4  # places at which a sample known to lie between two looks is entered
_NOTHING: Final = 1e-6  # chance between two looks below which the estimate says nothing: evenly
# Looks that far apart tell next to nothing, and the estimate would confirm itself for ever: some goes to their middle.
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
