"""What both web frameworks share: error responses, event streams, work that ends on a disconnect."""

import asyncio
import json

import pytest

import flux_klein_async as fk
from flux_klein_async.emulator import Generation
from flux_klein_async.integrations.aiohttp_web import stream_progress
from flux_klein_async.integrations.fastapi import ProgressResponse
from flux_klein_async.integrations.web import (
    KEEP_ALIVE,
    DisconnectedError,
    error_response,
    open_client,
    result_to_json,
    run_until,
    status_to_json,
    write_progress,
)

from .serving import nothing_left_behind

ID = "11111111-2222"
SECRET = "sk-secret at db.internal"


def paid(error):
    error.paid_by_this_call = True
    return error


# error, status, code, charged, retryable
CASES = [
    (fk.InvalidInputError("prompt: blank", fields={"prompt": "blank"}), 422, "invalid_input", "no", False),
    (fk.InputRejectedError(status_code=422, detail=SECRET), 422, "invalid_input", "no", False),
    (fk.InsufficientBalanceError(status_code=402, detail=SECRET), 402, "payment_required", "no", False),
    (fk.BudgetExceededError(SECRET), 402, "payment_required", "no", False),
    (fk.RateLimitError(status_code=429, retry_after=2.1), 429, "rate_limited", "no", True),
    (fk.RateLimitError(status_code=429), 429, "rate_limited", "no", True),
    (fk.ResultNotReadyError(request_id=ID), 409, "not_ready", "unknown", False),
    (fk.GenerationFailedError(request_id=ID, detail=SECRET), 502, "generation_failed", "unknown", False),
    (fk.GenerationCancelledError(request_id=ID), 409, "generation_cancelled", "no", False),
    (fk.WaitTimeoutError(request_id=ID), 504, "wait_timeout", "unknown", False),  # after `submit` in the same handler
    (fk.SubmissionUncertainError(cause=SECRET, raw=SECRET), 502, "submission_uncertain", "unknown", False),
    (fk.ConfigurationError(SECRET), 500, "internal_error", "no", False),
    (fk.ItemClaimedError(SECRET, request_id=ID), 409, "in_progress", "no", True),
    (fk.JournalError(SECRET, request_id=ID), 500, "internal_error", "unknown", False),
    (fk.ClientClosedError(SECRET), 503, "closing", "no", True),
    (paid(fk.ClientClosedError(SECRET, request_id=ID)), 503, "closing", "unknown", False),
    (fk.NotFoundError(status_code=404, request_id=ID), 404, "not_found", "unknown", False),
    (fk.NotFoundError(status_code=404, detail="Unknown model"), 502, "upstream_error", "no", False),
    (fk.APIConnectionError(SECRET), 502, "upstream_error", "no", True),
    (fk.APITimeoutError(SECRET), 504, "upstream_timeout", "no", True),
    (fk.InvalidResponseError(SECRET), 502, "upstream_error", "no", True),
    (fk.ServerError(status_code=500, detail=SECRET), 502, "upstream_error", "no", True),
    (fk.ServerError(status_code=503, retry_after=0.0), 502, "upstream_error", "no", True),
    (fk.APIStatusError(status_code=418, detail=SECRET), 502, "upstream_error", "no", False),
    (fk.AuthenticationError(status_code=401, detail=SECRET), 502, "upstream_error", "no", False),
    (fk.PermissionDeniedError(status_code=403, detail=SECRET), 502, "upstream_error", "no", False),
    (fk.DownloadError(SECRET, url=SECRET, transient=True), 502, "upstream_error", "yes", False),
    (fk.FanOutHaltedError(SECRET), 502, "upstream_error", "unknown", False),
    (fk.FluxKleinError(SECRET), 502, "upstream_error", "no", False),
]


