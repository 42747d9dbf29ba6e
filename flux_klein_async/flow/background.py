"""The client's own tasks: few at a time, each bounded, all awaited by `aclose`.

What an abandoned call leaves to do (see a POST through, ask for a cancel) is done here, so that neither a
cancellation nor a deadline is held up by it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from flux_klein_async.errors import FluxKleinError

__all__ = ["Background"]

_log = logging.getLogger("flux_klein_async")
_Job = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """Runs jobs: at once (`start`), or after one another with a few at a time (`queue`)."""

    AT_ONCE = 8

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: deque[_Job] = deque()
        self._workers = 0

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Hold a task until it ends, so that it is neither collected nor forgotten."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def start(self, job: _Job) -> None:
        """Run a job now: for those whose own time limit is already running."""
        self.keep(asyncio.ensure_future(job()))

    def queue(self, job: _Job) -> None:
        """Run a job as soon as fewer than `AT_ONCE` of these run."""
        self._waiting.append(job)
        if self._workers < self.AT_ONCE:
            self._workers += 1
            self.start(self._work)

    async def _work(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._waiting.popleft()()
                except Exception as error:  # noqa: BLE001  # one job's failure is not the others'
                    self._tell(error)
        finally:
            self._workers -= 1

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if isinstance(error, FluxKleinError):  # the journal, or a dropped POST that failed by itself in that instant
            _log.warning("A background task failed: %s", error)
        else:
            _log.error("A background task failed", exc_info=error)

    async def finish(self, seconds: float) -> None:
        """Wait for everything for at most so long; then cancel what is left and wait for its end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._tasks and (left := end - loop.time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        while self._tasks:  # what ends may leave something to do: it is too late for that too
            self._waiting.clear()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(set(self._tasks))
