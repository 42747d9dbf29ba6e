"""The learning policy: near the optimum when warm, sane when cold, between its bounds whatever it is told.

Outlooks are worked out again when enough is new, and a changed service is noticed.

What was learned survives the process; a bad file costs one warning and nothing else.
"""

import json
import logging
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.models import RequestState
from flux_klein_async.polling.adaptive import (
    AdaptivePolling,
    Drift,
    History,
    ModelSnapshot,
    SizeSnapshot,
    Snapshot,
    Store,
)
from flux_klein_async.polling.durations import Size
from flux_klein_async.polling.policies import Observation, Progress, Queued

from .lab import lab

MODEL, SQUARE = lab.MODEL, lab.SQUARE
WARM = {"klein": 1.08, "mixed": 1.08, "heavy": 1.08, "shift": 1.08}
COLD = {"klein": 1.4, "mixed": 1.4, "twice as slow": 1.8, "twice as fast": 1.8, "consumer card": 1.8}


def progress(sent: float = 0.0, **known: object) -> Progress:
    """A wait as it stands after a poll `sent` that took no time."""
    values = {
        "model": MODEL,
        "pixels": SQUARE,
        "polls": 1 if sent else 0,
        "age": sent,
        "state": RequestState.IN_PROGRESS if sent else None,
        "state_age": 0.0,
        "queue_position": None,
        "last_interval": None,
        "round_trip": 0.0 if sent else None,
        "sent": sent,
    }
    return Progress(**{**values, **known})


def observation(not_before: float, not_after: float, **known: object) -> Observation:
    values = {
        "model": MODEL,
        "pixels": SQUARE,
        "not_before": not_before,
        "not_after": not_after,
        "running_since": None,
        "served": None,
        "polls": 3,
    }
    return Observation(**{**values, **known})


def polls(policy: AdaptivePolling, count: int, **known: object) -> list[float]:
    """When a wait is polled that does not end."""
    ages = [0.0]
    for _ in range(count):
        ages.append(ages[-1] + policy.next_poll(progress(ages[-1], **known)))
    return ages[1:]


def warm(seconds: float = 0.57, count: int = 100, **known: object) -> AdaptivePolling:
    policy = AdaptivePolling()
    for number in range(count):
        ended = seconds * (0.85 + 0.3 * (number * 0.618 % 1))
        policy.observe(observation(ended, ended, **known))
    return policy


@pytest.mark.parametrize("served", [True, False], ids=["served", "censored"])
@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("name", WARM)
def test_warm_it_is_within_eight_percent_of_the_optimum(name: str, concurrency: int, served: bool) -> None:
    rows = lab.simulate(AdaptivePolling(), lab.PROFILES[name], 2000, concurrency=concurrency, served=served)
    assert lab.summary(lab.judged(name, rows))[2] <= WARM[name]


@pytest.mark.parametrize("name", COLD)
def test_cold_it_is_not_far_off(name: str) -> None:
    rows = [row for seed in range(60) for row in lab.simulate(AdaptivePolling(), lab.COLD[name], 20, seed=seed)]
    assert lab.summary(rows)[2] <= COLD[name]


@pytest.mark.parametrize("concurrency", [1, 16, 64])
@pytest.mark.parametrize("name", lab.PROFILES)
def test_it_waits_better_than_any_of_today_s_clients(name: str, concurrency: int) -> None:
    costs = {}
    for who, make in {"ours": AdaptivePolling, **lab.PEERS}.items():
        rows = lab.simulate(make(), lab.PROFILES[name], 1000, seed=1, concurrency=concurrency)
        costs[who] = lab.summary(lab.judged(name, rows))[2]
    assert costs.pop("ours") < 0.6 * min(costs.values())


@pytest.mark.parametrize("round_trip", [0.0, 0.04])
@pytest.mark.parametrize("served", [True, False], ids=["served", "censored"])
def test_the_estimate_does_not_drift_with_its_own_polling(served: bool, round_trip: float) -> None:
    policy = AdaptivePolling()
    for part in range(8):  # 8,000 generations, each taught by the polls that the estimate itself chose
        lab.simulate(policy, lab.Profile(), 1000, seed=part, concurrency=4, served=served, round_trip=round_trip)
        estimate = policy.prediction(MODEL, SQUARE).distribution()
        assert estimate.quantile(0.5) == pytest.approx(0.5695 - round_trip, rel=0.05)
        assert estimate.quantile(0.9) / estimate.quantile(0.1) == pytest.approx(math.exp(2.563 * 0.15), rel=0.15)


