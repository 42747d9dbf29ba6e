"""What stops a command: Ctrl-C, SIGTERM, or a reader of its output that has gone.

The first signal cancels the command's task, so that `finally` and `async with` clean up, or stops the command in its
own way. The second signal ends the process at once.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen

__all__ = ["Stop", "run"]

_SIGNALS = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


class Stop:
    """Whether to stop, why, and how.

    Attributes:
        code: The exit code of the reason to stop; None until there is one.
        before_leaving: Called before a second signal ends the process, to restore the terminal.
    """

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._end: Callable[[], object] = task.cancel
        self.code: ExitCode | None = None
        self.before_leaving: Callable[[], object] = lambda: None

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


def run(body: Callable[[Screen, Stop], Awaitable[ExitCode]], *, quiet: bool = False) -> ExitCode:
    """Run a command; its exit code, or that of what stopped it."""

    async def supervised() -> ExitCode:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio.run makes one
        stop = Stop(task)
        screen = Screen(quiet=quiet, on_reader_gone=lambda: stop.because(ExitCode.READER_GONE))
        stop.before_leaving = screen.restore
        with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
            for number in _SIGNALS:  # until the loop is closed
                asyncio.get_running_loop().add_signal_handler(number, stop.signalled, number)
        try:
            return await body(screen, stop)
        except asyncio.CancelledError:
            if stop.code is None:
                raise
            return stop.code

    return asyncio.run(supervised())
