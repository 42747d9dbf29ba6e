"""Scripted answers are checked when they are made."""

import pytest

from flux_klein_async.emulator.faults import fault
from flux_klein_async.emulator.scripts import (
    ENDPOINTS,
    Cut,
    Drop,
    Endless,
    Garbage,
    Generation,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Rewrite,
    Truncate,
    Unasked,
    check_answer,
    error_reply,
)


def test_every_answer_has_its_endpoints():
    for endpoint in ENDPOINTS:
        for answer in (None, Pass(), Hang()):
            check_answer(endpoint, answer)
        if endpoint != "connect":
            for answer in (Cut(0), Reply(), Rewrite(), Reset(), Garbage(), Truncate(), Endless(), Unasked()):
                check_answer(endpoint, answer)
    check_answer("connect", Refuse())
    check_answer("connect", Drop())
    check_answer("submit", Generation())


@pytest.mark.parametrize(
    ("endpoint", "answer", "sentence"),
    [
        ("upload", None, "no endpoint 'upload': there are connect, submit"),
        ("connect", Reply(), "'connect' can be answered with Pass, Hang, Refuse or Drop, not with Reply"),
        ("connect", Generation(), "not with Generation"),
        ("status", Refuse(), "Refuse answers 'connect', not 'status'"),
        ("submit", Drop(), "Drop answers 'connect', not 'submit'"),
        ("status", Generation(), "Generation answers 'submit', not 'status'"),
    ],
)
def test_an_answer_at_the_wrong_endpoint_is_refused(endpoint, answer, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_answer(endpoint, answer)


def test_what_is_no_answer_is_refused_when_it_is_given():
    """And not when it is due, as a 500 of the emulator that looks like one of the service."""
    for wrong in (503, "503", fault, Generation, {"status": 503}):
        with pytest.raises(TypeError, match=r"is no answer: write .* fault\('503'\)"):
            check_answer("submit", wrong)
    for several in ([fault("503")], ()):
        with pytest.raises(TypeError, match=r"is no answer: .* write a \* before them"):
            check_answer("submit", several)


@pytest.mark.parametrize("headers", [{"A": "b\r\nC: d"}, {"A\n": "b"}])
@pytest.mark.parametrize("kind", [Reply, Rewrite, Truncate])
def test_a_header_cannot_contain_another(kind, headers):
    with pytest.raises(ValueError, match="line break"):
        kind(headers=headers)


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (
            Generation,
            {"ends": "fail"},
            r"Generation\(ends=...\) is one of 'completed', 'failed', 'cancelled', not 'fail'",
        ),
        (Generation, {"after": "5"}, r"Generation\(after=...\) is a number, 0 or more, not '5'"),
        (Generation, {"after": True}, "not True"),
        (Generation, {"result_lag": None}, "not None"),
        *((kind, {"delay": -1.0}, "not -1.0") for kind in (Pass, Rewrite, Reply, Reset, Garbage, Truncate, Generation)),
        (Endless, {"every": float("nan")}, "not nan"),
    ],
)
def test_an_answer_of_which_nothing_would_come_is_refused_when_it_is_made(kind, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**value)


def test_an_endless_body_needs_a_chunk():
    with pytest.raises(ValueError, match="at least one byte"):
        Endless(b"")


@pytest.mark.parametrize(
    ("reply", "status", "body", "headers"),
    [
        (error_reply(503), 503, {"error_message": "scripted error"}, {}),
        (error_reply(400, 422001, "no"), 400, {"error_message": "no", "error_code": 422001}, {}),
        (error_reply(429, retry_after=1.5), 429, {"error_message": "scripted error"}, {"Retry-After": "1.5"}),
        (error_reply(422, detail=["x"]), 422, {"error_message": "scripted error", "detail": ["x"]}, {}),
    ],
)
def test_error_reply_writes_the_services_error_body(reply, status, body, headers):
    assert (reply.status, reply.body, reply.headers, reply.accepted) == (status, body, headers, False)