def test_a_service_far_faster_than_believed_is_found_out_by_polls_alone() -> None:
    rows = [
        row
        for seed in range(8)  # the first poll sees every end, and would for ever
        for row in lab.simulate(AdaptivePolling(), lab.Profile(slow=0.1), 600, seed=seed, served=False)[400:]
    ]
    assert lab.summary(rows)[2] < 2


def test_a_round_trip_moves_the_polls_and_nothing_else() -> None:
    near, far = (
        lab.summary(lab.simulate(AdaptivePolling(), lab.Profile(), 1500, concurrency=4, round_trip=trip)[200:])
        for trip in (0.0, 0.04)
    )
    assert far[0] == pytest.approx(near[0], rel=0.1)
    assert far[1] == pytest.approx(near[1], rel=0.1)


@pytest.mark.parametrize("poll_cost", [0.001, 0.01, 0.1])
def test_a_dearer_poll_is_a_rarer_one(poll_cost: float) -> None:
    cheap, dear = (
        lab.summary(lab.simulate(AdaptivePolling(poll_cost=cost), lab.Profile(), 600)[200:])
        for cost in (poll_cost, 2 * poll_cost)
    )
    assert dear[1] < cheap[1]
    assert dear[0] > cheap[0]


def test_a_service_that_asks_for_fewer_polls_gets_fewer() -> None:
    policy = warm()
    assert len([at for at in polls(policy, 40) if at < 1]) > len([at for at in polls(policy, 40, price=8.0) if at < 1])


@pytest.mark.parametrize("policy", [AdaptivePolling(), warm(), warm(10.0)], ids=["cold", "warm", "slow"])
def test_stragglers_are_polled_ever_more_rarely(policy: AdaptivePolling) -> None:
    ages = polls(policy, 2000)
    gaps = {start: max(b - a for a, b in pairwise(ages) if start <= a < 2 * start) for start in (20, 80, 320, 1280)}
    assert list(gaps.values()) == sorted(gaps.values())
    assert gaps[1280] == pytest.approx(5.0, rel=0.05)


def test_the_first_poll_waits_for_the_first_ends() -> None:
    assert polls(warm(), 1)[0] > 0.4
    assert polls(warm(2.0), 1)[0] > 1.4


def test_one_sample_teaches() -> None:
    policy = AdaptivePolling()
    before = polls(policy, 10)
    policy.observe(observation(1.14, 1.14))
    after = polls(policy, 10)
    assert after[0] > before[0]
    assert len([at for at in after if at < 0.9]) < len([at for at in before if at < 0.9])
    assert policy.prediction(MODEL, SQUARE).distribution().quantile(0.6) > 0.8


def test_somebody_elses_request_is_polled_at_once() -> None:
    foreign = {"model": None, "pixels": None}
    policy = AdaptivePolling(minimum=0.03)
    assert policy.next_poll(progress(**foreign)) == 0.03
    assert policy.next_poll(progress(0.03, **foreign)) > 0.1


def test_models_teach_each_other_nothing() -> None:
    policy = warm(20.0, model="other")
    assert polls(policy, 5) == polls(AdaptivePolling(), 5)


def test_where_the_send_of_a_poll_is_untold_age_and_round_trip_say_it() -> None:
    policy = warm()
    told = policy.next_poll(progress(0.5, age=0.54, round_trip=0.04))
    untold = progress(0.5, age=0.54, round_trip=0.04)._replace(sent=None)
    assert policy.next_poll(untold) == pytest.approx(told)
    assert policy.next_poll(progress()._replace(sent=None)) == policy.next_poll(progress())


# --- the queue


def in_queue(position: int | None, sent: float, *, since: float | None = None) -> dict[str, object]:
    since = sent if since is None else since
    return {"queued": Queued(since, position, since, position, sent), "state": RequestState.IN_QUEUE}


def test_a_place_further_back_is_polled_later() -> None:
    policy = warm()
    intervals = [policy.next_poll(progress(0.4, **in_queue(position, 0.4))) for position in (0, 3, 10, 30)]
    assert intervals == sorted(intervals)
    assert intervals[0] > 0.3
    assert intervals[3] > 3


