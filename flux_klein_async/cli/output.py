"""The terminal: results on stdout, everything else on stderr, where a live line may show progress.

A reader that goes away (`| head -1`) is not an error: the stream falls silent and the command is stopped.
"""

import asyncio
import io
import os
import stat
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Protocol, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flux_klein_async.errors import InvalidInputError

__all__ = [
    "Counts",
    "LiveLine",
    "Meter",
    "PlainLines",
    "Screen",
    "decoded_prompt",
    "duration",
    "is_terminal",
    "is_utf8",
    "make_meter",
    "progress_shown",
    "shortened",
    "shown",
]


# Categories that move the cursor, break the line, or are not characters at all.
_RAW = {"Cc", "Cs", "Zl", "Zp"}
# Directional embeddings, overrides and isolates would also reorder the words printed next to them.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shown(text: str) -> str:
    """The text on one line, with everything escaped that a terminal would obey instead of print."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if character in _REORDERING or unicodedata.category(character) in _RAW
        else character
        for character in text
    )


def shortened(text: str, length: int) -> str:
    """The text as `shown`, cut to `length` characters."""
    safe = shown(text[: length + 1])
    return safe if len(safe) <= length else safe[: length - 3] + "..."


def decoded_prompt(data: bytes) -> str:
    """A prompt read from a file or pipe: UTF-8, without the one line end that editors and `echo` add.

    Raises:
        InvalidInputError: It is not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"The prompt on standard input is not UTF-8 (byte {error.start})") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def duration(seconds: float) -> str:
    """Seconds in words: 4.1 s, 2:05, 1:00:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Meter(Protocol):
    """A progress display; a live one is hidden while a line is printed."""

    def tick(self) -> None:
        """Update the display, if it is time to."""

    def show(self) -> None:
        """Show the display, or show it again."""

    def hide(self) -> None:
        """Erase the display until the next tick."""


def is_utf8() -> bool:
    """Whether stdout can print every character."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


class Screen:
    """Prints whole lines, flushed one by one.

    Attributes:
        quiet: Print no progress, only errors.
        reader_gone: Nobody reads stdout any more.
        results_lost: A result could not be written, to a full disk for example.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.reader_gone = False
        self.results_lost = False
        self._on_reader_gone: Callable[[], None] | None = None
        self._meter: Meter | None = None
        # Paths may hold bytes that are not text, and a narrow locale must not turn a result into a crash.
        if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
            reconfigure(errors="surrogateescape" if is_utf8() else "backslashreplace")

    def when_reader_gone(self, call: Callable[[], None]) -> None:
        """Call `call`, once, when stdout turns out to be closed."""
        self._on_reader_gone = call

    @contextmanager
    def metered(self, meter: Meter | None) -> Iterator[None]:
        """Show this meter inside the block."""
        self._meter = meter
        if meter is not None:
            meter.show()
        try:
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Remove the meter and leave the terminal as it was."""
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.hide()

    def out(self, text: str) -> None:
        """Print a result: one line on stdout, escaped for a terminal."""
        if not self._write(sys.stdout, shown(text) if sys.stdout.isatty() else text) and not self.reader_gone:
            self.reader_gone = True
            _to_nowhere(sys.stdout)
            if self._on_reader_gone is not None:
                self._on_reader_gone()

    def say(self, text: str) -> None:
        """Print progress: one line on stderr, unless quiet."""
        if not self.quiet:
            self.note(text)

    def note(self, text: str) -> None:
        """Print an error or a warning: one line on stderr, even if quiet."""
        if not self._write(sys.stderr, shown(text)):
            _to_nowhere(sys.stderr)

    def _write(self, stream: TextIO, line: str) -> bool:
        """Print a line; False if nobody reads the stream any more."""
        terminal = stream.isatty()
        hidden = self._meter if terminal or _is_pipe(stream) else None
        if hidden is not None:
            hidden.hide()
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
                hidden.show()
        return True


def _is_pipe(stream: TextIO) -> bool:
    """Whether another process reads the stream; it may print to the same terminal."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # a stream without a file
        return False


def _to_nowhere(stream: TextIO) -> None:
    """Point a stream at nothing, or the interpreter would complain when it flushes the stream at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with suppress(io.UnsupportedOperation):  # a stream without a file needs no such care
            os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


