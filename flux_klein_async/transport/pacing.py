"""Slowing everybody down: slots for generations, the service's wishes for patience, a ceiling on looks.

Instants are the running loop's. The limiter is a public seam: an application may bring one that is shared between
processes.
"""

import asyncio
from typing import Protocol

from flux_klein_async.api.messages import Kind
from flux_klein_async.options import Limits

__all__ = ["InProcessLimiter", "Limiter"]


class Limiter(Protocol):
    """What the client asks before it calls."""

    async def acquire(self) -> None:
        """Wait for a slot: one generation more in flight."""
        ...

    def release(self) -> None:
        """Give the slot back."""
        ...

    def hold(self, kind: Kind, until: float) -> None:
        """Let no call of this kind go before this instant. Cancels are never held."""
        ...

    def held_until(self, kind: Kind) -> float:
        """The instant before which no call of this kind may go."""
        ...

    async def look(self) -> None:
        """Wait for the turn of one more look. One who gives up while waiting has taken nothing."""
        ...


class InProcessLimiter:
    """The default: fair slots, one hold for each kind of call, looks evenly spread under the ceiling."""

    def __init__(self, limits: Limits) -> None:
        self._slots = asyncio.Semaphore(limits.max_in_flight)
        self._holds: dict[Kind, float] = {}
        self._spacing = 1 / limits.looks_per_second if limits.looks_per_second else 0.0
        self._next_look = float("-inf")
        self._turn = asyncio.Lock()

    async def acquire(self) -> None:
        """Wait for a slot, first come first served."""
        await self._slots.acquire()

    def release(self) -> None:
        """Give the slot back."""
        self._slots.release()

    def hold(self, kind: Kind, until: float) -> None:
        """Remember the latest instant asked for; a shorter wish never shortens a longer one."""
        if kind is not Kind.CANCEL:
            self._holds[kind] = max(until, self.held_until(kind))

    def held_until(self, kind: Kind) -> float:
        """The instant before which no call of this kind may go."""
        return self._holds.get(kind, float("-inf"))

    async def look(self) -> None:
        """Wait for a turn, first come first served; turns are evenly spaced."""
        if not self._spacing:
            return
        loop = asyncio.get_running_loop()
        async with self._turn:
            if (pause := self._next_look - loop.time()) > 0:
                await asyncio.sleep(pause)
            self._next_look = loop.time() + self._spacing