def test_the_clock_starts_again_at_the_step_to_running() -> None:
    policy = warm()
    seen = Queued(0.4, 0, 0.4, 0, 3.0)
    interval = policy.next_poll(progress(3.05, queued=seen, state_age=0.0))
    assert interval == pytest.approx(polls(warm(), 1)[0] - 0.05, abs=0.1)
    later = policy.next_poll(progress(3.45, queued=seen, state_age=0.4))
    assert later < interval
    assert policy.next_poll(progress(9.0, queued=seen, state_age=5.95)) > 0.2  # a straggler since it started


def test_a_queue_that_stands_still_is_polled_ever_more_rarely() -> None:
    policy = warm()
    age, gaps = 1.0, []
    for _ in range(12):
        gaps.append(policy.next_poll(progress(age, **in_queue(2, age, since=1.0))))
        age += gaps[-1]
    assert gaps[4:] == sorted(gaps[4:])
    assert gaps[-1] == 5.0


def test_a_queue_of_unknown_length_is_waited_for_like_a_short_one() -> None:
    policy = warm()
    assert policy.next_poll(progress(0.4, **in_queue(None, 0.4))) == policy.next_poll(progress(0.4, **in_queue(0, 0.4)))


def test_waits_in_a_queue_teach_its_pace_and_the_time_from_the_start() -> None:
    policy = AdaptivePolling()
    for _ in range(60):  # 0.4 s a place, then 1 s of running
        seen = Queued(0.4, 3, 1.9, 0, 1.9)
        policy.observe(observation(2.95, 3.05, queued=seen, running_since=2.1, sent=3.0))
    prediction = policy.prediction(MODEL, SQUARE, queued=True)
    assert prediction.history.pace.seconds == pytest.approx(0.4, rel=0.1)
    assert prediction.distribution().quantile(0.5) == pytest.approx(1.0, rel=0.1)
    assert prediction.history.durations.weight(Size.of(SQUARE)) == 0


def test_a_start_that_no_poll_saw_lies_a_generation_before_the_end() -> None:
    policy = warm(1.0)
    for _ in range(60):
        policy.observe(observation(1.9, 3.0, queued=Queued(0.4, 3, 1.9, 0, 1.9)))
    prediction = policy.prediction(MODEL, SQUARE, queued=True)
    assert prediction.history.pace.seconds == pytest.approx(0.4, rel=0.3)
    assert prediction.distribution().quantile(0.5) == pytest.approx(0.8, rel=0.3)


def test_a_state_that_flaps_breaks_nothing() -> None:
    policy = warm()
    policy.observe(observation(2.0, 2.1, queued=Queued(0.1, 5, 1.9, 4, 1.9), running_since=0.5))
    policy.observe(observation(2.0, 2.1, queued=Queued(0.1, 5, 2.0, 4, 2.0), running_since=2.5))
    assert all(0.02 <= b - a <= 5.0 for a, b in zip([0.0, *polls(policy, 50)], polls(policy, 50), strict=False))


# --- what bad luck gets

ODD = [
    (0.5, 0.6, -3.0),
    (0.5, 0.6, 3e8),
    (0.5, 0.6, math.nan),
    (0.5, 0.6, math.inf),
    (0.6, 0.5, None),
    (math.nan, 0.5, None),
    (0.0, math.inf, None),
    (-1.0, 0.5, None),
    (0.0, 0.0, 0.0),
    (0.0, 1e300, None),
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_lie_moves_what_was_learned(odd: tuple[float, float, float | None]) -> None:
    policy, before = warm(), polls(warm(), 10)
    low, high, served = odd
    policy.observe(observation(low, high, served=served))
    assert polls(policy, 10) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize(
    ("odd", "said"),
    [((0.5, 0.6, -3.0), "cannot be"), ((0.5, 0.6, 3e8), "cannot be"), ((0.6, 0.5, None), "nothing is learned")],
)
def test_what_is_odd_is_said_once(
    odd: tuple[float, float, float | None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = warm()
    low, high, served = odd
    for _ in range(5):
        policy.observe(observation(low, high, served=served))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flux_klein_async", logging.WARNING)
    assert said in record.getMessage()


def test_times_that_contradict_what_was_seen_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = AdaptivePolling()
    for number in range(60):
        policy.observe(observation(0.5, 0.52, served=0.3 * (number % 7)))
    assert len([record for record in caplog.records if "contradict" in record.getMessage()]) == 1


def test_a_service_that_lies_about_times_is_waited_for_by_what_is_seen() -> None:
    class Lied(AdaptivePolling):
        def observe(self, observation: Observation) -> None:
            super().observe(replace(observation, served=(observation.served or 0) * 13 % 2.9))

    rows = lab.simulate(Lied(), lab.Profile(), 1000)
    assert lab.summary(rows[200:])[2] < 1.08


wild = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e-320, 0.57, 1e308, -1.0, math.nan, math.inf]))

