"""The parts of one client: what every call shares, its background tasks, and its end.

It knows no single call (`operation`) and no flow of calls (`submit`, `wait`, `download`).
"""

import asyncio
import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flux_klein_async.api.messages import Kind, Request, Response
from flux_klein_async.api.requests import Api
from flux_klein_async.api.responses import read_error
from flux_klein_async.errors import (
    APIStatusError,
    ClientClosedError,
    ConfigurationError,
    FluxKleinError,
    JournalError,
    RateLimitError,
)
from flux_klein_async.events import Closed, Event, Held, LimiterChanged
from flux_klein_async.journal.base import Entry, Journal, SpendingLimit
from flux_klein_async.journal.states import EntryState
from flux_klein_async.misuse import NEEDS_ASYNCIO
from flux_klein_async.options import Limits, RetryPolicy
from flux_klein_async.polling.policies import PollPolicy, SavedPolicy
from flux_klein_async.transport.base import BodyGuard, Transport
from flux_klein_async.transport.retry import Backoff, RetryQuota
from flux_klein_async.transport.throttle import Lanes, Limiter, SharedLimiter, obey

if TYPE_CHECKING:
    from flux_klein_async.operations.operation import Operation

__all__ = [
    "Background",
    "ClientContext",
    "KnownIds",
    "UnderWay",
    "guarded",
    "ignoring_errors",
    "log",
    "wrapping_errors",
]


log = logging.getLogger("flux_klein_async")
T = TypeVar("T")
_Job = Callable[[], Coroutine[Any, Any, None]]

_CLOSE_WITHIN = 5.0  # seconds that closing may take beyond its drain
_DETACH_WITHIN = 0.8  # of those, for a shared limiter to tell the other processes: RedisLimiter tries again after 0.4
_CLOSED = "The client is closed: make another, or call it inside its `async with`"
_IDS_LOGGED = 10
_MOST_WARNED = 100  # sentences that each client logs once
_MOST_MODELS = 100  # whose fields each client remembers
_WORD = 40  # characters of a word in one of them
_CALLS = {Kind.SUBMIT: "submit", Kind.READ: "read", Kind.FILE: "download"}  # what may be held
_NONE = (-math.inf, RateLimitError, 429)  # no hold


# --- code of the user's own


# Classes, and made once where they guard every poll: a generator would cost as much as what it guards.
class wrapping_errors(ContextDecorator):  # noqa: N801  # as contextlib names its own
    """Turns what the user's code raises into an error of this kind; errors of the package pass."""

    def __init__(self, name: str, kind: type[FluxKleinError] = ConfigurationError) -> None:
        self._name = name
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, FluxKleinError):
            raise self._kind(f"{self._name} failed", cause=f"{type(error).__name__}: {error}") from error


class ignoring_errors:  # noqa: N801  # likewise
    """Logs what the user's code raises, and continues: the request or its result counts more."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception):
            return False
        log.error("%s raised; ignored", self._name, exc_info=error)
        return True


_WRITING = wrapping_errors("The journal", JournalError)

# The methods of a limiter or budget that decide about a call. What the others raise is only logged.
_DECIDING = {"held_until", "admit", "poll_price"}
_DECIDING_AWAITED = {"acquire", "turn", "reserve"}


class _Guarded:
    """Calls the methods of another object, so that what they raise loses neither an id nor a result."""

    def __init__(self, part: object, name: str) -> None:
        self._part = part
        self._name = name

    def __getattr__(self, method: str) -> Any:
        call, name = getattr(self._part, method), self._name
        guard = wrapping_errors if method in _DECIDING else ignoring_errors

        async def awaited(*arguments: Any) -> Any:
            with wrapping_errors(name):
                return await call(*arguments)

        def called(*arguments: Any) -> Any:
            with guard(name):
                return call(*arguments)

        self.__dict__[method] = found = awaited if method in _DECIDING_AWAITED else called
        return found


def guarded(part: T, name: str) -> T:
    """A user's limiter or budget, whose failures lose neither an id nor a result."""
    return cast("T", _Guarded(part, name))


# --- what runs


class Background:
    """Runs the client's own jobs: at once (`start`), or in turn with a few at a time (`queue`)."""

    AT_ONCE = 8

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()
        self._waiting: deque[_Job] = deque()
        self._workers = 0

    def keep(self, task: "asyncio.Future[Any]") -> None:
        """Hold a task until it ends, and log its failure."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def start(self, job: _Job) -> None:
        """Run a job now."""
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
                except Exception as error:  # noqa: BLE001  # the other jobs still run
                    self._log(error)
        finally:
            self._workers -= 1

    def _forget(self, task: "asyncio.Future[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log(error)

    def _log(self, error: BaseException) -> None:
        if isinstance(error, FluxKleinError):  # from the journal, or from a POST that failed while it was dropped
            log.warning("A background task failed: %s", error)
        else:
            log.error("A background task failed", exc_info=error)

    async def finish(self, seconds: float) -> None:
        """Wait at most so long for every job; then cancel the rest and wait for their end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._tasks and (left := end - loop.time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        while self._tasks:  # a task that ends may queue another job: too late for that one too
            self._waiting.clear()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(set(self._tasks))


class KnownIds:
    """The request ids of the latest submits."""

    MOST = 16_384  # some 2 MB; a service that mixes up answers gives an id to submits of the same minutes

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}  # in the order in which they came

    def take(self, request_id: str) -> bool:
        """Remember the id; False if it is known already."""
        if request_id in self._ids:
            return False
        self._ids[request_id] = None
        if len(self._ids) > self.MOST:
            del self._ids[next(iter(self._ids))]
        return True


