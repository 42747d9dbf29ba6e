"""The service's own account of a generation, `finished_at - created_at`: how far to believe it.

It is measured on the server's clock and from the server's beginning, while looks are timed from when the client knew of
the acceptance. The offset between the two (half a round trip at either end, or whatever the service counts besides)
is learned, and an account that contradicts what the looks saw is not believed.
"""

import math
from typing import Final

__all__ = ["ServedTimes"]

_SLACK: Final = 0.003  # seconds: the wire's times are whole milliseconds
_GAIN: Final = 0.5  # of a contradiction, by which the offset moves
_STEP: Final = 0.002  # seconds that it moves at most, so that one lie does not carry it away,
_SEARCH: Final = 0.030  # and those on top where nothing agrees
_MEMORY: Final = 0.05  # of trust
_BELIEVED: Final = 0.7


class ServedTimes:
    """Narrows what looks saw to what the service says, as long as the two agree.

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
        """The part of (low, high] in which the end lies; `round_trip` is that of the look that saw it."""
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
        self.trust += _MEMORY * (agrees - self.trust)
        return low, high
