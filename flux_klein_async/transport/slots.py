"""How much may be under way at once: slots for generations, lanes for connections.

Both are fair queues on one event loop. The slots follow what the service can take; the lanes let looks and results go
before submits, so that a burst of submits does not hide the ends of what was submitted before.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from flux_klein_async.api.messages import Kind

__all__ = ["Lanes", "Slots"]

_SHRINK = 0.5
_GROWTH = 0.1  # of the limit, for as many successes as the limit counts
_ONE_WAVE = 1.0  # seconds in which refusals count as one: they answer calls that left before the first of them came


class Slots:
    """A fair semaphore whose size is halved by a refusal and grows back by a tenth a round, up to `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._taken = 0
        self._shrunk = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many may be held at once at present; those held beyond it are not taken away."""
        return int(self._limit)

    async def acquire(self) -> None:
        """Wait for a slot, first come first served. One who gives up while waiting has taken nothing."""
        if self._taken < self.limit:  # then nobody waits: see _fill
            self._taken += 1
            return
        await _wait_in(self._waiting, self.release)

    def release(self) -> None:
        """Give the slot back."""
        self._taken -= 1
        self._fill()

    def refused(self, now: float) -> None:
        """The service can take no more: half of those in flight, once for each wave of refusals."""
        if now - self._shrunk >= _ONE_WAVE:
            self._shrunk = now
            in_flight = min(self._limit, self._taken or self._most)  # 0: a submit outside of the slots was refused
            self._limit = max(1.0, in_flight * _SHRINK)

    def served(self) -> None:
        """The service took one."""
        if self._limit < self._most:
            self._limit += _GROWTH
            self._fill()

    def _fill(self) -> None:
        """Leave nobody waiting for a slot that is free."""
        while self._taken < self.limit and _wake(self._waiting):
            self._taken += 1


# Who goes first where connections are scarce. A result that is there is worth more than a generation that is not begun.
_RANKS = {Kind.CANCEL: 0, Kind.READ: 0, Kind.FILE: 1, Kind.SUBMIT: 2}


class Lanes:
    """As many as there are connections. Files, which take long, leave a quarter of them to the rest."""

    def __init__(self, connections: int) -> None:
        self._free = connections
        self._free_for_files = connections - connections // 4
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = (deque(), deque(), deque())

    def take(self, kind: Kind) -> bool:
        """Take a lane if one is free."""
        if self._free < 1 or (kind is Kind.FILE and self._free_for_files < 1):
            return False
        self._count(kind, -1)
        return True

    async def wait(self, kind: Kind) -> None:
        """Wait for a lane: cancels and reads, then files, then submits; among equals first come first served."""
        await _wait_in(self._waiting[_RANKS[kind]], lambda: self.leave(kind))

    def leave(self, kind: Kind) -> None:
        """Give the lane back."""
        self._count(kind, 1)
        if not any(self._waiting):
            return
        for waiting, next_kind in zip(self._waiting, (Kind.READ, Kind.FILE, Kind.SUBMIT), strict=True):
            while self._free and (next_kind is not Kind.FILE or self._free_for_files) and _wake(waiting):
                self._count(next_kind, -1)

    def _count(self, kind: Kind, change: int) -> None:
        self._free += change
        if kind is Kind.FILE:
            self._free_for_files += change


async def _wait_in(queue: deque[asyncio.Future[None]], give_back: Callable[[], None]) -> None:
    """Wait to be woken; one who is cancelled in that very instant gives back what it was given."""
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue.append(turn)
    try:
        await turn
    except asyncio.CancelledError:
        if not turn.cancelled():
            give_back()
        raise


def _wake(queue: deque[asyncio.Future[None]]) -> bool:
    """Let the first go who still waits."""
    while queue:
        first = queue.popleft()
        if not first.done():
            first.set_result(None)
            return True
    return False
