"""What the service answers: read a `Response` into a model, or raise.

Tolerant of what is unknown and strict about what is needed; the whole answer stays in `raw`. No clock, no socket, no
retry: `transport.retry` decides what a failure means, `flow` what to do about it. Sources of every fact:
docs/wire.md.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from flux_klein_async.api.messages import Response
from flux_klein_async.api.retry_after import retry_after
from flux_klein_async.api.urls import checked_request_id
from flux_klein_async.errors import (
    APIStatusError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidInputError,
    InvalidResponseError,
    ResultNotReadyError,
    status_error_class,
)
from flux_klein_async.models import (
    CancelOutcome,
    GenerationOutput,
    GenerationResult,
    ModelInfo,
    RequestState,
    RequestStatus,
    Timings,
)

__all__ = [
    "excerpt",
    "ok",
    "read_cancel",
    "read_error",
    "read_model",
    "read_result",
    "read_status",
    "read_submit",
    "request_id_in",
]

_VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".m4v")
_EXCERPT = 300
_LONGEST_MESSAGE = 2000  # characters of a message that anybody reads
_MOST_FINDINGS = 50  # fields at fault
_MOST_USD = 1e9


def ok(response: Response) -> bool:
    """Whether the HTTP status says success."""
    return 200 <= response.status < 300


def excerpt(response: Response) -> str | None:
    """The start of an answer's text, on one line, for people."""
    text = " ".join(response.body[: 4 * _EXCERPT].decode("utf-8", "replace").split())
    # Marked, not dropped: what a control character divided may be the token, which is looked for as a whole.
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return (text[:_EXCERPT] + "…" if len(text) > _EXCERPT else text) or None


