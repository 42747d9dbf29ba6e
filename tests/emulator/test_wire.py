import json

import pytest

from flux_klein_async.emulator.wire import head, response


def split(data):
    top, _, body = data.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("body", "data", "content_type"),
    [
        (b"\x00", b"\x00", "application/octet-stream"),
        ("<p>é", "<p>é".encode(), "text/html; charset=utf-8"),
        ({"a": [1]}, b'{"a":[1]}', "application/json"),
        (None, b"null", "application/json"),
    ],
)
def test_a_body_decides_its_type(body, data, content_type):
    status, headers, sent = split(response(200, {}, body, 0.0, keep=True))
    assert (status, sent, headers["Content-Type"]) == ("HTTP/1.1 200 OK", data, content_type)
    assert headers["Content-Length"] == str(len(data))
    assert headers["Date"] == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert "Connection" not in headers


def test_given_headers_win():
    given = {"content-TYPE": "a/b", "Content-length": "7", "date": "never"}
    _, headers, _ = split(response(200, given, b"x", 0.0, keep=False))
    assert headers == {**given, "Connection": "close"}


def test_no_length_is_added_to_a_given_transfer_encoding():
    _, headers, _ = split(response(200, {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n", 0.0, keep=True))
    assert "Content-Length" not in headers


def test_without_a_length_the_body_comes_in_chunks():
    _, headers, _ = split(head(200, {}, "a/b", None, 0.0, keep=True))
    assert (headers["Transfer-Encoding"], "Content-Length" in headers) == ("chunked", False)


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body(status):
    _, headers, body = split(response(status, {}, {"a": 1}, 0.0, keep=True))
    assert (body, headers["Content-Length"]) == (b"", "0")


@pytest.mark.parametrize(("status", "line"), [(503, "503 Service Unavailable"), (599, "599 Unknown")])
def test_a_status_has_its_phrase(status, line):
    assert split(response(status, {}, b"", 0.0, keep=True))[0] == f"HTTP/1.1 {line}"


def test_json_is_written_so_that_json_reads_it():
    value = {"prompt": "雪\u2028\ud800", "n": 0.1}
    assert json.loads(split(response(200, {}, value, 0.0, keep=True))[2]) == value
