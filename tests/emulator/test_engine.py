"""The engine: scripts, records and faults, one call in and one answer out."""

import json
from collections import Counter

import pytest

from flux_klein_async.emulator import Emulator
from flux_klein_async.emulator.engine import Engine, prompt_of
from flux_klein_async.emulator.faults import FAULTS, UNTOLD, faults_at
from flux_klein_async.emulator.generations import Profile
from flux_klein_async.emulator.scripts import (
    ENDPOINTS,
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
    Unasked,
    error_reply,
)

from .helpers import BEARER, SUBMIT, ask, submit


def models(engine, count=1):
    """The HTTP statuses of some calls in a row."""
    return [getattr(ask(engine, "/v1/models"), "status", None) for _ in range(count)]


def test_what_was_given_to_the_constructor_can_be_read_and_not_set():
    engine = Engine(profile="queue:3")
    assert (engine.profile.name, engine.workers, Engine(workers=2).workers) == ("queue", 3, 2)
    for name in ("profile", "workers"):
        with pytest.raises(AttributeError):  # it would change nothing
            setattr(engine, name, 7)


def test_scripted_answers_come_in_turn_and_then_the_normal_one():
    engine = Engine(script={"models": [error_reply(429, retry_after=1), None]})
    engine.script("models", Hang())
    assert models(engine, 4) == [429, 200, None, 200]


def test_the_nth_call_from_now_gets_the_answer():
    engine = Engine(script={"models": [Reply(418)]})
    engine.script_nth(3, "models", Reply(503))
    assert models(engine, 5) == [418, 200, 200, 503, 200]
    with pytest.raises(ValueError, match="from 1"):
        engine.script_nth(0, "models", Reply(503))


@pytest.mark.parametrize(
    ("answer", "changed"),
    [
        (Pass(delay=5.0), {"delay": 5.0}),
        (Generation(delay=3.0), {"delay": 3.0}),
        (Cut(5, delay=2.0), {"delay": 2.0, "cut": Cut(5, delay=2.0)}),
        (Unasked(Reply(429), delay=2.0), {"delay": 2.0, "unasked": Unasked(Reply(429), delay=2.0)}),
        (Rewrite(head_dribble=0.3, gzip=9), {"head_dribble": 0.3, "gzip": 9, "dribble": None}),
        (Rewrite(headers={"X": "y"}, delay=2.0, dribble=0.5), {"delay": 2.0, "dribble": 0.5, "headers": {"X": "y"}}),
    ],
)
def test_a_changed_answer_takes_effect_at_once(answer, changed):
    engine = Engine(profile="fixed:1", script={"submit": [answer]})
    reply = ask(engine, SUBMIT, 1.0, method="POST", body={"prompt": "x"})
    assert (reply.status, engine.accepted) == (200, 1)
    assert engine.completions == {reply.body["request_id"]: 2.0}
    assert {name: getattr(reply, name) for name in changed} == changed


def test_a_changed_file_keeps_its_picture():
    engine = Engine(profile="fixed:1", script={"file": [Cut(7), Rewrite({"x": 1}, {"Content-Type": "image/webp"})]})
    request_id = submit(engine)
    cut, rewritten, plain = (ask(engine, f"/files/{request_id}.png", 3.0) for _ in range(3))
    assert cut.body == rewritten.body == plain.body
    assert (cut.cut, rewritten.headers) == (Cut(7), {"Content-Type": "image/webp"})


def test_a_rewritten_answer_has_other_fields():
    engine = Engine(script={"submit": [Rewrite({"request_id": None, "more": 1})]})
    reply = ask(engine, SUBMIT, method="POST", body={"prompt": "x"})
    assert sorted(reply.body) == ["cancel_url", "more", "result_url", "status_url"]
    assert engine.records[-1].request_id in engine.completions


@pytest.mark.parametrize("kind", [Reply, Hang, Reset, Garbage, Truncate])
@pytest.mark.parametrize("accepted", [True, False])
def test_only_an_accepted_submit_starts_a_generation(kind, accepted):
    answer = kind(accepted=accepted)
    engine = Engine(script={"submit": [answer]})
    assert ask(engine, SUBMIT, method="POST", body={"prompt": "x"}) is answer
    assert engine.accepted == len(engine.completions) == accepted
    assert (engine.records[-1].request_id in engine.completions) is accepted


def test_a_bad_input_is_never_accepted():
    engine = Engine(script={"submit": [Hang(accepted=True)]})
    ask(engine, SUBMIT, method="POST", body={})
    assert engine.accepted == 0


