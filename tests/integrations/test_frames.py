import json

from flux_klein_async import InvalidInputError, RateLimitError
from flux_klein_async.integrations.answers import answer_to
from flux_klein_async.integrations.frames import HEADERS, KEEP_ALIVE, error_frame, frame


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
