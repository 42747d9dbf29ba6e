"""What every flow needs: the parts of one client, wired together, and the three things all calls do with them.

Pass the gate, exchange a request for an answer, repeat what may be repeated.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from flux_klein_async.api.messages import Kind, Request, Response
from flux_klein_async.api.requests import Api
from flux_klein_async.api.retry_after import retry_after
from flux_klein_async.errors import ClientClosedError, ConfigurationError, FluxKleinError, JournalError, RateLimitError
from flux_klein_async.events import Event, Held, Retrying
from flux_klein_async.flow.background import Background
from flux_klein_async.flow.call import Call, Registry
from flux_klein_async.flow.guarded import asked
from flux_klein_async.ledger.base import Entry, EntryState, Journal, SpendingLimit
from flux_klein_async.options import RetryPolicy
from flux_klein_async.polling.policies import PollPolicy, SavedPolicy
from flux_klein_async.transport.base import BodyGuard, Transport
from flux_klein_async.transport.pacing import Limiter
from flux_klein_async.transport.retry import Backoff, RetryQuota, refused_for_now, repeat
from flux_klein_async.transport.slots import Lanes

__all__ = ["Core", "log", "sleep_until"]

T = TypeVar("T")
log = logging.getLogger("flux_klein_async")


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def sleep_until(loop: asyncio.AbstractEventLoop, when: float) -> None:
    """Sleep until an instant of the loop's clock, exactly; `asyncio.sleep` takes a duration and rounds."""
    future: asyncio.Future[None] = loop.create_future()
    timer = loop.call_at(when, _wake, future)
    try:
        await future
    finally:
        timer.cancel()