Clock = Callable[[], float]


_WIDEST_BAR = 24
_NARROWEST_BAR = 6
_REDRAW = 0.1  # seconds between two updates of the progress display
_PARTS = 4  # plain lines in a run: one at each quarter
_SILENCE = 30.0  # seconds after which a plain line is due although no quarter was finished


class Counts(Protocol):
    """What the display shows."""

    @property
    def total(self) -> int | None:
        """How many items there are, or None if that is not known yet."""

    @property
    def done(self) -> int:
        """How many have a result."""

    @property
    def failed(self) -> int:
        """How many ended without a result."""

    @property
    def running(self) -> int:
        """How many are being generated."""

    @property
    def queued(self) -> int:
        """How many wait in the service's queue."""

    @property
    def ended(self) -> int:
        """How many have ended, in any way."""


def make_meter(board: Counts, clock: Clock) -> Meter:
    """A live line on a terminal, else plain lines."""
    return LiveLine(board, clock) if is_terminal(sys.stderr) else PlainLines(board, clock)


@asynccontextmanager
async def progress_shown(screen: Screen, board: Counts) -> AsyncIterator[None]:
    """Progress for the length of the block."""
    meter = None if screen.quiet else make_meter(board, asyncio.get_running_loop().time)

    async def redraw() -> None:
        while meter is not None:
            meter.tick()
            await asyncio.sleep(_REDRAW)

    with screen.metered(meter):
        ticking = asyncio.create_task(redraw())
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking


class LiveLine:
    """Bar, counts and time on the last line of the terminal. It has no thread: `tick` redraws it."""

    def __init__(self, board: Counts, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._begun = clock()
        self._shown = False
        # is_terminal has polled; rich would also believe FORCE_COLOR and its like. NO_COLOR it heeds by itself.
        self._console = Console(file=sys.stderr, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._live = Live(
            get_renderable=self.line,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def tick(self) -> None:
        """Redraw, or come back."""
        if self._live.is_started:
            self._live.refresh()
        elif self._shown:
            self._live.start(refresh=True)

    def show(self) -> None:
        """Draw below what was printed last."""
        self._shown = True
        self._live.start(refresh=True)

    def hide(self) -> None:
        """Erase, and give the cursor back, until the next tick."""
        self._live.stop()

    def line(self) -> RenderableType:
        """The line, fitted to the terminal: a narrow one loses the bar."""
        board = self._board
        words = Text(no_wrap=True, overflow="ellipsis")
        words.append(f"{_done(board)} done", "bold green" if board.done else "bold")
        words.append(f"  {board.running} running", "cyan" if board.running else "dim")
        words.append(f"  {board.queued} queued", "yellow" if board.queued else "dim")
        words.append(f"  {board.failed} failed", "bold red" if board.failed else "dim")
        words.append(f"  {duration(self._clock() - self._begun)}")
        if board.total is None:
            return words
        bar = min(_WIDEST_BAR, self._console.width - words.cell_len - 3)
        if bar < _NARROWEST_BAR:
            return words
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=board.total, completed=board.ended, width=bar), words)
        return line


class PlainLines:
    """For logs and pipes: a line at each quarter of the items, or after 30 s without one."""

    def __init__(self, board: Counts, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._begun = self._last = clock()
        self._quarter = 0

    def tick(self) -> None:
        """Print a line if one is due; the summary reports the end."""
        board, now = self._board, self._clock()
        quarter = _PARTS * board.ended // board.total if board.total else 0
        if (quarter == self._quarter and now - self._last < _SILENCE) or board.ended == board.total:
            return
        self._quarter, self._last = quarter, now
        sys.stderr.write(
            f"{_done(board)} done, {board.running} running, {board.queued} queued, "
            f"{board.failed} failed, {duration(now - self._begun)}\n"
        )
        sys.stderr.flush()

    def show(self) -> None:
        """Nothing is shown between lines."""

    def hide(self) -> None:
        """Nothing is there to hide."""


def _done(board: Counts) -> str:
    return f"{board.done}" if board.total is None else f"{board.done}/{board.total}"
