import json

import pytest

import flux_klein_async
from flux_klein_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BudgetExceededError,
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    GenerationOutput,
    GenerationResult,
    InputRejectedError,
    InsufficientBalanceError,
    InvalidInputError,
    InvalidResponseError,
    ItemTakenError,
    JournalError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestState,
    RequestStatus,
    ResultNotReadyError,
    ServerError,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.integrations.answers import answer_to, result_facts, status_facts

ID = "11111111-2222"
SECRET = "sk-secret at db.internal"


def paid(error):
    error.paid_by_this_call = True
    return error


# error, status, word, charged, retryable
CASES = [
    (InvalidInputError("prompt: blank", fields={"prompt": "blank"}), 422, "invalid_input", "no", False),
    (InputRejectedError(status_code=422, detail=SECRET), 422, "invalid_input", "no", False),
    (InsufficientBalanceError(status_code=402, detail=SECRET), 402, "payment_required", "no", False),
    (BudgetExceededError(SECRET), 402, "payment_required", "no", False),
    (RateLimitError(status_code=429, retry_after=2.1), 429, "rate_limited", "no", True),
    (RateLimitError(status_code=429), 429, "rate_limited", "no", True),
    (ResultNotReadyError(request_id=ID), 409, "not_ready", "unknown", True),
    (GenerationFailedError(request_id=ID, detail=SECRET), 502, "generation_failed", "unknown", False),
    (GenerationCancelledError(request_id=ID), 409, "generation_cancelled", "no", False),
    (WaitTimeoutError(request_id=ID), 504, "wait_timeout", "unknown", True),
    (paid(WaitTimeoutError(request_id=ID)), 504, "wait_timeout", "unknown", False),
    (SubmissionUncertainError(cause=SECRET, raw=SECRET), 502, "submission_uncertain", "unknown", False),
    (ConfigurationError(SECRET), 500, "internal_error", "no", False),
    (ItemTakenError(SECRET, request_id=ID), 409, "under_way", "no", True),
    (JournalError(SECRET, request_id=ID), 500, "internal_error", "unknown", False),
    (ClientClosedError(SECRET), 503, "closing", "no", True),
    (paid(ClientClosedError(SECRET, request_id=ID)), 503, "closing", "unknown", False),
    (NotFoundError(status_code=404, request_id=ID), 404, "not_found", "unknown", False),
    (NotFoundError(status_code=404, detail="Unknown model"), 502, "upstream_error", "no", False),
    (APIConnectionError(SECRET), 502, "upstream_error", "no", True),
    (APITimeoutError(SECRET), 504, "upstream_timeout", "no", True),
    (InvalidResponseError(SECRET), 502, "upstream_error", "no", True),
    (ServerError(status_code=500, detail=SECRET), 502, "upstream_error", "no", True),
    (ServerError(status_code=503, retry_after=0.0), 502, "upstream_error", "no", True),
    (APIStatusError(status_code=418, detail=SECRET), 502, "upstream_error", "no", False),
    (AuthenticationError(status_code=401, detail=SECRET), 502, "upstream_error", "no", False),
    (PermissionDeniedError(status_code=403, detail=SECRET), 502, "upstream_error", "no", False),
    (DownloadError(SECRET, url=SECRET), 502, "upstream_error", "yes", False),
    (FluxKleinError(SECRET), 502, "upstream_error", "no", False),
]


@pytest.mark.parametrize(
    ("error", "status", "word", "charged", "retryable"), CASES, ids=lambda value: type(value).__name__
)
def test_every_error_has_its_honest_answer(error, status, word, charged, retryable):
    answer = answer_to(error)
    said = dict(answer.body)
    assert (answer.status, said["error"], said["charged"], said["retryable"]) == (status, word, charged, retryable)
    assert said["request_id"] == error.request_id
    assert set(said) - {"fields"} == {"error", "message", "request_id", "charged", "retryable"}
    assert "secret" not in json.dumps(said)
    assert ("fields" in said) == (status == 422)


