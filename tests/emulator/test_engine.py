"""The engine: scripts, records and faults, one call in and one answer out."""

from collections import Counter

import pytest

from flux_klein_async.emulator import Emulator
from flux_klein_async.emulator.engine import Engine, prompt_of
from flux_klein_async.emulator.faults import FAULTS, faults_at
from flux_klein_async.emulator.profiles import Profile
from flux_klein_async.emulator.scripts import (
    Cut,
    Drop,
    Garbage,
    Generation,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Rewrite,
    Truncate,
    error_reply,
)

from .helpers import BEARER, KLEIN_4B, SUBMIT, ask, submit


def test_scripted_answers_come_in_turn_and_then_all_is_normal():
    busy = error_reply(429, retry_after=1)
    engine = Engine(script={"status": [busy, None]})
    engine.script("status", Hang())
    request_id = submit(engine)
    answers = [ask(engine, f"/v1/requests/{request_id}/status") for _ in range(4)]
    assert [type(answer) for answer in answers] == [Reply, Reply, Hang, Reply]
    assert [getattr(answer, "status", None) for answer in answers] == [429, 200, None, 200]


def test_a_passing_call_takes_effect_at_once_and_is_answered_later():
    engine = Engine(profile="fixed:1", script={"submit": [Pass(delay=5.0)], "file": [Pass(2.0)]})
    reply = ask(engine, SUBMIT, 1.0, method="POST", body={"prompt": "x"})
    assert (reply.delay, engine.service.accepted) == (5.0, 1)
    request_id = reply.body["request_id"]
    assert engine.service.queue.completions == {request_id: 2.0}
    assert ask(engine, f"/files/{request_id}.png", 3.0).delay == 2.0


def test_an_answer_can_be_cut_short_and_takes_effect():
    engine = Engine(profile="fixed:1", script={"submit": [Cut(5, delay=2.0)], "file": [Cut(7)]})
    reply = ask(engine, SUBMIT, method="POST", body={"prompt": "x"})
    assert (reply.status, reply.cut, reply.delay, engine.service.accepted) == (200, Cut(5, delay=2.0), 2.0, 1)
    picture = ask(engine, f"/files/{reply.body['request_id']}.png", 1.0)
    assert (picture.cut, picture.delay) == (Cut(7), 0.0)


def test_a_fate_can_delay_the_submits_reply():
    engine = Engine(script={"submit": [Generation(delay=3.0)]})
    assert ask(engine, SUBMIT, method="POST", body={"prompt": "x"}).delay == 3.0


@pytest.mark.parametrize("kind", [Reply, Hang, Reset, Garbage, Truncate])
@pytest.mark.parametrize("accepted", [True, False])
def test_only_an_accepted_submit_starts_a_generation(kind, accepted):
    answer = kind(accepted=accepted)
    engine = Engine(script={"submit": [answer]})
    assert ask(engine, SUBMIT, method="POST", body={"prompt": "x"}) is answer
    assert engine.service.accepted == len(engine.service.queue.jobs) == accepted
    assert (engine.records[-1].request_id in engine.service.queue.jobs) is accepted


def test_a_rewritten_answer_is_the_normal_one_with_other_words():
    engine = Engine(profile="fixed:1", script={"submit": [Rewrite({"request_id": None, "more": 1}, delay=2.0)]})
    reply = ask(engine, SUBMIT, method="POST", body={"prompt": "x"})
    assert (reply.status, reply.delay, engine.service.accepted) == (200, 2.0, 1)
    assert sorted(reply.body) == ["cancel_url", "more", "result_url", "status_url"]
    assert engine.records[-1].request_id in engine.service.queue.jobs


def test_a_rewritten_file_keeps_its_picture():
    engine = Engine(
        profile="fixed:1", script={"file": [Rewrite({"x": 1}, {"Content-Type": "image/webp"}, dribble=0.5)]}
    )
    request_id = submit(engine)
    drawn = ask(engine, f"/files/{request_id}.png", 3.0)
    assert (drawn.body.request_id, drawn.headers, drawn.dribble) == (request_id, {"Content-Type": "image/webp"}, 0.5)