@pytest.mark.parametrize(
    ("error", "status", "code", "charged", "retryable"), CASES, ids=lambda value: type(value).__name__
)
def test_an_error_response_says_what_concerns_the_http_client_and_no_more(error, status, code, charged, retryable):
    response = error_response(error)
    body = dict(response.body)
    assert (response.status, body["error"], body["charged"], body["retryable"]) == (status, code, charged, retryable)
    assert body["request_id"] == error.request_id
    assert set(body) - {"fields"} == {"error", "message", "request_id", "charged", "retryable"}
    assert "secret" not in json.dumps(body)
    assert ("fields" in body) == (status == 422)
    if code == "upstream_error":  # a refused token looks like any other refusal
        assert body["message"] == error_response(fk.APIStatusError(status_code=418)).body["message"]


def test_every_class_of_error_has_a_case():
    classes = {value for name in fk.__all__ if isinstance(value := getattr(fk, name), type)}
    assert {type(error) for error, *_ in CASES} == {kind for kind in classes if issubclass(kind, fk.FluxKleinError)}


@pytest.mark.parametrize(("seconds", "header"), [(2.1, "3"), (0.0, "1"), (30.0, "30"), (None, None)])
def test_retry_after_is_in_whole_seconds_and_only_where_the_service_sent_it(seconds, header):
    for error in (
        fk.RateLimitError(status_code=429, retry_after=seconds),
        fk.ServerError(status_code=503, retry_after=seconds),
    ):
        assert error_response(error).headers.get("Retry-After") == header
    assert error_response(paid(fk.RateLimitError(status_code=429, retry_after=seconds, request_id=ID))).headers == {}


def rejected(detail):
    return fk.InputRejectedError(status_code=422, detail=detail)


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (fk.InvalidInputError("no request id"), []),
        (fk.InvalidInputError("width: too small", fields={"width": "too small"}), [("width", "too small")]),
        (rejected([{"loc": ["body", "width"], "msg": "too big", "url": SECRET}]), [("width", "too big")]),
        (rejected([{"loc": ["a", 0, "b"]}, "odd", 3]), [("a.0.b", "refused")]),
        (rejected([{"loc": "width", "msg": None}]), [("", "refused")]),
        (rejected([{"loc": ["x" * 9999], "msg": "m" * 9999}]), [("x" * 500, "m" * 500)]),
        (rejected([{"loc": ["body", "input", "width"], "msg": "no"}]), [("width", "no")]),
        (rejected({"secret": 1}), []),
        (rejected([{"loc": [str(n)], "msg": "m"} for n in range(1000)]), [(str(n), "m") for n in range(20)]),
    ],
)
def test_invalid_fields_are_named_and_bounded(error, fields):
    assert error_response(error).body["fields"] == [{"field": name, "message": message} for name, message in fields]


async def test_the_services_own_findings_are_named_as_fields(klein_client):
    with pytest.raises(fk.InputRejectedError) as caught:
        await klein_client.generate({"prompt": "a cat", "width": 5000, "height": 3})
    assert [finding["field"] for finding in error_response(caught.value).body["fields"]] == ["width", "height"]


def test_the_message_is_our_own_sentence_without_its_cause():
    assert error_response(fk.InvalidInputError("to_input failed", cause=SECRET)).body["message"] == "to_input failed"
    assert error_response(fk.InvalidInputError()).body["message"]
    assert error_response(fk.InvalidInputError("x" * 9999)).body["message"] == "x" * 500


def test_a_status_and_a_result_leave_out_what_concerns_the_operator():
    status = fk.RequestStatus(request_id=ID, state=fk.RequestState.IN_QUEUE, queue_position=3, instance_id=SECRET)
    assert status_to_json(status) == {"request_id": ID, "state": "in_queue", "queue_position": 3}
    output = fk.GenerationOutput(image="https://x.runcomfy.net/1.png")
    result = fk.GenerationResult(request_id=ID, state=fk.RequestState.COMPLETED, output=output, cost_usd=0.01)
    assert result_to_json(result) == {"request_id": ID, "state": "completed", "urls": ["https://x.runcomfy.net/1.png"]}


# --- run_until


