"""From a `Response` to a model, to an error, or to a pause that it asks for (source: docs/wire.md).

Tolerant of unknown fields and strict about needed ones; the whole answer stays in `raw`.
"""

import time
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from pydantic_core import from_json

from flux_klein_async.api.messages import Response
from flux_klein_async.api.outputs import read_output
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
    GenerationResult,
    ModelInfo,
    RequestState,
    RequestStatus,
    Timings,
    read_fields,
)
from flux_klein_async.text import shown

__all__ = [
    "CAP",
    "ModelPage",
    "excerpt",
    "http_date",
    "ok",
    "read_cancel",
    "read_error",
    "read_model",
    "read_models",
    "read_result",
    "read_status",
    "read_submit",
    "request_id_in",
    "retry_after",
]

_EXCERPT = 300
_LONGEST_MESSAGE = 2000  # characters
_MOST_FINDINGS = 50  # fields at fault
_MOST_USD = 1e9
CAP = 120.0  # seconds of a Retry-After; longer values are cut to this
_ABSURD = 86_400.0  # seconds; more than a day is a mistake and is ignored


def ok(response: Response) -> bool:
    """Whether the HTTP status says success."""
    return 200 <= response.status < 300


def excerpt(response: Response) -> str | None:
    """The start of an answer's text, on one line and printable."""
    text = shown(" ".join(response.body[: 4 * _EXCERPT].decode("utf-8", "replace").split()))
    return (text[:_EXCERPT] + "…" if len(text) > _EXCERPT else text) or None


