"""The catalogue of faults: complete, and each fault possible where it says."""

import base64
import gzip
import io
import json
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux_klein_async.emulator import InProcessEmulator
from flux_klein_async.emulator.faults import FAULTS, fault, faults_at, parse_fault
from flux_klein_async.emulator.scripts import Reply, check_answer, error_reply


def test_every_fault_can_happen_where_it_says_and_no_two_say_the_same():
    for entry in FAULTS.values():
        assert entry.endpoints
        for endpoint in entry.endpoints:
            check_answer(endpoint, entry.answer)
    meanings = [(entry.meaning, entry.endpoints) for entry in FAULTS.values()]
    assert len(set(meanings)) == len(meanings)


def test_rewritten_fields_are_valid_json():
    for entry in FAULTS.values():
        json.dumps(getattr(entry.answer, "fields", {}), allow_nan=False)


# docs/wire.md, "Errors", written down once more.
REFUSALS = {
    400: (None, 400001, 400002, 400004),
    401: (None, 401001),
    402: (None,),
    403: (None, 403001, 403003),
    404: (None, 404001),
    408: (None,),
    422: (None, 422001),
    429: (None,),
    500: (None, 500001),
    502: (None,),
    503: (None,),
    504: (None,),
}


@pytest.mark.parametrize(("form", "header"), [("", None), ("+after", "3"), ("+date", "Thu, 01 Jan 2026 00:00:03 GMT")])
def test_every_refusal_comes_with_retry_after_in_both_forms_and_without(form, header):
    for status, code in [(status, code) for status, codes in REFUSALS.items() for code in codes]:
        answer = fault(f"{code or status}{form}")
        assert isinstance(answer, Reply)
        assert (answer.status, answer.headers.get("Retry-After")) == (status, header)
        if status in (502, 504):
            assert answer.body.startswith("<!doctype html>")
        else:
            assert answer.body.get("error_code") == code


def test_the_noise_in_a_body_is_what_it_says():
    assert json.loads(fault("nan").body)["noise"] != json.loads(fault("nan").body)["noise"]
    assert json.loads(fault("surrogate").body)["noise"] == "\ud800"
    with pytest.raises(ValueError, match="digits"):
        json.loads(fault("huge-digits").body)
    with pytest.raises(RecursionError):
        json.loads(fault("deep").body)
    with pytest.raises(json.JSONDecodeError):
        json.loads(fault("cut-json").body)
    bomb = fault("gzip-bomb").body
    assert (len(bomb) < 100_000, len(gzip.decompress(bomb))) == (True, 80 * 2**20)


def test_each_fault_of_an_account_or_a_firewall_is_what_it_says():
    for status in (200, 400, 403):
        for code in (10001, 10002, 10003):
            answer = fault(f"{code}@{status}")
            assert (answer.status, answer.body["error_code"]) == (status, code)
    assert (fault("firewall").status, fault("firewall").body[:15]) == (403, "<!doctype html>")
    assert [fault(f"429+{name}").headers for name in ("ms", "reset")] == [
        {"retry-after-ms": "3000"},
        {"RateLimit-Reset": "3"},
    ]


def test_an_inline_picture_is_one():
    declared, _, data = fault("out-inline").fields["output"]["image"].partition(",")
    assert declared == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (1, 1))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("5033", "; did you mean '503'?"),
        (503, "; did you mean '503'?"),
        ("Hang", "; did you mean 'hang'?"),
        ("x" * 10_000, ";"),
    ],
)
def test_the_error_of_an_unknown_fault_names_a_similar_one_and_where_all_are(name, hint):
    with pytest.raises(ValueError, match=r"^no fault ") as caught:
        fault(name)
    assert str(caught.value).endswith(f"{hint} `flux-klein emulator --faults` lists all of them")
    assert len(str(caught.value)) < 120


def test_a_fault_is_read_with_its_endpoints_and_its_probability():
    assert parse_fault("status:503=0.05") == [("status", error_reply(503), 0.05)]
    assert parse_fault(" submit:reset+accepted=1") == [("submit", fault("reset+accepted"), 1.0)]
    assert [place for place, _, _ in parse_fault("any:hang+accepted=0.5")] == ["submit", "cancel"]
    assert [place for place, _, _ in parse_fault("any:drop=0")] == ["connect"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "ENDPOINT:FAULT=PROBABILITY, such as status:503=0.05, not ''"),
        ("503=0.1", "ENDPOINT:FAULT=PROBABILITY"),
        ("status:503", "ENDPOINT:FAULT=PROBABILITY"),
        ("status:503=", "between 0 and 1, not at ''"),
        ("status:503=2", "between 0 and 1"),
        ("status:503=-0.1", "between 0 and 1"),
        ("status:503=nan", "between 0 and 1"),
        ("status:=0.1", "no fault ''"),
        ("status:fails=0.1", "fails happens to submit, not to 'status'"),
        ("upload:503=0.1", "503 happens to submit, .*, not to 'upload'"),
    ],
)
def test_other_texts_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_fault(text)


def test_a_fault_is_refused_where_it_does_nothing():
    emulator = InProcessEmulator()
    for script in (emulator.script, partial(emulator.fault, probability=0.5)):
        with pytest.raises(ValueError, match="the fault 'no-status' happens to status, not to 'result'"):
            script("result", fault("no-status"))


def test_the_faults_of_an_endpoint_are_those_that_name_it():
    assert faults_at("connect") == [fault(name) for name in ("refuse", "no-connection", "slow-connection", "drop")]
    assert faults_at("other") == []


@given(st.text("anysttus:50+=.-e \u0663", max_size=20))
def test_any_text_is_a_fault_or_a_sentence(text):
    with suppress(ValueError):
        assert parse_fault(text)
