"""Well-formed answers whose content is odd: each in its place, and none of them broken in form."""

import json

import pytest

from flux_klein_async.emulator.answers import Generation, Reply, Rewrite, check_answer
from flux_klein_async.emulator.oddities import ODDITIES


@pytest.mark.parametrize(("name", "meaning", "endpoints", "answer"), ODDITIES, ids=lambda part: str(part)[:20])
def test_an_oddity_can_happen_where_it_says(name, meaning, endpoints, answer):
    assert name
    assert meaning
    for endpoint in endpoints:
        check_answer(endpoint, answer)


def test_what_is_rewritten_is_still_json():
    rewritten = [answer for *_, answer in ODDITIES if isinstance(answer, Rewrite)]
    assert len(rewritten) > 10
    for answer in rewritten:
        json.dumps(answer.fields, allow_nan=False)


def test_a_scripted_reply_or_fate_is_no_refusal():
    assert {answer.status for *_, answer in ODDITIES if isinstance(answer, Reply)} == {200}
    assert {endpoints for _, _, endpoints, answer in ODDITIES if isinstance(answer, Generation)} == {("submit",)}