def test_a_bad_input_is_not_accepted_whatever_the_script_says():
    engine = Engine(script={"submit": [Hang(accepted=True)]})
    ask(engine, SUBMIT, method="POST", body={})
    assert engine.service.accepted == 0


def test_a_cancel_can_take_effect_although_its_reply_is_lost():
    engine = Engine(workers=0, script={"cancel": [Reset(accepted=True)]})
    request_id = submit(engine)
    assert ask(engine, f"/v1/requests/{request_id}/cancel", method="POST") == Reset(accepted=True)
    assert ask(engine, f"/v1/requests/{request_id}/status").body["status"] == "cancelled"


def test_connections_are_scripted_and_counted_apart():
    engine = Engine(script={"connect": [Refuse(), None, Hang()]})
    assert [engine.connect() for _ in range(4)] == [Refuse(), Pass(), Hang(), Pass()]
    assert (engine.calls["connect"], len(engine.records)) == (4, 0)


def test_faults_strike_by_chance_where_no_script_speaks():
    engine, twin = Engine(seed=3), Engine(seed=3)
    for each in (engine, twin):
        each.fault("models", Reply(503), probability=0.3)
        each.script("models", Reply(418))
    seen, again = ([ask(each, "/v1/models").status for _ in range(2001)] for each in (engine, twin))
    assert seen == again
    assert seen[0] == 418
    assert 500 < seen.count(503) < 700


@pytest.mark.parametrize(("probability", "status"), [(0, 200), (1, 503)])
def test_a_fault_can_be_certain(probability, status):
    engine = Engine()
    engine.fault("models", Reply(503), probability=probability)
    assert {ask(engine, "/v1/models").status for _ in range(50)} == {status}


def test_one_of_several_faults_is_as_likely_as_the_other_and_all_together_as_was_said():
    engine = Engine(seed=3)
    engine.fault("models", Reply(500), Reply(502), Reply(503), probability=0.3)
    seen = Counter(ask(engine, "/v1/models").status for _ in range(9000))
    assert set(seen) == {200, 500, 502, 503}
    assert 6100 < seen[200] < 6500
    assert all(800 < seen[status] < 1000 for status in (500, 502, 503))


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_is_checked(probability):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Engine().fault("models", Hang(), probability=probability)


def test_scripts_are_checked_where_they_are_written():
    with pytest.raises(ValueError, match="Refuse answers 'connect'"):
        Engine(script={"status": [Refuse()]})
    with pytest.raises(ValueError, match="no endpoint 'typo'"):
        Engine().script("typo")
    with pytest.raises(ValueError, match="no endpoint 'typo'"):
        Engine().fault("typo", Hang(), probability=1)
    with pytest.raises(ValueError, match="Refuse answers 'connect'"):
        Engine().fault("status", Hang(), Refuse(), probability=1)
    with pytest.raises(ValueError, match="at least one answer"):
        Engine().fault("status", probability=1)


def test_every_call_is_recorded():
    engine = Engine(script={"models": [Hang()]})
    request_id = submit(engine, 1.0)
    ask(engine, f"/v1/requests/{request_id}/result?include_cost=true", 2.0)
    ask(engine, "/v1/models", 3.0)
    ask(engine, "/nowhere", 4.0)
    first, second, third, fourth = engine.records
    assert (first.endpoint, first.method, first.path, first.at) == ("submit", "POST", SUBMIT, 1.0)
    assert (first.body, first.headers) == (b'{"prompt": "a snow leopard"}', BEARER)
    assert (first.request_id, first.answer, first.status) == (request_id, None, 200)
    assert (second.query, second.request_id) == ({"include_cost": "true"}, request_id)
    assert (third.answer, third.status, third.request_id) == (Hang(), None, None)
    assert (fourth.endpoint, fourth.status) == ("other", 404)
    assert engine.calls == {"submit": 1, "result": 1, "models": 1, "other": 1}


