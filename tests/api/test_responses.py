"""What each answer means: one folder of `tests/samples` for each situation.

A sample is an answer (`response.json` with status and headers, `body`) and, in `expected.json`, what each reader makes
of it: the fields it returns (those that differ from the defaults), or the error with its text and its facts.
`tests/fuzz/test_answers.py` tries any bytes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flux_klein_async.api.messages import Response
from flux_klein_async.api.responses import (
    excerpt,
    ok,
    read_cancel,
    read_error,
    read_model,
    read_models,
    read_result,
    read_status,
    read_submit,
    request_id_in,
)
from flux_klein_async.errors import APIStatusError, FluxKleinError, InvalidResponseError

SAMPLES = Path(__file__).parent.parent / "samples"
REQUEST_ID = "0e3b2c1a-8c1d-4f6e-9b7a-1234567890ab"

READERS: dict[str, Callable[[Response], Any]] = {
    "read_submit": read_submit,
    "read_status": lambda response: read_status(response, REQUEST_ID),
    "read_result": lambda response: read_result(response, REQUEST_ID),
    "read_cancel": lambda response: read_cancel(response, REQUEST_ID),
    "read_model": read_model,
    "read_models": lambda response: [told(info) for info in read_models(response).models],
}


def sample(situation: str) -> Response:
    folder = SAMPLES / situation
    head = json.loads((folder / "response.json").read_text(encoding="utf-8"))
    return Response(status=head["status"], headers=head["headers"], body=(folder / "body").read_bytes())


def cases() -> list[Any]:
    return [
        pytest.param(folder.name, reader, expected, id=f"{folder.name}-{reader}")
        for folder in sorted(SAMPLES.iterdir())
        for reader, expected in json.loads((folder / "expected.json").read_text(encoding="utf-8")).items()
    ]


def told(value: Any) -> Any:
    """What a reader returned, without what it leaves at the default and without the raw answer."""
    if isinstance(value, BaseModel):
        fields = value.model_dump(mode="json", exclude={"raw", "timings"}, exclude_defaults=True)
        return fields if "output" not in type(value).model_fields else {"output": {}, **fields}
    return value


def facts(error: FluxKleinError) -> dict[str, Any]:
    public = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    for name in ("paid_by_this_call", "headers", "body"):
        public.pop(name, None)
    return {name: value for name, value in public.items() if value not in (None, {}, ())}


@pytest.mark.parametrize(("situation", "reader", "expected"), cases())
def test_reads_the_sample(situation: str, reader: str, expected: dict[str, Any]) -> None:
    try:
        actual = {"returns": told(READERS[reader](sample(situation)))}
    except FluxKleinError as error:
        actual = {"raises": type(error).__name__, "text": str(error), "facts": facts(error)}
    assert expected == actual


def test_a_refusal_keeps_headers_and_the_start_of_the_body() -> None:
    error = read_error(Response(status=418, headers={"X-Trace": "t-1"}, body=b"short and stout " * 1000))
    assert isinstance(error, APIStatusError)
    assert (error.headers, error.body) == ({"x-trace": "t-1"}, ("short and stout " * 1000)[:2000])


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_has_samples_of_success_and_of_failure(reader: str) -> None:
    outcomes = {next(iter(case.values[2])) for case in cases() if case.values[1] == reader}
    assert outcomes == {"returns", "raises"}


@pytest.mark.parametrize(
    ("situation", "reader"),
    [
        ("status-in-queue", "read_status"),
        ("result-unknown-fields", "read_result"),
        ("cancel-too-late", "read_cancel"),
        ("model-entry", "read_model"),
    ],
)
def test_the_whole_answer_stays_in_raw(situation: str, reader: str) -> None:
    response = sample(situation)
    assert READERS[reader](response).raw == json.loads(response.body)


def test_success_is_a_status_of_2xx() -> None:
    answers = [Response(status=status, headers={}, body=b"") for status in (199, 200, 204, 299, 300)]
    assert [ok(answer) for answer in answers] == [False, True, True, True, False]


def test_finds_a_usable_request_id_whatever_else_an_answer_says() -> None:
    for status in (200, 302, 400, 500):
        for body in (b'{"request_id": "r-1"}', b'{"request_id": "r-1", "error_code": 500001}'):
            assert request_id_in(Response(status=status, headers={}, body=body)) == "r-1"
        for body in (
            *(b'{"request_id": ""}', b'{"request_id": "a/b"}', b'{"request_id": 5}', b'{"request_id": null}'),
            *(b'{"id": "r-1"}', b"{}", b'["r-1"]', b"r-1", b""),
        ):
            assert request_id_in(Response(status=status, headers={}, body=body)) is None


def test_an_excerpt_is_short_and_fit_to_be_shown() -> None:
    for body, text in {
        b"": None,
        b" \r\n\t": None,
        b"  a \r\n\t b ": "a b",
        b"\x00\x1b[31ma\x7f": r"\x00\x1b[31ma\x7f",
        "h\u00e9 \u202e \u200b".encode(): r"h\u00e9 \u202e \u200b".replace(r"\u00e9", "\u00e9"),
        b"\xff": "\ufffd",
        b"x" * 300: "x" * 300,
        b"x" * 301: "x" * 300 + "\u2026",
        "to\u200bken".encode("utf-16-le"): r"t\x00o\x00 k\x00e\x00n\x00",  # never joined to a word
    }.items():
        assert excerpt(Response(status=200, headers={}, body=body)) == text


def test_an_error_of_the_service_knows_the_request_that_was_asked_about() -> None:
    error = read_error(Response(status=404, headers={}, body=b""), request_id="r-1")
    assert (type(error).__name__, error.request_id) == ("NotFoundError", "r-1")


@pytest.mark.parametrize("read", [read_status, read_result, read_cancel])
def test_an_answer_about_another_request_is_none(read) -> None:
    body = b'{"request_id": "r-2", "status": "completed", "outcome": "cancelled", "output": {}}'
    with pytest.raises(InvalidResponseError, match=r"about another request: 'r-2' \(request r-1\)"):
        read(Response(status=200, headers={}, body=body), "r-1")


@pytest.mark.parametrize(
    ("url", "file"), [("HTTPS://cdn.runcomfy.net/X.png", True), ("//cdn.runcomfy.net/x.png", False), ("https", False)]
)
def test_the_scheme_of_a_file_is_read_in_any_case_and_cannot_be_left_out(url: str, file: bool) -> None:
    body = json.dumps({"status": "completed", "output": {"image": url}}).encode()
    assert read_result(Response(status=200, headers={}, body=body), "r-1").urls == ([url] if file else [])
