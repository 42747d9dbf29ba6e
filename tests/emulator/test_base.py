import pytest

from flux_klein_async.emulator import Drop, Emulator, Hang, Reply, Reset
from flux_klein_async.emulator.base import BaseEmulator
from flux_klein_async.emulator.engine import prompt_of
from flux_klein_async.emulator.faults import FAULTS, faults_at

from .helpers import KLEIN_4B, SUBMIT, ask, submit


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


def test_a_storm_can_do_without_some_faults():
    emulator = BaseEmulator(max_records=30_000)
    rest = [name for name, entry in FAULTS.items() if "cancel" in entry.endpoints and name not in {"reset", "hang"}]
    emulator.storm(1, without=rest)
    met = [emulator.engine._next_answer("cancel") for _ in range(50)]
    assert {type(answer) for answer in met} == {Reset, Hang}
    with pytest.raises(ValueError, match="no fault 'thunder'"):
        emulator.storm(1, without=["thunder"])


def test_after_a_storm_all_is_calm_but_for_scripts():
    emulator = BaseEmulator()
    emulator.storm(1)
    emulator.script("models", Reply(418))
    emulator.calm()
    assert [ask(emulator.engine, "/v1/models").status for _ in range(20)] == [418] + [200] * 19


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="colour"):
        BaseEmulator(colour="blue")


def test_the_nth_call_from_now_gets_the_answer():
    emulator = BaseEmulator(script={"models": [Reply(418)]})
    emulator.script_nth(3, "models", Reply(503))
    assert [ask(emulator.engine, "/v1/models").status for _ in range(5)] == [418, 200, 200, 503, 200]
    with pytest.raises(ValueError, match="from 1"):
        emulator.script_nth(0, "models", Reply(503))


def test_a_prompt_fails_whenever_it_comes_and_uses_up_no_script():
    emulator = BaseEmulator(profile="fixed:1")
    emulator.fail_prompt("a cursed cat")
    emulator.script_prompt("a refused cat", Reply(422))
    emulator.script("submit", Reply(429))
    cursed = [submit(emulator.engine, prompt="a cursed cat") for _ in range(2)]
    assert ask(emulator.engine, SUBMIT, method="POST", body={"prompt": "a refused cat"}).status == 422
    assert ask(emulator.engine, SUBMIT, method="POST", body={"prompt": "a cat"}).status == 429
    fine = submit(emulator.engine, prompt="a cat")
    states = [ask(emulator.engine, f"/v1/requests/{key}/status", 5.0).body["status"] for key in [*cursed, fine]]
    assert states == ["failed", "failed", "completed"]
    assert emulator.calls["submit"] == 5
    assert emulator.prompts == ["a cursed cat", "a cursed cat", "a cat"]
    emulator.reset()
    assert ask(emulator.engine, SUBMIT, method="POST", body={"prompt": "a refused cat"}).status == 200


@pytest.mark.parametrize("body", [b"no JSON", b"[1]", b'{"prompt": 1}', b"{}", b"[" * 100_000, b"\xff"])
def test_a_submit_without_a_prompt_is_no_prompts(body):
    emulator = BaseEmulator()
    emulator.fail_prompt("a cursed cat")
    assert prompt_of(body) is None
    assert ask(emulator.engine, SUBMIT, method="POST", body=body).status != 200
    assert emulator.prompts == []


def test_a_lost_submit_runs_and_costs():
    emulator = BaseEmulator()
    emulator.lose_submit()
    assert isinstance(ask(emulator.engine, SUBMIT, method="POST", body={"prompt": "a cat"}), Reset)
    assert (emulator.prompts, emulator.accepted) == (["a cat"], 1)


def test_what_was_asked_is_told_by_endpoint():
    emulator = BaseEmulator()
    request_id = submit(emulator.engine, 3.0)
    ask(emulator.engine, f"/v1/requests/{request_id}/status", 4.0)
    assert [(record.request_id, record.at) for record in emulator.asked("status")] == [(request_id, 4.0)]
    with pytest.raises(ValueError, match="no endpoint"):
        emulator.asked("state")
