"""From an error of the client to what a visitor of a web backend is told. Pure.

The visitor learns what concerns the visitor: what was wrong with the input, whether to come back and when, whether
money may be gone, and the request's id. What concerns the operator (our token, our configuration, the service's own
words) is for the log.

Server-sent events as bytes (WHATWG HTML, "Server-sent events", the event stream format). Pure.

Work that is done for a visitor, and given up when the visitor goes.

One generation told as it happens: status events, then the result or the error.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flux_klein_async import (
    APIStatusError,
    APITimeoutError,
    BudgetExceededError,
    ClientClosedError,
    ConfigurationError,
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

__all__ = ["VISITOR_GONE", "ErrorAnswer", "VisitorGoneError", "answer_to", "result_facts", "status_facts"]


VISITOR_GONE = 499
"""The status of an answer that nobody hears, for the access log: nginx's word for a client that hung up."""

_LONGEST = 500  # characters of the service's words about one field
_MOST_FIELDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """An HTTP answer.

    Attributes:
        status: The HTTP status.
        body: What is sent as JSON.
        headers: Those besides the body's own.
    """

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


# By class: status, the word by which a program knows the case, the sentence for a person.
_UPSTREAM = (502, "upstream_error", "The image service could not serve this request")
_CASES: dict[type[FluxKleinError], tuple[int, str, str]] = {
    # Whatever is not listed, our refused token and our suspended account included, is like any other failure.
    FluxKleinError: _UPSTREAM,
    APITimeoutError: (504, "upstream_timeout", "The image service did not answer in time"),
    InvalidInputError: (422, "invalid_input", "The input cannot be used"),
    InputRejectedError: (422, "invalid_input", "The image service refused the input"),
    # No money is no money: whether the account or the budget is empty concerns the operator.
    InsufficientBalanceError: (402, "payment_required", "There is no credit left for this"),
    BudgetExceededError: (402, "payment_required", "There is no credit left for this"),
    RateLimitError: (429, "rate_limited", "The image service is busy; try again later"),
    ResultNotReadyError: (409, "not_ready", "The generation has not ended yet"),
    GenerationFailedError: (502, "generation_failed", "The generation failed"),
    GenerationCancelledError: (409, "generation_cancelled", "The generation was cancelled"),
    WaitTimeoutError: (504, "wait_timeout", "The generation did not end in time; it may still do so"),
    SubmissionUncertainError: (
        502,
        "submission_uncertain",
        "It is not known whether the order was accepted; trying again may pay twice",
    ),
    ConfigurationError: (500, "internal_error", "This server is not set up for this"),
    JournalError: (500, "internal_error", "This server could not keep its books"),
    ItemClaimedError: (409, "under_way", "This is under way elsewhere; try again later"),
    ClientClosedError: (503, "closing", "This server is closing; try again later"),
}
_NOT_FOUND = (404, "not_found", "There is no such request, or no longer")


def answer_to(error: FluxKleinError) -> ErrorAnswer:
    """What a visitor is told of an error."""
    status, word, message = _case(error)
    if isinstance(error, InvalidInputError) and error.args[0]:
        message = str(error.args[0])[:_LONGEST]  # our own sentence; what caused it stays here
    body: dict[str, Any] = {
        "error": word,
        "message": message,
        "request_id": error.request_id,
        "charged": error.charged,
        "retryable": _retryable(error),
    }
    if status == 422:
        body["fields"] = _fields(error)
    headers = {}
    if isinstance(error, APIStatusError) and error.retryable and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return ErrorAnswer(status=status, body=body, headers=headers)


def status_facts(status: RequestStatus) -> dict[str, Any]:
    """What a visitor is told of a poll."""
    return {
        "request_id": status.request_id,
        "state": status.state.value,
        "queue_position": status.queue_position,
    }


def result_facts(result: GenerationResult) -> dict[str, Any]:
    """What a visitor is told of a result; its cost is ours."""
    return {"request_id": result.request_id, "state": result.state.value, "urls": result.urls}


def _case(error: FluxKleinError) -> tuple[int, str, str]:
    if isinstance(error, NotFoundError):  # an unknown model is our mistake, an unknown request the visitor's
        return _NOT_FOUND if error.request_id else _UPSTREAM
    return next(_CASES[kind] for kind in type(error).__mro__ if kind in _CASES)


def _retryable(error: FluxKleinError) -> bool:
    if isinstance(error, ClientClosedError):  # for us it is the end, but a visitor who comes back meets our successor
        return error.charged == "no"
    return error.retryable


