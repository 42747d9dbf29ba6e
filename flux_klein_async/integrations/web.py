"""What the web frameworks share: error responses, server-sent events, and work that stops on a disconnect.

An error response tells the HTTP client what concerns it: which fields are wrong, whether and when to try again, whether
money may have been spent, and the request id. What concerns the operator (the token, the configuration, the service's
own words) goes to the log. Must not know any web framework.
"""

import asyncio
import json
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, TypeVar

from flux_klein_async import (
    APIStatusError,
    APITimeoutError,
    BudgetExceededError,
    ClientClosedError,
    ConfigurationError,
    FluxKleinClient,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    GenerationResult,
    InputRejectedError,
    InsufficientBalanceError,
    InvalidInputError,
    ItemClaimedError,
    JournalError,
    NotFoundError,
    RateLimitError,
    RequestStatus,
    ResultNotReadyError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.text import shown

__all__ = [
    "CLIENT_CLOSED_REQUEST",
    "DisconnectedError",
    "ErrorResponse",
    "error_response",
    "result_to_json",
    "status_to_json",
]

T = TypeVar("T")
_log = logging.getLogger("flux_klein_async")

CLIENT_CLOSED_REQUEST = 499
"""The status after a disconnect, for the access log: nginx's code for it."""

KEEP_ALIVE_SECONDS = 15.0  # as the HTML standard advises: "every 15 seconds or so"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which readers of events skip
EVENT_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx collects events until its buffer is full
}

_MAX_TEXT = 500  # characters of a message
_MAX_FIELDS = 20

# By class: the HTTP status, the code for programs, the sentence for people.
_UPSTREAM = (502, "upstream_error", "The image service could not serve this request")
_NOT_FOUND = (404, "not_found", "The request does not exist or has expired")
_CASES: dict[type[FluxKleinError], tuple[int, str, str]] = {
    # Every class that is not listed: a refused token or a suspended account looks the same as any other failure.
    FluxKleinError: _UPSTREAM,
    APITimeoutError: (504, "upstream_timeout", "The image service did not answer in time"),
    InvalidInputError: (422, "invalid_input", "The input is invalid"),
    InputRejectedError: (422, "invalid_input", "The image service refused the input"),
    # Only the operator learns whether the account or the budget is empty.
    InsufficientBalanceError: (402, "payment_required", "No credit is left"),
    BudgetExceededError: (402, "payment_required", "No credit is left"),
    RateLimitError: (429, "rate_limited", "The image service is busy; try again later"),
    ResultNotReadyError: (409, "not_ready", "The generation has not ended yet"),
    GenerationFailedError: (502, "generation_failed", "The generation failed"),
    GenerationCancelledError: (409, "generation_cancelled", "The generation was cancelled"),
    WaitTimeoutError: (504, "wait_timeout", "The generation did not end in time; it may still end"),
    SubmissionUncertainError: (502, "submission_uncertain", "It may have been accepted: a repeat may be charged twice"),
    ConfigurationError: (500, "internal_error", "This server is misconfigured"),
    JournalError: (500, "internal_error", "The request could not be recorded"),
    ItemClaimedError: (409, "in_progress", "Another request is generating this; try again later"),
    ClientClosedError: (503, "closing", "This server is shutting down; try again later"),
}