def test_a_record_shows_neither_headers_nor_body():
    engine = Engine()
    submit(engine)
    assert "emulator-token" not in repr(engine.records[0])
    assert "leopard" not in repr(engine.records[0])


def test_no_more_than_the_last_records_are_kept():
    engine = Engine(max_records=2)
    for now in range(5):
        ask(engine, "/v1/models", now)
    assert [record.at for record in engine.records] == [3, 4]
    assert engine.calls["models"] == 5


def test_no_more_than_the_last_ended_generations_are_kept():
    engine = Engine(profile="fixed:1", max_generations=2)
    ids = [submit(engine, now) for now in (0.0, 1.0, 2.0)]
    assert [ask(engine, f"/v1/requests/{each}/status", 4.0).status for each in ids] == [404, 200, 200]
    assert set(engine.service.queue.completions) == set(ids[1:])
    engine.reset()
    for now in range(5):
        submit(engine, now)
    assert len(engine.service.queue.jobs) == 3
    assert engine.service.accepted == 5


def test_a_number_of_generations_is_checked():
    with pytest.raises(ValueError, match="max_generations cannot be below 0, at -1"):
        Engine(max_generations=-1)


def test_reset_starts_again_as_constructed():
    engine = Engine(seed=4, script={"models": [Reply(503)]}, base_url="https://b", epoch=7.0)

    def story():
        engine.script("status", Hang())
        first = ask(engine, "/v1/models").status
        return first, submit(engine), dict(engine.service.queue.completions)

    before = story()
    engine.fault("models", Reply(500), probability=1)
    engine.reset()
    assert (len(engine.records), engine.service.accepted, engine.service.spent_usd) == (0, 0, 0.0)
    assert (engine.service.base_url, engine.service.epoch) == ("https://b", 7.0)
    assert story() == before
    assert ask(engine, "/v1/models").status == 200


def test_workers_replace_the_profiles_number():
    crowd = {"profile": "queue:2", "workers": 1}
    states = []
    for options in ({"profile": Profile("mine", 1.0, workers=2)}, crowd):
        engine = Engine(**options)
        ids = [submit(engine) for _ in range(3)]
        states.append([engine.service.queue.jobs[request_id].state for request_id in ids])
    assert states == [["in_progress", "in_progress", "in_queue"], ["in_progress", "in_queue", "in_queue"]]


def test_the_token_can_be_chosen():
    engine = Engine(api_key="mine")
    seen = [
        engine.handle("GET", "/v1/models", {"authorization": f"Bearer {token}"}, b"", 0.0).status
        for token in ("mine", "emulator-token")
    ]
    assert seen == [200, 401]


def test_the_face_shows_what_the_engine_counts():
    emulator = Engine(profile="fixed:1", api_key="emulator-token", files_url="https://f")
    request_id = submit(emulator, 3.0, model=KLEIN_4B)
    assert (emulator.accepted, emulator.spent_usd, emulator.completions) == (1, 0.01, {request_id: 4.0})
    assert (emulator.calls, [record.endpoint for record in emulator.records]) == ({"submit": 1}, ["submit"])
    assert (emulator.api_key, emulator.base_url) == ("emulator-token", "")


def test_scripts_faults_and_reset_reach_the_engine():
    emulator = Engine(script={"models": [Reply(418)]})
    emulator.script("models", Hang())
    emulator.fault("models", Reply(503), probability=1)
    answers = [ask(emulator, "/v1/models") for _ in range(3)]
    emulator.reset()
    again = [ask(emulator, "/v1/models") for _ in range(2)]
    assert [getattr(answer, "status", None) for answer in answers + again] == [418, None, 503, 418, 200]


@pytest.mark.parametrize("kind", [Engine, Emulator])
def test_a_storm_is_every_fault_wherever_it_can_happen(kind):
    emulator = kind(max_records=30_000)
    emulator.storm(1)
    for endpoint in sorted({place for entry in FAULTS.values() for place in entry.endpoints}):
        met = [emulator._next_answer(endpoint) for _ in range(3_000)]
        possible = [Drop()] if (kind, endpoint) == (Emulator, "connect") else faults_at(endpoint)
        assert all(answer in possible for answer in met)
        assert all(answer in met for answer in possible)


