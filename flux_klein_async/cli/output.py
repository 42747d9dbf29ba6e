"""The standard streams: results on stdout, everything else on stderr, where a live line may show progress.

A reader that goes away (`| head -1`) is not an error: the stream falls silent and the command is stopped. Only results
matter so much: without a reader of stderr the command goes on. `open_closed` and `leave` are the process's first and
last step.

Imports nothing of typer or rich: the command line without its extra needs it too.
"""

import io
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.text import clipped, shown

if TYPE_CHECKING:
    from flux_klein_async.cli.progress import PlainLines

__all__ = [
    "Nowhere",
    "Screen",
    "duration",
    "if_possible",
    "is_terminal",
    "leave",
    "open_closed",
    "table",
    "to_nowhere",
]

_CELL, _LEAST = 256, 10  # columns of a cell of a table, at most, and of the last one, at least
_PATIENCE = 0.2  # seconds for threads that are about to end


def duration(seconds: float) -> str:
    """Seconds in words: 4.1 s, 2:05, 1:00:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(rows: Iterable[Sequence[str]], width: int | None = None) -> Iterator[str]:
    """Columns as wide as their content, escaped even for a file; with a width the last takes the rest of the line."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415  # takes its time

    safe = [[clipped(cell, _CELL) for cell in row] for row in rows]
    *widths, last = (max(map(cell_len, column)) for column in zip(*safe, strict=True)) if safe else (0,)
    if width is not None:
        last = min(last, max(width - sum(widths) - 2 * len(widths), _LEAST))
    for *cells, end in safe:
        cut = end if cell_len(end) <= last else set_cell_size(end, last - 3) + "..."
        yield "  ".join((*map(set_cell_size, cells, widths), cut)).rstrip()


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


def _exit(code: ExitCode) -> NoReturn:
    raise SystemExit(code)


class Screen:
    """Prints whole lines, flushed one by one.

    Calls `on_reader_gone` once, with the exit code, when stdout can no longer be written; otherwise that ends the
    command.

    Attributes:
        quiet: Print no progress, only errors.
        reader_gone: Nobody reads stdout any more.
        results_lost: A result could not be written, to a full disk for example.
    """

    def __init__(self, *, quiet: bool = False, on_reader_gone: Callable[[ExitCode], object] = _exit) -> None:
        self.quiet = quiet
        self.reader_gone = False
        self.results_lost = False
        self._on_reader_gone = on_reader_gone
        self._meter: PlainLines | None = None
        # Paths may hold bytes that are not text, and a narrow locale must not turn a result into a crash.
        if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
            is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
            reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")

    def attach(self, meter: "PlainLines") -> None:
        """Show this meter until `restore`."""
        self._meter = meter
        if_possible(meter.show)

    def restore(self) -> None:
        """Remove the meter and leave the terminal as it was."""
        meter, self._meter = self._meter, None
        if meter is not None:
            if_possible(meter.hide)

    def out(self, text: str | Path) -> None:
        """Print a result: one line on stdout, escaped. Another program gets a path as it is: it opens the file."""
        as_it_is = isinstance(text, Path) and not sys.stdout.isatty()
        if not self._write(sys.stdout, str(text) if as_it_is else shown(str(text))) and not self.reader_gone:
            self.reader_gone = True
            to_nowhere(sys.stdout)
            self._on_reader_gone(ExitCode.OTHER if self.results_lost else ExitCode.READER_GONE)

    def say(self, text: str) -> None:
        """Print progress: one line on stderr, unless quiet."""
        if not self.quiet:
            self.note(text)

    def note(self, text: str) -> None:
        """Print an error or a warning: one line on stderr, even if quiet."""
        if not self._write(sys.stderr, shown(text)):
            to_nowhere(sys.stderr)

    def _write(self, stream: TextIO, line: str) -> bool:
        """Print a line; False if nobody reads the stream any more."""
        terminal = stream.isatty()
        hidden = self._meter if terminal or _is_pipe(stream) else None
        if hidden is not None:
            if_possible(hidden.hide)
        try:
            stream.write(line + "\n")
            stream.flush()
        except BrokenPipeError:
            return False
        except OSError as error:  # a full disk: what was paid for still goes to stderr
            if stream is sys.stderr:
                return False
            self.results_lost = True
            self.note(f"Results cannot be written: {error.strerror}")
            return False
        finally:
            if hidden is not None and terminal:  # after a pipe, the next tick shows it, once `| tee` has printed
                if_possible(hidden.show)
        return True


def _is_pipe(stream: TextIO) -> bool:
    """Whether another process reads the stream; it may print to the same terminal."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # a stream without a file
        return False


def if_possible(draw: Callable[[], object]) -> None:
    """Draw progress; without a reader of stderr, or a terminal that hung up, the work goes on unseen."""
    try:
        draw()
    except OSError:
        to_nowhere(sys.stderr)


# --- the process


class Nowhere(io.TextIOBase):
    """Stands for a standard stream that was closed when the process started; what is written is dropped."""

    encoding = "utf-8"

    def write(self, text: str, /) -> int:
        """Drop the text."""
        return len(text)

    def writable(self) -> bool:
        """It takes everything."""
        return True


def open_closed() -> None:
    """Replace the standard streams that are closed.

    The next file that is opened takes the lowest free descriptor. If that is a standard one, whatever is printed or
    logged through it would be written into the file, which may be the journal. `sys.stdin` stays None: see `generate`.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _point_to_nowhere(number, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = Nowhere()
    if sys.stderr is None:
        sys.stderr = Nowhere()


def to_nowhere(stream: TextIO) -> None:
    """Point a broken stream at nothing; otherwise the interpreter complains when it flushes the stream at exit."""
    with suppress(OSError, ValueError):  # a stream without a file
        _point_to_nowhere(stream.fileno(), os.O_WRONLY)


def _point_to_nowhere(number: int, flags: int) -> None:
    nowhere = os.open(os.devnull, flags)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def leave(code: int) -> int:
    """Flush the streams; end the process if a thread hangs, otherwise return the code.

    The interpreter waits for every thread at exit. One that resolves a host name can take half a minute, and nobody
    waits for its answer any more. Journal and files are closed before this is called.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            to_nowhere(stream)
    until = time.monotonic() + _PATIENCE
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    waited_for = [thread for thread in others if not thread.daemon]
    for thread in waited_for:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in waited_for):
        os._exit(code)
    return code
