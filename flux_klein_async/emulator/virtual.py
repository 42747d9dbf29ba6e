"""An event loop whose time jumps instead of passing.

Time stands still while anything can run and while a job runs on an executor; then it jumps to the next timer, exactly.

Limits: while a timer is set, the loop does not wait for a real socket, a subprocess or a thread that wakes it, since
nothing says whether they ever will; time jumps ahead of them.
"""

import asyncio
import math
import selectors
from asyncio import Future
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["VirtualTimeLoop"]

_Events: TypeAlias = list[tuple[selectors.SelectorKey, int]]
_TASKS_NAMED = 5


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs code that waits for minutes in no time, at the same instants in every run.

    Args:
        start: what `time()` returns first.
        grace: real seconds to wait for another thread when nothing is left to run, before reporting a deadlock.
    """

    def __init__(self, start: float = 0.0, *, grace: float = 1.0) -> None:
        super().__init__(_JumpingSelector(self))
        self._grace = grace
        self._jobs = 0
        self._jump(start)

    def time(self) -> float:
        """Return the virtual instant."""
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Future[Any]:  # type: ignore[override]
        """Run a job on a thread; time stands still until it ends or is cancelled."""
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._end_job)
        return future

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        """Wait for the threads; time stands still meanwhile."""
        self._jobs += 1
        try:
            await super().shutdown_default_executor(*args, **options)
        finally:
            self._jobs -= 1

    def _end_job(self, _future: Future[Any]) -> None:
        self._jobs -= 1

    def _jump(self, instant: float) -> None:
        self._now = instant
        # The base class runs timers due before `now + resolution`. The smallest step of a float covers those due now,
        # even where `now` is so large that a fixed resolution would vanish in the sum.
        self._clock_resolution = math.ulp(instant)

    def _wait(self, select: Callable[[float | None], _Events], timeout: float | None) -> _Events:
        """Wait for events where that makes sense; otherwise jump to the next timer."""
        if timeout is not None and timeout <= 0:
            return select(0.0)
        if self._jobs:
            return select(None)
        events = select(self._grace if timeout is None else 0.0)
        if not events and timeout is None:
            raise RuntimeError(self._deadlock())
        if not events:
            self._jump(self._scheduled[0]._when)  # type: ignore[attr-defined]  # noqa: SLF001  # no public name
        return events

    def _deadlock(self) -> str:
        waiting = sorted(repr(task) for task in asyncio.all_tasks(self))
        more = f" and {len(waiting) - _TASKS_NAMED} more" if len(waiting) > _TASKS_NAMED else ""
        return (
            f"deadlock in virtual time at {self._now}: nothing is ready, no timer is set and no executor job "
            f"runs, so these would wait for ever: {', '.join(waiting[:_TASKS_NAMED]) or 'no task'}{more}"
        )


class _JumpingSelector(selectors.DefaultSelector):
    """The platform's selector, asking the loop how long to block."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._virtual = loop

    def select(self, timeout: float | None = None) -> _Events:
        """Wait as long as the loop allows."""
        return self._virtual._wait(super().select, timeout)  # noqa: SLF001  # the other half of this object
