"""Wait for a request: poll until it ends, then fetch its result or raise the error that it ended in.

A failed poll tells nothing and is not repeated: the schedule goes on. The policy decides when to poll (`polling`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self

from flux_klein_async.api.messages import Kind, Response
from flux_klein_async.api.responses import read_result, read_status
from flux_klein_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InsufficientBalanceError,
    InvalidResponseError,
    NotFoundError,
    PermissionDeniedError,
    ResultNotReadyError,
    WaitTimeoutError,
)
from flux_klein_async.events import Finished, Polled, StateChanged
from flux_klein_async.misuse import NotForLoop
from flux_klein_async.models import GenerationResult, RequestState, RequestStatus, Timings, missing_files, without_file
from flux_klein_async.operations.calls import abandon, fetch_result, lags, record_failure, record_result
from flux_klein_async.operations.context import ClientContext, ignoring_errors, log, wrapping_errors
from flux_klein_async.operations.operation import Operation, sleep_until
from flux_klein_async.operations.submit import AcceptedRequest
from flux_klein_async.options import OnAbandon, finite
from flux_klein_async.polling.policies import Observation, Progress, Queued

__all__ = ["Poller", "Updates", "wait"]


PATIENCE = 10.0  # seconds for what passes by itself: a result that lags behind its status, a wrong refusal
_ENOUGH = 3  # waits in a row without early results, after which the client asks for none
_FIRST_AGAIN = 0.05  # seconds before a result that is not there yet is asked for again; then twice as long
_LONGEST_AGAIN = 1.0
_SAVED_EVERY = 200  # waits after which what was learned is saved: a process may be killed before it closes
_LONGEST_SILENCE = 60.0  # seconds for the answer of a poll, after others that were not answered in time
_WORD = 40  # characters of an unknown state
_ASKING_THE_POLICY = wrapping_errors("The poll policy")
_TELLS_NOTHING = (APIConnectionError, APIStatusError, InvalidResponseError)
# A result refused like this is not late. (A transient refusal has been repeated already.)
_NOT_LATE = (AuthenticationError, PermissionDeniedError, InsufficientBalanceError)


class Poller:
    """Polls one request until it ends. Holds no task and no timer between two polls."""

    def __init__(self, operation: Operation, accepted: AcceptedRequest) -> None:
        context = operation.context
        self._context = context
        self._operation = operation
        self._accepted = accepted
        self._loop = context.loop
        self._status_request = context.api.poll(accepted.request_id)  # the same for every poll
        self._result_request = context.api.poll_result(accepted.request_id) if context.polls_result else None
        self._result_answer: Response | None = None  # to the last poll, if it asked for the result
        self.fell_to: Callable[[int], float | None] | None = None
        self._at_once = False
        self._had_last = False
        self._poll_price = 1.0
        self._interval: float | None = None
        self._round_trip: float | None = None
        self._last: RequestStatus | None = None
        self._queued: Queued | None = None
        # Instants.
        self.begun = self._loop.time() if accepted.accepted_at is None else accepted.accepted_at
        self._sent = self.begun  # when the last poll was sent
        self._not_yet = self.begun  # when the last poll was sent that found no end
        self._seen = self.begun  # when the last poll was answered
        self._changed = self.begun
        self._refused_since: float | None = None
        self._error_since: float | None = None
        self._left_queue: float | None = None
        self._running: float | None = None

    def continue_in(self, operation: Operation) -> None:
        """Continue under another call's deadline."""
        before = self._operation
        operation.polls, operation.state, operation.word = before.polls, before.state, before.word
        operation.missing = before.missing
        self._operation = operation

    async def next_change(self) -> RequestStatus:
        """Poll until the state or the queue position has changed.

        Raises:
            APIStatusError: The service has refused every poll for 10 s, in a way that time does not heal.
        """
        while True:
            await self._until_due()
            status = await self._poll()
            if status is not None and _error_in(status) and status.state is RequestState.UNKNOWN:
                status = await self._believed(status)
            elif status is not None:
                self._error_since = None
            if status is not None and self._note(status):
                return status

    async def _believed(self, status: RequestStatus) -> RequestStatus:
        """Ask the other endpoint once an error beside an unknown state has stood for 10 s.

        Raises:
            GenerationFailedError: It holds an error too.
        """
        if self._error_since is None:
            self._error_since = self._seen
        if self._seen - self._error_since < PATIENCE:
            return status
        self._error_since = self._seen  # ask again in 10 s
        api, request_id = self._context.api, self._accepted.request_id
        other = api.status(request_id) if self._result_answer is not None else api.result(request_id)
        try:
            found = await self._operation.exchange(other, partial(read_status, request_id=request_id))
        except _TELLS_NOTHING as error:
            self._operation.last_error = error
            return status
        if found.state is RequestState.UNKNOWN and (said := _error_in(found)):
            raise GenerationFailedError(request_id=request_id, detail=said)
        return found if found.state.final else status

    async def _poll(self) -> RequestStatus | None:
        context, operation = self._context, self._operation
        status, failure = None, None
        async with operation.admission(Kind.READ, poll_price=self._poll_price):
            self._sent = self._loop.time()
            operation.polls += 1
            direct = self._result_request if context.polls_result else None
            try:
                answer = await context.send(direct or self._status_request)
                status = read_status(answer, self._accepted.request_id)
                self._result_answer = answer if direct else None
                if direct:
                    context.no_early_results = 0
            except _TELLS_NOTHING as error:
                failure = operation.last_error = error
                if isinstance(error, APITimeoutError) and error.sent:  # a slow service may need longer
                    silence = min(2 * self._status_request.silence, _LONGEST_SILENCE)
                    self._status_request = replace(self._status_request, silence=silence)
                if direct and (isinstance(error, InvalidResponseError | APITimeoutError) or not error.retryable):
                    self._poll_status(error)
        self._seen = self._loop.time()
        self._round_trip = self._seen - self._sent
        operation.emit(
            Polled,
            poll=operation.polls,
            state=status.state if status else None,
            error=str(failure) if failure else None,
        )
        self._note_missing(failure)
        self._check_refusal(failure)
        return status

    def _poll_status(self, error: FluxKleinError) -> None:
        """Poll the status from now on, and now: `result` is not answered before the end.

        One odd answer says little about the service: the client gives up early results after three waits in a row.
        """
        context = self._context
        context.no_early_results += 1
        if context.polls_result and context.no_early_results >= _ENOUGH:
            context.polls_result = False
            log.info("The service gives no early results; polling the status instead: %s", error)
        self._result_request = None
        self._at_once = True

    async def _until_due(self) -> None:
        """Sleep until the policy wants a poll.

        What a poll takes from calls that wait for a connection is asked only when the poll is due: until then many of
        them have theirs.
        """
        if self._at_once:
            self._at_once = False
            return
        operation, delay = self._operation, 0.0
        while not operation.late and (due := self._next_poll(delay)) > self._loop.time():
            await operation.nap_until(due)
            delay = self._context.lanes.delay
            if not (delay or self._replans):
                break
        if operation.late:  # the loop was blocked past the deadline: one last poll
            if self._had_last:
                raise operation.out_of_time(operation.last_error)
            self._had_last = True

    def _next_poll(self, delay: float) -> float:
        """The instant of the next poll, where a poll takes so many seconds from others."""
        now, last = self._loop.time(), self._last
        self._poll_price = self._context.limiter.poll_price()
        progress = Progress(  # in the order of its fields; keywords would take twice as long
            self._accepted.model,
            self._accepted.pixels,
            self._operation.polls,
            now - self.begun,
            last.state if last else None,
            now - self._changed,
            last.queue_position if last else None,
            self._interval,
            self._round_trip,
            self._sent - self.begun,
            self._queued,
            self._poll_price,
            delay,
            self.fell_to,
        )
        with _ASKING_THE_POLICY:
            self._interval = interval = self._context.polling.next_poll(progress)
        if not finite(interval):  # the wait would never poll again, or without pause
            raise ConfigurationError(f"The poll policy answered {interval!r}, which is not a valid number of seconds")
        self._operation.check_hold(Kind.READ)
        due = self._sent + interval
        return due if self._error_since is None else min(due, self._error_since + PATIENCE)

    @property
    def _replans(self) -> bool:
        return bool(getattr(self._context.polling, "replans", False))

    def _note_missing(self, failure: FluxKleinError | None) -> None:
        """Note whether the service has never known the request: then a wait that runs out ends in its answer.

        One that this client or its journal submitted may be late on a replica, and is paid for.
        """
        operation = self._operation
        stranger = self._accepted.accepted_at is None and operation.slot is None
        always = operation.polls == 1 or operation.missing is not None
        operation.missing = failure if isinstance(failure, NotFoundError) and stranger and always else None

    def _check_refusal(self, failure: FluxKleinError | None) -> None:
        """Raise a refusal that time does not heal once it has stood for 10 s: gateways err."""
        if failure is None:
            self._refused_since = None
        elif not failure.retryable:
            if self._refused_since is None:
                self._refused_since = self._seen
            elif self._seen - self._refused_since >= PATIENCE:
                raise failure

    def _note(self, status: RequestStatus) -> bool:
        """Record what a poll saw; whether it is a change."""
        state, at = status.state, self._seen
        word = str(status.raw.get("status"))[:_WORD] if state is RequestState.UNKNOWN else None
        self._operation.state, self._operation.word = state, word
        if word is not None:
            self._context.note_unknown(word)
        if not state.final:
            self._not_yet = self._sent
        if state is RequestState.IN_QUEUE:
            self._note_queued(status.queue_position)
        elif self._left_queue is None:
            self._left_queue = at
        if state is RequestState.IN_PROGRESS and self._running is None:
            self._running = at
        last, self._last = self._last, status
        if last is not None and (last.state, last.queue_position) == (state, status.queue_position):
            return False
        if last is None or last.state is not state:
            self._changed = at
        self._operation.emit(StateChanged, state=state, queue_position=status.queue_position)
        return True

    def _note_queued(self, position: int | None) -> None:
        sent, queued = self._sent - self.begun, self._queued
        if queued is None:
            self._queued = Queued(sent, position, sent, position, sent)
        elif queued.position == position:
            self._queued = queued._replace(until=sent)
        else:
            self._queued = queued._replace(since=sent, position=position, until=sent)

    def early_result(self) -> GenerationResult | None:
        """The result, if the last poll asked for it and it is whole."""
        if self._result_answer is None:
            return None
        accepted, origin = self._accepted, self._context.api.urls.origin
        result = read_result(
            self._result_answer, accepted.request_id, self.timings, origin=origin, asked=accepted.asked
        )
        return None if lags(result) else result

    def teach(self, result: GenerationResult) -> None:
        """Let the policy learn from this wait."""
        created, finished = result.created_at, result.finished_at
        observation = Observation(
            model=self._accepted.model,
            pixels=self._accepted.pixels,
            not_before=self._not_yet - self.begun,
            not_after=self._seen - self.begun,
            running_since=None if self._running is None else self._running - self.begun,
            served=(finished - created).total_seconds() if created and finished else None,
            polls=self._operation.polls,
            sent=self._sent - self.begun,
            queued=self._queued,
            fell_to=self.fell_to,
        )
        with ignoring_errors("The poll policy"):
            self._context.polling.observe(observation)

    def timings(self) -> Timings:
        """Where the time went, now that the result is here."""
        known = self._accepted.accepted_at is not None
        return Timings(
            submit=self._accepted.submit_seconds,
            queued=self._left_queue - self.begun if self._left_queue is not None and known else None,
            running=None if self._running is None else self._seen - self._running,
            fetch=self._loop.time() - self._seen,
            lag_max=self._seen - self._not_yet,
            polls=self._operation.polls,
        )