class Task:
    """Runs until it is told to end, and remembers how it ended."""

    def __init__(self, *, done=False):
        self.started = asyncio.Event()
        self.told = asyncio.Event()
        self.end = None
        if done:
            self.told.set()

    async def run(self):
        self.started.set()
        try:
            await self.told.wait()
        except asyncio.CancelledError:
            self.end = "cancelled"
            raise
        self.end = "done"
        return 7


async def fails():
    raise KeyError(1)


async def fails_when_cancelled():
    try:
        await asyncio.Event().wait()
    finally:
        raise KeyError(1)


@pytest.mark.parametrize("disconnects", [False, True], ids=["", "and the client disconnects"])
async def test_work_that_ends_is_returned_and_the_watch_ends(disconnects):
    async with nothing_left_behind():
        watch = Task(done=disconnects)
        assert await run_until(watch.run(), Task(done=True).run()) == 7
        assert watch.end == ("done" if disconnects else "cancelled")


async def test_a_disconnect_cancels_the_work(caplog):
    async with nothing_left_behind():
        work = Task()
        for awaitable in (work.run(), fails_when_cancelled()):
            with pytest.raises(DisconnectedError):
                await run_until(Task(done=True).run(), awaitable)
        assert work.end == "cancelled"
    assert caplog.records == []


async def test_an_exception_of_the_work_or_of_the_watch_is_raised_as_it_is():
    async with nothing_left_behind():
        for watch, work in ((Task().run(), fails()), (fails(), Task().run())):
            with pytest.raises(KeyError):
                await run_until(watch, work)


async def test_work_that_cannot_be_awaited_is_refused_and_the_watch_never_begins():
    async with nothing_left_behind():
        watch = Task()
        with pytest.raises(TypeError, match=r"^The work comes after the request, such as client\.generate\(\.\.\.\)"):
            await run_until(watch.run(), Task().run)
        assert not watch.started.is_set()


async def test_what_makes_no_client_is_refused():
    with pytest.raises(fk.ConfigurationError, match="such as lambda: FluxKleinClient"):
        await open_client("some-token", 0).__aenter__()


async def test_a_cancelled_caller_cancels_both():
    async with nothing_left_behind():
        work, watch = Task(), Task()
        caller = asyncio.create_task(run_until(watch.run(), work.run()))
        await work.started.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert (work.end, watch.end) == ("cancelled", "cancelled")


@pytest.mark.parametrize("run", [ProgressResponse, lambda work: stream_progress(None, work).send(None)])
def test_progress_of_work_that_has_begun_is_refused(klein_client, run):
    work = klein_client.generate("a cat")
    with pytest.raises(
        TypeError, match=r"^Write lambda on_status: client\.generate\(\.\.\., on_status=on_status\), not <cor"
    ):
        run(work)


# --- write_progress


class Reader:
    """Keeps what is written, and reads it back as events."""

    def __init__(self):
        self.written = []

    async def write(self, data):
        self.written.append(data)

    def events(self):
        frames = [data.decode().split("\n") for data in self.written if data != KEEP_ALIVE]
        assert [(len(frame), frame[2:]) for frame in frames] == [(4, ["", ""])] * len(frames)
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data, *_ in frames]

    def names(self):
        return [name for name, _ in self.events()]


async def progress(run, write, *, keep_alive=15.0, to_json=result_to_json):
    """Written from `run`, or from a generation of this client."""
    if isinstance(run, fk.FluxKleinClient):
        client = run
        run = lambda on_status: client.generate("x", on_status=on_status)  # noqa: E731
    await write_progress(run, write, keep_alive=keep_alive, to_json=to_json)


async def test_every_change_is_written_and_then_the_result(klein_client, klein_emulator):
    reader = Reader()
    await progress(klein_client, reader.write)
    assert reader.names() == [*["status"] * (len(reader.written) - 1), "result"]
    assert [data["state"] for _, data in reader.events()][-2:] == ["completed", "completed"]
    [url] = reader.events()[-1][1]["urls"]
    assert url == f"{klein_emulator.base_url}/files/{reader.events()[0][1]['request_id']}.png"


