"""What stops a command: Ctrl-C, SIGTERM, a terminal that hangs up, or a reader of its output that has gone.

The first signal cancels the command's task, so that `finally` and `async with` clean up, or stops the command in its
own way. The second signal ends the process at once.
"""

import asyncio
import math
import os
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen

__all__ = ["SIGNALS", "Stop", "run"]

SIGNALS = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}
"""The signals that stop a command, and its exit code then."""
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
if _HANGUP is not None:
    SIGNALS[_HANGUP] = ExitCode.HUNG_UP

_ONE_SIGNAL = 0.1  # seconds: GNU `timeout` signals the command and then its group, and is one reason to stop


class Stop:
    """Whether to stop, why, and how.

    Attributes:
        code: The exit code of the reason to stop; None until there is one.
        before_leaving: Called before a second signal ends the process, to restore the terminal.
    """

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._end: Callable[[], object] = task.cancel
        self.code: ExitCode | None = None
        self._signalled = -math.inf  # when, on the loop's clock
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
        now = asyncio.get_running_loop().time()
        before, self._signalled = self._signalled, now
        if self.code in SIGNALS.values():
            if number == signal.SIGTERM and now - before < _ONE_SIGNAL:
                return
            if number == _HANGUP:  # from the kernel and the shell, or after SIGTERM from systemd: nobody repeats it
                return
            self.before_leaving()
            os._exit(SIGNALS[number])
        already, self.code = self.code, SIGNALS[number]
        if already is None:
            self._end()


class _Threads(ThreadPoolExecutor):
    """The loop's threads, for what cannot be awaited otherwise: host names, small files.

    A name server can hold a thread for half a minute, and the loop would wait for it at its end.
    """

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Take no more jobs, and do not wait."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def run(
    body: Callable[[Screen, Stop], Awaitable[ExitCode]], *, quiet: bool = False, stopped: str | None = None
) -> ExitCode:
    """Run a command; its exit code, or that of what stopped it. `stopped`: what to say where its task is cancelled."""

    async def supervised() -> ExitCode:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio.run makes one
        stop = Stop(task)
        screen = Screen(quiet=quiet, on_reader_gone=stop.because)
        stop.before_leaving = screen.restore
        with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
            for number in SIGNALS:  # until the loop is closed
                if number == _HANGUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # started with nohup
                asyncio.get_running_loop().add_signal_handler(number, stop.signalled, number)
        try:
            code = await body(screen, stop)
            await asyncio.sleep(0)  # if the last line had no reader, the task is cancelled here
            return code  # noqa: TRY300  # a cancellation at the last moment is handled too
        except asyncio.CancelledError:
            if stop.code is None:
                raise
            if stopped is not None:
                screen.note(stopped)
            return stop.code

    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(_Threads())
        return runner.run(supervised())
