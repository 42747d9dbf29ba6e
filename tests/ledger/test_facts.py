"""What the end of an item has to tell."""

import json

import pytest

from flux_klein_async.errors import (
    AuthenticationError,
    DownloadError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InvalidInputError,
    NotFoundError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.ledger.facts import error_facts, json_line, state_after, stopped_facts
from flux_klein_async.models import RequestState


@pytest.mark.parametrize("text", ["\x00\x1b\x7f\x85\x9b", "\u2028\u2029\u202e", "🐆 שלום", "\ud800", 'quote " \\ \n'])
def test_a_line_is_printable_ascii_and_reads_back(text: str) -> None:
    line = json_line({"input": text})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {"input": text}


def test_what_json_has_no_number_for_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"cost_usd": float("nan")})


def test_an_error_tells_what_it_knows() -> None:
    assert error_facts(DownloadError("disk full", request_id="abc", transient=True)) == {
        "type": "DownloadError",
        "message": "disk full (request abc)",
        "charged": "yes",
        "retryable": True,
    }


def test_what_was_never_submitted_costs_nothing() -> None:
    error = AuthenticationError(request_id="another", charged="unknown")
    assert error_facts(error)["charged"] == "unknown"
    assert error_facts(error, submitted=False)["charged"] == "no"


@pytest.mark.parametrize(
    ("state", "charged"),
    [(RequestState.CANCELLED, "no"), (RequestState.COMPLETED, "yes"), (RequestState.IN_PROGRESS, "unknown")],
)
def test_a_stopped_item_says_whether_it_may_be_charged(state: RequestState, charged: str) -> None:
    assert stopped_facts(state) == {
        "type": "Interrupted",
        "message": "The command was stopped",
        "charged": charged,
        "retryable": False,
    }


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (InvalidInputError("bad"), None),
        (SubmissionUncertainError("lost"), "unknown"),
        (GenerationFailedError(request_id="abc"), "failed"),
        (GenerationCancelledError(request_id="abc"), "cancelled"),
        (WaitTimeoutError(request_id="abc", state="in_progress"), "in_progress"),
        (WaitTimeoutError(request_id="abc"), "unknown"),
        (DownloadError(request_id="abc"), "completed"),
        (NotFoundError(request_id="abc"), "unknown"),
    ],
)
def test_an_error_tells_where_its_request_stands(error: FluxKleinError, state: str | None) -> None:
    assert state_after(error) == state