def test_a_cancel_can_take_effect_although_its_reply_is_lost():
    engine = Engine(workers=0, script={"cancel": [Reset(accepted=True)]})
    request_id = submit(engine)
    assert ask(engine, f"/v1/requests/{request_id}/cancel", method="POST") == Reset(accepted=True)
    assert ask(engine, f"/v1/requests/{request_id}/status").body["status"] == "cancelled"


def test_connections_are_scripted_and_counted_apart():
    engine = Engine(script={"connect": [Refuse(), None, Hang()]})
    assert [engine.connect() for _ in range(4)] == [Refuse(), Pass(), Hang(), Pass()]
    assert (engine.calls["connect"], len(engine.records)) == (4, 0)


@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0, 0), (0.3, 500, 700), (1, 2000, 2000)])
def test_faults_happen_with_their_probability_after_scripts_and_follow_from_the_seed(probability, low, high):
    engine, twin = Engine(seed=3), Engine(seed=3)
    for each in (engine, twin):
        each.fault("models", Reply(503), probability=probability)
        each.script("models", Reply(418))
    seen = models(engine, 2001)
    assert models(twin, 2001) == seen
    assert seen[0] == 418
    assert low <= seen.count(503) <= high


def test_several_faults_are_equally_likely_and_share_the_probability():
    engine = Engine(seed=3)
    engine.fault("models", Reply(500), Reply(502), Reply(503), probability=0.3)
    seen = Counter(models(engine, 9000))
    assert set(seen) == {200, 500, 502, 503}
    assert 6100 < seen[200] < 6500
    assert all(800 < seen[status] < 1000 for status in (500, 502, 503))


@pytest.mark.parametrize("kind", [Engine, Emulator])
def test_a_storm_is_every_fault_at_every_endpoint_where_it_is_possible(kind):
    engine = kind()
    engine.storm(0.25)
    possible = {endpoint: tuple(faults_at(endpoint, UNTOLD)) for endpoint in ENDPOINTS if faults_at(endpoint)}
    if kind is Emulator:
        possible["connect"] = (Drop(),)
    assert engine._faults == {endpoint: [(0.25, answers)] for endpoint, answers in possible.items()}


def test_a_storm_can_leave_faults_out_and_ends_with_scripts_kept():
    engine = Engine()
    rest = [name for name, entry in FAULTS.items() if "models" in entry.endpoints and name not in {"500", "503"}]
    engine.storm(1, without=rest)
    engine.script("models", Reply(418))
    assert set(models(engine, 50)) == {418, 500, 503}
    engine.script("models", Reply(418))
    engine.calm()
    assert models(engine, 20) == [418] + [200] * 19
    with pytest.raises(ValueError, match="no fault 'thunder'"):
        engine.storm(1, without=["thunder"])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda: Engine(script={"status": [Refuse()]}), "Refuse answers 'connect'"),
        (lambda: Engine().script("typo"), "no endpoint 'typo'"),
        (lambda: Engine().asked("typo"), "no endpoint 'typo'"),
        (lambda: Engine().script_prompt("a cat", Refuse()), "Refuse answers 'connect'"),
        (lambda: Engine().fault("typo", Hang(), probability=1), "no endpoint 'typo'"),
        (lambda: Engine().fault("status", Hang(), Refuse(), probability=1), "Refuse answers 'connect'"),
        (lambda: Engine().fault("status", probability=1), "at least one answer"),
        (lambda: Engine().fault("status", Hang(), probability=-0.1), "between 0 and 1"),
        (lambda: Engine().fault("status", Hang(), probability=1.1), "between 0 and 1"),
        (lambda: Engine().fault("status", Hang(), probability=float("nan")), "between 0 and 1"),
        (lambda: Engine(max_generations=-1), "max_generations cannot be below 0, at -1"),
    ],
)
def test_scripts_faults_and_options_are_checked_where_they_are_written(write, sentence):
    with pytest.raises(ValueError, match=sentence):
        write()


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
    assert engine.asked("result") == [second]
    assert "emulator-token" not in repr(first)
    assert "leopard" not in repr(first)


def test_a_large_recorded_body_keeps_its_fields_and_the_beginning_of_its_files():
    engine = Engine(profile="fixed:1")
    for size in (2_000, 2**20):
        uri = "data:image/png;base64," + "A" * size
        body = json.dumps({"image_urls": [uri], "prompt": "x"}).encode()
        engine.handle("POST", SUBMIT, BEARER, body, 0.0)
    small, large = (json.loads(record.body) for record in engine.records)
    assert [len(each["image_urls"][0]) for each in (small, large)] == [2_022, 1_046]
    assert (large["prompt"], [dict(job.input) for job in engine.service.queue.jobs.values()]) == (
        "x",
        [{"prompt": "x"}] * 2,
    )


