import pytest

from flux_klein_async.cli.records import error_record, result_record, stopped_record
from flux_klein_async.errors import (
    AuthenticationError,
    DownloadError,
    FluxKleinError,
    GenerationFailedError,
    SubmissionUncertainError,
)
from flux_klein_async.models import GenerationOutput, GenerationResult, RequestState

KEYS = ["index", "input", "request_id", "state", "urls", "files", "cost_usd", "timings", "error"]
RESULT = GenerationResult(
    request_id="abc",
    state=RequestState.COMPLETED,
    output=GenerationOutput(image="https://files.runcomfy.net/a.png"),
    cost_usd=0.01,
)


def test_a_finished_item_has_its_result_and_files() -> None:
    record = result_record(3, {"prompt": "p"}, RESULT, files=["out/abc.png"])
    assert list(record) == KEYS
    assert record["state"] == "completed"
    assert record["files"] == ["out/abc.png"]
    assert record["timings"]["polls"] == 0
    assert record["error"] is None


def test_an_item_whose_files_were_not_saved_keeps_its_urls() -> None:
    record = result_record(3, {}, RESULT, error=DownloadError("disk full", request_id="abc"))
    assert record["urls"] == RESULT.urls
    assert record["error"] == {
        "type": "DownloadError",
        "message": "disk full (request abc)",
        "charged": "yes",
        "retryable": False,
    }


@pytest.mark.parametrize("error", [GenerationFailedError(request_id="abc"), SubmissionUncertainError("lost")])
def test_a_failed_item_tells_where_its_request_stands(error: FluxKleinError) -> None:
    record = error_record(0, {}, error)
    assert list(record) == KEYS
    assert record["state"] == ("failed" if error.request_id else "unknown")
    assert record["request_id"] == error.request_id
    assert record["error"]["charged"] == error.charged == "unknown"


def test_an_item_never_submitted_has_no_request_and_costs_nothing() -> None:
    record = error_record(7, {}, AuthenticationError(request_id="another", charged="unknown"), submitted=False)
    assert (record["request_id"], record["state"], record["error"]["charged"]) == (None, None, "no")


def test_a_stopped_item_says_whether_it_may_be_charged() -> None:
    record = stopped_record(0, {}, "abc", RequestState.CANCELLED)
    assert list(record) == KEYS
    assert (record["state"], record["error"]["type"], record["error"]["charged"]) == ("cancelled", "Interrupted", "no")