@pytest.mark.parametrize(("probability", "low", "high"), [(0.1, 160, 240), (0, 0, 0)])
def test_a_storm_strikes_with_its_probability(probability, low, high):
    emulator = Engine()
    emulator.storm(probability)
    met = [emulator._next_answer("status") for _ in range(2_000)]
    assert low <= sum(answer is not None for answer in met) <= high


def test_a_storm_can_do_without_some_faults():
    emulator = Engine(max_records=30_000)
    rest = [name for name, entry in FAULTS.items() if "cancel" in entry.endpoints and name not in {"reset", "hang"}]
    emulator.storm(1, without=rest)
    met = [emulator._next_answer("cancel") for _ in range(50)]
    assert {type(answer) for answer in met} == {Reset, Hang}
    with pytest.raises(ValueError, match="no fault 'thunder'"):
        emulator.storm(1, without=["thunder"])


def test_after_a_storm_all_is_calm_but_for_scripts():
    emulator = Engine()
    emulator.storm(1)
    emulator.script("models", Reply(418))
    emulator.calm()
    assert [ask(emulator, "/v1/models").status for _ in range(20)] == [418] + [200] * 19


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="colour"):
        Engine(colour="blue")


def test_the_nth_call_from_now_gets_the_answer():
    emulator = Engine(script={"models": [Reply(418)]})
    emulator.script_nth(3, "models", Reply(503))
    assert [ask(emulator, "/v1/models").status for _ in range(5)] == [418, 200, 200, 503, 200]
    with pytest.raises(ValueError, match="from 1"):
        emulator.script_nth(0, "models", Reply(503))


def test_a_prompt_fails_whenever_it_comes_and_uses_up_no_script():
    emulator = Engine(profile="fixed:1")
    emulator.fail_prompt("a cursed cat")
    emulator.script_prompt("a refused cat", Reply(422))
    emulator.script("submit", Reply(429))
    cursed = [submit(emulator, prompt="a cursed cat") for _ in range(2)]
    assert ask(emulator, SUBMIT, method="POST", body={"prompt": "a refused cat"}).status == 422
    assert ask(emulator, SUBMIT, method="POST", body={"prompt": "a cat"}).status == 429
    fine = submit(emulator, prompt="a cat")
    states = [ask(emulator, f"/v1/requests/{key}/status", 5.0).body["status"] for key in [*cursed, fine]]
    assert states == ["failed", "failed", "completed"]
    assert emulator.calls["submit"] == 5
    assert emulator.prompts == ["a cursed cat", "a cursed cat", "a cat"]
    emulator.reset()
    assert ask(emulator, SUBMIT, method="POST", body={"prompt": "a refused cat"}).status == 200


@pytest.mark.parametrize("body", [b"no JSON", b"[1]", b'{"prompt": 1}', b"{}", b"[" * 100_000, b"\xff"])
def test_a_submit_without_a_prompt_is_no_prompts(body):
    emulator = Engine()
    emulator.fail_prompt("a cursed cat")
    assert prompt_of(body) is None
    assert ask(emulator, SUBMIT, method="POST", body=body).status != 200
    assert emulator.prompts == []


def test_a_lost_submit_runs_and_costs():
    emulator = Engine()
    emulator.lose_submit()
    assert isinstance(ask(emulator, SUBMIT, method="POST", body={"prompt": "a cat"}), Reset)
    assert (emulator.prompts, emulator.accepted) == (["a cat"], 1)


def test_what_was_asked_is_told_by_endpoint():
    emulator = Engine()
    request_id = submit(emulator, 3.0)
    ask(emulator, f"/v1/requests/{request_id}/status", 4.0)
    assert [(record.request_id, record.at) for record in emulator.asked("status")] == [(request_id, 4.0)]
    with pytest.raises(ValueError, match="no endpoint"):
        emulator.asked("state")
