"""What both web integrations share: from an error to an HTTP answer, event streams, clients that leave."""

import asyncio
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
    ItemClaimedError,
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
from flux_klein_async.emulator import Generation
from flux_klein_async.integrations.web import (
    HEADERS,
    KEEP_ALIVE,
    VisitorGoneError,
    answer_to,
    error_frame,
    frame,
    result_facts,
    status_facts,
    tell,
    until_gone,
)

from .serving import nothing_left_behind

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
    (ItemClaimedError(SECRET, request_id=ID), 409, "under_way", "no", True),
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


def test_a_refused_token_polls_like_any_other_refusal():
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


def test_what_is_told_of_polls_and_results():
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


def test_an_event_is_a_name_and_one_line_of_json():
    assert frame("status", {"state": "in_queue"}) == b'event: status\ndata: {"state":"in_queue"}\n\n'


def test_no_text_can_forge_an_event():
    text = "a\n\nevent: result\ndata: {}\r\n\r\n\u2028é"
    name, data, *rest = frame("error", {"message": text}).split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: "))["message"] == text
    assert b"\r" not in data


def test_an_error_says_what_status_and_headers_would_have_said():
    def told(error):
        return json.loads(error_frame(answer_to(error)).split(b"data: ")[1])

    busy = told(RateLimitError(status_code=429, retry_after=2.5))
    assert (busy["status"], busy["error"], busy["retry_after"]) == (429, "rate_limited", 3)
    refused = told(InvalidInputError("no"))
    assert (refused["status"], "retry_after" in refused) == (422, False)


def test_a_comment_is_no_event():
    assert KEEP_ALIVE.startswith(b":")
    assert KEEP_ALIVE.endswith(b"\n\n")
    assert HEADERS["Content-Type"].startswith("text/event-stream")


def test_nobody_on_the_way_keeps_or_collects_the_events():
    assert HEADERS == {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }


