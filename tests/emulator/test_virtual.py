import asyncio
import threading
import time

import pytest

from flux_klein_async.emulator.virtual import VirtualTimeLoop

from .helpers import run


def test_time_starts_at_nought_and_jumps_to_each_timer_exactly():
    async def main():
        loop, seen = asyncio.get_running_loop(), [asyncio.get_running_loop().time()]
        for delay in (0.1, 0.2, 1e-9, 86_400.0, 1 / 3):
            when = loop.time() + delay
            await asyncio.sleep(delay)
            assert loop.time() == when
            seen.append(loop.time())
        return seen

    assert run(main())[:3] == [0.0, 0.1, 0.1 + 0.2]


@pytest.mark.parametrize("start", [0.0, 5.5, 1e7, 1e9, 1e15])
def test_time_can_start_anywhere_and_timers_still_fire(start):
    async def main():
        await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start)) as runner:
        assert runner.run(main()) == start + 1


def test_timers_go_off_in_their_order_each_at_its_own_instant():
    async def main():
        loop, seen = asyncio.get_running_loop(), []
        for delay in (3, 1, 2, 1 + 1e-12):
            loop.call_later(delay, lambda delay=delay: seen.append((delay, loop.time())))
        loop.call_later(2.5, print).cancel()
        await asyncio.sleep(5)
        return seen

    assert run(main()) == [(1, 1), (1 + 1e-12, 1 + 1e-12), (2, 2), (3, 3)]


def test_time_stands_still_while_a_job_is_out():
    async def main():
        loop, go = asyncio.get_running_loop(), threading.Event()
        # The timer would release the job at once if time jumped while the job is out.
        timer = loop.call_later(1, go.set)
        job = loop.run_in_executor(None, go.wait, 0.01)
        released = await job
        timer.cancel()
        return released, loop.time()

    assert run(main()) == (False, 0.0)


def test_time_goes_on_after_a_job_that_failed_or_was_given_up():
    async def main():
        loop, go = asyncio.get_running_loop(), threading.Event()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        loop.run_in_executor(None, go.wait).cancel()
        await asyncio.sleep(2)
        go.set()
        return loop.time()

    assert run(main()) == 2


def test_another_threads_wake_up_is_waited_for_when_nothing_else_can_happen():
    async def main():
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        threading.Timer(0.01, loop.call_soon_threadsafe, (future.set_result, 7)).start()
        return await future

    assert run(main()) == 7


@pytest.mark.parametrize("tasks", [1, 9])
def test_a_deadlock_is_an_error_that_names_who_waits(tasks):
    async def never():
        await asyncio.get_running_loop().create_future()

    async def main():
        await asyncio.sleep(2.5)
        await asyncio.gather(*(never() for _ in range(tasks)))

    expected = r"deadlock in virtual time at 2\.5: .* wait for ever: .*never\(\).*"
    with (
        pytest.raises(RuntimeError, match=expected + (" and 5 more" if tasks == 9 else "")),
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(grace=0.001)) as runner,
    ):
        runner.run(main())


def test_the_executor_can_be_shut_down():
    async def main():
        await asyncio.to_thread(time.monotonic)
        await asyncio.get_running_loop().shutdown_default_executor()
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(grace=0.0)) as runner:
        assert runner.run(main()) == 0.0


def test_it_works_in_debug_mode():
    with asyncio.Runner(loop_factory=VirtualTimeLoop, debug=True) as runner:
        assert runner.run(asyncio.sleep(5, "slept")) == "slept"