places = st.one_of(st.none(), st.integers(-3, 10**15))

instants = st.floats(0, 1e9)

queues = st.one_of(st.none(), st.builds(Queued, instants, places, instants, places, instants))

sizes = st.one_of(st.none(), st.integers(-3, 5_000_000), st.just(10**30))

observations = st.builds(
    Observation,
    model=st.sampled_from(["a", "b", None]),
    pixels=sizes,
    not_before=wild,
    not_after=wild,
    running_since=st.one_of(st.none(), wild),
    served=st.one_of(st.none(), wild),
    polls=st.integers(0, 100),
    sent=st.one_of(st.none(), wild),
    queued=queues,
)


@given(st.lists(observations, max_size=10), sizes, queues, wild)
@settings(max_examples=60)
def test_any_history_leaves_every_interval_between_its_bounds(
    history: list[Observation], pixels: int | None, queued: Queued | None, price: float
) -> None:
    policy = AdaptivePolling(minimum=0.03, maximum=4.0)
    for each in history:
        policy.observe(each)
    age = 0.0
    for _ in range(30):
        interval = policy.next_poll(progress(age, pixels=pixels, model="a", queued=queued, price=price))
        assert 0.03 <= interval <= 4.0
        age += interval


@given(st.lists(observations, max_size=20))
@settings(max_examples=20)
def test_any_history_is_survived_by_what_comes_after(history: list[Observation]) -> None:
    policy = AdaptivePolling()
    for each in history:
        policy.observe(each)
    for number in range(150):
        ended = 0.57 * (0.85 + 0.3 * (number * 0.618 % 1))
        policy.observe(observation(ended, ended, model="a"))
    assert policy.prediction("a", SQUARE).distribution().quantile(0.5) == pytest.approx(0.57, rel=0.1)


def test_memory_is_bounded() -> None:
    policy = warm(model="first")
    for number in range(5000):
        policy.next_poll(progress(pixels=64 * 64 + number))
    for number in range(100):
        policy.next_poll(progress(model=f"model {number}"))
    assert len(policy._predictions) <= 4096
    assert len(policy._histories) == 64
    assert polls(policy, 3, model="first") == polls(AdaptivePolling(), 3)


@pytest.mark.parametrize("name", ["poll_cost", "minimum", "maximum"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "1", None])
def test_refuses_a_setting_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        AdaptivePolling(**{name: value})


def test_refuses_a_maximum_below_the_minimum() -> None:
    with pytest.raises(ConfigurationError, match="maximum must not be below"):
        AdaptivePolling(minimum=2.0, maximum=1.0)


# --- the store


def test_a_new_process_starts_warm(tmp_path: Path) -> None:
    first = AdaptivePolling(store=tmp_path / "times.json")
    lab.simulate(first, lab.COLD["twice as slow"], 300)
    first.save()
    second = AdaptivePolling(store=str(tmp_path / "times.json"))
    assert lab.summary(lab.simulate(second, lab.COLD["twice as slow"], 200, seed=1))[2] < 1.08


def test_what_an_earlier_process_learned_gives_way_to_what_is(tmp_path: Path) -> None:
    rows = []
    for seed in range(8):
        first = AdaptivePolling(store=tmp_path / "times.json")
        lab.simulate(first, lab.COLD["twice as slow"], 1000, seed=seed)
        first.save()
        second = AdaptivePolling(store=tmp_path / "times.json")
        rows += lab.simulate(second, lab.Profile(), 100, seed=seed)[30:]
    assert lab.summary(rows)[2] < 1.1