def test_only_the_last_records_and_ended_generations_are_kept():
    engine = Engine(profile="fixed:1", max_records=2, max_generations=2)
    ids = [submit(engine, now) for now in (0.0, 1.0, 2.0)]
    assert [ask(engine, f"/v1/requests/{each}/status", 4.0).status for each in ids] == [404, 200, 200]
    assert set(engine.completions) == set(ids[1:])
    assert [record.request_id for record in engine.records] == ids[1:]
    assert (engine.accepted, engine.calls["submit"]) == (3, 3)


def test_reset_starts_again_as_constructed():
    engine = Engine(seed=4, script={"models": [Reply(503)]}, base_url="https://b", epoch=7.0)

    def story():
        engine.script("status", Hang())
        engine.fail_prompt("a snow leopard")
        return models(engine), submit(engine), dict(engine.completions)

    answered, request_id, completions = story()
    engine.fault("models", Reply(500), probability=1)
    engine.reset()
    assert (len(engine.records), engine.accepted, engine.spent_usd) == (0, 0, 0.0)
    assert (engine.base_url, engine.service.epoch) == ("https://b", 7.0)
    again, other_id, completed = story()
    assert (again, list(completed.values())) == (answered, list(completions.values()))
    assert other_id != request_id, "for a client that knows the first"
    assert models(engine) == [200]


async def test_a_client_goes_on_after_a_reset(klein_emulator, klein_client):
    first = await klein_client.generate("a cat")
    klein_emulator.reset()
    assert (await klein_client.generate("a cat")).request_id != first.request_id
    assert klein_emulator.accepted == 1


@pytest.mark.parametrize(
    ("options", "running"),
    [({"profile": Profile("mine", 1.0, workers=2)}, 2), ({"profile": "queue:2", "workers": 1}, 1), ({"workers": 0}, 0)],
)
def test_workers_replace_the_profiles_number(options, running):
    engine = Engine(**options)
    ids = [submit(engine) for _ in range(3)]
    assert list(engine.completions) == ids[:running]


def test_a_scripted_prompt_gets_its_answer_whenever_it_comes_and_uses_up_no_script():
    engine = Engine(profile="fixed:1")
    engine.fail_prompt("a cursed cat")
    engine.script_prompt("a refused cat", Reply(422))
    engine.script("submit", Reply(429))
    cursed = [submit(engine, prompt="a cursed cat") for _ in range(2)]
    assert ask(engine, SUBMIT, method="POST", body={"prompt": "a refused cat"}).status == 422
    assert ask(engine, SUBMIT, method="POST", body={"prompt": "a cat"}).status == 429
    fine = submit(engine, prompt="a cat")
    states = [ask(engine, f"/v1/requests/{key}/status", 5.0).body["status"] for key in [*cursed, fine]]
    assert states == ["failed", "failed", "completed"]
    assert engine.calls["submit"] == 5
    assert engine.prompts == ["a cursed cat", "a cursed cat", "a cat"]


@pytest.mark.parametrize("body", [b"no JSON", b"[1]", b'{"prompt": 1}', b"{}", b"[" * 100_000, b"\xff"])
def test_a_submit_without_a_readable_prompt_is_no_scripted_prompt(body):
    engine = Engine()
    engine.fail_prompt("")
    assert prompt_of(body) is None
    assert ask(engine, SUBMIT, method="POST", body=body).status != 200
    assert engine.records[-1].answer is None
    assert engine.prompts == []


def test_a_lost_submit_runs_and_costs():
    engine = Engine()
    engine.lose_submit()
    assert isinstance(ask(engine, SUBMIT, method="POST", body={"prompt": "a cat"}), Reset)
    assert (engine.prompts, engine.accepted, engine.spent_usd) == (["a cat"], 1, 0.01)


def test_a_profile_may_be_another_object_that_gives_durations():
    class Measured:
        name, workers = "measured", 1

        def duration(self, *_: object) -> float:
            return 7.0

    engine = Engine(profile=Measured())
    key = submit(engine)
    assert engine.completions[key] == 7.0


def test_what_is_no_profile_is_refused():
    with pytest.raises(ValueError, match=r"^no latency profile '3': write 'klein', "):
        Engine(profile=3)
