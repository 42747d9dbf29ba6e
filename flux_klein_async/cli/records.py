"""What `--json` prints: one object a line, pure ASCII, so that no prompt and no locale can break it. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flux_klein_async.errors import (
    DownloadError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.models import GenerationResult, RequestState

__all__ = ["Record", "error_facts", "error_record", "json_line", "result_facts", "result_record", "stopped_record"]

Record = dict[str, Any]


def json_line(record: Mapping[str, Any]) -> str:
    """One object on one line; DEL, the only control character that JSON leaves raw, is escaped too."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False).replace("\x7f", "\\u007f")


def result_facts(result: GenerationResult, files: Sequence[str]) -> Record:
    """What a finished generation has to tell, in the order in which it is printed."""
    return {
        "request_id": result.request_id,
        "state": result.state.value,
        "urls": result.urls,
        "files": list(files),
        "cost_usd": result.cost_usd,
        "timings": asdict(result.timings),
    }


def error_facts(error: FluxKleinError, *, submitted: bool = True) -> Record:
    """What went wrong; an item that was never submitted cannot be charged, whatever ended the others."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "charged": error.charged if submitted else "no",
        "retryable": error.retryable,
    }


def result_record(
    index: int,
    item: object,
    result: GenerationResult,
    *,
    files: Sequence[str] = (),
    error: FluxKleinError | None = None,
) -> Record:
    """An item whose generation finished; `error` is what kept its files from being saved."""
    facts = result_facts(result, files)
    return {"index": index, "input": item, **facts, "error": error_facts(error) if error else None}


def error_record(index: int, item: object, error: FluxKleinError, *, submitted: bool = True) -> Record:
    """An item without a result."""
    request_id = error.request_id if submitted else None
    state = _state(error) if submitted else None
    return _without_result(index, item, request_id, state, error_facts(error, submitted=submitted))


def stopped_record(index: int, item: object, request_id: str, state: RequestState) -> Record:
    """An item that was under way when the command was told to stop."""
    charged = {RequestState.CANCELLED: "no", RequestState.COMPLETED: "yes"}.get(state, "unknown")
    facts = {"type": "Interrupted", "message": "The command was stopped", "charged": charged, "retryable": False}
    return _without_result(index, item, request_id, state, facts)


def _without_result(
    index: int, item: object, request_id: str | None, state: RequestState | None, error: Record
) -> Record:
    return {
        "index": index,
        "input": item,
        "request_id": request_id,
        "state": state.value if state else None,
        "urls": [],
        "files": [],
        "cost_usd": None,
        "timings": None,
        "error": error,
    }


def _state(error: FluxKleinError) -> RequestState | None:
    """Where the request stands as far as its error tells; None where there is no request."""
    if isinstance(error, GenerationFailedError):
        return RequestState.FAILED
    if isinstance(error, GenerationCancelledError):
        return RequestState.CANCELLED
    if isinstance(error, DownloadError):
        return RequestState.COMPLETED
    if isinstance(error, WaitTimeoutError):
        return RequestState.read(error.state)
    known = error.request_id is not None or isinstance(error, SubmissionUncertainError)
    return RequestState.UNKNOWN if known else None
