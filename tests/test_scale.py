"""The programs of the page about several processes: killed in the middle, and each picture is paid for once."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_klein_async.emulator import Emulator

from .databases import Cluster, RedisServer
from .programs import Programs, end
from .served import in_thread

pytestmark = pytest.mark.slow

ENQUEUE_TASKS = """
import asyncio
from tasks import broker, make_picture

async def main():
    await broker.startup()
    one = await make_picture.kiq("one", "a lighthouse")
    input()
    while not await one.is_ready():  # a worker looks for jobs of others when it gets one
        two = await make_picture.kiq("two", "a lighthouse")
        await asyncio.sleep(0.5)
    for job in (one, two):
        print((await job.wait_result(timeout=60)).return_value)
    await broker.shutdown()

asyncio.run(main())
"""
ENQUEUE_JOBS = """
from jobs import make_picture

jobs = [make_picture.delay("one", "a lighthouse")]
input()
jobs.append(make_picture.delay("two", "a lighthouse"))
for job in jobs:
    print(job.get(timeout=60))
"""


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with in_thread(Emulator(profile="fixed:1")) as emulator:
        yield emulator


@pytest.fixture
def queues(tmp_path: Path, emulator: Emulator, cluster: Cluster, redis_server: RedisServer) -> Programs:
    return Programs(tmp_path, emulator, cluster, redis_server)


def check_jobs(queues: Programs, enqueue: "subprocess.Popen[str]") -> None:
    printed, _ = enqueue.communicate("\n", timeout=60)
    assert len(set(printed.split())) == 2
    assert all(url.startswith(queues.emulator.base_url) for url in printed.split())
    assert queues.emulator.accepted == 2


def test_a_job_of_taskiq_whose_worker_is_killed_is_delivered_again_and_paid_for_once(queues: Programs) -> None:
    pytest.importorskip("taskiq_redis")
    worker = ("-m", "taskiq", "worker", "tasks:broker", "--workers", "1")
    with queues.start("-c", ENQUEUE_TASKS, stdin=subprocess.PIPE) as enqueue:
        with queues.running(*worker) as first:
            queues.polled(1, lambda: end(first))
            first.wait(60)
        with queues.running(*worker):
            check_jobs(queues, enqueue)


def test_a_job_of_celery_whose_process_is_killed_is_delivered_again_and_paid_for_once(queues: Programs) -> None:
    pytest.importorskip("celery")
    worker = ("-m", "celery", "--app", "jobs", "worker", "--concurrency", "1", "--loglevel", "error")
    with queues.start("-c", ENQUEUE_JOBS, stdin=subprocess.PIPE) as enqueue, queues.running(*worker) as running:

        def kill_child() -> None:
            [child] = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGKILL)

        queues.polled(1, kill_child)
        check_jobs(queues, enqueue)


def test_a_pool_that_is_killed_goes_on_and_pays_for_each_picture_once(tmp_path: Path, emulator: Emulator) -> None:
    programs = Programs(tmp_path, emulator)
    with programs.running("pool.py") as process:
        programs.polled(3, lambda: end(process))
        process.wait(60)
    assert 0 < emulator.accepted < 6
    ends = programs.run("pool.py").splitlines()
    unsure = [end for end in ends if "may or may not have been accepted" in end]
    urls = {end for end in ends if end.startswith("http")}
    assert len(urls) + len(unsure) == len(ends) == 6
    assert len(urls) <= emulator.accepted <= 6


def test_a_worker_that_is_terminated_waits_for_what_runs_and_goes_on_later(tmp_path: Path, emulator: Emulator) -> None:
    programs = Programs(tmp_path, emulator)
    with programs.start("worker.py") as process:
        programs.polled(6, lambda: end(process, signal.SIGTERM))
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert 0 < len(printed.splitlines()) < 40
    assert len(programs.run("worker.py").splitlines()) == 40
    assert emulator.spent_usd == pytest.approx(0.4)
