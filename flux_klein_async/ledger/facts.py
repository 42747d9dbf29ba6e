"""What the end of an item has to tell, as JSON: for `--json` and for the manifest. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from flux_klein_async.errors import (
    DownloadError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.models import RequestState

__all__ = ["Record", "error_facts", "json_line", "state_after", "stopped_facts"]

Record = dict[str, Any]


def json_line(record: Mapping[str, Any]) -> str:
    """One object on one line of printable ASCII."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False)


def error_facts(error: FluxKleinError, *, submitted: bool = True) -> Record:
    """What went wrong; an item that was never submitted cannot be charged, whatever ended the others."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "charged": error.charged if submitted else "no",
        "retryable": error.retryable,
    }


def stopped_facts(state: RequestState) -> Record:
    """The same for an item that was under way when the command was told to stop."""
    charged = {RequestState.CANCELLED: "no", RequestState.COMPLETED: "yes"}.get(state, "unknown")
    return {"type": "Interrupted", "message": "The command was stopped", "charged": charged, "retryable": False}


def state_after(error: FluxKleinError) -> RequestState | None:
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
