"""How a command ends: its exit code, and what stops it: Ctrl-C, SIGTERM, or a reader of its output that has gone.

The first signal cancels the command's task, so that `finally` and `async with` clean up, or stops the command in its
own way. The second signal ends the process at once.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from enum import IntEnum
from typing import Any

from flux_klein_async import errors
from flux_klein_async.cli.output import Screen
from flux_klein_async.errors import FluxKleinError

__all__ = ["HELP", "ExitCode", "Stop", "exit_code", "run", "worst"]


HELP = """\b
Exit codes (the worst item decides, in this order):
  77 no access (token, balance)    69 service unreachable or in trouble
  75 too late or too many, try again    65 bad input or not found    1 other
  0 all done    64 usage    130 Ctrl-C
"""


class ExitCode(IntEnum):
    """The codes of the vendor's command (docs/wire.md), and 128 + signal as shells have it."""

    OK = 0
    OTHER = 1
    USAGE = 64
    BAD_INPUT = 65
    UNAVAILABLE = 69
    TRY_LATER = 75
    NO_ACCESS = 77
    INTERRUPTED = 130
    READER_GONE = 141
    TERMINATED = 143


# Worst first. No error belongs to two lines.
_CODES: dict[ExitCode, tuple[type[FluxKleinError], ...]] = {
    ExitCode.NO_ACCESS: (
        errors.AuthenticationError,
        errors.PermissionDeniedError,
        errors.InsufficientBalanceError,
        errors.ConfigurationError,
    ),
    ExitCode.UNAVAILABLE: (errors.ServerError, errors.APIConnectionError, errors.InvalidResponseError),
    ExitCode.TRY_LATER: (
        errors.WaitTimeoutError,
        errors.RateLimitError,
        errors.ResultNotReadyError,
        errors.ItemClaimedError,
    ),
    ExitCode.BAD_INPUT: (errors.InvalidInputError, errors.InputRejectedError, errors.NotFoundError),
}
_SIGNALS = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


def exit_code(error: FluxKleinError) -> ExitCode:
    """The exit code of an error."""
    if isinstance(error, errors.APITimeoutError) or getattr(error, "status_code", None) == 408:
        return ExitCode.TRY_LATER
    return next((code for code, kinds in _CODES.items() if isinstance(error, kinds)), ExitCode.OTHER)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The worst of many codes; 0 if there are none."""
    seen = set(codes)
    return next((code for code in (*_CODES, ExitCode.OTHER) if code in seen), ExitCode.OK)


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