class Work:
    """Runs until it is told to end, and says how it ended."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.told = asyncio.Event()
        self.end = None

    async def run(self):
        self.begun.set()
        try:
            await self.told.wait()
        except asyncio.CancelledError:
            self.end = "cancelled"
            raise
        self.end = "done"
        return 7


async def test_work_that_ends_is_returned_and_the_watch_is_over():
    async with nothing_left_behind():
        work, watch = Work(), Work()
        work.told.set()
        assert await until_gone(work.run(), watch.run()) == 7
        assert watch.end == "cancelled"


async def test_a_visitor_who_goes_ends_the_work():
    async with nothing_left_behind():
        work, watch = Work(), Work()
        watch.told.set()
        with pytest.raises(VisitorGoneError):
            await until_gone(work.run(), watch.run())
        assert work.end == "cancelled"


async def test_what_the_work_raises_is_raised_as_it_is():
    async def fails():
        raise KeyError(1)

    async with nothing_left_behind():
        with pytest.raises(KeyError):
            await until_gone(fails(), Work().run())


async def test_work_that_fails_when_given_up_leaves_no_complaint(caplog):
    async def stubborn():
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError(1)

    async def gone():
        await asyncio.sleep(0)

    async with nothing_left_behind():
        with pytest.raises(VisitorGoneError):
            await until_gone(stubborn(), gone())
    assert caplog.records == []


async def test_a_watch_that_breaks_is_no_visitor_who_left():
    async def breaks():
        raise KeyError(2)

    work = Work()
    async with nothing_left_behind():
        with pytest.raises(KeyError):
            await until_gone(work.run(), breaks())


async def test_a_cancelled_caller_takes_both_along():
    async with nothing_left_behind():
        work, watch = Work(), Work()
        caller = asyncio.create_task(until_gone(work.run(), watch.run()))
        await work.begun.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert (work.end, watch.end) == ("cancelled", "cancelled")


async def test_a_result_that_is_there_goes_before_a_visitor_who_leaves():
    work, watch = Work(), Work()
    work.told.set()
    watch.told.set()
    assert await until_gone(work.run(), watch.run()) == 7


class Reader:
    """Takes what is written, and reads it back as events."""

    def __init__(self):
        self.written = []

    async def write(self, data):
        self.written.append(data)

    def events(self):
        frames = [data.decode().split("\n")[:2] for data in self.written if data != KEEP_ALIVE]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]

    def names(self):
        return [name for name, _ in self.events()]


async def test_every_change_then_the_result(klein_client, klein_emulator):
    reader = Reader()
    await tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write)
    assert reader.names() == [*["status"] * (len(reader.written) - 1), "result"]
    assert [data["state"] for _, data in reader.events()][-2:] == ["completed", "completed"]
    assert reader.events()[-1][1]["urls"] == [
        f"{klein_emulator.base_url}/files/{reader.events()[0][1]['request_id']}.png"
    ]


async def test_an_error_after_an_event_is_an_event(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(ends="failed", after=30.0))
    reader = Reader()
    await tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write)
    name, data = reader.events()[-1]
    assert (name, data["status"], data["error"], data["charged"]) == ("error", 502, "generation_failed", "unknown")


async def test_an_error_before_any_event_is_raised(klein_client):
    reader = Reader()
    with pytest.raises(InvalidInputError):
        await tell(lambda changed: klein_client.generate(" ", on_status=changed), reader.write)
    assert reader.written == []


async def test_a_change_is_told_when_it_happens(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(after=100.0))
    reader = Reader()
    telling = asyncio.ensure_future(
        tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write, keep_alive=1000.0)
    )
    await asyncio.sleep(50.0)
    assert set(reader.names()) == {"status"}
    await telling
    assert reader.names()[-1] == "result"


async def test_silence_is_bridged(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(after=100.0))
    reader = Reader()
    await tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write)
    assert reader.written.count(KEEP_ALIVE) == 6
    assert reader.names()[-1] == "result"


async def test_a_comment_is_a_beginning_too(klein_client, klein_emulator):
    async def late(_):
        await asyncio.sleep(20.0)
        raise WaitTimeoutError(request_id="an-id")

    reader = Reader()
    await tell(late, reader.write)
    assert (reader.written[0], reader.names()) == (KEEP_ALIVE, ["error"])


async def test_a_slow_reader_gets_the_latest_and_the_last(klein_client):
    reader = Reader()

    async def slow(data):
        await asyncio.sleep(1.0)
        await reader.write(data)

    async def quick(changed):
        for position in range(1000, 0, -1):
            changed(RequestStatus(request_id="an-id", state=RequestState.IN_QUEUE, queue_position=position))
            await asyncio.sleep(0.01)
        changed(RequestStatus(request_id="an-id", state=RequestState.FAILED))
        raise GenerationFailedError(request_id="an-id")

    await tell(quick, slow)
    assert len(reader.written) < 15
    assert [data.get("state") for _, data in reader.events()][-2:] == ["failed", None]
    positions = [data["queue_position"] for name, data in reader.events()[:-2]]
    assert positions == sorted(positions, reverse=True)


async def test_the_result_can_be_told_in_the_apps_own_words(klein_client):
    reader = Reader()
    run = lambda changed: klein_client.generate("x", on_status=changed)  # noqa: E731
    await tell(run, reader.write, facts=lambda result: {"picture": result.image_url})
    assert set(reader.events()[-1][1]) == {"picture"}


async def test_a_line_that_is_dead_ends_the_work(klein_client, klein_emulator):
    async def dead(_):
        raise ConnectionResetError

    klein_emulator.script("submit", Generation(after=100.0))
    with pytest.raises(VisitorGoneError):
        await tell(lambda changed: klein_client.generate("x", on_status=changed), dead)
    await klein_client.aclose()
    assert klein_emulator.calls["cancel"] == 1


async def test_a_mistake_of_the_app_is_raised_as_it_is(klein_client):
    async def mistaken(_):
        raise KeyError(1)

    with pytest.raises(KeyError):
        await tell(mistaken, Reader().write)