@dataclass(slots=True, kw_only=True, eq=False)
class Core:
    """The parts of one client.

    Attributes:
        redact: Takes the token out of a text that a server may have written.
        max_file_bytes: The largest file that is downloaded.
        calls: The verbs under way, for `aclose`.
        learning: The poll policy, if it is one that keeps what it learned.
        left_running: Ids that nobody waits for and that may still run, found while closing.
        no_early_results: How many waits in a row found none.
        looks_at_result: Whether looks ask for the result itself; no longer where the service was seen not to like it.
    """

    api: Api
    transport: Transport
    limiter: Limiter
    polling: PollPolicy
    retry: RetryPolicy
    journal: Journal | None
    budget: SpendingLimit
    on_event: Callable[[Event], None] | None
    backoff: Backoff
    max_file_bytes: int
    lanes: Lanes
    redact: Callable[[str], str]
    quota: RetryQuota = field(default_factory=RetryQuota)
    background: Background = field(default_factory=Background)
    calls: Registry = field(default_factory=Registry)
    left_running: set[str] = field(default_factory=set)
    learning: SavedPolicy | None = None
    closing: bool = False
    looks_at_result: bool = False
    no_early_results: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _unknown_words: set[str] = field(default_factory=set)

    # --- one loop

    @property
    def opened(self) -> bool:
        """Whether anything was ever called, and so may be open."""
        return self._loop is not None

    def bind(self) -> asyncio.AbstractEventLoop:
        """The loop that this client belongs to: the one of its first call.

        Raises:
            ClientClosedError: The client is closed.
            ConfigurationError: It belongs to another loop.
        """
        if self.closing:
            raise ClientClosedError("The client is closed: make another, or call it inside its `async with`")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "This client was first used in another event loop: make one for each loop, "
                    "in the coroutine that uses it and not where a module is imported"
                )
            self._loop = loop
        return loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, once bound."""
        return self._loop or self.bind()

    def call(
        self,
        timeout: float | None,
        *,
        request_id: str | None = None,
        tag: object = None,
        waits: bool = False,
    ) -> Call:
        """A new scope for one verb."""
        return Call(self.bind(), self.calls, timeout, request_id=request_id, tag=tag, waits=waits)

    # --- learning

    def save_learned(self, at_least: int = 1) -> None:
        """Have what the policy learned saved in a thread, if so many waits are new."""
        write = self.learning.unsaved(at_least) if self.learning is not None else None
        if write is not None:
            self.background.start(partial(self._in_thread, write))

    async def _in_thread(self, job: Callable[[], None]) -> None:
        await self.loop.run_in_executor(None, job)

    # --- telling

    def emit(self, make: Callable[[float], Event]) -> None:
        """Give an event to the handler, if there is one; a handler that raises is logged and ignored."""
        if self.on_event is None:
            return
        try:
            self.on_event(make(self.loop.time()))
        except Exception:
            log.exception("on_event raised; ignored")

    def note_unknown(self, word: str) -> None:
        """Log a state that nobody documented, once for each word, for a sane number of words."""
        word = word[:40]
        if word not in self._unknown_words and len(self._unknown_words) < 100:
            self._unknown_words.add(word)
            log.warning("Unknown state %r; waiting on until the deadline", word)

    async def write(self, state: EntryState, **facts: Any) -> None:
        """Write an entry into the journal, if there is one.

        Raises:
            JournalError: It could not be written.
        """
        if self.journal is not None:
            with asked("journal", JournalError):
                await self.journal.record(Entry(state=state, **facts))

    # --- calling

    async def gate(self, kind: Kind, call: Call) -> None:
        """Wait while the service wants no call of this kind; raise at once where that outlasts the deadline."""
        while self.limiter.held_until(kind) > self.loop.time():
            self.check_hold(kind, call)
            await sleep_until(self.loop, self._ready_at(kind, call))

    def _ready_at(self, kind: Kind, call: Call) -> float:
        """When a call that is held may go: at the hold's end or, where its deadline allows, gradually after it."""
        until, ready = self.limiter.held_until(kind), self.limiter.admit(kind)
        return until if call.deadline is not None and ready >= call.deadline else ready

    def check_hold(self, kind: Kind, call: Call) -> None:
        """Raise now if a hold outlasts the deadline: sleeping towards either would be in vain."""
        until = self.limiter.held_until(kind)
        if call.deadline is not None and until > call.deadline:
            raise call.out_of_time(
                RateLimitError(
                    "The service wants no such call before the deadline",
                    status_code=429,
                    retry_after=until - self.loop.time(),
                )
            )

    async def lane(self, kind: Kind, call: Call) -> None:
        """Wait for the end of every hold and for a connection that this call may use; `lanes.leave` gives it back."""
        while True:
            await self.gate(kind, call)
            if await self.take_lane(kind):
                return

    async def take_lane(self, kind: Kind) -> bool:
        """Wait for a lane; False, and none is taken, if a hold came meanwhile: thousands may have queued before it."""
        if not self.lanes.take(kind):
            await self.lanes.wait(kind)
        usable = False
        try:
            usable = self.limiter.held_until(kind) <= self.loop.time()
        finally:
            if not usable:
                self.lanes.leave(kind)
        return usable

    async def exchange(self, request: Request, call: Call) -> Response:
        """Send a request in its turn; a refusal that asks for patience holds all calls of its kind."""
        await self.lane(request.kind, call)
        try:
            return await self.send(request)
        finally:
            self.lanes.leave(request.kind)

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send a request whose lane was taken."""
        response = await self.transport.send(request, guard)
        if response.status >= 400:
            self.heed(request.kind, response)
        else:
            self.limiter.served(request.kind)
        return response

    def heed(self, kind: Kind, response: Response) -> None:
        """Slow down at a refusal, and obey its `Retry-After`; cancels are never held."""
        seconds = retry_after(response.headers)
        if response.status == 429 or (response.status == 503 and seconds is not None):
            self.limiter.refused(kind)
        if seconds and kind is not Kind.CANCEL:
            self.limiter.hold(kind, self.loop.time() + seconds)
            self.emit(lambda at: Held(at=at, kind=kind.value, seconds=seconds))

    async def attempt(
        self,
        kind: Kind,
        call: Call,
        once: Callable[[], Awaitable[T]],
        *,
        allows: Callable[[FluxKleinError], bool],
        attempts: int | None,
    ) -> T:
        """Make a call, and again while `allows` says that repeating is harmless, inside deadline and quota.

        Raises:
            FluxKleinError: What the last attempt ended in.
        """
        try:
            value = await once()
        except FluxKleinError as error:
            call.last_error = first = error
        else:
            self.quota.refund()
            return value

        def may_repeat(error: FluxKleinError) -> bool:
            call.last_error = error
            return not call.gave_up and allows(error)

        return await repeat(
            once,
            first,
            may_repeat=may_repeat,
            attempts=attempts,
            backoff=self.backoff,
            sleep=lambda seconds, failures, error: self._pause(kind, call, seconds, failures, error),
        )

    async def _pause(self, kind: Kind, call: Call, seconds: float, failures: int, error: FluxKleinError) -> None:
        """Sleep before a repeat, or give up: the deadline is too near, or the client has repeated too much."""
        until = max(self.loop.time() + seconds, self.limiter.held_until(kind))
        if call.deadline is not None and until > call.deadline:
            raise call.out_of_time(error)
        if self.limiter.held_until(kind) > self.loop.time():
            until = max(until, self._ready_at(kind, call))
        if not refused_for_now(error) and not self.quota.take():
            raise error
        wait = until - self.loop.time()
        self.emit(
            lambda at: Retrying(
                at=at,
                request_id=call.request_id,
                tag=call.tag,
                attempt=failures + 1,
                seconds=wait,
                error=str(error),
                kind=kind.value,
                call=call.number,
            )
        )
        await sleep_until(self.loop, until)
