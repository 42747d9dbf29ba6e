"""The client's own tasks: few at a time, each bounded, all awaited by `aclose`.

What an abandoned call leaves to do (see a POST through, ask for a cancel) is done here, so that neither a
cancellation nor a deadline is held up by it.

The parts that an application brings, kept from doing harm: a limiter or a budget is worth less than a request.

What such a part is asked before a call may end that call, in an error of ours. What it is told afterwards it may not
lose: the failure is logged, and the call goes on.

What every flow needs: the parts of one client, wired together, and the three things all calls do with them.

Pass the gate, exchange a request for an answer, repeat what may be repeated.

Closing a client: let calls finish, end the rest, see the background through, say what is left running.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from flux_klein_async.api.messages import Kind, Request, Response
from flux_klein_async.api.requests import Api
from flux_klein_async.api.retry_after import retry_after
from flux_klein_async.errors import ClientClosedError, ConfigurationError, FluxKleinError, JournalError, RateLimitError
from flux_klein_async.events import Closed, Event, Held, Retrying
from flux_klein_async.journal.base import Entry, EntryState, Journal, SpendingLimit
from flux_klein_async.operations.operation import Operation, OperationRegistry
from flux_klein_async.options import RetryPolicy
from flux_klein_async.polling.policies import PollPolicy, SavedPolicy
from flux_klein_async.transport.base import BodyGuard, Transport
from flux_klein_async.transport.retry import Backoff, RetryQuota, refused_for_now, repeat
from flux_klein_async.transport.throttle import Lanes, Limiter

__all__ = [
    "Background",
    "ClientContext",
    "asked",
    "close",
    "guarded",
    "log",
    "sleep_until",
    "told",
]


log = logging.getLogger("flux_klein_async")
T = TypeVar("T")
_Job = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """Runs jobs: at once (`start`), or after one another with a few at a time (`queue`)."""

    AT_ONCE = 8

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()
        self._waiting: deque[_Job] = deque()
        self._workers = 0

    def keep(self, task: "asyncio.Future[Any]") -> None:
        """Hold a task until it ends, so that it is neither collected nor forgotten."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def start(self, job: _Job) -> None:
        """Run a job now: for those whose own time limit is already running."""
        self.keep(asyncio.ensure_future(job()))

    def queue(self, job: _Job) -> None:
        """Run a job as soon as fewer than `AT_ONCE` of these run."""
        self._waiting.append(job)
        if self._workers < self.AT_ONCE:
            self._workers += 1
            self.start(self._work)

    async def _work(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._waiting.popleft()()
                except Exception as error:  # noqa: BLE001  # one job's failure is not the others'
                    self._tell(error)
        finally:
            self._workers -= 1

    def _forget(self, task: "asyncio.Future[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if isinstance(error, FluxKleinError):  # the journal, or a dropped POST that failed by itself in that instant
            log.warning("A background task failed: %s", error)
        else:
            log.error("A background task failed", exc_info=error)

    async def finish(self, seconds: float) -> None:
        """Wait for everything for at most so long; then cancel what is left and wait for its end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._tasks and (left := end - loop.time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        while self._tasks:  # what ends may leave something to do: it is too late for that too
            self._waiting.clear()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(set(self._tasks))


@contextmanager
def asked(part: str, kind: type[FluxKleinError] = ConfigurationError) -> Iterator[None]:
    """Turn what a part raises into an error of this kind; errors of ours pass."""
    try:
        yield
    except FluxKleinError:
        raise
    except Exception as error:
        raise kind(f"The {part} failed", cause=f"{type(error).__name__}: {error}") from error


@contextmanager
def told(part: str) -> Iterator[None]:
    """Log what a part raises, and go on."""
    try:
        yield
    except Exception:  # whatever it is: what was paid for counts more
        log.exception("The %s raised; ignored", part)


# Methods of a limiter or budget whose answer decides about a call, and whether they are awaited. What the others raise
# is logged: they are only told what happened.
_DECIDING = {
    "acquire": True,
    "held_until": False,
    "admit": False,
    "poll_price": False,
    "poll_turn": True,
    "reserve": True,
}


class _Guarded:
    """Calls the methods of another object; what they raise loses neither an id nor a result."""

    def __init__(self, part: object, name: str) -> None:
        self._part = part
        self._name = name

    def __getattr__(self, method: str) -> Any:
        call, name = getattr(self._part, method), self._name

        async def awaited(*arguments: Any) -> Any:
            with asked(name):
                return await call(*arguments)

        def deciding(*arguments: Any) -> Any:
            with asked(name):
                return call(*arguments)

        def notified(*arguments: Any) -> None:
            with told(name):
                call(*arguments)

        found = (awaited if _DECIDING[method] else deciding) if method in _DECIDING else notified
        self.__dict__[method] = found
        return found


def guarded(part: T, name: str) -> T:
    """A user's limiter or budget, whose failures lose neither an id nor a result."""
    return cast("T", _Guarded(part, name))


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
class ClientContext:
    """The parts of one client.

    Attributes:
        redact: Takes the token out of a text that a server may have written.
        max_file_bytes: The largest file that is downloaded.
        operations: The verbs under way, for `aclose`.
        learning: The poll policy, if it is one that keeps what it learned.
        left_running: Ids that nobody waits for and that may still run, found while closing.
        threads: For work on files; an application may fill asyncio's own.
        no_early_results: How many waits in a row found none.
        polls_result: Whether polls ask for the result itself; no longer where the service was seen not to like it.
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
    operations: OperationRegistry = field(default_factory=OperationRegistry)
    left_running: set[str] = field(default_factory=set)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "flux-klein-files"))
    learning: SavedPolicy | None = None
    closing: bool = False
    polls_result: bool = False
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

    def operation(
        self,
        timeout: float | None,
        *,
        request_id: str | None = None,
        tag: object = None,
        waits: bool = False,
    ) -> Operation:
        """A new scope for one verb."""
        self.bind()
        return Operation(self, timeout, request_id=request_id, tag=tag, waits=waits)

    # --- learning

    def save_learned(self, at_least: int = 1) -> None:
        """Have what the policy learned saved in a thread, if so many waits are new."""
        write = self.learning.unsaved(at_least) if self.learning is not None else None
        if write is not None:
            self.background.start(partial(self._in_thread, write))

    async def _in_thread(self, job: Callable[[], None]) -> None:
        await self.loop.run_in_executor(self.threads, job)

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

    async def gate(self, kind: Kind, operation: Operation) -> None:
        """Wait while the service wants no call of this kind; raise at once where that outlasts the deadline."""
        while self.limiter.held_until(kind) > self.loop.time():
            self.check_hold(kind, operation)
            await sleep_until(self.loop, self._ready_at(kind, operation))

    def _ready_at(self, kind: Kind, operation: Operation) -> float:
        """When a call that is held may go: at the hold's end or, where its deadline allows, gradually after it."""
        until, ready = self.limiter.held_until(kind), self.limiter.admit(kind)
        return until if operation.deadline is not None and ready >= operation.deadline else ready

    def check_hold(self, kind: Kind, operation: Operation) -> None:
        """Raise now if a hold outlasts the deadline: sleeping towards either would be in vain."""
        until = self.limiter.held_until(kind)
        if operation.deadline is not None and until > operation.deadline:
            raise operation.out_of_time(
                RateLimitError(
                    "The service wants no such call before the deadline",
                    status_code=429,
                    retry_after=until - self.loop.time(),
                )
            )

    async def lane(self, kind: Kind, operation: Operation) -> None:
        """Wait for the end of every hold and for a connection that this call may use; `lanes.leave` gives it back."""
        while True:
            await self.gate(kind, operation)
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

    async def exchange(self, request: Request, operation: Operation) -> Response:
        """Send a request in its turn; a refusal that asks for patience holds all calls of its kind."""
        await self.lane(request.kind, operation)
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
        operation: Operation,
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
            operation.last_error = first = error
        else:
            self.quota.refund()
            return value

        def may_repeat(error: FluxKleinError) -> bool:
            operation.last_error = error
            return not operation.gave_up and allows(error)

        return await repeat(
            once,
            first,
            may_repeat=may_repeat,
            attempts=attempts,
            backoff=self.backoff,
            sleep=lambda seconds, failures, error: self._pause(kind, operation, seconds, failures, error),
        )

    async def _pause(
        self, kind: Kind, operation: Operation, seconds: float, failures: int, error: FluxKleinError
    ) -> None:
        """Sleep before a repeat, or give up: the deadline is too near, or the client has repeated too much."""
        until = max(self.loop.time() + seconds, self.limiter.held_until(kind))
        if operation.deadline is not None and until > operation.deadline:
            raise operation.out_of_time(error)
        if self.limiter.held_until(kind) > self.loop.time():
            until = max(until, self._ready_at(kind, operation))
        if not refused_for_now(error) and not self.quota.take():
            raise error
        wait = until - self.loop.time()
        self.emit(
            lambda at: Retrying(
                at=at,
                request_id=operation.request_id,
                tag=operation.tag,
                attempt=failures + 1,
                seconds=wait,
                error=str(error),
                kind=kind.value,
                call=operation.number,
            )
        )
        await sleep_until(self.loop, until)


_IDS_LOGGED = 10
_CLOSE_WITHIN = 5.0  # seconds that closing may take beyond its drain


async def close(context: ClientContext, drain: float | None) -> tuple[str, ...]:
    """Wait `drain` seconds (None: without limit) for calls under way, then end them, within 5 s more.

    Returns:
        The ids left running.
    """
    loop = context.loop
    try:
        await context.operations.drained(drain)
        end = loop.time() + _CLOSE_WITHIN
        context.operations.close()
        await context.operations.drained(_CLOSE_WITHIN)
        context.save_learned()
        await context.background.finish(end - loop.time())
        context.threads.shutdown(wait=False)
    finally:  # also where the loop itself ends, and cancels this
        await context.transport.aclose()
    left = tuple(sorted(context.left_running))
    if left:
        more = f" and {len(left) - _IDS_LOGGED} more" if len(left) > _IDS_LOGGED else ""
        log.warning("Closed; still running: %s%s", ", ".join(left[:_IDS_LOGGED]), more)
    context.emit(lambda at: Closed(at=at, left_running=left))
    return left
