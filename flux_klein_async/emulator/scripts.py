"""What a scripted call gets instead of the normal answer.

Pure data. Must not know how an answer is put on the wire, nor when.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

__all__ = [
    "ENDPOINTS",
    "Answer",
    "Cut",
    "Drop",
    "Endless",
    "Endpoint",
    "Garbage",
    "Generation",
    "Hang",
    "Pass",
    "Refuse",
    "Reply",
    "Reset",
    "Rewrite",
    "Script",
    "Truncate",
    "check_answer",
    "error_reply",
]


Endpoint: TypeAlias = Literal["connect", "submit", "status", "result", "cancel", "model", "models", "file", "other"]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)


@dataclass(frozen=True, slots=True)
class Pass:
    """The normal answer; the call takes effect when it arrives.

    Attributes:
        delay: Seconds after which the reply leaves.
    """

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The normal answer with some of it changed; the call takes effect.

    Attributes:
        fields: They replace those of its JSON object; None removes one.
        headers: They go out besides its own.
        delay: Seconds after which the reply leaves.
        dribble: Seconds before each single byte of the body.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    dribble: float | None = None

    def __post_init__(self) -> None:
        _check_headers(self.headers)


@dataclass(frozen=True, slots=True)
class Cut:
    """The normal answer, until it breaks off.

    Attributes:
        after: Bytes of its body that leave, after its head.
        silent: Whether the connection then stays open and says nothing more; else it is closed.
        delay: Seconds after which the reply leaves.
    """

    after: int
    silent: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Exactly this answer.

    Attributes:
        status: The HTTP status.
        body: Goes out as it is when it is bytes or text, else as JSON.
        headers: Those besides the body's own.
        delay: Seconds after which the reply leaves.
        accepted: The call takes effect all the same (a submit starts its generation, a cancel cancels), only the reply
            says otherwise.
        dribble: Seconds before each single byte of the body.
        cut: Where it breaks off.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    accepted: bool = False
    dribble: float | None = None
    cut: Cut | None = None

    def __post_init__(self) -> None:
        _check_headers(self.headers)


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if any(mark in name + value for mark in "\r\n"):
            raise ValueError(f"a header cannot hold a line break: {name!r}: {value!r}")


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer ever, on a connection that stays open (for `connect`: no connection ever).

    Attributes:
        accepted: The call takes effect all the same.
    """

    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is aborted instead of an answer.

    Attributes:
        accepted: The call takes effect all the same.
        delay: Seconds after which that happens.
    """

    accepted: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes that are no HTTP answer; then the connection is closed.

    Attributes:
        data: The bytes.
        accepted: The call takes effect all the same.
        delay: Seconds after which they leave.
    """

    data: bytes = b"\x00\xff this is no HTTP\r\n\r\n"
    accepted: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Truncate:
    """A body whose Content-Length promises more than is sent; then a closed connection.

    Attributes:
        body: What is sent of it.
        missing: How many bytes more are promised.
        status: The HTTP status.
        headers: Those besides the length.
        accepted: The call takes effect all the same.
        delay: Seconds after which the reply leaves.
    """

    body: bytes = b'{"request_id": "'
    missing: int = 64
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    accepted: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Endless:
    """A body that goes on for as long as somebody reads it.

    Attributes:
        chunk: The bytes that are repeated.
        status: The HTTP status.
        headers: Those of the answer.
        accepted: The call takes effect all the same.
        delay: Seconds after which the reply leaves.
    """

    chunk: bytes = b" " * 65_536
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    accepted: bool = False
    delay: float = 0.0

    def __post_init__(self) -> None:
        if not self.chunk:
            raise ValueError("an endless body needs a chunk of at least one byte")


@dataclass(frozen=True, slots=True)
class Refuse:
    """For `connect` alone: the connection is refused."""


@dataclass(frozen=True, slots=True)
class Drop:
    """For `connect` alone: the connection is accepted and closed at once."""


@dataclass(frozen=True, slots=True)
class Generation:
    """For `submit` alone: accepted as usual, and this is the generation's fate.

    Attributes:
        ends: How it ends.
        after: Seconds of running; None: as the profile says.
        error: What a failed one says.
        output: In place of the model's own.
        early_result: Answers `result` before the end.
        result_lag: Seconds for which `result` still says "not yet" after `status` has said the end.
        words: What to write in place of a state, such as `{"completed": "succeeded"}`.
        delay: Seconds before the reply to the submit.
    """

    ends: Literal["completed", "failed", "cancelled"] = "completed"
    after: float | None = None
    error: Any = None
    output: Any = None
    early_result: Reply | None = None
    result_lag: float = 0.0
    words: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


Answer: TypeAlias = (
    Pass | Rewrite | Cut | Reply | Hang | Reset | Garbage | Truncate | Endless | Refuse | Drop | Generation
)
Script: TypeAlias = Mapping[str, Sequence[Answer | None]]

_CONNECTING = (Pass, Hang, Refuse, Drop)


def check_answer(endpoint: str, answer: Answer | None) -> None:
    """Refuse an answer that this endpoint cannot give.

    Raises:
        ValueError: no such endpoint, or an answer that belongs to another one.
    """
    if endpoint not in ENDPOINTS:
        raise ValueError(f"no endpoint {endpoint!r}: there are {', '.join(ENDPOINTS)}")
    if answer is None:
        return
    kind = type(answer).__name__
    if endpoint == "connect" and not isinstance(answer, _CONNECTING):
        raise ValueError(f"'connect' can be answered with Pass, Hang, Refuse or Drop, not with {kind}")
    if endpoint != "connect" and isinstance(answer, Refuse | Drop):
        raise ValueError(f"{kind} answers 'connect', not {endpoint!r}")
    if endpoint != "submit" and isinstance(answer, Generation):
        raise ValueError(f"Generation answers 'submit', not {endpoint!r}")


def error_reply(
    status: int,
    code: int | None = None,
    message: str = "scripted error",
    *,
    retry_after: float | str | None = None,
    detail: Any = None,
    accepted: bool = False,
) -> Reply:
    """Build the service's usual error body; `retry_after` is a number of seconds or an HTTP date."""
    body: dict[str, Any] = {"error_message": message}
    if code is not None:
        body["error_code"] = code
    if detail is not None:
        body["detail"] = detail
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Reply(status, body, headers, accepted=accepted)
