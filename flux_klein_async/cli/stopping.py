"""Runs a command's coroutine and ends it in good order on Ctrl-C, SIGTERM or a reader that has gone.

The first signal cancels the task, so that `finally` and `async with` do their work, or ends it in the command's own
way; the second leaves at once.
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
    """The wish to stop, and why.

    Attributes:
        code: The exit code that the reason stands for; None as long as nobody wants to stop.
        before_leaving: Called before a second signal ends the process: puts the terminal in order.
    """

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._end: Callable[[], object] = task.cancel
        self.code: ExitCode | None = None
        self.before_leaving: Callable[[], None] = _nothing

    def gently(self, end: Callable[[], object]) -> None:
        """From now on, stop by calling this in place of cancelling the task."""
        self._end = end
        if self.code is not None:  # the wish came before the way
            end()

    def because(self, code: ExitCode) -> None:
        """Stop in good order; the first reason counts."""
        if self.code is None:
            self.code = code
            self._end()

    def signalled(self, number: signal.Signals) -> None:
        """The first signal stops in good order, the second one at once."""
        if self.code in _SIGNALS.values():
            self.before_leaving()
            os._exit(_SIGNALS[number])
        already, self.code = self.code, _SIGNALS[number]
        if already is None:
            self._end()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the length of the block, where the platform's loop can."""
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
    """Run a command's body to its exit code, or to that of what stopped it."""

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
