"""One call under way: its deadline and its end, its admission, its repeats, and the facts that its error is made of.

As a scope (`with operation:`) it works like `asyncio.timeout`: it cancels the task, turns the CancelledError that comes
out into the right error, and leaves foreign cancellations alone. It knows no endpoint and no model of the API.
"""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from flux_klein_async.api.messages import Kind, Request, Response
from flux_klein_async.errors import (
    APITimeoutError,
    Charged,
    ClientClosedError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    NotFoundError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.events import Event, Failed, Retrying
from flux_klein_async.operations.context import ClientContext
from flux_klein_async.transport.retry import Verdict, classify, refused_for_now, repeat
from flux_klein_async.transport.throttle import Slot

__all__ = ["SEEN_THROUGH", "Admission", "Operation", "sleep_until"]


T = TypeVar("T")
SEEN_THROUGH = 5.0  # seconds that a POST gets to return its id once its call is abandoned or stopped
_NUMBERS = itertools.count(1)
_BLOCKED = 0.01  # seconds that a deadline's timer fires late; more says that the loop was blocked past the deadline
_TURNS = 30  # of the loop, in which it reads the answers that wait in its sockets
_LAST_POLL = 1.0  # seconds for a last poll, and the result's fetch, after a loop that was blocked past the deadline


class Operation:
    """One call: its scope, and how it waits, repeats, and reports.

    Four things end it from outside. The deadline (`_expire`). `close`: the client closes. `stop`: the user ends a
    fan-out; a POST under way gets 5 s. `halt`: an error dooms every further submit; a POST under way goes on. Each
    cancels the task (`_interrupt`), and `__exit__` raises the error.

    Attributes:
        context: The client's parts.
        loop: The client's.
        deadline: The instant on the loop's clock after which nothing is awaited, or None.
        number: The number of the call in this process.
        request_id: The request's id, as soon as it is known.
        slot: The slot that the generation runs in, or None.
        on_post: Called when a POST begins, if it is set; what it returns is told its end at once: None if the POST
            was accepted, or its error, even if it will be repeated.
        drop_post: Drops the POST under way and returns True, or returns False: its body has begun to be written. None
            while there is no POST.
        accepted: The POST under way was accepted, and its id is being written down.
        stopped_at: When a stop found a POST under way that could not be dropped; None if none did.
        submitted: A submit of this very call was accepted.
        uncertain: A submit's body has begun to be written, and its answer will not be known here.
        last_error: What the last attempt ended in.
        missing: The last poll's error, if every poll was answered that the request is not found, and nothing here
            knows that it was accepted.
        waits: The call waits for a generation's end: out of time is a `WaitTimeoutError` once the id is known.
        patient: The timeout stands still while the call waits for its slot again, for the turn of its submit, or before
            its first POST for the end of a hold.
        cancels: The request is cancelled if the wait is abandoned.
        gave_up: An error was raised because the deadline is too near; nothing may be repeated.
        late: The loop was blocked past the deadline, and one last poll may still be sent.
    """

    # Of the class until they change: thirty attributes are the most that Python keeps in an object without a dict.
    submitted = accepted = uncertain = gave_up = late = cancels = _in_line = _halted = _stopping = False
    on_post: Callable[[], Callable[[FluxKleinError | None], None]] | None = None
    drop_post: Callable[[], bool] | None = None
    stopped_at: float | None = None
    last_error: FluxKleinError | None = None
    missing: NotFoundError | None = None
    polls = 0
    state: str | None = None
    word: str | None = None  # the service's, for a state that nobody documented
    _ending: Callable[[], FluxKleinError] | None = None  # makes the error of an interrupted call
    _timer: asyncio.Handle | None = None
    _stop_timer: asyncio.Handle | None = None
    _nap: asyncio.Future[None] | None = None

    def __init__(
        self,
        context: ClientContext,
        timeout: float | None,
        *,
        request_id: str | None = None,
        tag: object = None,
        waits: bool = False,
        slot: Slot | None = None,
        patient: bool = False,
        registered: bool = True,
    ) -> None:
        self.context = context
        self.loop = loop = context.bind() if registered else context.loop
        self._registered = registered
        self.number = next(_NUMBERS)
        self.started = loop.time()
        self.deadline = None if timeout is None else self.started + timeout
        self.request_id = request_id
        if request_id is not None:
            context.known_ids.take(request_id)  # no later submit can be it
        self.tag = tag
        self.waits = waits
        self.slot = slot
        self.patient = patient

    # --- the scope

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            msg = "a verb must be awaited inside a task"
            raise RuntimeError(msg)
        self._task: asyncio.Task[object] = task
        self._cancelling = task.cancelling()
        if self.deadline is not None:
            self._timer = self.loop.call_at(self.deadline, self._expire, self.deadline)
        if self._registered:
            self.context.operations.add(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        if self._registered:
            self.context.ended(self)
        if isinstance(exc, FluxKleinError):
            self._with_id(exc)
        if self._ending is None:
            return
        if self._task.uncancel() <= self._cancelling and isinstance(exc, asyncio.CancelledError):
            exc.__context__ = None  # it may have passed through a request that holds the token
            raise self._with_id(self._ending()) from None

    def _with_id(self, error: FluxKleinError) -> FluxKleinError:
        """Add the request id, which the wire, a policy and a journal do not know, and whether a stop cancelled it."""
        if error.request_id is None:
            error.request_id = self.request_id
        if self._stopping and isinstance(error, GenerationCancelledError):
            error.stopped = True
        return error

    def _interrupt(self, ending: Callable[[], FluxKleinError]) -> None:
        if self._ending is None:
            self._ending = ending
            self._task.cancel()

    def _expire(self, deadline: float) -> None:
        """End the call; if the loop was blocked past the deadline, only after the answers that are there."""
        if self.loop.time() - deadline < _BLOCKED:
            self._interrupt(self._expired)
        else:
            self._timer = self.loop.call_soon(self._expire_late, _TURNS)

    def _expire_late(self, turns: int) -> None:
        if self.waits and self.request_id is not None:
            self.late, self.deadline = True, self.loop.time() + _LAST_POLL
            self._timer = self.loop.call_at(self.deadline, self._interrupt, self._expired)
            if self._nap is not None:
                _wake(self._nap)
        elif turns:
            self._timer = self.loop.call_soon(self._expire_late, turns - 1)
        else:
            self._interrupt(self._expired)

    async def nap_until(self, when: float) -> None:
        """Sleep until an instant, or until the loop is found to have been blocked past the deadline."""
        self._nap = nap = self.loop.create_future()
        timer = self.loop.call_at(when, _wake, nap)
        try:
            await nap
        finally:
            timer.cancel()
            self._nap = None

    def _expired(self) -> FluxKleinError:
        return self.out_of_time(self.last_error)

    def close(self) -> None:
        """End the call with `ClientClosedError`."""
        self._interrupt(self._closed)

    @property
    def _may_be_accepted(self) -> bool:
        """Whether a submit of this call may have been accepted, with no id to tell; the journal may not know yet."""
        return self.uncertain or isinstance(self.last_error, SubmissionUncertainError)

    def _closed(self) -> FluxKleinError:
        charged: Charged | None = "unknown" if self._may_be_accepted else None
        return ClientClosedError("The client was closed while the call was under way", charged=charged)

    def stop(self) -> None:
        """End the call before it submits; a POST that has begun gets 5 s for its answer, and is not repeated."""
        self._stopping = True
        if self.request_id is not None or self.stopped_at is not None:
            return
        if self._drop_unsent():
            self._interrupt(self._stopped)
        else:
            self.stopped_at = self.loop.time()
            self._stop_timer = self.loop.call_later(SEEN_THROUGH, self._stop_unanswered)

    def _stop_unanswered(self) -> None:
        if self.drop_post is not None and not self.accepted:
            self._interrupt(self._stopped)

    def _drop_unsent(self) -> bool:
        """Drop a POST whose body has not begun to be written. False if one goes on, True if none does now."""
        return self.drop_post is None or self.drop_post()

    def _stopped(self) -> FluxKleinError:
        """The error of a stopped call; it says as much about the submit as is known when the call ends."""
        if isinstance(self.last_error, SubmissionUncertainError):
            return self.last_error
        if self.request_id is not None:  # its answer came in this instant
            return GenerationCancelledError("Stopped when it had just been submitted", charged="unknown")
        if self.uncertain:
            return SubmissionUncertainError(f"Stopped, and the submit was not answered within {SEEN_THROUGH:g} s")
        return GenerationCancelledError("Stopped before it was submitted", charged="no")

    @property
    def is_running_here(self) -> bool:
        """Whether the caller is this call's own task, such as an event handler of it."""
        return asyncio.current_task(self.loop) is self._task

    def halt(self, error: FluxKleinError) -> None:
        """End the call with this error before it submits; a POST that has begun goes on, and is not repeated."""
        self._halted = True
        if self.request_id is not None or self._may_be_accepted or self.is_running_here:
            return
        if self._drop_unsent():
            self._interrupt(lambda: error)

    def out_of_time(self, last: FluxKleinError | None) -> FluxKleinError:
        """The error for a deadline that has passed, or is too near for anything more; the scope adds the id."""
        self.gave_up = True
        if self.waits and self.request_id is not None:
            if last is self.missing is not None:
                return self.missing
            early = not self.late and (self.deadline is None or self.loop.time() < self.deadline)
            end = "is cancelled, unless it runs already" if self.cancels else "may still finish"
            return WaitTimeoutError(
                f"The service wants no such call before the deadline; the request {end}" if early else "",
                elapsed=self.loop.time() - self.started,
                polls=self.polls,
                state=None if self.state is None else str(self.state),
                word=self.word,
                cancelling=self.cancels,
                cause=str(last) if last else None,
                advice=None if self.cancels else "wait_for_result(request_id) goes on",
            )
        if self.uncertain and not isinstance(last, SubmissionUncertainError):
            return SubmissionUncertainError("The deadline passed before the submit was answered")
        where = ""
        if self._in_line:
            why = "Limits.submits_per_second" if self.context.shared is None else "the limiter's, or it is unavailable"
            where = f" before the submit's turn came ({why})"
        return last or APITimeoutError(f"The deadline passed{where}", sent=False)

    # --- events

    def emit(self, kind: Callable[..., Event], /, **facts: Any) -> None:
        """Give the handler, if there is one, an event with the time, request id and tag of this call."""
        if self.context.on_event is not None:
            facts.setdefault("request_id", self.request_id)
            self.context.tell(kind(at=self.loop.time(), tag=self.tag, **facts))

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return self.loop.time() - self.started

    def reporting(self, verb: str, model: str | None = None) -> "_Reporting":
        """Emit `Failed` for an error that the call leaves with."""
        return _Reporting(self, verb, model)

    def failed(self, error: FluxKleinError, verb: str, model: str | None) -> None:
        """Emit `Failed`."""
        if self.waits and self.submitted:  # the same call would submit, and pay, again
            error.paid_by_this_call = True
        self.emit(
            Failed,
            request_id=error.request_id or self.request_id,
            error_type=type(error).__name__,
            error=str(error),
            seconds=self.elapsed,
            model=model,
            call=self.number,
            verb=verb,
            cost_usd=error.cost_usd if isinstance(error, GenerationFailedError) else None,
        )

    # --- calling

    async def gate(self, kind: Kind, poll_price: float | None = None) -> None:
        """Wait until a call of this kind may go: for the end of every hold, then for the turn of a submit or a poll.

        Raises:
            FluxKleinError: A hold outlasts the deadline.
        """
        while True:
            while self.held(kind):
                if kind is Kind.SUBMIT and self.patient and self.last_error is None:
                    await self.off_the_clock(sleep_until(self.loop, self.context.limiter.admit(kind)))
                else:
                    await sleep_until(self.loop, self.after_hold(kind))
            if kind is Kind.SUBMIT:
                await self._submit_turn()
            elif poll_price is not None:
                await self.context.limiter.turn(kind, poll_price)
            else:
                return
            if not self.held(kind):
                return

    async def _submit_turn(self) -> None:
        """Wait for a submit's turn."""
        self._in_line = True
        await self.off_the_clock(self.context.limiter.turn(Kind.SUBMIT))
        self._in_line = False

    async def off_the_clock(self, waiting: Awaitable[None]) -> None:
        """Wait; the timeout of a `patient` call stands still meanwhile."""
        if not self.patient or self.deadline is None or self._timer is None:
            await waiting
            return
        begun = self.loop.time()
        self._timer.cancel()
        try:
            await waiting
        finally:
            self.deadline += self.loop.time() - begun
            self._timer = self.loop.call_at(self.deadline, self._expire, self.deadline)

    def admission(self, kind: Kind, *, poll_price: float | None = None) -> "Admission":
        """What lets one call of this kind go, as `async with`; a poll, which has a price, waits for its turn too."""
        return Admission(self, kind, poll_price)

    async def exchange(self, request: Request, read: Callable[[Response], T]) -> T:
        """Send a request and read its answer, with repeats inside the deadline and the client's quota.

        Raises:
            FluxKleinError: What the last attempt ended in.
        """

        async def once() -> T:
            async with self.admission(request.kind):
                response = await self.context.send(request)
            return read(response)

        return await self.repeat(
            request.kind,
            once,
            allows=lambda error: classify(error, request) is Verdict.RETRY,
            attempts=self.context.retry.attempts,
        )

    async def repeat(
        self,
        kind: Kind,
        call: Callable[[], Awaitable[T]],
        *,
        allows: Callable[[FluxKleinError], bool],
        attempts: int | None,
        before_pause: Callable[[FluxKleinError], Awaitable[None]] | None = None,
    ) -> T:
        """Make a call, and repeat it while `allows` says that this is harmless, inside deadline and quota.

        Raises:
            FluxKleinError: What the last attempt ended in.
        """
        failures = 0
        last: FluxKleinError

        def note_failure(error: FluxKleinError) -> bool:
            nonlocal failures, last
            failures += 1
            self.last_error = last = error
            halted = self._halted and kind is Kind.SUBMIT
            return not self.gave_up and not halted and allows(error)

        async def pause() -> None:
            if before_pause is not None:
                await before_pause(last)
            await self._pause(kind, failures, last)

        try:
            value = await call()
        except FluxKleinError as error:
            if not note_failure(error) or attempts == 1:
                raise
        else:
            self.context.quota.refund()
            return value
        return await repeat(call, may_repeat=note_failure, pause=pause, attempts=attempts)

    async def _pause(self, kind: Kind, failures: int, error: FluxKleinError) -> None:
        """Sleep before a repeat, or give up: stopped, the deadline is too near, or the client's quota is used up."""
        if self.stopped_at is not None and kind is Kind.SUBMIT:
            raise self._stopped()
        context, now = self.context, self.loop.time()
        held = context.limiter.held_until(kind)
        until = max(now + context.backoff.pause(failures), held)
        if self.deadline is not None and until > self.deadline:
            raise self.out_of_time(error)
        if held > now:
            until = max(until, self.after_hold(kind))
        if not refused_for_now(error) and not context.quota.take():
            raise error
        self.emit(
            Retrying,
            attempt=failures + 1,
            seconds=until - now,
            error=str(error),
            kind=kind.value,
            call=self.number,
            status_code=getattr(error, "status_code", None),
        )
        await sleep_until(self.loop, until)

    def held(self, kind: Kind) -> bool:
        """Whether calls of this kind are held now."""
        until = self.context.limiter.held_until(kind)
        return until > -math.inf and until > self.loop.time()

    def after_hold(self, kind: Kind) -> float:
        """When this call may go: at the hold's end, or gradually after it where the deadline allows.

        Raises:
            FluxKleinError: The hold outlasts the deadline.
        """
        self.check_hold(kind)
        until, ready = self.context.limiter.held_until(kind), self.context.limiter.admit(kind)
        return until if self.deadline is not None and ready >= self.deadline else ready

    def check_hold(self, kind: Kind) -> None:
        """Raise at once if a hold outlasts the deadline."""
        until = self.context.limiter.held_until(kind)
        if self.deadline is not None and until > self.deadline:
            raise self.out_of_time(self.context.not_sent(kind, until))


class _Reporting(NamedTuple):
    """What `Operation.reporting` returns; one lives as long as its call, and a generator would be three objects."""

    operation: Operation
    verb: str
    model: str | None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, FluxKleinError):
            self.operation.failed(error, self.verb, self.model)


class Admission:
    """An async context manager that lets one call go, and gives its connection back.

    It waits in this order: for a slot, if a submit was refused and gave its slot back; at the gate, for holds and for
    the turn of a submit or a poll; for a connection. A hold that comes meanwhile starts the waiting again.
    """

    __slots__ = ("_kind", "_operation", "_outlived", "_poll_price", "_since")

    def __init__(self, operation: Operation, kind: Kind, poll_price: float | None) -> None:
        self._operation = operation
        self._kind = kind
        self._poll_price = poll_price
        self._outlived = False

    async def __aenter__(self) -> Self:
        operation, kind, context = self._operation, self._kind, self._operation.context
        if kind is Kind.SUBMIT and operation.slot is not None and not operation.slot.held:
            await operation.off_the_clock(operation.slot.take())
        while True:
            await operation.gate(kind, self._poll_price)
            if context.lanes.take(kind):  # in this very step of the loop, so that no hold came
                break
            await context.lanes.wait(kind, poll=self._poll_price is not None)
            held = True  # also if the limiter raises: the lane is given back
            try:
                held = operation.held(kind)
            finally:
                if held:
                    context.lanes.leave(kind)
            if not held:
                break
        self._since = operation.loop.time()
        return self

    def outlived_by(self, task: "asyncio.Task[Any]") -> None:
        """Give the connection back when this task ends, instead of at the end of the block."""
        self._outlived = True
        task.add_done_callback(self._leave)

    async def __aexit__(self, *_: object) -> None:
        if not self._outlived:
            self._leave()

    def _leave(self, _: object = None) -> None:
        operation, context = self._operation, self._operation.context
        if self._poll_price is not None or self._kind is Kind.SUBMIT:
            context.limiter.over(self._kind)
        context.lanes.leave(self._kind, operation.loop.time() - self._since)


async def sleep_until(loop: asyncio.AbstractEventLoop, when: float) -> None:
    """Sleep until an instant of the loop's clock, exactly; `asyncio.sleep` rounds a duration."""
    alarm = loop.create_future()
    timer = loop.call_at(when, _wake, alarm)
    try:
        await alarm
    finally:
        timer.cancel()


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