async def wait(
    operation: Operation,
    accepted: AcceptedRequest,
    *,
    on_abandon: OnAbandon,
    on_status: Callable[[RequestStatus], object] | None = None,
) -> GenerationResult:
    """Wait for the end and fetch the result; if the wait is abandoned, treat the request as `on_abandon` says.

    Raises:
        GenerationFailedError, GenerationCancelledError: It ended so, or completed without a file (charged "yes").
        ResultNotReadyError, NotFoundError: "completed", but for 10 s the result said "not yet", or was not there.
        WaitTimeoutError: The deadline is too near for the hold that the service asked for.
    """
    context, request_id = operation.context, accepted.request_id
    operation.cancels = on_abandon == "cancel"
    in_users_code = False  # what the user's own function raises says nothing about the request, whatever its class
    try:
        poller = Poller(operation, accepted)
        under_way = context.under_way[accepted.model]
        poller.fell_to = under_way.enter(poller.begun)
        try:
            while True:
                status = await poller.next_change()
                if on_status is not None:
                    in_users_code = True
                    on_status(status)
                    in_users_code = False
                if status.state.final:
                    break
        finally:
            under_way.end(context.loop.time())
        result = poller.early_result() or await _conclude(operation, status, poller.timings, accepted.asked)
        poller.teach(result)
        context.save_learned(_SAVED_EVERY)
    except GeneratorExit:  # collected after its loop has stopped: nothing runs that could ask for a cancel
        raise
    except BaseException as error:
        if not in_users_code and isinstance(error, GenerationFailedError | GenerationCancelledError):
            await record_failure(context, request_id, error)
        elif (
            # A deadline, a close and a stop come as CancelledError: the scope makes their error of it. WaitTimeoutError
            # comes only from a hold. After any other error there is nothing to cancel.
            in_users_code
            or not isinstance(error, FluxKleinError)
            or isinstance(error, WaitTimeoutError | ConfigurationError)
        ):
            abandon(operation, request_id, on_abandon)
        raise
    await record_result(context, result)
    if not result.urls:
        raise without_file(result)
    if result.missing:
        log.warning("%s", missing_files(result))
    operation.emit(
        Finished,
        seconds=operation.elapsed,
        polls=result.timings.polls,
        lag_max=result.timings.lag_max,
        cost_usd=result.cost_usd,
        model=accepted.model,
    )
    return result


