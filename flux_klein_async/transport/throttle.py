"""How much may be under way at once: slots for generations, lanes for connections.

Both are fair queues on one event loop. The slots follow what the service can take; the lanes let polls and results go
before submits, so that a burst of submits does not hide the ends of what was submitted before.

Slowing everybody down: slots for generations, the service's wishes for patience, what a poll costs at present.

Instants are the running loop's. The limiter is a public seam: an application may bring one that is shared between
processes.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol, Self

from flux_klein_async.api.messages import Kind
from flux_klein_async.options import Limits

__all__ = ["InProcessLimiter", "Lanes", "Limiter", "PollPrice", "Ramp", "Slot", "Slots"]


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


class Limiter(Protocol):
    """What the client asks before it calls, and tells of what came of it.

    What it raises when it is asked ends the call in a `ConfigurationError`; when it is told, it is logged and ignored.
    """

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

    def admit(self, kind: Kind) -> float:
        """When one more call that is held now should go: at the end of the hold, or gradually after it."""
        ...

    def refused(self, kind: Kind) -> None:
        """The service has too much of this kind of call: slow down."""
        ...

    def served(self, kind: Kind) -> None:
        """A call of this kind was answered: speed up again, gradually."""
        ...

    def poll_price(self) -> float:
        """What a poll costs at present, as a multiple of the usual; 1 or more."""
        ...

    async def poll_turn(self, price: float) -> None:
        """Wait for the turn of one more poll, planned at this price; one who gives up meanwhile has taken nothing."""
        ...


class Slot:
    """One generation's place among those in flight; it may be given back for a while and taken again."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._held = False

    async def __aenter__(self) -> Self:
        await self.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.give()

    async def take(self) -> None:
        """Wait for a slot, unless it is held already."""
        if not self._held:
            await self._limiter.acquire()
            self._held = True

    def give(self) -> None:
        """Give it back, if it is held."""
        if self._held:
            self._held = False
            self._limiter.release()


class Ramp:
    """After a hold, what it held comes back gradually, and all of it within two seconds.

    All would otherwise go in the same instant, and be refused in the next. The k-th call (from 0) goes
    SECONDS * k / (k + HALF) after the hold: half of a second for the first sixteen, then ever closer together. No call
    is put off for longer than that: it would miss its deadline for a wish that the service never had.
    """

    SECONDS = 2.0
    HALF = 50

    def __init__(self, until: float) -> None:
        self.until = until
        self._admitted = 0

    def admit(self) -> float:
        """The instant of the next call."""
        seconds = self.SECONDS * self._admitted / (self._admitted + self.HALF)
        self._admitted += 1
        return self.until + seconds


class PollPrice:
    """One price for all waiters of a client; a schedule stretches with its square root (Keller's rule).

    Two things raise it. A refusal doubles it, and each poll that is answered lowers it by a twentieth: it stays where
    one poll in fourteen is refused, and fewer do not raise it for long. A ceiling on polls a second raises it to where
    the demand meets the ceiling: demand falls with the square root of the price, so that what would be asked for at the
    price 1 can be told from what is asked for now.
    """

    MOST = 1e6
    _MEMORY = 1.0  # seconds over which demand is averaged
    _MOST_REFUSED = 64.0
    _SINKING = 0.95

    def __init__(self, ceiling: float | None) -> None:
        self._ceiling = ceiling
        self._demand = 0.0  # polls a second, at the price 1
        self._counted = 0.0
        self._refusals = 1.0
        self._raised = float("-inf")

    def now(self, now: float) -> float:
        """The price."""
        if self._ceiling is None:
            return self._refusals
        crowding = self._demand * math.exp((self._counted - now) / self._MEMORY) / self._ceiling
        return min(self.MOST, max(1.0, crowding * crowding) * self._refusals)

    def asked(self, now: float, price: float) -> None:
        """One more poll is wanted, planned when the price was this."""
        if self._ceiling is not None:
            faded = self._demand * math.exp((self._counted - now) / self._MEMORY)
            self._demand = faded + math.sqrt(price) / self._MEMORY
            self._counted = now

    def refused(self, now: float) -> None:
        """A poll was refused; refusals within a second count as one."""
        if now - self._raised >= 1.0:
            self._raised = now
            self._refusals = min(self._MOST_REFUSED, 2 * self._refusals)

    def served(self) -> None:
        """A poll was answered."""
        if self._refusals > 1.0:
            self._refusals = max(1.0, self._refusals * self._SINKING)


class InProcessLimiter:
    """The default: slots that follow what the service can take, a hold for each kind of call, one price for polls."""

    def __init__(self, limits: Limits) -> None:
        self._slots = Slots(limits.max_in_flight)
        self._holds: dict[Kind, Ramp] = {}
        self._price = PollPrice(limits.polls_per_second)
        self._spacing = 1 / limits.polls_per_second if limits.polls_per_second else 0.0
        self._next_poll = float("-inf")
        self._turn = asyncio.Lock()

    @property
    def in_flight_limit(self) -> int:
        """How many generations may be in flight at present: `Limits.max_in_flight`, or less after refusals."""
        return self._slots.limit

    async def acquire(self) -> None:
        """Wait for a slot, first come first served."""
        await self._slots.acquire()

    def release(self) -> None:
        """Give the slot back."""
        self._slots.release()

    def hold(self, kind: Kind, until: float) -> None:
        """Remember the latest instant asked for; a shorter wish never shortens a longer one."""
        if kind is not Kind.CANCEL and until > self.held_until(kind):
            self._holds[kind] = Ramp(until)

    def held_until(self, kind: Kind) -> float:
        """The instant before which no call of this kind may go."""
        ramp = self._holds.get(kind)
        return float("-inf") if ramp is None else ramp.until

    def admit(self, kind: Kind) -> float:
        """When one more call that is held now should go."""
        ramp = self._holds.get(kind)
        return float("-inf") if ramp is None else ramp.admit()

    def refused(self, kind: Kind) -> None:
        """Fewer generations in flight, or dearer polls."""
        now = asyncio.get_running_loop().time()
        if kind is Kind.SUBMIT:
            self._slots.refused(now)
        elif kind is Kind.READ:
            self._price.refused(now)

    def served(self, kind: Kind) -> None:
        """A little more again."""
        if kind is Kind.SUBMIT:
            self._slots.served()
        elif kind is Kind.READ:
            self._price.served()

    def poll_price(self) -> float:
        """What a poll costs at present, as a multiple of the usual."""
        return self._price.now(asyncio.get_running_loop().time())

    async def poll_turn(self, price: float) -> None:
        """Wait for a turn, first come first served; turns are evenly spaced."""
        if not self._spacing:
            return
        loop = asyncio.get_running_loop()
        self._price.asked(loop.time(), price)
        async with self._turn:
            if (pause := self._next_poll - loop.time()) > 0:
                await asyncio.sleep(pause)
            self._next_poll = loop.time() + self._spacing