def test_no_class_of_error_was_forgotten():
    classes = {value for value in vars(flux_klein_async).values() if isinstance(value, type)}
    errors = {value for value in classes if issubclass(value, FluxKleinError)}
    assert {type(error) for error, *_ in CASES} == errors


@pytest.mark.parametrize(("seconds", "said"), [(2.1, "3"), (0.0, "1"), (30.0, "30"), (None, None)])
def test_retry_after_is_whole_seconds_and_never_invented(seconds, said):
    assert answer_to(RateLimitError(status_code=429, retry_after=seconds)).headers.get("Retry-After") == said
    assert answer_to(ServerError(status_code=503, retry_after=seconds)).headers.get("Retry-After") == said


def test_nobody_is_invited_back_to_pay_twice():
    assert answer_to(paid(RateLimitError(status_code=429, retry_after=2.0, request_id=ID))).headers == {}


def test_a_refused_token_looks_like_any_other_refusal():
    assert answer_to(AuthenticationError(status_code=401)) == answer_to(APIStatusError(status_code=418))


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (InvalidInputError("no request id"), []),
        (InvalidInputError("width: too small", fields={"width": "too small"}), [("width", "too small")]),
        (
            InputRejectedError(status_code=422, detail=[{"loc": ["body", "width"], "msg": "too big", "url": SECRET}]),
            [("width", "too big")],
        ),
        (InputRejectedError(status_code=422, detail=[{"loc": ["a", 0, "b"]}, "odd", 3]), [("a.0.b", "refused")]),
        (InputRejectedError(status_code=422, detail=[{"loc": "width", "msg": None}]), [("", "refused")]),
        (InputRejectedError(status_code=422, detail=[{"loc": ["x"], "msg": "m" * 9999}]), [("x", "m" * 500)]),
        (
            InputRejectedError(status_code=422, detail=[{"loc": ["body", "input", "width"], "msg": "no"}]),
            [("width", "no")],
        ),
        (InputRejectedError(status_code=422, detail=[{"loc": ["x" * 9999], "msg": "no"}]), [("x" * 500, "no")]),
        (InputRejectedError(status_code=422, detail={"secret": 1}), []),
    ],
)
def test_the_fields_at_fault_are_named(error, fields):
    assert answer_to(error).body["fields"] == [{"field": name, "message": message} for name, message in fields]


def test_a_flood_of_findings_is_cut():
    error = InputRejectedError(status_code=422, detail=[{"loc": [str(n)], "msg": "m"} for n in range(1000)])
    assert len(answer_to(error).body["fields"]) == 20


def test_our_own_sentence_is_told_and_its_cause_is_not():
    assert answer_to(InvalidInputError("to_input failed", cause=SECRET)).body["message"] == "to_input failed"
    assert answer_to(InvalidInputError()).body["message"]
    assert answer_to(InvalidInputError("x" * 9999)).body["message"] == "x" * 500


def test_what_is_told_of_looks_and_results():
    status = RequestStatus(request_id=ID, state=RequestState.IN_QUEUE, queue_position=3, instance_id=SECRET)
    assert status_facts(status) == {"request_id": ID, "state": "in_queue", "queue_position": 3}
    output = GenerationOutput(image="https://x.runcomfy.net/1.png")
    result = GenerationResult(request_id=ID, state=RequestState.COMPLETED, output=output, cost_usd=0.01)
    assert result_facts(result) == {"request_id": ID, "state": "completed", "urls": ["https://x.runcomfy.net/1.png"]}


async def test_what_the_service_finds_wrong_is_told_field_by_field(klein_client):
    with pytest.raises(InputRejectedError) as caught:
        await klein_client.generate({"prompt": "a cat", "width": 5000, "height": 3})
    assert "width: " in str(caught.value)
    assert [finding["field"] for finding in answer_to(caught.value).body["fields"]] == ["width", "height"]