def _fields(error: FluxKleinError) -> list[dict[str, str]]:
    """The fields at fault, as {"field": dotted path, "message": what is wrong with it}."""
    if isinstance(error, InvalidInputError):
        return [{"field": name, "message": message} for name, message in error.fields.items()]
    detail = error.detail if isinstance(error, APIStatusError) else None
    findings = detail if isinstance(detail, list) else []
    return [_finding(item) for item in findings[:_MOST_FIELDS] if isinstance(item, Mapping)]


def _finding(item: Mapping[str, Any]) -> dict[str, str]:
    place = item.get("loc")
    path = [str(part) for part in place if part not in ("body", "input")] if isinstance(place, list) else []
    return {"field": ".".join(path)[:_LONGEST], "message": str(item.get("msg") or "refused")[:_LONGEST]}


HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would otherwise collect the events until its buffer is full
}

KEEP_ALIVE = b": still here\n\n"
"""A comment: readers skip it, and whoever is between here and the reader sees that the connection lives."""


def frame(event: str, data: Mapping[str, Any]) -> bytes:
    """One event whose data is one line of JSON: a line break inside of it is escaped there."""
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def error_frame(answer: ErrorAnswer) -> bytes:
    """An error as an event: the status and the headers have left, so that it says itself what they would have said."""
    facts = {"status": answer.status, **answer.body}
    if (seconds := answer.headers.get("Retry-After")) is not None:
        facts["retry_after"] = int(seconds)
    return frame("error", facts)


T = TypeVar("T")


class VisitorGoneError(Exception):
    """The visitor hung up; what was done for the visitor has been given up."""


async def until_gone(work: Awaitable[T], gone: Awaitable[object]) -> T:
    """Await `work` while watching for `gone`, both in tasks that have ended when this returns.

    Raises:
        VisitorGoneError: `gone` came first; `work` was cancelled.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(gone)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()  # a watcher that broke is no visitor who left
        raise VisitorGoneError
    finally:
        await ended(working, watching)


async def ended(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel what still runs and wait for its end; what it ends in is nobody's affair any more."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved: asyncio would else complain of it


KEEP_ALIVE_SECONDS = 15.0  # as the standard advises its authors: "every 15 seconds or so"

Run = Callable[[Callable[[RequestStatus], object]], Awaitable[GenerationResult]]
"""Starts the work, which calls what it is given at each change: `lambda tell: client.generate(..., on_status=tell)`."""

Write = Callable[[bytes], Awaitable[object]]


async def tell(
    run: Run,
    write: Write,
    *,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    facts: Callable[[GenerationResult], Any] = result_facts,
) -> None:
    """Run, and write each change as an event; `keep_alive` seconds without one are bridged with a comment.

    A reader who is slower than the changes gets the latest: nothing piles up.

    Raises:
        FluxKleinError: It ended so before anything was written: an ordinary answer can still say it.
        VisitorGoneError: Nothing can be written any more.
    """
    teller = _Teller(write)
    working = asyncio.ensure_future(run(teller.changed))
    working.add_done_callback(lambda _: teller.news.set())
    try:
        await teller.until(working, keep_alive)
        try:
            result = working.result()
        except FluxKleinError as error:
            if not teller.begun:
                raise
            await teller.say(error_frame(answer_to(error)))
        else:
            await teller.say(frame("result", facts(result)))
    finally:
        await ended(working)


class _Teller:
    """The latest change that was not yet told, and whether anything was told at all."""

    def __init__(self, write: Write) -> None:
        self.news = asyncio.Event()
        self.begun = False
        self._write = write
        self._untold: RequestStatus | None = None

    def changed(self, status: RequestStatus) -> None:
        self._untold = status
        self.news.set()

    async def until(self, working: "asyncio.Future[Any]", keep_alive: float) -> None:
        """Tell what changes until the work is done and its last change is told."""
        while self._untold is not None or not working.done():
            try:
                async with asyncio.timeout(keep_alive):
                    await self.news.wait()
            except TimeoutError:
                await self.say(KEEP_ALIVE)
                continue
            self.news.clear()
            if (status := self._untold) is not None:
                self._untold = None
                await self.say(frame("status", status_facts(status)))

    async def say(self, data: bytes) -> None:
        self.begun = True
        try:
            await self._write(data)
        except OSError as error:
            raise VisitorGoneError from error