def test_a_queues_pace_is_kept_too(tmp_path: Path) -> None:
    first = AdaptivePolling(store=tmp_path / "times.json")
    lab.simulate(first, lab.PROFILES["queue"], 300, concurrency=16)
    first.save()
    second = AdaptivePolling(store=tmp_path / "times.json")
    paces = [policy.prediction(MODEL, SQUARE, queued=True).history.pace.seconds for policy in (first, second)]
    assert paces[0] == paces[1]


def test_it_is_written_only_when_something_is_new(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    policy = AdaptivePolling(store=path)
    policy.save()
    assert not path.exists()
    policy.observe(observation(0.5, 0.6))
    assert policy.unsaved(2) is None
    write = policy.unsaved()
    assert write is not None
    policy.observe(observation(0.5, 0.6))  # while a thread writes
    write()
    assert path.exists()
    assert policy.unsaved() is not None
    assert policy.unsaved() is None


def test_without_a_store_nothing_is_written() -> None:
    policy = warm()
    assert policy.unsaved() is None
    policy.save()


def test_a_damaged_store_is_a_cold_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "times.json"
    path.write_text("{")
    assert polls(AdaptivePolling(store=path), 5) == polls(AdaptivePolling(), 5)
    assert len(caplog.records) == 1


SIZE, OTHER = Size.of(1024 * 1024), Size.of(512 * 512)
PRICE = 0.01


def taught(history: History, count: int, median: float = 0.57, *, size: Size = SIZE, seed: int = 0) -> History:
    chance = random.Random(seed)
    for _ in range(count):
        seconds = median * chance.lognormvariate(0, 0.15)
        history.prediction(size).learn(seconds, seconds)
    return history


def renewals(history: History, count: int, median: float = 0.57) -> int:
    """How often the prediction was worked out again during so many samples."""
    seen = set()
    kept = []
    for seed in range(count):
        taught(history, 1, median, seed=seed)
        kept.append(history.prediction(SIZE).distribution())
        seen.add(id(kept[-1]))
    return len(seen)


def test_there_is_one_outlook_for_each_size() -> None:
    history = History()
    assert history.prediction(SIZE) is history.prediction(SIZE)
    assert history.prediction(SIZE) is not history.prediction(OTHER)


def test_nothing_new_is_not_worked_out_again() -> None:
    prediction = taught(History(), 50).prediction(SIZE)
    assert prediction.distribution() is prediction.distribution()
    assert prediction.schedule(PRICE) is prediction.schedule(PRICE)


def test_it_is_worked_out_again_ever_more_rarely() -> None:
    history = History()
    first, then, warm = renewals(history, 8), renewals(history, 200), renewals(history, 640)
    assert first >= 4
    assert then <= 12
    assert 4 <= warm <= 8


def test_a_size_with_little_of_its_own_follows_the_others() -> None:
    history = taught(History(), 1)
    prediction = history.prediction(OTHER)
    before = prediction.distribution()
    taught(history, 40)
    assert prediction.distribution() is not before
    taught(history, 10, 0.19, size=OTHER)
    settled = prediction.distribution()
    taught(history, 100, seed=1)
    assert prediction.distribution() is settled


@pytest.mark.parametrize("factor", [0.4, 0.6, 1.7, 2.0, 5.0])
def test_a_changed_service_is_believed_within_fifty_samples(factor: float) -> None:
    history = taught(History(), 400)
    taught(history, 50, 0.57 * factor, seed=1)
    estimate = history.prediction(SIZE).distribution()
    assert estimate.quantile(0.5) == pytest.approx(0.57 * factor, rel=0.08)


def test_a_change_seen_at_one_size_makes_the_others_old() -> None:
    history = taught(taught(History(), 100), 100, 0.19, size=OTHER)
    prediction = history.prediction(OTHER)
    before = prediction.distribution()
    taught(history, 40, 1.14, seed=1)
    assert prediction.distribution() is not before
    assert prediction.distribution().quantile(0.5) > 0.24


def test_chance_alone_changes_nothing() -> None:
    drift, chance = Drift(), random.Random(0)
    assert sum(drift.push(chance.random()) for _ in range(100_000)) <= 2


@pytest.mark.parametrize("rank", [0.0, 1.0])
def test_eight_of_a_kind_are_a_change(rank: float) -> None:
    drift = Drift()
    assert [drift.push(rank) for _ in range(8)] == [False] * 7 + [True]
    assert not drift.push(rank)


def test_schedules_differ_by_price_and_by_what_is_known_of_the_start() -> None:
    prediction = taught(History(), 50).prediction(SIZE)
    plain = prediction.schedule(PRICE)
    assert prediction.schedule(PRICE, 1.1) is plain
    assert prediction.schedule(PRICE, 0.1) is plain
    assert prediction.schedule(PRICE, float("nan")) is plain
    assert prediction.schedule(PRICE, 1.0, 0.005) is plain
    assert prediction.schedule(PRICE, 4.0).cost > plain.cost
    assert prediction.schedule(PRICE, float("inf")) is prediction.schedule(PRICE, 1024.0)
    assert prediction.schedule(PRICE, 1.0, 0.5).after(0) > plain.after(0)


def test_few_schedules_are_kept() -> None:
    prediction = taught(History(), 50).prediction(SIZE)
    first = prediction.schedule(PRICE)
    for step in range(300):
        prediction.schedule(PRICE + step / 1000)
    assert prediction.schedule(PRICE) is not first


SNAPSHOT = Snapshot(
    models=[
        ModelSnapshot(
            model="a/b",
            seconds=0.14,
            variance=0.5,
            count=7,
            sizes=[SizeSnapshot(octave=160, queued=False, bins={-57: 12.5, -56: 3.0})],
        ),
        ModelSnapshot(
            model=None,
            seconds=0.14,
            variance=0.0,
            count=1,
            sizes=[SizeSnapshot(octave=None, queued=True, bins={0: 1.0})],
        ),
    ]
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "times.json"
    Store(path).save(SNAPSHOT)
    assert Store(str(path)).load() == SNAPSHOT
    assert [entry.name for entry in path.parent.iterdir()] == ["times.json"]
    assert json.loads(path.read_text())["version"] == 1


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    Store(path).save(SNAPSHOT)
    with path.open() as before:
        Store(path).save(Snapshot(models=[]))
        assert Snapshot.model_validate_json(before.read()) == SNAPSHOT
    assert Store(path).load() == Snapshot(models=[])


def test_no_file_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(tmp_path / "none.json").load() is None
    assert caplog.records == []


def changed(**changes: object) -> str:
    whole = json.loads(SNAPSHOT.model_dump_json())
    for where, value in changes.items():
        part = whole
        *way, last = [int(step) if step.isdigit() else step for step in where.split("__")]
        for step in way:
            part = part[step]
        part[last] = value
    return json.dumps(whole)


BAD = {
    "empty": "",
    "no JSON": "{",
    "binary": "\x00\x01",
    "another kind": "[]",
    "brackets": "[" * 100_000,
    "another version": changed(version=2),
    "an unknown field": changed(more=1),
    "a weight below 0": changed(models__0__sizes__0__bins={"3": -1.0}),
    "a weight that is none": changed(models__0__sizes__0__bins={"3": math.nan}),
    "a weight without end": changed(models__0__sizes__0__bins={"3": math.inf}),
    "a bin that is none": changed(models__0__sizes__0__bins={"x": 1.0}),
    "a bin nowhere": changed(models__0__sizes__0__bins={"99999": 1.0}),
    "no bins": changed(models__0__sizes__0__bins={}),
    "a pace of 0": changed(models__0__seconds=0),
    "a size below 0": changed(models__0__sizes__0__octave=-1),
    "too large": " " * 2_000_000,
}


@pytest.mark.parametrize("content", BAD.values(), ids=list(BAD))
def test_a_bad_file_is_ignored_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    store = Store(path)
    assert store.load() is None
    assert store.load() is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flux_klein_async", logging.WARNING)
    assert str(path) in record.getMessage()


@given(content=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(content)
    Store(path).load()


def test_what_cannot_be_read_or_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "times.json"
    folder.mkdir()
    store = Store(folder)
    assert store.load() is None
    store.save(SNAPSHOT)
    assert len(caplog.records) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["times.json"]
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "times.json")
    store.save(SNAPSHOT)
    store.save(SNAPSHOT)
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
