"""The small frozen objects given to `on_event`: the only side channel.

Progress displays, logs, metrics and traces are built on these. `at` is the running loop's time in seconds. No event
holds a token, an input or an open resource. Before a request has an id, `call` tells which events belong together: it
is the number of the call in this process, and None where an event says nothing of that kind.
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
    "Polled",
    "Retrying",
    "StateChanged",
    "Submitted",
    "Uncertain",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have: the request, the caller's tag, and the loop's time.

    Attributes:
        at: Seconds, on the clock of the client's event loop.
        request_id: The request's id, or None before it has one.
        tag: The `tag` of `generate`, or the index of an item of a fan-out.
    """

    at: float
    request_id: str | None = None
    tag: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    """A submit was accepted.

    Attributes:
        seconds: Since it was asked for.
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
        poll: Which poll of this wait, from 1.
        state: What it saw, or None.
        error: What stood in its way, or None.
    """

    poll: int
    state: RequestState | None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The state or the queue position is another one than at the last poll.

    Attributes:
        state: The state now.
        queue_position: The place in the queue now, or None.
    """

    state: RequestState
    queue_position: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Event):
    """The service asked for patience: all calls of a kind wait.

    Attributes:
        kind: `submit`, `read`, `cancel` or `file`.
        seconds: For how long.
    """

    kind: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying(Event):
    """A call failed in a way that allows a repeat.

    Attributes:
        attempt: The number of the attempt that comes next; 2 after the first failure.
        seconds: After which it comes.
        error: What went wrong, as a sentence.
        kind: `submit`, `read`, `cancel` or `file`.
        call: The number of the call in this process.
    """

    attempt: int
    seconds: float
    error: str
    kind: str | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """A generation completed and its result is here.

    Attributes:
        seconds: Since the call began.
        polls: How many polls it took.
        lag_max: Seconds that can have passed at most between the end and the poll that saw it, or None.
        cost_usd: USD, as the result reports them, or None.
        model: The model's id, where known.
    """

    seconds: float
    polls: int
    lag_max: float | None
    cost_usd: float | None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """A call ended in an error, `seconds` after it began.

    Attributes:
        error_type: The name of its class.
        error: Its sentence.
        seconds: Since the call began.
        model: The model's id, where known.
        call: The number of the call in this process.
        verb: The call's name. "generate", "submit" and "wait_for_result" are about a generation; "download" and
            are about files, and say nothing of the generation itself. None: an event made before verbs were told apart.
    """

    error_type: str
    error: str
    seconds: float | None = None
    model: str | None = None
    call: int | None = None
    verb: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Event):
    """The service was asked to cancel.

    Attributes:
        cancelled: Its answer, or None where it gave none.
        abandoned: Asked because nobody waits for the request any more, and not by a call of `cancel`.
    """

    cancelled: bool | None
    abandoned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertain(Event):
    """A submit may or may not have been accepted, and was left alone.

    Attributes:
        error: What came instead of an answer, as a sentence.
        seconds: Since it was asked for.
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
        paths: Where.
        sha256: For each path the SHA-256 of its bytes, in hexadecimal digits.
        seconds: How long that took.
    """

    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    """The client is closed.

    Attributes:
        left_running: The ids of requests that may still run and that nobody waits for any more.
    """

    left_running: tuple[str, ...]
