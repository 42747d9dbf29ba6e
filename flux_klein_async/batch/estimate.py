"""How long the generations of a batch take together, before they run."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from flux_klein_async.models import TextToImageInput

__all__ = ["Estimate", "published"]

_SIDES: Final = {name: TextToImageInput.model_fields[name].default for name in ("width", "height")}
_MOST_PIXELS: Final = 65_536  # of a side, in an estimate
_STEPS: Final = 16  # an octave of pixels: sizes within a step differ by less than 5 %


def published(pixels: float) -> float:
    """Seconds of a generation as the vendor publishes them (docs/wire.md), without queue and network."""
    return 0.063 + 0.483 * pixels / 1e6


class Estimate:
    """Sums up generations, in constant memory.

    Args:
        learned: Maps pixels to the seconds of a generation; where it gives None, the published time counts.

    Attributes:
        count: How many there are.
    """

    def __init__(self, learned: Callable[[int], float | None] = lambda _: None) -> None:
        self._learned = lru_cache(maxsize=256)(lambda step: learned(round(2 ** (step / _STEPS))))
        self._total = self._longest = 0.0
        self.count = 0

    def add(self, fields: Mapping[str, Any]) -> None:
        """Count one more generation of this input."""
        pixels = math.prod(_side(fields.get(name), default) for name, default in _SIDES.items())
        learned = self._learned(round(_STEPS * math.log2(pixels)))
        seconds = published(pixels) if learned is None else learned
        self._total += seconds
        self._longest = max(self._longest, seconds)
        self.count += 1

    def seconds(self, concurrency: int) -> float:
        """How long all of them take, `concurrency` at a time."""
        return max(self._total / concurrency, self._longest)


def _side(given: Any, default: int) -> int:
    """A side in pixels; a model without a typed input may mean anything by `width`."""
    return given if type(given) is int and 0 < given <= _MOST_PIXELS else default
