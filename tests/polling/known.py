"""Known distributions for the tests of this folder."""

import math
from statistics import NormalDist

from simulation import tabulate

from flux_klein_async.polling.durations import Distribution

_NORMAL = NormalDist()


def log_normal(median: float, spread: float):
    return lambda seconds: _NORMAL.cdf(math.log(seconds / median) / spread)


def mixed(*parts):
    return lambda seconds: sum(weight * cdf(seconds) for weight, cdf in parts)


# Each with the range that holds all of it.
KNOWN = {
    "log-normal": (log_normal(0.57, 0.15), 0.2, 2.0),
    "stragglers": (mixed((0.97, log_normal(0.57, 0.15)), (0.03, log_normal(2.85, 0.15))), 0.2, 9.0),
    "two modes": (mixed((0.5, log_normal(0.57, 0.15)), (0.5, log_normal(0.19, 0.15))), 0.06, 2.0),
    "exponential": (lambda seconds: 1 - math.exp(-seconds), 1e-3, 30.0),
    "uniform": (lambda seconds: min(max(seconds - 0.5, 0.0), 1.0), 0.4, 1.6),
}


def table(name: str, entries: int) -> Distribution:
    cdf, low, high = KNOWN[name]
    return tabulate(cdf, (low * (high / low) ** (entry / entries) for entry in range(entries + 1)))