def _object(response: Response) -> dict[str, Any] | None:
    """The answer's JSON object, or None where it holds none of sane depth and size."""
    try:
        # Refuses what json.loads trips over: deep nesting, endless digits, lone surrogates.
        value = from_json(response.body, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _answer(response: Response, request_id: str | None = None) -> dict[str, Any]:
    """The object of a successful answer.

    Raises:
        APIStatusError: The service refused, by HTTP status or by `error_code`.
        InvalidResponseError: It is no JSON object, or about another request: one picture must not pass for another.
    """
    data = _object(response)
    if not ok(response) or (data is not None and data.get("error_code") is not None):
        raise read_error(response, request_id=request_id)
    if data is None:
        raise InvalidResponseError(
            "The answer is not a JSON object",
            status_code=response.status,
            request_id=request_id,
            cause=excerpt(response),
        )
    said = data.get("request_id")
    if request_id is not None and isinstance(said, str) and said != request_id:
        raise InvalidResponseError(
            f"The answer is about another request: {said[:140]!r}", status_code=response.status, request_id=request_id
        )
    return data


def read_error(response: Response, *, request_id: str | None = None) -> APIStatusError | InvalidResponseError:
    """The error that a refusal stands for; a redirect is no refusal, it is no answer at all."""
    if not ok(response) and response.status < 400:
        return InvalidResponseError(
            "The API answered with a redirect, which is never followed",
            status_code=response.status,
            request_id=request_id,
        )
    data = _object(response) or {}
    code = _code(data.get("error_code"))
    return status_error_class(response.status, code)(
        status_code=response.status,
        error_code=code,
        detail=_message(data) or excerpt(response),
        headers={name.lower(): value for name, value in response.headers.items()},
        body=response.body[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace")[:_LONGEST_MESSAGE],
        retry_after=retry_after(response.headers),
        request_id=request_id,
    )


def _code(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _message(data: Mapping[str, Any]) -> Any:
    """What the service says: the fields at fault where it points at them, which a sentence beside them does not."""
    detail = data.get("detail")
    if isinstance(detail, list) and any(isinstance(item, Mapping) for item in detail):
        return detail[:_MOST_FINDINGS]
    for name in ("error_message", "message", "error"):
        if isinstance(data.get(name), str) and data[name]:
            return data[name][:_LONGEST_MESSAGE]
    if isinstance(detail, str):
        return detail[:_LONGEST_MESSAGE] or None
    return detail[:_MOST_FINDINGS] or None if isinstance(detail, list) else None


def request_id_in(response: Response) -> str | None:
    """A usable request id in an answer, whatever else the answer says."""
    data = _object(response)
    try:
        return checked_request_id(data.get("request_id")) if data else None
    except InvalidInputError:
        return None


def read_submit(response: Response) -> str:
    """The id of an accepted request. A usable id means accepted, whatever else the answer says.

    Raises:
        APIStatusError: The service refused, by HTTP status or by `error_code`.
        InvalidResponseError: Neither an id nor a refusal.
    """
    request_id = request_id_in(response)
    if request_id is not None:
        return request_id
    _answer(response)
    raise InvalidResponseError(
        "The submit was answered without a usable request id",
        status_code=response.status,
        cause=excerpt(response),
    )


def read_status(response: Response, request_id: str) -> RequestStatus:
    """One poll.

    Raises:
        APIStatusError, InvalidResponseError: As `_answer`; also where no status is in it.
    """
    data = _answer(response, request_id)
    if not isinstance(data.get("status"), str):
        raise InvalidResponseError(
            "The answer holds no status", status_code=response.status, request_id=request_id, cause=excerpt(response)
        )
    position, instance = data.get("queue_position"), data.get("instance_id")
    return RequestStatus(
        request_id=request_id,
        state=RequestState.read(data["status"]),
        queue_position=position if type(position) is int and position >= 0 else None,
        instance_id=instance if isinstance(instance, str) else None,
        raw=data,
    )


def read_result(response: Response, request_id: str, timings: Callable[[], Timings] = Timings) -> GenerationResult:
    """The result of a completed request; `timings` says where the time went, now that it is here.

    Raises:
        ResultNotReadyError: It has not ended, or its output is not there yet.
        GenerationFailedError, GenerationCancelledError: It ended so.
        APIStatusError, InvalidResponseError: As `_answer`.
    """
    data = _answer(response, request_id)
    state = RequestState.read(data.get("status"))
    if state is RequestState.FAILED:
        raise GenerationFailedError(request_id=request_id, detail=_message(data) or data.get("error"))
    if state is RequestState.CANCELLED:
        raise GenerationCancelledError(request_id=request_id)
    output = data.get("output")
    if output is None or state is not RequestState.COMPLETED:
        raise ResultNotReadyError(
            f"The result is not ready, the service says {str(data.get('status'))[:40]!r}",
            request_id=request_id,
        )
    return GenerationResult(
        request_id=request_id,
        state=state,
        output=_output(output),
        created_at=_time(data.get("created_at")),
        finished_at=_time(data.get("finished_at")),
        cost_usd=_amount(data.get("cost")),
        timings=timings(),
        raw=data,
    )


def read_cancel(response: Response, request_id: str) -> CancelOutcome:
    """What became of a cancel: True or False as the service says it, never a guess.

    Raises:
        APIStatusError, InvalidResponseError: As `_answer`; also where the answer does not say.
    """
    data = _answer(response, request_id)
    state = RequestState.read(data.get("status"))
    outcome = data.get("outcome")
    if outcome in ("cancelled", "canceled") or (outcome is None and state is RequestState.CANCELLED):
        return CancelOutcome(request_id=request_id, cancelled=True, state=state, raw=data)
    if outcome == "not_cancellable":
        return CancelOutcome(request_id=request_id, cancelled=False, state=state, raw=data)
    raise InvalidResponseError(
        "The answer does not say whether it was cancelled",
        status_code=response.status,
        request_id=request_id,
        cause=excerpt(response),
    )


def read_model(response: Response) -> ModelInfo:
    """A catalogue entry.

    Raises:
        APIStatusError, InvalidResponseError: As `_answer`; also where no model id is in it.
    """
    data = _answer(response)
    schema = next((data[key] for key in ("input_schema", "schema") if isinstance(data.get(key), dict)), None)
    categories = data.get("categories")
    try:
        return ModelInfo(
            model_id=data["model_id"] if isinstance(data.get("model_id"), str) else None,
            display_name=_text(data.get("display_name")),
            categories=tuple(filter(None, map(_text, categories))) if isinstance(categories, list) else (),
            base_price_usd=_amount(data.get("base_price_usd")),
            price_unit=_text(data.get("price_unit")),
            pricing_note=_text(data.get("pricing_note")),
            input_schema=schema,
            raw=data,
        )
    except ValidationError:
        raise InvalidResponseError(
            "The answer holds no model_id", status_code=response.status, cause=excerpt(response)
        ) from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _amount(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_USD:
        return None  # also NaN, and integers that no float can hold
    return float(value)


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _output(value: object) -> GenerationOutput:
    """The files of any model: its shape is the model's own affair (docs/wire.md, "Output")."""
    if isinstance(value, Mapping):
        return GenerationOutput(
            image=_url(value.get("image")),
            video=_url(value.get("video")),
            images=_urls(value.get("images")),
            videos=_urls(value.get("videos")),
        )
    urls = _urls([value] if isinstance(value, str) else value)
    videos = tuple(url for url in urls if url.partition("?")[0].lower().endswith(_VIDEO_SUFFIXES))
    images = tuple(url for url in urls if url not in videos)
    if isinstance(value, str):
        return GenerationOutput(image=images[0] if images else None, video=videos[0] if videos else None)
    return GenerationOutput(images=images, videos=videos)


def _url(value: object) -> str | None:
    if isinstance(value, Mapping):  # observed in services of the same kind: {"url": ...}
        value = value.get("url")
    return value if isinstance(value, str) and value.startswith(("https://", "http://")) else None


def _urls(value: object) -> tuple[str, ...]:
    return tuple(filter(None, map(_url, value))) if isinstance(value, list) else ()
