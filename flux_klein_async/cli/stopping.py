"""Runs a command's coroutine and stops it on Ctrl-C, on SIGTERM, or when nobody reads its output any more.

The first signal cancels the task, so that `finally` and `async with` clean up, or stops it in the command's own way.
The second signal ends the process at once.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flux_klein_async.cli.exits import ExitCode

__all__ = ["Stop", "run"]

_SIGNALS = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


def _nothing() -> None:
    pass


class Stop:
    """Whether to stop, why, and how.

    Attributes:
        code: The exit code of the reason to stop; None until there is one.
        before_leaving: Called before a second signal ends the process, to restore the terminal.
    """

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._end: Callable[[], object] = task.cancel
        self.code: ExitCode | None = None
        self.before_leaving: Callable[[], None] = _nothing

    def gently(self, end: Callable[[], object]) -> None:
        """From now on, stop by calling `end` instead of cancelling the task."""
        self._end = end
        if self.code is not None:  # asked to stop before this call
            end()

    def because(self, code: ExitCode) -> None:
        """Stop; the first reason counts."""
        if self.code is None:
            self.code = code
            self._end()

    def signalled(self, number: signal.Signals) -> None:
        """Handle a signal: the first one stops the command, the second one ends the process."""
        if self.code in _SIGNALS.values():
            self.before_leaving()
            os._exit(_SIGNALS[number])
        already, self.code = self.code, _SIGNALS[number]
        if already is None:
            self._end()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside the block, where the platform's loop can."""
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
            for number in _SIGNALS:
                loop.add_signal_handler(number, self.signalled, number)
        try:
            yield
        finally:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                for number in _SIGNALS:
                    loop.remove_signal_handler(number)


def run(body: Callable[[Stop], Awaitable[ExitCode]]) -> ExitCode:
    """Run a command; its exit code, or that of what stopped it."""

    async def supervised() -> ExitCode:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio.run makes one
        stop = Stop(task)
        with stop.listening():
            try:
                return await body(stop)
            except asyncio.CancelledError:
                if stop.code is None:
                    raise
                return stop.code

    return asyncio.run(supervised())
