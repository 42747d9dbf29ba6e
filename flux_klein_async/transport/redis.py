"""One account's limits for all its processes, on any number of machines, kept in Redis.

Each process has a part of every limit, which it uses without asking: `throttle` does that as for one process alone. A
task renews the part a few times a second, and `limiter.lua`, which runs on the server, says how large it is. What a
process does not use, others get; what a killed process had, they get when its lease ends.
"""

import asyncio
import json
import logging
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from typing import Any, Literal, Protocol

from flux_klein_async.api.credentials import Secret
from flux_klein_async.api.messages import Kind
from flux_klein_async.errors import ConfigurationError
from flux_klein_async.misuse import named_arguments
from flux_klein_async.options import Limits
from flux_klein_async.transport.throttle import InProcessLimiter, Slots

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, NoPermissionError
except ImportError as error:  # pragma: no cover  # the tests' environment has it
    raise ImportError("RedisLimiter needs an extra: pip install 'flux_klein_async[redis]'") from error

__all__ = ["RedisLimiter", "Server"]

log = logging.getLogger("flux_klein_async")

LEASE = 5.0  # seconds that a process keeps its part without renewing it
_SETTLE = 0.3  # seconds in which a server without data gives nothing away: three beats of processes that may know more
_BEAT = 0.1  # seconds between renewals of a process that has something to do
_IDLE_BEAT = 1.0
_GAP = 0.01  # the least, however often something happens
_RETRY = 0.25
_FAREWELL = 0.2
_PATIENCE = 1.0  # seconds for an answer of the server
_NAMES = {Kind.SUBMIT: "submit", Kind.READ: "read"}
_UNKNOWN_RATE = 1.0  # submits or polls a second of a process that never reached the server


