"""How long the emulated service takes for one generation.

Pure: the random source is an argument.
"""

import math
import random
import re
from contextlib import suppress
from dataclasses import dataclass, replace

__all__ = ["Profile", "parse_profile"]

_QUEUE_WORKERS = "4"
_WORKERS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Profile:
    """How long generations take, and how many run side by side.

    Attributes:
        name: What to call it.
        base: Seconds of every generation.
        per_megapixel: Seconds added for each million pixels.
        spread: Standard deviation of the logarithm of the seconds; 0: none.
        workers: How many run side by side; None: no limit.
    """

    name: str
    base: float
    per_megapixel: float = 0.0
    spread: float = 0.0
    workers: int | None = None

    def duration(self, rng: random.Random, width: int, height: int) -> float:
        """Draw the seconds that a picture of this size takes; log-normal, so never negative."""
        seconds = self.base + self.per_megapixel * width * height / 1e6
        return seconds * rng.lognormvariate(0.0, self.spread) if self.spread else seconds


# Published for FLUX.2 [klein] 4B in 4 steps on one H100: 0.19 s at 512x512 and 0.57 s at 1024x1024.
# The straight line through both points, with a megapixel of 1e6 pixels.
_KLEIN = Profile("klein", base=0.063, per_megapixel=0.483, spread=0.15)


def parse_profile(text: str) -> Profile:
    """Read `klein`, `queue`, `queue:WORKERS` or `fixed:SECONDS`.

    Raises:
        ValueError: The text has none of these forms.
    """
    name, colon, value = text.strip().partition(":")
    if name == "klein" and not colon:
        return _KLEIN
    if name == "queue" and _WORKERS.fullmatch(value if colon else _QUEUE_WORKERS):
        return replace(_KLEIN, name=name, workers=int(value or _QUEUE_WORKERS))
    if name == "fixed":
        with suppress(ValueError):
            if math.isfinite(seconds := float(value)) and seconds >= 0:
                return Profile(name, seconds)
    forms = "'klein', 'queue', 'queue:WORKERS' or 'fixed:SECONDS', such as 'fixed:0.5'"
    raise ValueError(f"no latency profile {text!r}: write {forms}")