async def test_an_error_after_an_event_is_an_event_with_the_status_in_it(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(ends="failed", after=30.0))
    reader = Reader()
    await progress(klein_client, reader.write)
    name, data = reader.events()[-1]
    assert (name, data["status"], data["error"], data["charged"]) == ("error", 502, "generation_failed", "unknown")
    assert "retry_after" not in data


async def test_a_comment_counts_as_written_and_no_text_can_forge_an_event():
    text = "a\n\nevent: result\ndata: {}\r\n\r\n\u2028é"

    async def late(_):
        await asyncio.sleep(0.01)
        raise fk.InvalidInputError(text)

    reader = Reader()
    await progress(late, reader.write, keep_alive=0.001)
    assert (reader.written[0], reader.names()) == (KEEP_ALIVE, ["error"])
    assert reader.events()[0][1]["message"] == text
    assert b"\r" not in b"".join(reader.written)


async def test_an_error_of_to_json_is_an_event(klein_client):
    """Such as `result.image_url` of a result without an image."""

    def to_json(result):
        raise fk.InvalidResponseError("The result holds no image", request_id=result.request_id)

    reader = Reader()
    await progress(klein_client, reader.write, to_json=to_json)
    assert (reader.names()[-1], reader.events()[-1][1]["error"]) == ("error", "upstream_error")


async def test_retry_after_stands_in_the_error_event():
    async def busy(on_status):
        on_status(fk.RequestStatus(request_id=ID, state=fk.RequestState.IN_QUEUE))
        await asyncio.sleep(0)
        raise fk.RateLimitError(status_code=429, retry_after=2.5)

    reader = Reader()
    await progress(busy, reader.write)
    assert (reader.events()[-1][1]["status"], reader.events()[-1][1]["retry_after"]) == (429, 3)


async def test_an_error_before_any_event_is_raised():
    async def invalid(_):
        raise fk.InvalidInputError

    reader = Reader()
    with pytest.raises(fk.InvalidInputError):
        await progress(invalid, reader.write)
    assert reader.written == []


async def test_silence_is_filled_with_comments_and_changes_are_written_at_once(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(after=100.0))
    reader = Reader()
    writing = asyncio.ensure_future(progress(klein_client, reader.write))
    await asyncio.sleep(50.0)
    assert set(reader.names()) == {"status"}
    await writing
    assert reader.written.count(KEEP_ALIVE) == 6
    assert reader.names()[-1] == "result"


async def test_a_slow_reader_gets_the_latest_change_and_the_last(klein_emulator):
    reader = Reader()

    async def slow(data):
        await asyncio.sleep(1.0)
        await reader.write(data)

    async def quick(on_status):
        for position in range(1000, 0, -1):
            on_status(fk.RequestStatus(request_id="an-id", state=fk.RequestState.IN_QUEUE, queue_position=position))
            await asyncio.sleep(0.01)
        on_status(fk.RequestStatus(request_id="an-id", state=fk.RequestState.FAILED))
        raise fk.GenerationFailedError(request_id="an-id")

    await progress(quick, slow)
    assert len(reader.written) < 15
    assert [data.get("state") for _, data in reader.events()][-2:] == ["failed", None]
    positions = [data["queue_position"] for name, data in reader.events()[:-2]]
    assert positions == sorted(positions, reverse=True)


@pytest.mark.parametrize(("broken", "raised"), [(ConnectionResetError, DisconnectedError), (KeyError, KeyError)])
async def test_a_write_that_fails_ends_the_work(broken, raised, klein_client, klein_emulator):
    async def write(_):
        raise broken

    klein_emulator.script("submit", Generation(after=100.0))
    with pytest.raises(raised):
        await progress(klein_client, write)
    await klein_client.aclose()
    assert klein_emulator.calls["cancel"] == 1