def _object(response: Response) -> dict[str, Any] | None:
    """The answer's JSON object, or None if it is none of sane depth and size."""
    try:
        # Unlike json.loads, it answers deep nesting, endless digits and lone surrogates with a ValueError.
        value = from_json(response.body.removeprefix(BOM_UTF8), allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _answer(response: Response, request_id: str | None = None) -> dict[str, Any]:
    """The object of a successful answer.

    Raises:
        APIStatusError: The service refused, by HTTP status or by `error_code`.
        InvalidResponseError: It is no JSON object, or is about another request.
    """
    data = _object(response)
    if not ok(response) or (data is not None and data.get("error_code") is not None):
        raise read_error(response, request_id=request_id)
    if data is None:
        raise _invalid("The answer is not a JSON object", response, request_id)
    said = data.get("request_id")
    if request_id is not None and isinstance(said, str) and said != request_id:
        raise _invalid(f"The answer is about another request: {said[:140]!r}", response, request_id, quoted=False)
    return data


def _invalid(
    sentence: str, response: Response, request_id: str | None = None, *, quoted: bool = True
) -> InvalidResponseError:
    cause = excerpt(response) if quoted else None
    return InvalidResponseError(sentence, status_code=response.status, request_id=request_id, cause=cause)


def read_error(response: Response, *, request_id: str | None = None) -> APIStatusError | InvalidResponseError:
    """The error for a refusal. A redirect is no refusal but an invalid answer."""
    if not ok(response) and response.status < 400:
        return _invalid("The API answered with a redirect, which is never followed", response, request_id, quoted=False)
    data = _object(response) or {}
    code = _code(data.get("error_code"))
    return status_error_class(response.status, code)(
        status_code=response.status,
        error_code=code,
        detail=_message(data) or excerpt(response),
        headers={name.lower(): value for name, value in response.headers.items()},
        body=response.body[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace")[:_LONGEST_MESSAGE],
        retry_after=retry_after(response.headers, response.status),
        request_id=request_id,
    )


def _code(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _message(data: Mapping[str, Any]) -> Any:
    """The service's message: its list of fields at fault, if there is one, says more than the sentence beside it."""
    detail = data.get("detail")
    findings = detail[:_MOST_FINDINGS] if isinstance(detail, list) else None
    if findings and any(isinstance(item, Mapping) for item in findings):
        return findings
    sentences = (*(data.get(name) for name in ("error_message", "message", "error")), detail)
    return next((text[:_LONGEST_MESSAGE] for text in sentences if isinstance(text, str) and text), findings or None)


def request_id_in(response: Response) -> str | None:
    """The usable request id in an answer, whatever else it says; or None."""
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
    if request_id is None:
        _answer(response)
        raise _invalid("The submit was answered without a usable request id", response)
    return request_id


def read_status(response: Response, request_id: str) -> RequestStatus:
    """What a poll saw.

    Raises:
        APIStatusError, InvalidResponseError: As `_answer`; also if it has no status.
    """
    data = _answer(response, request_id)
    if not isinstance(data.get("status"), str):
        raise _invalid("The answer holds no status", response, request_id)
    position = data.get("queue_position")
    return read_fields(
        RequestStatus,
        {
            "request_id": request_id,
            "state": RequestState.read(data["status"]),
            "queue_position": position if type(position) is int and position >= 0 else None,
            "instance_id": _text(data.get("instance_id")),
            "raw": data,
        },
    )


def read_result(
    response: Response,
    request_id: str,
    timings: Callable[[], Timings] = Timings,
    *,
    origin: str = "",
    asked: int | None = None,
) -> GenerationResult:
    """The result of a completed request; `timings` is called once it is there, `origin` and `asked` as `read_output`.

    It may be completed without an output: yet, or for good, if every file was filtered.

    Raises:
        ResultNotReadyError: The request has not ended.
        GenerationFailedError, GenerationCancelledError: It ended that way.
        APIStatusError, InvalidResponseError: As `_answer`.
    """
    data = _answer(response, request_id)
    state = RequestState.read(data.get("status"))
    if state is RequestState.FAILED:
        raise GenerationFailedError(request_id=request_id, detail=_message(data) or data.get("error"))
    if state is RequestState.CANCELLED:
        raise GenerationCancelledError(request_id=request_id)
    if state is not RequestState.COMPLETED:
        said = _message(data) if state is RequestState.UNKNOWN else None
        raise ResultNotReadyError(
            f"The result is not ready, the service says {str(data.get('status'))[:40]!r}",
            request_id=request_id,
            cause=None if said is None else str(said)[:_EXCERPT],
        )
    files, missing = read_output(data.get("output"), origin, asked)
    return read_fields(
        GenerationResult,
        {
            "request_id": request_id,
            "state": state,
            "output": files,
            "created_at": _time(data.get("created_at")),
            "finished_at": _time(data.get("finished_at")),
            "cost_usd": _amount(data.get("cost")),
            "missing": missing,
            "timings": timings(),
            "raw": data,
        },
    )


def read_cancel(response: Response, request_id: str) -> CancelOutcome:
    """The outcome of a cancel, as the service says it and never a guess.

    Raises:
        APIStatusError, InvalidResponseError: As `_answer`; also if it does not tell the outcome.
    """
    data = _answer(response, request_id)
    state = RequestState.read(data.get("status"))
    outcome = data.get("outcome")
    cancelled = outcome in ("cancelled", "canceled") or (outcome is None and state is RequestState.CANCELLED)
    if not cancelled and outcome != "not_cancellable":
        raise _invalid("The answer does not say whether it was cancelled", response, request_id)
    return CancelOutcome(request_id=request_id, cancelled=cancelled, state=state, raw=data)


def read_model(response: Response) -> ModelInfo:
    """A catalogue entry.

    Raises:
        APIStatusError, InvalidResponseError: As `_answer`; also if it has no model id.
    """
    info = _model(_answer(response))
    if info is None:
        raise _invalid("The answer holds no model_id", response)
    return info


class ModelPage(NamedTuple):
    """A page of the catalogue: its `models`, the number of its entries, and the `total` that the service claims."""

    models: list[ModelInfo]
    size: int
    total: int | None


def read_models(response: Response) -> ModelPage:
    """A page of the catalogue. An entry without a model id is left out.

    Raises:
        APIStatusError, InvalidResponseError: As `_answer`; also if it has no list, or one in which no entry has an id.
    """
    data = _answer(response)
    entries, total = data.get("models"), data.get("total")
    if not isinstance(entries, list):
        raise _invalid("The answer holds no list of models", response)
    models = [info for entry in entries if isinstance(entry, dict) and (info := _model(entry)) is not None]
    if entries and not models:
        raise _invalid("No entry of the answer holds a model_id", response)
    return ModelPage(models, len(entries), total if type(total) is int and total >= 0 else None)


def _model(data: dict[str, Any]) -> ModelInfo | None:
    if not (_text(data.get("model_id")) or "").strip():
        return None
    categories = data.get("categories")
    return ModelInfo(
        model_id=data["model_id"],
        display_name=_text(data.get("display_name")),
        categories=tuple(filter(None, map(_text, categories))) if isinstance(categories, list) else (),
        base_price_usd=_amount(data.get("base_price_usd")),
        price_unit=_text(data.get("price_unit")),
        pricing_note=_text(data.get("pricing_note")),
        input_schema=next((data[key] for key in ("input_schema", "schema") if isinstance(data.get(key), dict)), None),
        raw=data,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _amount(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_USD:
        return None  # also NaN, and integers that no float can hold
    return float(value)


def _time(value: object) -> datetime | None:
    """A time of the service; one without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo is not None else moment.replace(tzinfo=UTC)


# --- Retry-After


def retry_after(headers: Mapping[str, str], status: int) -> float | None:
    """Seconds that the service asks to wait, at most `CAP`; None if none, or unreadable, negative or absurd.

    `Retry-After` (RFC 9110, 10.2.3); else `retry-after-ms` (milliseconds; seen at services of this kind); else, only at
    a 429, `RateLimit-Reset`, which comes with any answer (seconds, by the drafts of the RateLimit header fields; or the
    unix time in seconds, as some services write it). An instant is measured against the answer's own `Date`, so the
    server's clock need not be right; the wall clock is read only if there is none.
    """
    if "retry-after" in headers:
        text = headers["retry-after"].strip()
        seconds = _seconds(text)
        if seconds is None and (then := http_date(text)) is not None:
            seconds = then - _now(headers)
    elif "retry-after-ms" in headers:
        milliseconds = _seconds(headers["retry-after-ms"])
        seconds = None if milliseconds is None else milliseconds / 1000
    else:
        seconds = _seconds(headers.get("ratelimit-reset", "")) if status == 429 else None
        if seconds is not None and seconds > _ABSURD:  # no duration, but the unix time
            seconds -= _now(headers)
    return min(seconds, CAP) if seconds is not None and 0 <= seconds <= _ABSURD else None


def _seconds(text: str) -> float | None:
    text = text.strip()
    # float() alone would also read "nan", "1_0" and foreign digits.
    return float(text) if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 20 else None


def _now(headers: Mapping[str, str]) -> float:
    """The wall clock's time, by the answer's own `Date` if it has one."""
    now = http_date(headers.get("date", ""))
    return time.time() if now is None else now


def http_date(text: str) -> float | None:
    """A date of HTTP in seconds of the epoch; None if it is none."""
    try:
        moment = parsedate_to_datetime(text.strip())
        # The obsolete forms have no zone; all dates of HTTP are in GMT (RFC 9110, 5.6.7).
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
