import pytest

from flux_klein_async.emulator import Drop, Emulator, Hang, Reply
from flux_klein_async.emulator.base import BaseEmulator
from flux_klein_async.emulator.faults import FAULTS, faults_at

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


@pytest.mark.parametrize("kind", [BaseEmulator, Emulator])
def test_a_storm_is_every_fault_wherever_it_can_happen(kind):
    emulator = kind(max_records=30_000)
    emulator.storm(1)
    for endpoint in sorted({place for entry in FAULTS.values() for place in entry.endpoints}):
        met = [emulator.engine._next_answer(endpoint) for _ in range(3_000)]
        possible = [Drop()] if (kind, endpoint) == (Emulator, "connect") else faults_at(endpoint)
        assert all(answer in possible for answer in met)
        assert all(answer in met for answer in possible)


@pytest.mark.parametrize(("probability", "low", "high"), [(0.1, 160, 240), (0, 0, 0)])
def test_a_storm_strikes_with_its_probability(probability, low, high):
    emulator = BaseEmulator()
    emulator.storm(probability)
    met = [emulator.engine._next_answer("status") for _ in range(2_000)]
    assert low <= sum(answer is not None for answer in met) <= high


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="colour"):
        BaseEmulator(colour="blue")