async def _conclude(
    operation: Operation, status: RequestStatus, timings: Callable[[], Timings], asked: int | None
) -> GenerationResult:
    """Turn a final state into the result, or into the error that it stands for.

    The result's own word decides: a picture that is there is not lost to a status that said "failed". A result that is
    completed without an output, and says no error, may still get one: it is asked for again for 10 s.
    """
    loop = operation.context.loop
    if status.state is RequestState.CANCELLED:
        raise GenerationCancelledError(request_id=status.request_id)
    until, pause = loop.time() + PATIENCE, _FIRST_AGAIN
    while True:
        try:
            result = await fetch_result(operation, status.request_id, timings, asked=asked)
            last = loop.time() + pause > until
            if not lags(result) or (last and status.state is RequestState.COMPLETED):
                return result
        except (GenerationFailedError, GenerationCancelledError):
            raise
        except FluxKleinError as error:
            last = loop.time() + pause > until
            if not _late(error, status.state) or last:
                if status.state is RequestState.FAILED:
                    raise _failed(status) from error
                raise
        if last:
            raise _failed(status)
        await sleep_until(loop, loop.time() + pause)
        pause = min(2 * pause, _LONGEST_AGAIN)


def _failed(status: RequestStatus) -> GenerationFailedError:
    """The error of a status that says "failed"."""
    said = (status.raw.get(key) for key in ("error_message", "message", "error"))
    return GenerationFailedError(request_id=status.request_id, detail=next(filter(None, said), None))


