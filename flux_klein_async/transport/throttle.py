"""How much may be under way at once: slots for generations, lanes for connections, holds, turns, the price of a poll.

Slots follow what the service can take; lanes let results go first and polls beside submits, so that a burst of submits
does not hide the ends of earlier ones. All instants are the running loop's. Nothing here sends or knows a deadline.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol, Self, TypeAlias, runtime_checkable

from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.api.responses import retry_after
from flux_klein_async.options import Limits

__all__ = [
    "InProcessLimiter",
    "Lanes",
    "Limiter",
    "Pace",
    "PollPrice",
    "Ramp",
    "SharedLimiter",
    "Slot",
    "Slots",
    "obey",
]


_SHRINK = 0.5
_GROWTH = 0.1  # of the limit, for as many successes as it has slots
_ONE_WAVE = 1.0  # seconds in which refusals count as one: they answer calls sent before the first refusal came


class Slots:
    """A fair semaphore whose size is halved by a refusal and grows back by a tenth a round, up to `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._taken = 0
        self._shrunk = -math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many may be held at once now; a smaller limit takes no slot away."""
        return int(self._limit)

    @property
    def taken(self) -> int:
        """How many are held; more than `limit` while those above a smaller limit are not given back."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return sum(not turn.done() for turn in self._waiting)

    def resize(self, limit: int) -> None:
        """Set the limit."""
        self._limit = float(limit)
        self._fill()

    async def acquire(self) -> None:
        """Wait for a slot, first come first served. A cancelled waiter holds no slot."""
        if self._taken < self.limit:  # then nobody waits: see _fill
            self._taken += 1
            return
        await _wait_in(self._waiting, self.release)

    def release(self) -> None:
        """Give the slot back."""
        self._taken -= 1
        self._fill()

    def refused(self, now: float) -> None:
        """Halve what is in flight, once for each wave of refusals."""
        if now - self._shrunk >= _ONE_WAVE:
            self._shrunk = now
            in_flight = min(self._limit, self._taken or self._most)  # 0: a bare submit was refused
            self._limit = max(1.0, in_flight * _SHRINK)

    def served(self) -> None:
        """Grow back a little: the service took one."""
        if self._limit < self._most:
            self._limit += _GROWTH
            self._fill()

    def _fill(self) -> None:
        """Give free slots to those who wait."""
        while self._taken < self.limit and _wake(self._waiting):
            self._taken += 1


_Line: TypeAlias = deque[asyncio.Future[None]]
_URGENT = (Kind.READ, Kind.CANCEL)


class Lanes:
    """One lane for each connection.

    A tenth of them is kept for what is small and urgent: cancels, polls and results never wait for slow submits or
    files. Another tenth is kept from files, which take long, for submits. Of few connections at least one is kept.

    Where calls wait, cancels and results go first: a picture that is ready is worth more than a poll, which may find
    none. Then polls and submits get as many seconds as each other: if polls went first, the last generations would
    begin late, and if submits went first, the first pictures would be seen late. Files go before submits.
    """

    def __init__(self, connections: int) -> None:
        kept = max(connections // 10, 1)
        self._connections = connections
        self._of_read = self._of_submit = 0.0  # seconds that the last one held its connection
        self._free = connections
        self._free_for_submits = max(connections - kept, 1)  # for submits and files together
        self._free_for_files = max(connections - 2 * kept, 1)
        self._urgent: _Line = deque()
        self._polls: _Line = deque()
        self._files: _Line = deque()
        self._submits: _Line = deque()
        urgent, polls, files = (self._urgent, Kind.READ), (self._polls, Kind.READ), (self._files, Kind.FILE)
        submits = (self._submits, Kind.SUBMIT)
        self._polls_first = (urgent, polls, files, submits)
        self._submits_first = (urgent, files, submits, polls)
        self._ahead = 0.0  # seconds that polls got more than submits, since both wait

    @property
    def delay(self) -> float:
        """Seconds that one more poll takes from the calls that wait for a connection, all together."""
        waiting = len(self._urgent) + len(self._polls) + len(self._files) + len(self._submits)
        return (self._of_read or self._of_submit) * waiting / self._connections

    def take(self, kind: Kind) -> bool:
        """Take a lane if one is free."""
        if not self._is_free(kind):
            return False
        self._count(kind, -1)
        return True

    def _is_free(self, kind: Kind) -> bool:
        """Whether a call of this kind may have one more lane."""
        if kind is Kind.FILE and self._free_for_files < 1:
            return False
        return self._free > 0 and (kind in _URGENT or self._free_for_submits > 0)

    async def wait(self, kind: Kind, *, poll: bool = False) -> None:
        """Wait for a lane; among equals first come first served."""
        bulk = self._files if kind is Kind.FILE else self._submits
        line = bulk if kind not in _URGENT else self._polls if poll else self._urgent
        await _wait_in(line, lambda: self.leave(kind))

    def leave(self, kind: Kind, seconds: float | None = None) -> None:
        """Give the lane back, after a call that held its connection for so many seconds."""
        if seconds is not None and kind is Kind.READ:
            self._of_read = seconds
        elif seconds is not None and kind is Kind.SUBMIT:
            self._of_submit = seconds
        self._count(kind, 1)
        while self._give():
            pass

    def _give(self) -> bool:
        """Give a free lane to the next in line, if there are both; whether there were."""
        if not (self._polls and self._submits):
            self._ahead = 0.0
        for line, kind in self._submits_first if self._ahead > 0 else self._polls_first:
            if line and self._is_free(kind) and _wake(line):
                self._count(kind, -1)
                if line is self._polls:
                    self._ahead += self._of_read
                elif line is self._submits:
                    self._ahead -= self._of_submit
                return True
        return False

    def _count(self, kind: Kind, change: int) -> None:
        self._free += change
        if kind not in _URGENT:
            self._free_for_submits += change
        if kind is Kind.FILE:
            self._free_for_files += change


async def _wait_in(queue: deque[asyncio.Future[None]], give_back: Callable[[], None]) -> None:
    """Wait to be woken; if cancelled in that very instant, give back what was given."""
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue.append(turn)
    try:
        await turn
    except asyncio.CancelledError:
        if not turn.cancelled():
            give_back()
        raise


def _wake(queue: deque[asyncio.Future[None]]) -> bool:
    """Wake the first that still waits, if any."""
    while queue:
        first = queue.popleft()
        if not first.done():
            first.set_result(None)
            return True
    return False


class Limiter(Protocol):
    """What the client asks before a call, and tells what came of it. Yours may be shared between processes.

    What `acquire`, `held_until`, `admit`, `poll_price` and `turn` raise ends the call in a `ConfigurationError`;
    what the others raise is logged and ignored.
    """

    async def acquire(self) -> None:
        """Wait for a slot: one more generation in flight."""

    def release(self) -> None:
        """Give the slot back."""

    def hold(self, kind: Kind, until: float) -> None:
        """Let no call of this kind go before this instant. Cancels are never held."""

    def held_until(self, kind: Kind) -> float:
        """The instant before which no call of this kind may go."""

    def admit(self, kind: Kind) -> float:
        """The instant when one more held call may go: at the end of the hold, or gradually after it."""

    def refused(self, kind: Kind) -> None:
        """Slow down: the service refused a call of this kind for now."""

    def served(self, kind: Kind) -> None:
        """Speed up again, gradually: a call of this kind was answered."""

    def poll_price(self) -> float:
        """What a poll costs now, as a multiple of the usual; 1 or more."""

    async def turn(self, kind: Kind, price: float = 1.0) -> None:
        """Wait for the turn of one more submit, or of one more poll, planned at this price.

        A cancelled waiter takes no turn.
        """

    def over(self, kind: Kind) -> None:
        """A submit or a poll that had its turn has ended, with or without an answer."""


@runtime_checkable
class SharedLimiter(Limiter, Protocol):
    """A limiter that has connections and tasks of its own: open from its first client's first call to its last's end.

    Attributes:
        limits: What else each of its clients is to keep to: connections, sizes, hosts.
    """

    limits: Limits

    def attach(self, tell: Callable[[str | None], None]) -> None:
        """A client begins to use it, in the running loop. `tell` receives why it is unavailable, or None: it is again.

        Raises:
            ConfigurationError: It is in use in another loop.
        """

    async def detach(self, tell: Callable[[str | None], None]) -> None:
        """The client is closed."""


def obey(limiter: Limiter, kind: Kind, response: Response, now: float) -> float:
    """Slow down at a refusal, and hold calls of its kind for as long as it asks; the seconds of the hold.

    Cancels are never held.
    """
    seconds = retry_after(response.headers, response.status)
    # Wider than `refused_for_now`: to slow down is always harmless, to repeat a submit is not.
    if response.status == 429 or (response.status == 503 and seconds is not None):
        limiter.refused(kind)
    if not seconds or kind is Kind.CANCEL:
        return 0.0
    limiter.hold(kind, now + seconds)
    return seconds


class Slot:
    """One generation's slot (`async with`); it may be given back for a while and taken again.

    Attributes:
        held: Whether it is held now.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self.held = False

    async def __aenter__(self) -> Self:
        await self.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.give()

    async def take(self) -> None:
        """Wait for a slot, unless it is held already."""
        if not self.held:
            await self._limiter.acquire()
            self.held = True

    def give(self) -> None:
        """Give it back, if it is held."""
        if self.held:
            self.held = False
            self._limiter.release()


class Ramp:
    """Lets held calls go gradually after the hold, all of them within two seconds.

    Otherwise all go in the same instant, and are refused in the next. The k-th call (from 0) goes
    SECONDS * k / (k + HALF) after the hold: the first sixteen take half a second, then they come ever closer together.
    A longer delay could cost a call its deadline, for a pause that the service did not ask for.
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
    """One price for all polls of a client; a schedule stretches with its square root (Keller's rule).

    A refusal doubles it, and each answered poll lowers it by a twentieth: it is stable where one poll in fourteen is
    refused. A ceiling on polls a second raises it to where the demand meets the ceiling. Demand falls with the square
    root of the price, so that the demand at the price 1 follows from the demand now.
    """

    MOST = 1e6
    _MEMORY = 1.0  # seconds over which demand is averaged
    _MOST_REFUSED = 64.0
    _SINKING = 0.95

    def __init__(self, ceiling: float | None) -> None:
        self.ceiling = ceiling
        self._demand = 0.0  # polls a second, at the price 1
        self._counted = 0.0
        self.refusals = 1.0
        self._raised = -math.inf

    def now(self, now: float) -> float:
        """The price."""
        if self.ceiling is None:
            return self.refusals
        crowding = self._demand * math.exp((self._counted - now) / self._MEMORY) / self.ceiling
        return min(self.MOST, max(1.0, crowding * crowding) * self.refusals)

    def asked(self, now: float, price: float) -> None:
        """Count the demand for one more poll, planned at this price."""
        if self.ceiling is not None:
            faded = self._demand * math.exp((self._counted - now) / self._MEMORY)
            self._demand = faded + math.sqrt(price) / self._MEMORY
            self._counted = now

    def refused(self, now: float) -> None:
        """Double the price; refusals within a second count as one."""
        if now - self._raised >= 1.0:
            self._raised = now
            self.refusals = min(self._MOST_REFUSED, 2 * self.refusals)

    def served(self) -> None:
        """Lower the price: a poll was answered."""
        if self.refusals > 1.0:
            self.refusals = max(1.0, self.refusals * self._SINKING)


class Pace:
    """Turns, first come first served, evenly spaced: at most so many a second; 0: none for now. None: no limit.

    The limit holds in any second of the service's own count, although not all calls travel equally long. A turn counts
    until a second after its call must have arrived: after its end, less the shortest time that a call takes. A call
    that takes LATEST seconds more than that counts as arrived.

    A turn that a busy loop gives late does not put off those after it, except by what exceeds CATCH_UP seconds.
    """

    LATEST = 1.0
    CATCH_UP = 0.25
    _MEMORY = 30.0  # seconds, twice, in which the shortest time is looked for: the route may change

    def __init__(self, per_second: float | None) -> None:
        self.per_second = per_second
        self.waiting = 0
        self._last = -math.inf  # when the last turn was due
        self._not_before = -math.inf
        self._under_way: deque[float] = deque()  # turns whose calls have not ended
        self._ended: deque[float] = deque()  # ends of calls that still count
        self._shortest = self._shortest_before = math.inf  # seconds from turn to end
        self._shortest_since = -math.inf
        self._line = asyncio.Lock()
        self._alarm: asyncio.Future[None] | None = None

    def change(self, per_second: float, not_before: float = -math.inf) -> None:
        """Set another rate; the next turn comes no earlier than `not_before`."""
        self.per_second = per_second
        self._not_before = not_before
        self._ring()

    def over(self, now: float) -> None:
        """One of the calls ended; which one makes no difference to how many have arrived."""
        if self._under_way:
            if now - self._shortest_since > self._MEMORY:
                self._shortest_before, self._shortest, self._shortest_since = self._shortest, math.inf, now
            self._shortest = min(self._shortest, now - self._under_way.popleft())
            self._ended.append(now)
            if len(self._ended) == 1:
                self._ring()

    def _due(self, now: float) -> float:
        """When the next turn is due, as far as is known."""
        if not self.per_second:
            return math.inf
        usual = min(self._shortest, self._shortest_before)
        usual = 0.9 * usual if usual < math.inf else 0.0  # the shortest that was seen was delayed a little, too
        longest, counts = usual + self.LATEST, max(1 - usual, 0.0)
        while self._under_way and self._under_way[0] <= now - longest:
            self._ended.append(self._under_way.popleft() + longest)
        while self._ended and self._ended[0] <= now - counts:
            self._ended.popleft()
        due = max(self._last + 1 / self.per_second, self._not_before)
        if len(self._under_way) + len(self._ended) < math.ceil(self.per_second):
            return due
        return max(due, self._ended[0] + counts if self._ended else self._under_way[0] + longest)

    def _ring(self) -> None:
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    async def turn(self) -> None:
        """Wait for a turn; without a limit, do not ask. A cancelled waiter takes none."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        self.waiting += 1
        try:
            async with self._line:
                while (due := self._due(now := loop.time())) > now:
                    self._alarm = loop.create_future()
                    timer = None if due == math.inf else loop.call_at(due, self._ring)
                    try:
                        await self._alarm
                    finally:
                        if timer is not None:
                            timer.cancel()
                self._last = max(due, arrived, now - self.CATCH_UP)
                self._under_way.append(now)
        finally:
            self.waiting -= 1


class InProcessLimiter:
    """The default: slots that follow what the service can take, holds and a pace for each kind, one price for polls."""

    def __init__(self, limits: Limits) -> None:
        self._slots = Slots(limits.max_in_flight)
        self._holds: dict[Kind, Ramp] = {}
        self._price = PollPrice(limits.polls_per_second)
        self._paces = {Kind.SUBMIT: Pace(limits.submits_per_second), Kind.READ: Pace(limits.polls_per_second)}

    @property
    def in_flight_limit(self) -> int:
        """How many generations may be in flight now: `Limits.max_in_flight`, or fewer after refusals."""
        return self._slots.limit

    async def acquire(self) -> None:
        """Wait for a slot, first come first served."""
        await self._slots.acquire()

    def release(self) -> None:
        """Give the slot back."""
        self._slots.release()

    def hold(self, kind: Kind, until: float) -> None:
        """Keep the latest instant asked for; a shorter hold never shortens a longer one."""
        if kind is not Kind.CANCEL and until > self.held_until(kind):
            self._holds[kind] = Ramp(until)

    def held_until(self, kind: Kind) -> float:
        """The instant before which no call of this kind may go."""
        ramp = self._holds.get(kind)
        return -math.inf if ramp is None else ramp.until

    def admit(self, kind: Kind) -> float:
        """The instant when one more held call may go."""
        ramp = self._holds.get(kind)
        return -math.inf if ramp is None else ramp.admit()

    def refused(self, kind: Kind) -> None:
        """Fewer generations in flight, or a higher price of polls."""
        now = asyncio.get_running_loop().time()
        if kind is Kind.SUBMIT:
            self._slots.refused(now)
        elif kind is Kind.READ:
            self._price.refused(now)

    def served(self, kind: Kind) -> None:
        """A little more of both again."""
        if kind is Kind.SUBMIT:
            self._slots.served()
        elif kind is Kind.READ:
            self._price.served()

    def poll_price(self) -> float:
        """What a poll costs now, as a multiple of the usual."""
        price = self._price
        return price.refusals if price.ceiling is None else price.now(asyncio.get_running_loop().time())

    async def turn(self, kind: Kind, price: float = 1.0) -> None:
        """Wait for the turn of a submit or a poll."""
        pace = self._paces[kind]
        if pace.per_second is None:
            return
        if kind is Kind.READ:
            self._price.asked(asyncio.get_running_loop().time(), price)
        await pace.turn()

    def over(self, kind: Kind) -> None:
        """The call has arrived at the service by now."""
        pace = self._paces[kind]
        if pace.per_second is not None:
            pace.over(asyncio.get_running_loop().time())
