"""The two streams: results on stdout, everything else on stderr, where a live line may be running.

A reader who goes away (`| head -1`) is no error: the stream falls silent and whoever asked to know is told.
"""

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO

from flux_klein_async.cli.text import shown

__all__ = ["Meter", "Screen", "is_terminal", "is_utf8"]


class Meter(Protocol):
    """A progress display; a live one makes room while a line is printed."""

    def tick(self) -> None:
        """Show the progress, if it is time to."""

    def show(self) -> None:
        """Begin, or come back."""

    def hide(self) -> None:
        """Leave no trace on the terminal, until the next tick."""


def is_utf8() -> bool:
    """Whether every character can be printed."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream ends at a screen that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


class Screen:
    """Prints whole lines, flushed one by one.

    Attributes:
        quiet: No progress; errors are still told.
        reader_gone: Nobody reads stdout any more.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.reader_gone = False
        self._on_reader_gone: Callable[[], None] | None = None
        self._meter: Meter | None = None
        # Paths may hold bytes that are no text; a narrow locale must not turn a result into a crash.
        if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
            reconfigure(errors="surrogateescape" if is_utf8() else "backslashreplace")

    def when_reader_gone(self, call: Callable[[], None]) -> None:
        """Call this, once, as soon as stdout turns out to be closed."""
        self._on_reader_gone = call

    @contextmanager
    def metered(self, meter: Meter | None) -> Iterator[None]:
        """Show this meter for the length of the block."""
        self._meter = meter
        if meter is not None:
            meter.show()
        try:
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Take the meter away, so that the terminal is as it was."""
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.hide()

    def out(self, text: str) -> None:
        """A result: one line on stdout, made safe where a terminal would obey it."""
        if not self._write(sys.stdout, shown(text) if sys.stdout.isatty() else text) and not self.reader_gone:
            self.reader_gone = True
            _to_nowhere(sys.stdout)
            if self._on_reader_gone is not None:
                self._on_reader_gone()

    def say(self, text: str) -> None:
        """Progress: one line on stderr, unless quiet."""
        if not self.quiet:
            self.note(text)

    def note(self, text: str) -> None:
        """What must be told even if quiet: one line on stderr."""
        if not self._write(sys.stderr, shown(text)):
            _to_nowhere(sys.stderr)

    def _write(self, stream: TextIO, line: str) -> bool:
        """Print a line; False where nobody reads any more."""
        terminal = stream.isatty()
        hidden = self._meter if terminal or _is_pipe(stream) else None
        if hidden is not None:
            hidden.hide()
        try:
            stream.write(line + "\n")
            stream.flush()
        except BrokenPipeError:
            return False
        except OSError as error:  # a full disk; what was paid for is still told on stderr
            if stream is sys.stderr:
                return False
            self.note(f"Results cannot be written: {error.strerror}")
            return False
        finally:
            if hidden is not None and terminal:  # after a pipe, the next tick shows it: `| tee` needs its moment
                hidden.show()
        return True


def _is_pipe(stream: TextIO) -> bool:
    """Whether another process reads the stream, perhaps to print it on the same terminal."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # a stream that is no file
        return False


def _to_nowhere(stream: TextIO) -> None:
    """Point a stream at nothing, or the interpreter would complain when it flushes it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with suppress(io.UnsupportedOperation):  # a stream that is no file needs no such care
            os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
