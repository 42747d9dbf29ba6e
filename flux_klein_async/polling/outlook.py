"""One model's history, and for each size the outlook: the distribution and the schedules made from it.

An outlook is worked out again only when enough is new: after every sample at first, then after as many as it was made
from. A change of the service is noticed by the ranks of the samples in the distribution that foretold them.
"""

import math
from typing import Final

from flux_klein_async.polling.distribution import Distribution
from flux_klein_async.polling.durations import Durations, Size
from flux_klein_async.polling.pace import Pace
from flux_klein_async.polling.schedule import Schedule

__all__ = ["History", "Outlook"]

_NEW_AT_MOST: Final = 192.0  # samples after which an outlook is old, however many it was made from
_BORROWING: Final = 4.0  # samples of its own below which other sizes' samples make an outlook old too
_FORGOTTEN: Final = 0.3  # samples that a history weighs after the service has changed
_SCHEDULES: Final = 256
_DEAREST: Final = 1024.0
_FINEST: Final = 0.01  # seconds; a delay that is known better counts as known


class Drift:
    """Notices that samples no longer come from the distribution: their ranks in it should average a half.

    The average reaches back some seven samples. A service that is suddenly twice as slow takes it past the limit at the
    eighth sample; chance, hardly ever.
    """

    __slots__ = ("_level",)

    def __init__(self) -> None:
        self._level = 0.0

    def push(self, rank: float) -> bool:
        """Take in a rank from 0 to 1; whether the service has changed."""
        self._level += 0.15 * (rank - 0.5 - self._level)
        if abs(self._level) < 0.35:
            return False
        self._level = 0.0
        return True


class History:
    """What is known of one model.

    Attributes:
        durations: How long its generations take, by size.
        pace: How fast its queue moves.
        count: Samples so far.
    """

    def __init__(self) -> None:
        self.durations = Durations()
        self.pace = Pace()
        self.count = 0
        self._drift = Drift()
        self._outlooks: dict[Size, Outlook] = {}

    def outlook(self, size: Size) -> "Outlook":
        """The outlook for one size, always the same object."""
        found = self._outlooks.get(size)
        if found is None:
            found = self._outlooks[size] = Outlook(self, size)
        return found

    def notice(self, rank: float) -> None:
        """A sample has come, at this rank of what was believed of its size."""
        self.count += 1
        if self._drift.push(rank):
            self.durations.fade(_FORGOTTEN)
            for outlook in self._outlooks.values():
                outlook.expire()


class Outlook:
    """What is believed of one size."""

    __slots__ = ("_distribution", "_left", "_lent_until", "_schedules", "_size", "history")

    def __init__(self, history: History, size: Size) -> None:
        self.history = history
        self._size = size
        self._schedules: dict[tuple[float, int], Schedule] = {}
        self._distribution: Distribution | None = None
        self._left = 0.0
        self._lent_until = 0.0

    def learn(self, low: float, high: float) -> None:
        """Take in a generation that took between `low` and `high` seconds."""
        rank = self.history.durations.add(self._size, low, high, self.distribution())
        self._left -= 1
        if self._left <= 0:
            self.expire()
        self.history.notice(rank)

    def expire(self) -> None:
        """Work everything out again when it is next asked for."""
        self._distribution = None

    def distribution(self) -> Distribution:
        """Of the seconds that a generation takes."""
        history = self.history
        if self._distribution is None or history.count >= self._lent_until:
            self._distribution = history.durations.distribution(self._size)
            self._schedules.clear()
            own = history.durations.weight(self._size)
            self._left = min(max(1.0, own), _NEW_AT_MOST)
            lent = math.inf if own >= _BORROWING else max(2.0, history.count)
            self._lent_until = history.count + lent
        return self._distribution

    def schedule(self, price: float, dearer: float = 1.0, width: float = 0.0) -> Schedule:
        """The best looks at `price` seconds a look, `dearer` times; after a start anywhere in `width` seconds.

        Both are rounded to half octaves, so that few schedules are made.
        """
        distribution = self.distribution()
        if dearer != 1.0:
            dearer = 2 ** (round(2 * math.log2(min(dearer, _DEAREST))) / 2) if dearer > 1 else 1.0
        steps = max(round(2 * math.log2(width / _FINEST)), 0) if width > _FINEST else 0
        found = self._schedules.get((price * dearer, steps))
        if found is None:
            if steps:
                distribution = distribution.delayed(_FINEST * 2 ** (steps / 2))
            if len(self._schedules) >= _SCHEDULES:
                self._schedules.clear()
            found = self._schedules[price * dearer, steps] = Schedule(distribution, price * dearer)
        return found
