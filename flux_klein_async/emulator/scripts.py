"""What a scripted call gets instead of the normal answer.

Pure data: how and when an answer is sent is the server's affair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_args, get_origin

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
    "Unasked",
    "check_answer",
    "error_reply",
]

Endpoint: TypeAlias = Literal[
    "connect", "submit", "status", "result", "cancel", "model", "models", "categories", "file", "other"
]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
_JSON = {"Content-Type": "application/json"}


class _Checked:
    """An answer whose words and numbers are checked when it is made: when it is due, nothing would come of it."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value, kind = getattr(self, each.name), each.type
            wanted = ""
            if get_origin(kind) is Literal and value not in get_args(kind):
                wanted = f"one of {', '.join(map(repr, get_args(kind)))}"
            elif kind in (float, float | None) and not (value is None and kind is not float):
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                wanted = "" if is_number and value >= 0 else "a number, 0 or more"
            if wanted:
                raise ValueError(f"{type(self).__name__}({each.name}=...) is {wanted}, not {value!r:.60}")
        for name, value in getattr(self, "headers", {}).items():
            if any(mark in name + value for mark in "\r\n"):
                raise ValueError(f"a header cannot hold a line break: {name!r}: {value!r}")


@dataclass(frozen=True, slots=True)
class Pass(_Checked):
    """The normal answer, sent after `delay` seconds; the call takes effect when it arrives."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Rewrite(_Checked):
    """The normal answer with some `fields` of its JSON object replaced (None removes one) and `headers` added.

    In text, `{file}` is the URL of the generation's first file, `{FILE}` the same with its scheme in capitals and
    `{place}` without. The call takes effect. `delay`, `dribble`, `head_dribble` and `gzip` as in `Reply`.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    dribble: float | None = None
    head_dribble: float | None = None
    gzip: int | None = None


@dataclass(frozen=True, slots=True)
class Cut(_Checked):
    """The normal answer, broken off: only `after` bytes of its body leave, after its head and `delay` seconds.

    Then the connection is closed or, if `silent`, stays open without another byte.
    """

    after: int
    silent: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply(_Checked):
    """Exactly this answer.

    Attributes:
        status: The HTTP status.
        body: Sent as it is if it is bytes or text, otherwise as JSON.
        headers: Sent besides the body's own.
        delay: Seconds before the reply leaves.
        accepted: The call takes effect all the same (a submit starts its generation, a cancel cancels).
        dribble: Seconds before each single byte of the body.
        cut: Where it breaks off.
        head_dribble: Seconds before each single byte of the status line and the headers.
        gzip: For a client that accepts it, the body is compressed and this many zero bytes follow it.
        unasked: What follows on the same connection.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    accepted: bool = False
    dribble: float | None = None
    cut: Cut | None = None
    head_dribble: float | None = None
    gzip: int | None = None
    unasked: "Unasked | None" = None


@dataclass(frozen=True, slots=True)
class Unasked(_Checked):
    """The normal answer, and behind it on the same connection one that nobody asked for.

    That is `reply`, or the normal answer once more. It leaves `after` seconds after the first or, `with_head`, when the
    head of the connection's next request has arrived. `delay` as in `Reply`.
    """

    reply: Reply | None = None
    after: float = 0.0
    with_head: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer ever, on a connection that stays open (for `connect`: no connection ever); `accepted` as in `Reply`."""

    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Reset(_Checked):
    """The connection is aborted instead of an answer; `accepted` and `delay` as in `Reply`."""

    accepted: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Garbage(_Checked):
    """The bytes `data`, which are not HTTP; then the connection is closed. `accepted` and `delay` as in `Reply`."""

    data: bytes = b"\x00\xff this is no HTTP\r\n\r\n"
    accepted: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Truncate(_Checked):
    """An answer whose Content-Length promises `missing` bytes more than `body` has; then the connection is closed.

    `status`, `headers`, `accepted` and `delay` as in `Reply`.
    """

    body: bytes = b'{"request_id": "'
    missing: int = 64
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)
    accepted: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Endless(_Checked):
    """An answer whose body repeats `chunk` every `every` seconds for as long as the client reads it.

    With `raw`, exactly these bytes are sent instead of a head, and each chunk as it is. `status`, `headers`, `accepted`
    and `delay` as in `Reply`.
    """

    chunk: bytes = b" " * 65_536
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)
    accepted: bool = False
    delay: float = 0.0
    every: float = 0.0
    raw: bytes | None = None

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if not self.chunk:
            raise ValueError("an endless body needs a chunk of at least one byte")