class DisconnectedError(Exception):
    """The HTTP client disconnected, and its work was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse:
    """An HTTP response to an error.

    Attributes:
        status: The HTTP status.
        body: The JSON body.
        headers: Headers besides those of the body.
    """

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


def error_response(error: FluxKleinError) -> ErrorResponse:
    """The HTTP response to an error of `FluxKleinClient`."""
    if isinstance(error, NotFoundError):  # the app chose the model, the HTTP client the id
        status, code, message = _NOT_FOUND if error.request_id else _UPSTREAM
    else:
        status, code, message = next(_CASES[kind] for kind in type(error).__mro__ if kind in _CASES)
    no_file = isinstance(error, GenerationFailedError) and error.charged == "yes"
    if (no_file or isinstance(error, InvalidInputError)) and error.args[0]:
        message = str(error.args[0])[:_MAX_TEXT]  # our own sentence, without its cause
    body: dict[str, Any] = {
        "error": code,
        "message": message,
        "request_id": error.request_id,
        "charged": error.charged,
        # The HTTP client repeats the whole call, which may submit. A restarted server has a new FluxKleinClient.
        "retryable": error.charged == "no" and (error.retryable or isinstance(error, ClientClosedError)),
    }
    if status == 422:
        body["fields"] = _invalid_fields(error)
    headers = {}
    if isinstance(error, APIStatusError) and body["retryable"] and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return ErrorResponse(status=status, body=body, headers=headers)


def logged_response(error: FluxKleinError, method: str, path: str) -> ErrorResponse:
    """Like `error_response`, and logs the errors from 500 on, which concern the operator."""
    response = error_response(error)
    if response.status >= 500:
        _log.warning("%s %s answered with %d: %r", shown(method), shown(path), response.status, error)
    return response


def _invalid_fields(error: FluxKleinError) -> list[dict[str, str]]:
    """The invalid fields, as {"field": dotted path, "message": text}."""
    if isinstance(error, InvalidInputError):
        return [{"field": name, "message": message} for name, message in error.fields.items()]
    detail = error.detail if isinstance(error, APIStatusError) else None
    entries = detail if isinstance(detail, list) else []
    fields = []
    for entry in entries[:_MAX_FIELDS]:
        if isinstance(entry, Mapping):
            place = entry.get("loc")
            path = [str(part) for part in place if part not in ("body", "input")] if isinstance(place, list) else []
            message = str(entry.get("msg") or "refused")
            fields.append({"field": ".".join(path)[:_MAX_TEXT], "message": message[:_MAX_TEXT]})
    return fields


def status_to_json(status: RequestStatus) -> dict[str, Any]:
    """The JSON of a `status` event."""
    return {"request_id": status.request_id, "state": status.state.value, "queue_position": status.queue_position}


def result_to_json(result: GenerationResult) -> dict[str, Any]:
    """The JSON of a `result` event. It leaves out the cost."""
    return {"request_id": result.request_id, "state": result.state.value, "urls": result.urls}


@asynccontextmanager
async def open_client(make: Callable[[], FluxKleinClient], drain: float | None) -> AsyncIterator[FluxKleinClient]:
    """Make the client in the running loop, and close it with a drain at the end."""
    if not callable(make):
        raise ConfigurationError(f"A function makes the client, such as lambda: FluxKleinClient(), not {make!r:.60}")
    client = make()
    try:
        yield client
    finally:
        await client.aclose(drain=drain)


async def run_until(disconnected: Coroutine[Any, Any, object], work: Awaitable[T]) -> T:
    """Await `work`; cancel it if `disconnected` ends first. Both have ended when this returns.

    Raises:
        DisconnectedError: `disconnected` ended first.
        TypeError: `work` cannot be awaited.
    """
    if not isawaitable(work):
        disconnected.close()
        raise TypeError(f"The work comes after the request, such as client.generate(...), and is no {work!r:.60}")
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(disconnected)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()  # raises if the watcher broke
        raise DisconnectedError
    finally:
        await _cancel(working, watching)


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Run = Callable[[Callable[[RequestStatus], object]], Awaitable[GenerationResult]]
"""Starts the work with an `on_status`: `lambda on_status: client.generate(prompt, on_status=on_status)`."""


def check_run(run: object) -> None:
    """Refuse work that has begun without an `on_status`.

    Raises:
        TypeError: It is no function.
    """
    if not callable(run):
        if isinstance(run, Coroutine):
            run.close()
        raise TypeError(f"Write lambda on_status: client.generate(..., on_status=on_status), not {run!r:.60}")


async def write_progress(
    run: Run,
    write: Callable[[bytes], Awaitable[object]],
    *,
    keep_alive: float,
    to_json: Callable[[GenerationResult], Mapping[str, Any]],
) -> None:
    """Run the work and write each change as an event, then the result or the error.

    After `keep_alive` seconds without an event a comment is written. A reader that is slower than the changes gets the
    latest one.

    Raises:
        FluxKleinError: The work failed before anything was written, so that an ordinary response is still possible.
        DisconnectedError: Nothing more can be written.
    """
    latest: deque[RequestStatus] = deque(maxlen=1)
    news = asyncio.Event()
    started = False

    def on_status(status: RequestStatus) -> None:
        latest.append(status)
        news.set()

    async def send(data: bytes) -> None:
        nonlocal started
        started = True
        try:
            await write(data)
        except OSError as error:
            raise DisconnectedError from error

    working = asyncio.ensure_future(run(on_status))
    working.add_done_callback(lambda _: news.set())
    try:
        while latest or not working.done():
            try:
                async with asyncio.timeout(keep_alive):
                    await news.wait()
            except TimeoutError:
                await send(KEEP_ALIVE)
                continue
            news.clear()
            if latest:
                await send(_event("status", status_to_json(latest.pop())))
        try:
            last = _event("result", to_json(working.result()))
        except FluxKleinError as error:
            if not started:
                raise
            last = _error_event(error_response(error))
        await send(last)
    finally:
        await _cancel(working)


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    """A server-sent event (WHATWG HTML, section 9.2). JSON escapes line breaks, so that the data is one line."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _error_event(response: ErrorResponse) -> bytes:
    """An error as an event. Status and headers were sent before, so that they stand in the data."""
    data = {"status": response.status, **response.body}
    if (seconds := response.headers.get("Retry-After")) is not None:
        data["retry_after"] = int(seconds)
    return _event("error", data)
