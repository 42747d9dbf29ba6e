"""How fast a queue moves, and between which instants a request in it starts running.

The step from queued to running happens unseen, between two looks. What is known of it is an interval: after the
last look that saw the request queued, where the pace of the queue puts it, before the look that saw it running.
"""

import math
from typing import Final

from flux_klein_async.polling.policies import Queued

__all__ = ["Pace"]

_FIRST: Final = 0.15  # seconds a place before any is known: four workers at the published 0.57 s
_MEMORY: Final = 0.1
_FASTEST, _SLOWEST = 1e-4, 1e4


class Pace:
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
        rate = max(1 / self.count, _MEMORY)
        strayed = (waited / self.seconds - places) ** 2 / places
        self.variance += rate * (min(strayed, 9.0) - self.variance)
        self.seconds *= (pace / self.seconds) ** rate

    def window(self, queued: Queued, left: float | None) -> tuple[float, float]:
        """The interval in which it starts; `left`: when the first look that no longer saw it queued was sent.

        A wait at one place that has lasted long is believed to last as long again, so that a queue that stands still is
        looked at ever more rarely.
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
