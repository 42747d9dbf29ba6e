import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.emulator.catalogue import MODELS
from flux_klein_async.emulator.generations import KEPT_FOR, Job, Queue, parse_profile
from flux_klein_async.emulator.scripts import Generation

from .helpers import KLEIN_4B


@pytest.mark.parametrize(("width", "height", "seconds"), [(512, 512, 0.19), (1024, 1024, 0.57)])
@pytest.mark.parametrize("name", ["klein", "queue"])
def test_the_median_is_the_published_time(name, width, height, seconds):
    profile, rng = parse_profile(name), random.Random(1)
    drawn = [profile.duration(rng, width, height) for _ in range(4000)]
    assert statistics.median(drawn) == pytest.approx(seconds, rel=0.02)
    assert 0.13 < statistics.stdev(drawn) / statistics.mean(drawn) < 0.17


@pytest.mark.parametrize(
    ("text", "workers"), [("klein", None), ("queue", 4), ("queue:9", 9), ("fixed:0.5", None), (" klein ", None)]
)
def test_a_profile_names_its_workers(text, workers):
    assert parse_profile(text).workers == workers


@pytest.mark.parametrize(("text", "seconds"), [("fixed:0.5", 0.5), ("fixed:0", 0.0), ("fixed:1e2", 100.0)])
def test_a_fixed_time_is_exact_whatever_the_size(text, seconds):
    profile, rng = parse_profile(text), random.Random(1)
    assert {profile.duration(rng, side, side) for side in (64, 1024, 2048)} == {seconds}


@pytest.mark.parametrize(
    "text",
    [
        *["", "slow", "Klein", "klein:2", "fixed", "fixed:", "fixed:x", "fixed:-1", "fixed:nan", "fixed:inf"],
        *["queue:", "queue:0", "queue:-1", "queue:2.5", "queue:²", "queue:9999999999"],
    ],
)
def test_an_unknown_form_is_refused_with_the_list_of_forms(text):
    with pytest.raises(ValueError, match="'klein', 'queue', 'queue:WORKERS' or 'fixed:SECONDS'") as caught:
        parse_profile(text)
    assert repr(text) in str(caught.value)


def make_queue(workers, *lengths, keep=1000):
    queue = Queue(workers, keep=keep)
    jobs = [Job(f"r{i}", MODELS[KLEIN_4B], {}, 0.0, length, Generation()) for i, length in enumerate(lengths)]
    for job in jobs:
        queue.add(job)
    return queue, jobs


@pytest.mark.parametrize(
    ("workers", "started", "completions"), [(None, [0.0, 0.0], {"r0": 2.0, "r1": 1.0}), (0, [None, None], {})]
)
def test_without_a_limit_everything_starts_at_once_and_without_workers_nothing_ever_does(workers, started, completions):
    queue, jobs = make_queue(workers, 2.0, 1.0)
    queue.advance(1e5)
    assert [job.started for job in jobs] == started
    assert queue.completions == completions


def test_a_cancelled_generation_lets_the_others_move_up():
    queue, jobs = make_queue(1, 2.0, 2.0, 2.0)
    assert [queue.position(job) for job in jobs[1:]] == [0, 1]
    assert queue.cancel(jobs[1], 0.5)
    assert queue.position(jobs[2]) == 0
    queue.advance(2.5)
    assert (jobs[1].state, jobs[1].finished, jobs[2].started) == ("cancelled", 0.5, 2.0)
    assert not any(queue.cancel(job, 2.5) for job in jobs)
    assert [job.state for job in jobs] == ["completed", "cancelled", "in_progress"]


def test_ended_generations_are_kept_for_seven_days_and_no_more_than_the_last_ones():
    queue, _ = make_queue(None, 1.0, 2.0, 3.0, keep=2)
    queue.advance(3.0)
    assert set(queue.jobs) == set(queue.completions) == {"r1", "r2"}
    queue.advance(2.0 + KEPT_FOR - 0.5)
    assert set(queue.jobs) == {"r1", "r2"}
    queue.advance(2.0 + KEPT_FOR)
    assert set(queue.jobs) == set(queue.completions) == {"r2"}


@given(
    workers=st.integers(1, 3),
    plan=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans()), max_size=12),
)
def test_generations_start_in_order_at_the_instant_at_which_a_worker_is_free(workers, plan):
    queue, jobs, now = Queue(workers, keep=1000), [], 0
    model = MODELS[KLEIN_4B]
    for gap, length, cancel in plan:
        now += gap
        job = Job(f"r{len(jobs)}", model, {}, float(now), float(length), Generation())
        queue.add(job)
        jobs.append(job)
        if cancel:
            queue.cancel(job, float(now))
    queue.advance(1e9)
    left = [job for job in jobs if job.state != "cancelled"]
    busy_until = [0.0] * workers
    for job in left:
        worker = min(range(workers), key=busy_until.__getitem__)
        start = max(job.submitted, busy_until[worker])
        assert (job.started, job.finished, job.state) == (start, start + job.duration, "completed")
        busy_until[worker] = start + job.duration
