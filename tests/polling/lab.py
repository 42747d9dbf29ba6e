"""The simulator of `benchmarks/polling_lab.py`, and known distributions for the tests of this folder."""

import importlib.util
import math
import sys
from pathlib import Path
from statistics import NormalDist

from flux_klein_async.polling.durations import Distribution

_PATH = Path(__file__).parents[2] / "benchmarks" / "polling_lab.py"
_SPEC = importlib.util.spec_from_file_location("polling_lab", _PATH)
lab = importlib.util.module_from_spec(_SPEC)
sys.modules["polling_lab"] = lab
_SPEC.loader.exec_module(lab)

_BELL = NormalDist()


def bell(median: float, spread: float):
    return lambda seconds: _BELL.cdf(math.log(seconds / median) / spread)


def mixed(*parts):
    return lambda seconds: sum(weight * cdf(seconds) for weight, cdf in parts)


# Each with the range that holds all of it, and by how much a step of its table grows.
KNOWN = {
    "log-normal": (bell(0.57, 0.15), 0.2, 2.0),
    "stragglers": (mixed((0.97, bell(0.57, 0.15)), (0.03, bell(2.85, 0.15))), 0.2, 9.0),
    "two modes": (mixed((0.5, bell(0.57, 0.15)), (0.5, bell(0.19, 0.15))), 0.06, 2.0),
    "exponential": (lambda seconds: 1 - math.exp(-seconds), 1e-3, 30.0),
    "uniform": (lambda seconds: min(max(seconds - 0.5, 0.0), 1.0), 0.4, 1.6),
}


def table(name: str, entries: int) -> Distribution:
    cdf, low, high = KNOWN[name]
    return Distribution.of(cdf, [low * (high / low) ** (entry / entries) for entry in range(entries + 1)])