class UnderWay:
    """The client's own generations of one model: how many are under way, and when the last ones ended."""

    def __init__(self) -> None:
        self._count = self._ended = 0
        self._ends: deque[float] = deque(maxlen=4096)  # instants

    def enter(self, accepted: float) -> Callable[[int], float | None]:
        """Count one more. Returns `Progress.fell_to` for it.

        Of a number: the seconds from this acceptance until at most so many earlier ones were left, or None.
        """
        fell_to = partial(self._fell_to, accepted, self._count, self._ended)
        self._count += 1
        return fell_to

    def _fell_to(self, accepted: float, ahead: int, ended: int, count: int) -> float | None:
        if ahead <= count:
            return 0.0
        later = self._ended - ended - (ahead - count)  # ends since then
        return self._ends[-1 - later] - accepted if 0 <= later < len(self._ends) else None

    def end(self, now: float) -> None:
        """One has ended, or nobody waits for it any more."""
        self._count -= 1
        self._ended += 1
        self._ends.append(now)


@dataclass(slots=True, kw_only=True, eq=False)
class ClientContext:
    """The parts of one client.

    Attributes:
        redact: Takes the token out of a text that a server may have written.
        max_file_bytes: The largest file that is downloaded.
        limits: How large local files of an input may be.
        operations: The calls under way.
        under_way: By model, the generations that are waited for.
        listed_fields: By model, the fields in its catalogue entry, once that was read; () if it may have others.
        known_ids: Which request ids belong to submits already.
        holds: By kind of call, until when the latest hold lasts, and the class and status of the answer behind it.
        shared: The limiter itself, if it is opened and closed with its clients.
        learning: The poll policy, if it saves what it learned.
        left_running: Ids that may still run with nobody waiting for them, found while closing.
        threads: For work on files; an application may fill asyncio's own.
        swept: The directories without unfinished files of dead runs.
        polls_result: Whether polls ask for the result itself. Ends where the service gives no early results.
        no_early_results: How many waits in a row found none.
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
    limits: Limits
    lanes: Lanes
    redact: Callable[[str], str]
    quota: RetryQuota = field(default_factory=RetryQuota)
    background: Background = field(default_factory=Background)
    operations: "set[Operation]" = field(default_factory=set)
    known_ids: KnownIds = field(default_factory=KnownIds)
    holds: dict[Kind, tuple[float, type[APIStatusError], int]] = field(default_factory=dict)
    under_way: defaultdict[str | None, UnderWay] = field(default_factory=lambda: defaultdict(UnderWay))
    left_running: set[str] = field(default_factory=set)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "flux-klein-files"))
    shared: SharedLimiter | None = None
    learning: SavedPolicy | None = None
    swept: set[Path] = field(default_factory=set)
    closing: bool = False
    closed: bool = False
    polls_result: bool = False
    no_early_results: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _idle: asyncio.Future[None] | None = None
    listed_fields: dict[str, Collection[str]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    @property
    def opened(self) -> bool:
        """Whether any call was made, so that something may be open."""
        return self._loop is not None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this client belongs to."""
        return self._loop or self.bind()

    def bind(self) -> asyncio.AbstractEventLoop:
        """Bind the client to the loop of its first call.

        Raises:
            ClientClosedError: The client is closed.
            ConfigurationError: It belongs to another loop.
        """
        if self.closing:
            raise ClientClosedError(_CLOSED)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(NEEDS_ASYNCIO) from None
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "This client was first used in another event loop: make one for each loop, "
                    "in the coroutine that uses it and not where a module is imported"
                )
            if self.shared is not None:
                with wrapping_errors("The limiter"):
                    self.shared.attach(self._limiter_changed)
            self._loop = loop
        return loop

    def _limiter_changed(self, error: str | None) -> None:
        self.emit(LimiterChanged, available=error is None, error=error)

    def emit(self, kind: Callable[..., Event], /, **facts: Any) -> None:
        """Give the handler, if there is one, an event with the loop's time."""
        if self.on_event is not None:
            self.tell(kind(at=self.loop.time(), **facts))

    def tell(self, event: Event) -> None:
        """Give the handler an event."""
        try:
            self.on_event(event)  # type: ignore[misc]  # there is one
        except Exception:
            log.exception("on_event raised; ignored")

    def note_unknown(self, word: str) -> None:
        """Log an undocumented state once."""
        self.warn_once(f"Unknown state {word[:_WORD]!r}; waiting on until the deadline")

    def warn_once(self, sentence: str) -> None:
        """Log a warning once, and a bounded number of them."""
        if sentence not in self._warned and len(self._warned) < _MOST_WARNED:
            self._warned.add(sentence)
            log.warning("%s", sentence)

    def note_fields(self, model: str, names: Collection[str]) -> None:
        """Remember what the catalogue lists for a model."""
        if len(self.listed_fields) < _MOST_MODELS:
            self.listed_fields[model] = names

    async def write(self, state: EntryState, **facts: Any) -> None:
        """Write an entry into the journal, if there is one.

        Raises:
            JournalError: It could not be written.
        """
        if self.journal is not None:
            with _WRITING:
                await self.journal.record(Entry(state=state, **facts))

    async def in_thread(self, job: Callable[[], T], kind: type[FluxKleinError] = ConfigurationError) -> T:
        """Run a job in a thread of the client, where it continues if its caller is cancelled.

        Raises:
            ClientClosedError: The client is closed.
            FluxKleinError: Of this kind, if no thread can start or the job raises what is no error of the package.
        """
        with wrapping_errors("The thread for files", kind):
            if self.closed:  # meanwhile
                raise ClientClosedError(_CLOSED)
            return await self.loop.run_in_executor(self.threads, job)

    def save_learned(self, at_least: int = 1) -> None:
        """Save in a thread what the policy learned, if so many waits are new."""
        with ignoring_errors("Saving what the poll policy learned"):
            save = self.learning.unsaved(at_least) if self.learning is not None else None
            if save is not None:
                self.background.keep(self.loop.run_in_executor(self.threads, save))

    async def send(self, request: Request, guard: BodyGuard | None = None) -> Response:
        """Send a request that was admitted, and tell the limiter what came of it."""
        response = await self.transport.send(request, guard)
        if response.status >= 400:
            self.throttle(request.kind, response)
        else:
            self.limiter.served(request.kind)
        return response

    def throttle(self, kind: Kind, response: Response) -> None:
        """Tell the limiter what an answer asks for, and the handler of a hold."""
        now = self.loop.time()
        if seconds := obey(self.limiter, kind, response, now):
            error = read_error(response)
            # What is wrong with one call, such as a 404, says nothing about the others.
            if isinstance(error, APIStatusError) and error.transient and now + seconds > self.holds.get(kind, _NONE)[0]:
                self.holds[kind] = now + seconds, type(error), error.status_code
            self.emit(Held, kind=kind.value, seconds=seconds, status_code=response.status)

    def not_sent(self, kind: Kind, until: float) -> APIStatusError:
        """The error of a call that is not sent because of a hold: like that of the answer behind the hold, if known."""
        last, error_class, status = self.holds.get(kind, _NONE)
        seconds = until - self.loop.time()
        sentence = f"The service wants no {_CALLS[kind]} for {seconds:.3g} s"
        if until > last:  # another process was told, or no answer that speaks of other calls
            return RateLimitError(sentence, status_code=429, retry_after=seconds)
        return error_class(f"{sentence}, after its HTTP {status}", status_code=status, retry_after=seconds)

    async def aclose(self, drain: float | None) -> tuple[str, ...]:
        """Wait `drain` seconds (None: without limit) for calls under way, then end them, within 5 s more.

        Returns:
            The ids left running.
        """
        try:
            await self._drained(drain)
            end = self.loop.time() + _CLOSE_WITHIN
            for operation in list(self.operations):
                operation.close()
            await self._drained(_CLOSE_WITHIN)
            self.save_learned()
            kept = 0.0 if self.shared is None else _DETACH_WITHIN
            await self.background.finish(end - self.loop.time() - kept)
        finally:  # also where the loop ends, and cancels this
            try:
                if self.shared is not None:
                    with ignoring_errors("The limiter"):
                        async with asyncio.timeout(_DETACH_WITHIN):
                            await self.shared.detach(self._limiter_changed)
            finally:
                self.closed = True
                self.threads.shutdown(wait=False)
                await self.transport.aclose()
        left = tuple(sorted(self.left_running))
        if left:
            more = f" and {len(left) - _IDS_LOGGED} more" if len(left) > _IDS_LOGGED else ""
            log.warning("Closed; still running: %s%s", ", ".join(left[:_IDS_LOGGED]), more)
        self.emit(Closed, left_running=left)
        return left

    async def _drained(self, seconds: float | None) -> None:
        """Wait at most so long until no call is under way."""
        if self.operations:
            self._idle = self.loop.create_future()
            await asyncio.wait({self._idle}, timeout=seconds)

    def ended(self, operation: "Operation") -> None:
        """A call is no longer under way."""
        self.operations.discard(operation)
        if not self.operations and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
