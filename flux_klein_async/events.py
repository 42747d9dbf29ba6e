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
    "Looked",
    "Retrying",
    "StateChanged",
    "Submitted",
    "Uncertain",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have: the request, the caller's tag, and the loop's time."""

    at: float
    request_id: str | None = None
    tag: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    """A submit was accepted; `seconds` since it was asked for."""

    seconds: float
    model: str | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked(Event):
    """A look at the status was answered (`state`) or saw nothing (`error`: what stood in its way)."""

    look: int
    state: RequestState | None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The state or the queue position is another one than at the last look."""

    state: RequestState
    queue_position: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Event):
    """The service asked for patience: all calls of this kind wait for `seconds`."""

    kind: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying(Event):
    """A call failed in a way that allows a repeat, which comes after `seconds`."""

    attempt: int
    seconds: float
    error: str
    kind: str | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """A generation completed and its result is here; `seconds` since the call began."""

    seconds: float
    looks: int
    lag_max: float | None
    cost_usd: float | None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """A call ended in an error (its class name and its sentence), `seconds` after it began.

    `verb` is the call's name. "generate", "submit" and "wait_for_result" are about a generation; "download" and "read"
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
    """The service was asked to cancel. `cancelled` is its answer, or None where it gave none.

    `abandoned`: asked because nobody waits for the request any more, and not by a call of `cancel`.
    """

    cancelled: bool | None
    abandoned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertain(Event):
    """A submit may or may not have been accepted, and was left alone; `seconds` since it was asked for."""

    error: str
    seconds: float | None = None
    model: str | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded(Event):
    """Files of a request are on disk; `sha256` has for each path the digest of its bytes, in hexadecimal digits.

    `seconds` is how long that took.
    """

    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    """The client is closed; `left_running` are the ids that nobody waits for any more."""

    left_running: tuple[str, ...]
