"""How long many generations will take, before the first is paid for. Pure."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flux_klein_async.models import TextToImageInput

__all__ = ["Estimate", "published"]


# docs/wire.md, "How long a generation takes": on the machine for which the vendor publishes times.
_SECONDS: Final = 0.063
_SECONDS_PER_MEGAPIXEL: Final = 0.483
_BUCKETS: Final = 16  # an octave of pixels: sizes in one differ by less than 5 %
_SIDES: Final = {name: TextToImageInput.model_fields[name].default for name in ("width", "height")}


def published(pixels: float) -> float:
    """Seconds of a generation as published, without queue and network."""
    return _SECONDS + _SECONDS_PER_MEGAPIXEL * pixels / 1e6


@dataclass(slots=True)
class _Bucket:
    count: int = 0
    pixels: int = 0


class Estimate:
    """Counts generations by size, in constant memory.

    Args:
        expected: Seconds of a generation of so many pixels, as learned; None for what it does not know, and for those
            the published times are taken.

    Attributes:
        count: How many there are.
    """

    def __init__(self, expected: Callable[[int], float | None] | None = None) -> None:
        self._expected = expected
        self._buckets: dict[int, _Bucket] = {}
        self.count = 0

    def add(self, fields: Mapping[str, Any]) -> None:
        """One more, of this input."""
        width, height = (fields.get(name, default) for name, default in _SIDES.items())
        pixels = width * height
        bucket = self._buckets.setdefault(round(_BUCKETS * math.log2(pixels)), _Bucket())
        bucket.count += 1
        bucket.pixels += pixels
        self.count += 1

    def seconds(self, concurrency: int) -> float:
        """How long all of them take, so many at once: none waits for another longer than it must."""
        total = longest = 0.0
        for bucket in self._buckets.values():
            each = self._each(bucket.pixels / bucket.count)
            total += bucket.count * each
            longest = max(longest, each)
        return max(total / concurrency, longest)

    def _each(self, pixels: float) -> float:
        learned = None if self._expected is None else self._expected(round(pixels))
        return published(pixels) if learned is None else learned
