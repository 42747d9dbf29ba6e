import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_klein_async.emulator.answers import Generation
from flux_klein_async.emulator.catalogue import MODELS
from flux_klein_async.emulator.generations import KEPT_FOR, Job, Queue

from .helpers import KLEIN_4B


def make_queue(workers, *lengths, keep=1000):
    queue = Queue(workers, keep=keep)
    jobs = [Job(f"r{i}", MODELS[KLEIN_4B], {}, 0.0, length, Generation()) for i, length in enumerate(lengths)]
    for job in jobs:
        queue.add(job)
    return queue, jobs


def states(queue, jobs, now):
    queue.advance(now)
    return [job.state for job in jobs]


def test_without_a_limit_everything_starts_at_once():
    queue, jobs = make_queue(None, 2.0, 1.0)
    assert states(queue, jobs, 0.0) == ["in_progress", "in_progress"]
    assert states(queue, jobs, 1.0) == ["in_progress", "completed"]
    assert queue.completions == {"r0": 2.0, "r1": 1.0}


def test_without_workers_nothing_ever_starts():
    queue, jobs = make_queue(0, 1.0)
    assert states(queue, jobs, 1e6) == ["in_queue"]
    assert queue.completions == {}


def test_waiting_generations_start_in_order_at_the_instant_a_worker_is_free():
    queue, jobs = make_queue(2, 3.0, 1.0, 1.0, 5.0)
    assert [queue.position(job) for job in jobs[2:]] == [0, 1]
    queue.advance(100.0)
    assert [(job.started, job.finished) for job in jobs] == [(0, 3), (0, 1), (1, 2), (2, 7)]


def test_a_cancelled_one_lets_the_others_move_up():
    queue, jobs = make_queue(1, 2.0, 2.0, 2.0)
    assert queue.cancel(jobs[1], 0.5)
    assert queue.position(jobs[2]) == 0
    queue.advance(2.0)
    assert (jobs[1].state, jobs[1].finished, jobs[2].started) == ("cancelled", 0.5, 2.0)


def test_only_a_waiting_one_can_be_cancelled():
    queue, jobs = make_queue(1, 1.0, 1.0)
    queue.advance(1.5)
    assert not any(queue.cancel(job, 1.5) for job in jobs)
    assert [job.state for job in jobs] == ["completed", "in_progress"]


@pytest.mark.parametrize("ends", ["completed", "failed", "cancelled"])
def test_a_fate_decides_the_end(ends):
    queue = Queue(None, keep=10)
    job = Job("r", MODELS[KLEIN_4B], {}, 0.0, 1.0, Generation(ends=ends))
    queue.add(job)
    assert states(queue, [job], 1.0) == [ends]


def test_ended_generations_are_forgotten_after_seven_days():
    queue, jobs = make_queue(None, 1.0, 2.0)
    assert queue.cancel(jobs[0], 0.0) is False
    queue.advance(1.0 + KEPT_FOR - 0.5)
    assert set(queue.jobs) == {"r0", "r1"}
    queue.advance(1.0 + KEPT_FOR)
    assert set(queue.jobs) == set(queue.completions) == {"r1"}


def test_no_more_than_the_last_ended_ones_are_kept():
    queue, _ = make_queue(None, 1.0, 2.0, 3.0, keep=2)
    queue.advance(3.0)
    assert set(queue.jobs) == set(queue.completions) == {"r1", "r2"}


@given(
    workers=st.integers(1, 3),
    plan=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans()), max_size=12),
)
def test_the_queue_agrees_with_a_clock_that_ticks(workers, plan):
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