def _error_in(answer: RequestStatus | GenerationResult) -> Any:
    """What an answer says went wrong; None, or something empty, if it says nothing."""
    return answer.raw.get("error_message") or answer.raw.get("error")


def _late(error: FluxKleinError, state: RequestState) -> bool:
    """Whether a result may only lag behind its status. After "failed", only a result that says "not yet" may."""
    if isinstance(error, ResultNotReadyError):
        return True
    if state is not RequestState.COMPLETED or not isinstance(error, APIStatusError):
        return False
    return not (error.transient or isinstance(error, _NOT_LATE))


class Updates(NotForLoop):
    """Gives a `RequestStatus` at each change of state or queue position; ends after the final one.

    A class, not an async generator: between two changes it holds neither a task nor a timer, so that a reader may
    leave at any time (PEP 789).
    """

    def __init__(self, context: ClientContext, accepted: AcceptedRequest, timeout: float | None) -> None:
        self._context = context
        self._accepted = accepted
        self._timeout = timeout
        self._deadline: float | None = None
        self._poller: Poller | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<Updates of {self._accepted.request_id}{', ended' if self._ended else ''}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestStatus:
        """Wait for the next change.

        Raises:
            WaitTimeoutError: The deadline, counted from the first call, passed before it.
            FluxKleinError: As `wait_for_result`.
        """
        if self._ended:
            raise StopAsyncIteration
        loop = self._context.bind()
        if self._poller is None and self._timeout is not None:
            self._deadline = loop.time() + self._timeout
        left = None if self._deadline is None else self._deadline - loop.time()
        operation = Operation(self._context, left, request_id=self._accepted.request_id, waits=True)
        if self._poller is None:
            self._poller = Poller(operation, self._accepted)
        else:
            self._poller.continue_in(operation)
        with operation:
            if left is not None and left <= 0:  # a poll now would be given up in this very instant
                raise operation.out_of_time(operation.missing)
            status = await self._poller.next_change()
        self._ended = status.state.final
        return status
