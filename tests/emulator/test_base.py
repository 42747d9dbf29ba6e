import pytest

from flux_klein_async.emulator import Hang, Reply
from flux_klein_async.emulator.base import BaseEmulator

from .helpers import KLEIN_4B, ask, submit


def test_the_face_shows_what_the_engine_counts():
    emulator = BaseEmulator(profile="fixed:1", api_key="emulator-token", files_url="https://f")
    request_id = submit(emulator.engine, 3.0, model=KLEIN_4B)
    assert (emulator.accepted, emulator.spent_usd, emulator.completions) == (1, 0.01, {request_id: 4.0})
    assert (emulator.calls, [record.endpoint for record in emulator.records]) == ({"submit": 1}, ["submit"])
    assert (emulator.api_key, emulator.base_url) == ("emulator-token", "")


def test_scripts_faults_and_reset_reach_the_engine():
    emulator = BaseEmulator(script={"models": [Reply(418)]})
    emulator.script("models", Hang())
    emulator.fault("models", Reply(503), probability=1)
    answers = [ask(emulator.engine, "/v1/models") for _ in range(3)]
    emulator.reset()
    again = [ask(emulator.engine, "/v1/models") for _ in range(2)]
    assert [getattr(answer, "status", None) for answer in answers + again] == [418, None, 503, 418, 200]


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="colour"):
        BaseEmulator(colour="blue")