class Server(Protocol):
    """What the limiter needs of a server."""

    async def exchange(self, report: str) -> str:
        """Run the script."""
        ...

    def news(self) -> AsyncIterator[None]:
        """Iterate over the moments in which another process reports a hold or a refusal."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""


class _RedisServer:
    def __init__(self, url: Secret, account: str) -> None:
        # One repeat, at once: a server that was restarted has closed the connection.
        retry = Retry(NoBackoff(), 1)
        self._client = Redis.from_url(
            url.text, decode_responses=True, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE, retry=retry
        )
        # The braces keep the keys on one node of a cluster.
        self._keys = [f"flux_klein:{{{account}}}:{name}" for name in ("leases", "parts", "state")]
        self._script = self._client.register_script(script())

    async def exchange(self, report: str) -> str:
        return str(await self._script(keys=self._keys, args=[report]))

    async def news(self) -> AsyncIterator[None]:
        async with self._client.pubsub() as subscription:
            await subscription.subscribe(self._keys[2])
            while True:
                if await subscription.get_message(ignore_subscribe_messages=True, timeout=None):
                    yield

    async def aclose(self) -> None:
        await self._client.aclose()


def script() -> str:
    """The text of `limiter.lua`."""
    return files(__package__).joinpath("limiter.lua").read_text(encoding="utf-8")


@named_arguments({})
class RedisLimiter(InProcessLimiter):
    """The limits of one account, shared by all processes that name it: `FluxKleinClient(limits=RedisLimiter(...))`.

    Slots and turns are divided evenly between the processes that want any; what one does not need, others get. A call
    costs no round trip, apart from the first after a pause. Every process feels a `Retry-After`, a refusal and the
    price of a poll within 0.2 s. Redis holds no money and no request: if it loses its data, nothing else is lost.

    The limits may be exceeded in one case: a process that does not renew its lease for 5 s (killed, suspended, cut off)
    loses its part to others, while its generations may still run at the service and its polls go on. By at most that
    part, and until they end; it submits nothing more before it has renewed. Where `polls_per_second` or
    `submits_per_second` is less than twenty for each process, one second may have one turn more for each process.

    Both hold for any second of the service's own count, if no call takes more than 1 s longer than the others: a turn
    counts until a second after its call must have arrived.

    It opens with its first client's first call, in that loop, and closes with its last client.

    Args:
        url: `redis://`, `rediss://` or `unix://`, with password and database where needed.
        account: Processes with the same name share the limits.
        max_in_flight: Generations in flight, of all processes together.
        polls_per_second: Ceiling for the polls of all processes together, or None.
        submits_per_second: Ceiling for their submits, or None.
        when_unavailable: When Redis does not answer, "stop" submits nothing until it does; "share" goes on with an even
            part of the limits between the processes last known. Requests that run are waited for in both cases.
        limits: What a process has for itself: `max_connections`, sizes, hosts, `halt_after`. None: `Limits()`.

    Raises:
        ConfigurationError: An unusable URL or limit.
    """

    def __init__(
        self,
        url: str,
        *,
        account: str = "default",
        max_in_flight: int,
        polls_per_second: float | None = None,
        submits_per_second: float | None = None,
        when_unavailable: Literal["stop", "share"] = "stop",
        limits: Limits | None = None,
    ) -> None:
        self._url, url = Secret(url), ""  # no traceback's variable holds the password
        self._account = account
        if when_unavailable not in ("stop", "share"):
            raise ConfigurationError('when_unavailable must be "stop" or "share"')
        self.limits = replace(
            limits or Limits(),
            max_in_flight=max_in_flight,
            polls_per_second=polls_per_second,
            submits_per_second=submits_per_second,
        )
        self._shares = when_unavailable == "share"
        self._clients: list[Callable[[str | None], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            self._server()
        except Exception:  # noqa: BLE001  # its text and its frames may hold a piece of the password
            usable = False
        else:
            usable = True
        if not usable:
            raise ConfigurationError("RedisLimiter needs a URL such as redis://host:6379/0")

    def __repr__(self) -> str:
        if not hasattr(self, "limits"):
            return "<RedisLimiter not made>"
        return f"RedisLimiter(account={self._account!r}, max_in_flight={self.limits.max_in_flight})"

    def _server(self) -> Server:
        return _RedisServer(self._url, self._account)

    # --- opening and closing

    def attach(self, tell: Callable[[str | None], None]) -> None:
        """Open it with the first client. `tell` receives why Redis is unavailable, or None: it is available again.

        Raises:
            ConfigurationError: It is in use in another loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._clients and self._loop is not None and not self._loop.is_closed():
                raise ConfigurationError(
                    "This RedisLimiter is in use in another event loop, or was before a fork: make one for each"
                )
            self._clients = []
        if not self._clients:
            self._open(loop)
        self._clients.append(tell)

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(self.limits)
        self._loop = loop
        self._process, self._epoch = secrets.token_hex(8), ""
        self._slots = Slots(self.limits.max_in_flight)
        self._slots.resize(0)
        for pace in self._paces.values():
            if pace.per_second is not None:
                pace.change(0.0)
        self._shared_price = 1.0
        self._fair = {"in_flight": 1.0, **dict.fromkeys(self._rates(), _UNKNOWN_RATE)}
        self._served: Counter[Kind] = Counter()
        self._refused: set[Kind] = set()
        self._asked: Counter[Kind] = Counter()
        self._recent = dict.fromkeys(_NAMES, 0.0)  # turns asked for in about the last second
        self._demand = 0.0
        self._reported = loop.time()
        self._tells_holds = False
        self._lease_ends = -math.inf
        self._usable = asyncio.Event()
        self._wake = asyncio.Event()
        self._unavailable: str | None = None
        self._refusal: str | None = None  # why the credentials are refused for good
        server = self._server()
        self._tasks = [loop.create_task(self._renew(server)), loop.create_task(self._listen(server))]

    async def detach(self, tell: Callable[[str | None], None]) -> None:
        """Close it with the last client: its part goes to other processes at once."""
        if tell in self._clients:
            self._clients.remove(tell)
            if not self._clients:
                left = set(self._tasks)
                while left:
                    for task in left:
                        task.cancel()
                    # Again, for a task that goes on: redis-py may end a cancelled call with an answer or an error.
                    _, left = await asyncio.wait(left, timeout=2 * _FAREWELL)

    # --- what a client asks, and tells

    async def acquire(self) -> None:
        """Wait for a slot, first come first served in this process."""
        if self._slots.taken >= self._slots.limit and not self._slots.waiting:
            self._wake.set()
        await super().acquire()

    def release(self) -> None:
        """Give the slot back; to another process, if this one has more than its part."""
        if self._slots.taken > self._slots.limit:
            self._wake.set()
        super().release()

    def hold(self, kind: Kind, until: float) -> None:
        """Keep the latest instant asked for, in every process."""
        super().hold(kind, until)
        self._tells_holds = True
        self._wake.set()

    def refused(self, kind: Kind) -> None:
        """Slow down: here at once, and in every process."""
        if kind is not Kind.SUBMIT or self._slots.limit > 1:
            super().refused(kind)
        self._refused.add(kind)
        self._wake.set()

    def served(self, kind: Kind) -> None:
        """Speed up again, gradually."""
        if kind is Kind.READ:
            super().served(kind)
        self._served[kind] += 1

    def poll_price(self) -> float:
        """What a poll costs now in every process, as a multiple of the usual."""
        return max(self._shared_price, super().poll_price())

    async def turn(self, kind: Kind, price: float = 1.0) -> None:
        """Wait for the turn of a submit or a poll, and a submit for Redis.

        Raises:
            ConfigurationError: Redis refuses the credentials.
        """
        self._asked[kind] += 1
        if kind is Kind.READ:
            self._demand += math.sqrt(price)
        if self._paces[kind].per_second == 0:
            self._wake.set()
        await super().turn(kind, price)
        while kind is Kind.SUBMIT and not self._may_submit():
            self._wake.set()
            await self._usable.wait()

    def _may_submit(self) -> bool:
        if self._refusal is not None:  # a new error for each submit: one that is raised twice mixes up their tracebacks
            raise ConfigurationError("Redis refuses the limiter's credentials", cause=self._refusal)
        if self._unavailable is None and asyncio.get_running_loop().time() >= self._lease_ends:
            self._usable.clear()  # this process was suspended, or has just begun
        return self._usable.is_set()

    # --- the part of this process

    async def _renew(self, server: Server) -> None:
        """Renew the lease until the last client is closed."""
        try:
            while self._refusal is None:
                self._wake.clear()
                report = self._report()
                sent = asyncio.get_running_loop().time()
                try:
                    reply = json.loads(await server.exchange(json.dumps(report)))
                except (AuthenticationError, NoPermissionError) as error:
                    self._lost(error, final=not self._epoch)
                except Exception as error:  # noqa: BLE001  # whatever it is, requests that run are waited for
                    self._lost(error)
                else:
                    self._apply(report["may"], reply, sent)
                await self._pause(idle=not any(report["want"].values()) and not any(self._may().values()))
        finally:
            with suppress(Exception):
                async with asyncio.timeout(_FAREWELL):
                    await server.exchange(json.dumps({"process": self._process, "leaves": True}))
            await server.aclose()

    async def _pause(self, *, idle: bool) -> None:
        """Wait for the next renewal."""
        if self._unavailable is not None:
            await asyncio.sleep(_RETRY)
            return
        await asyncio.sleep(_GAP)
        with suppress(TimeoutError):
            async with asyncio.timeout((_IDLE_BEAT if idle else _BEAT) - _GAP):
                await self._wake.wait()

    async def _listen(self, server: Server) -> None:
        """Renew at once when another process has news; what is missed, the next renewal brings."""
        while True:
            with suppress(Exception):
                async for _ in server.news():
                    self._wake.set()
            await asyncio.sleep(_IDLE_BEAT)

    def _rates(self) -> dict[str, float]:
        """The limits on turns a second, where there are any."""
        rates = {"submit": self.limits.submits_per_second, "read": self.limits.polls_per_second}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _may(self) -> dict[str, float]:
        """What this process uses, or may use without asking."""
        rates = {name: self._paces[kind].per_second for kind, name in _NAMES.items()}
        return {
            "in_flight": max(self._slots.limit, self._slots.taken),
            **{n: r for n, r in rates.items() if r is not None},
        }

    def _report(self) -> dict[str, Any]:
        """What happened since the last report, and what is wanted now."""
        now = asyncio.get_running_loop().time()
        fading = math.exp(self._reported - now)
        self._reported = now
        want: dict[str, float] = {"in_flight": self._slots.taken + self._slots.waiting}
        for kind, name in _NAMES.items():
            self._recent[kind] = recent = self._recent[kind] * fading + self._asked.pop(kind, 0)
            waiting = self._paces[kind].waiting
            # Twice as much as lately, so that a burst need not ask first.
            want[name] = 2 * recent + 5 * waiting if recent > 0.2 or waiting else 0.0
        holds = {kind.value: ramp.until - now for kind, ramp in self._holds.items() if ramp.until > now}
        report = {
            "process": self._process,
            "epoch": self._epoch,
            "lease": LEASE,
            "settle": _SETTLE,
            "limits": {"in_flight": self.limits.max_in_flight, **self._rates()},
            "may": self._may(),
            "want": {name: want[name] for name in self._may()},
            "taken": self._slots.taken,
            "demand": self._demand,
            "served": {kind.value: count for kind, count in self._served.items()},
            "refused": {kind.value: True for kind in self._refused},
            "holds": holds if self._tells_holds else {},
        }
        self._served, self._refused, self._tells_holds, self._demand = Counter(), set(), False, 0.0
        return report

    def _apply(self, reported: dict[str, float], reply: dict[str, Any], sent: float) -> None:
        """Take the part that the server gave."""
        now = asyncio.get_running_loop().time()
        parts = reply["parts"]
        self._epoch, self._lease_ends, self._shared_price = reply["epoch"], sent + LEASE, reply["price"]
        limits = {"in_flight": float(self.limits.max_in_flight), **self._rates()}
        self._fair = {name: 0.95 * limit / reply["live"] for name, limit in self._rates().items()}
        self._fair["in_flight"] = self.limits.max_in_flight // reply["live"]
        self._slots.resize(int(parts["in_flight"]))
        for kind, name in _NAMES.items():
            pace = self._paces[kind]
            if name in parts and pace.per_second != parts[name]:
                # Those who begin together do not all go in the same instant.
                apart = reply["rank"] / limits[name] if pace.per_second == 0 else 0.0
                pace.change(parts[name], now + apart)
        for word, seconds in reply["holds"].items():
            if now + seconds > self.held_until(Kind(word)) + 0.05:
                super().hold(Kind(word), now + seconds)
        if any(self._may()[name] < most for name, most in reported.items()):
            self._wake.set()  # others get it as soon as the server knows
        if self._unavailable is not None:
            self._unavailable = None
            log.warning("Redis answers again: the limits are shared")
            self._tell(None)
        self._usable.set()

    def _lost(self, error: Exception, *, final: bool = False) -> None:
        """The server does not answer."""
        self._tells_holds = True
        text = f"{type(error).__name__}: {error}"
        if final:  # never accepted: the URL is wrong
            self._refusal = text
            self._slots.resize(self.limits.max_in_flight)  # those who wait for a slot are told at the submit
            for pace in self._paces.values():
                pace.per_second = None if pace.per_second is None else _UNKNOWN_RATE
        if self._unavailable is None:
            self._unavailable = text
            without = "with an even part of the limits" if self._shares else "without new submits"
            log.warning("Redis does not answer the limiter; continuing %s: %s", without, text)
            self._tell(text)
        if self._shares or final:
            self._usable.set()
        else:
            self._usable.clear()
        if self._shares:
            self._slots.resize(max(1, int(self._fair["in_flight"])))
        for kind, name in _NAMES.items():
            pace = self._paces[kind]
            if pace.per_second is not None and pace.per_second != self._fair[name]:
                pace.change(self._fair[name])

    def _tell(self, error: str | None) -> None:
        for tell in list(self._clients):
            tell(error)
