"""The small frozen objects that `on_event` receives.

Progress displays, logs, metrics and traces are built on these alone. No event holds a token, an input or an open
resource. `call` numbers the calls of this process: events of one call have it in common, with or without an id.
"""

from dataclasses import dataclass

from flux_klein_async.models import RequestState

__all__ = [
    "Cancelled",
    "Closed",
    "Downloaded",
    "Event",
    "Failed",
    "Finished",
    "Held",
    "LimiterChanged",
    "Polled",
    "Retrying",
    "StateChanged",
    "Submitted",
    "Uncertain",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have.

    Attributes:
        at: Seconds, on the clock of the client's event loop.
        request_id: The request's id, or None before it has one.
        tag: The `tag` of `generate`, or the index of a fan-out's item.
    """

    at: float
    request_id: str | None = None
    tag: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    """A submit was accepted.

    Attributes:
        seconds: Since the call began.
        model: The model's id.
        call: The number of the call in this process.
    """

    seconds: float
    model: str | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled(Event):
    """A poll was answered, or failed.

    Attributes:
        poll: The number of the poll in this wait, from 1.
        state: The state it saw, or None.
        error: Why it failed, or None.
    """

    poll: int
    state: RequestState | None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The state or the queue position changed since the last poll.

    Attributes:
        state: The state now.
        queue_position: The position in the queue now, or None.
    """

    state: RequestState
    queue_position: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Event):
    """The service sent `Retry-After`: all calls of this kind wait.

    Attributes:
        kind: `submit`, `read` or `file`.
        seconds: For how long.
        status_code: The HTTP status of its answer.
    """

    kind: str
    seconds: float
    status_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterChanged(Event):
    """A limiter shared between processes became unavailable, or available again.

    Attributes:
        available: Whether it is available now.
        error: Why it is not, or None.
    """

    available: bool
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying(Event):
    """A call failed and will be repeated.

    Attributes:
        attempt: The number of the next attempt; 2 after the first failure.
        seconds: The pause before it.
        error: What went wrong, as a sentence.
        kind: `submit`, `read`, `cancel` or `file`.
        call: The number of the call in this process.
        status_code: The HTTP status of the answer, or None if there was none.
    """

    attempt: int
    seconds: float
    error: str
    kind: str | None = None
    call: int | None = None
    status_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """A generation completed, and its result was fetched.

    Each wait for one request ends in an event of its own.

    Attributes:
        seconds: Since the call began.
        polls: Number of polls.
        lag_max: The largest possible delay in seconds between the end and the poll that noticed it, or None.
        cost_usd: The cost in USD as the result reports it, or None.
        model: The model's id, or None.
    """

    seconds: float
    polls: int
    lag_max: float | None
    cost_usd: float | None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """A call ended in an error.

    Attributes:
        error_type: The name of the error's class.
        error: The error as a sentence.
        seconds: Since the call began.
        model: The model's id, or None.
        call: The number of the call in this process.
        verb: The name of the call. "generate", "submit" and "wait_for_result" are about the generation; "download" and
            "download_bytes" are about files only.
        cost_usd: The cost in USD, if the generation was charged without a file and its result says so.
    """

    error_type: str
    error: str
    seconds: float | None = None
    model: str | None = None
    call: int | None = None
    verb: str | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Event):
    """The service was asked to cancel.

    Attributes:
        cancelled: Its answer, or None if it gave none.
        abandoned: Whether the client asked because the request was abandoned, not because you called `cancel`.
    """

    cancelled: bool | None
    abandoned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertain(Event):
    """A submit may or may not have been accepted; it is not repeated.

    The `Failed` of its call follows: a counter counts one of the two.

    Attributes:
        error: What came instead of an answer, as a sentence.
        seconds: Since the call began.
        model: The model's id.
        call: The number of the call in this process.
    """

    error: str
    seconds: float | None = None
    model: str | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded(Event):
    """Files of a request are on disk.

    Attributes:
        paths: Where they are.
        sha256: For each path the SHA-256 of its bytes, in hexadecimal digits.
        seconds: How long the download took.
    """

    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    """The client is closed.

    Attributes:
        left_running: The ids of requests that may still run and that nobody waits for.
    """

    left_running: tuple[str, ...]
