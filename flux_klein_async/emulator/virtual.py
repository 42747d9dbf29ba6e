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
from typing import Any

__all__ = ["VirtualTimeLoop"]

_TASKS_NAMED = 5


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs code that waits for minutes in no time, at the same instants in every run.

    Args:
        start: what `time()` returns first.
        grace: real seconds to wait for another thread when nothing is left to run, before reporting a deadlock.
    """

    def __init__(self, start: float = 0.0, *, grace: float = 1.0) -> None:
        selector = _JumpingSelector(self)
        super().__init__(selector)
        self._grace = grace
        self._jobs = 0
        self._jump(start)

    def time(self) -> float:
        """Return the virtual instant."""
        return self._now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Future[Any]:
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

    def _patience(self, timeout: float | None) -> float | None:
        """Decide how long the selector may really block."""
        if timeout is not None and timeout <= 0:
            return 0.0
        if self._jobs:
            return None
        return self._grace if timeout is None else 0.0

    def _nothing_came(self, timeout: float | None) -> None:
        """Jump to the next timer, if there is one to wait for."""
        if self._jobs or (timeout is not None and timeout <= 0):
            return
        if timeout is None:
            raise RuntimeError(self._deadlock())
        self._jump(self._scheduled[0]._when)  # type: ignore[attr-defined]  # noqa: SLF001  # no public name

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

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait as long as the loop allows."""
        events = super().select(self._virtual._patience(timeout))  # noqa: SLF001  # the other half of this object
        if not events:
            self._virtual._nothing_came(timeout)  # noqa: SLF001
        return events
