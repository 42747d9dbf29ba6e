"""What `--json` prints: one object a line, pure ASCII, so that no prompt and no locale can break it. Pure."""

from collections.abc import Sequence
from dataclasses import asdict

from flux_klein_async.batch.manifest import Record, error_facts, json_line, state_after, stopped_facts
from flux_klein_async.errors import FluxKleinError
from flux_klein_async.models import GenerationResult, RequestState

__all__ = ["Record", "error_facts", "error_record", "json_line", "result_facts", "result_record", "stopped_record"]


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
    state = state_after(error) if submitted else None
    return _without_result(index, item, request_id, state, error_facts(error, submitted=submitted))


def stopped_record(index: int, item: object, request_id: str, state: RequestState) -> Record:
    """An item that was under way when the command was told to stop."""
    return _without_result(index, item, request_id, state, stopped_facts(state))


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