@dataclass(frozen=True, slots=True)
class Refuse:
    """For `connect` alone: the connection is refused."""


@dataclass(frozen=True, slots=True)
class Drop:
    """For `connect` alone: the connection is accepted and closed at once."""


@dataclass(frozen=True, slots=True)
class Generation(_Checked):
    """For `submit` alone: accepted as usual; decides how the generation goes.

    Attributes:
        ends: How it ends.
        after: Seconds of running; None: as the profile says.
        error: What a failed one says, in its result and its status.
        output: Replaces the model's own; `{file}` as in `Rewrite`.
        early_result: Answers `result` before the end.
        result_lag: Seconds for which `result` still says "not yet" after `status` has said the end.
        words: Replace the names of states, such as `{"completed": "succeeded"}`.
        delay: Seconds before the reply to the submit.
        cost: US dollars that it costs, instead of the catalogue's price.
        same_id: It is given the id of the submit before it.
        signed: Its files have addresses that answer 403 unless asked for byte by byte; `redirect`: after a redirect.
    """

    ends: Literal["completed", "failed", "cancelled"] = "completed"
    after: float | None = None
    error: Any = None
    output: Any = None
    early_result: Reply | None = None
    result_lag: float = 0.0
    words: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cost: float | None = None
    same_id: bool = False
    signed: Literal["", "direct", "redirect"] = ""


Answer: TypeAlias = (
    Pass | Rewrite | Cut | Unasked | Reply | Hang | Reset | Garbage | Truncate | Endless | Refuse | Drop | Generation
)
Script: TypeAlias = Mapping[str, Sequence[Answer | None]]


def check_answer(endpoint: str, answer: Answer | None) -> None:
    """Refuse an answer that this endpoint cannot give.

    Raises:
        ValueError: There is no such endpoint, or the answer belongs to another one.
        TypeError: It is no answer, such as the number 503.
    """
    if endpoint not in ENDPOINTS:
        raise ValueError(f"no endpoint {endpoint!r}: there are {', '.join(ENDPOINTS)}")
    if answer is None:
        return
    kind = type(answer).__name__
    if not isinstance(answer, Answer):
        more = "write one such as fault('503'), Reply(503) or Generation()"
        if isinstance(answer, list | tuple):
            more = "several answers are several arguments, so write a * before them"
        raise TypeError(f"{answer!r:.80} is no answer: {more}")
    if endpoint == "connect":
        if not isinstance(answer, Pass | Hang | Refuse | Drop):
            raise ValueError(f"'connect' can be answered with Pass, Hang, Refuse or Drop, not with {kind}")
    elif isinstance(answer, Refuse | Drop):
        raise ValueError(f"{kind} answers 'connect', not {endpoint!r}")
    elif isinstance(answer, Generation) and endpoint != "submit":
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
    """Build the service's usual error body.

    `retry_after` is a number of seconds, or an HTTP date; in process the emulator's clock begins at "Thu, 01 Jan 2026
    00:00:00 GMT", and a date more than a day ahead of it is absurd to the client.

    A `code` that the service does not have, or that contradicts the status, leaves it open whether a submit was
    accepted: see docs/wire.md, "Errors".
    """
    extra = {"error_code": code, "detail": detail}
    body = {"error_message": message, **{name: value for name, value in extra.items() if value is not None}}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Reply(status, body, headers, accepted=accepted)
