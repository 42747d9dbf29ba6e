"""The terminal: results on stdout, everything else on stderr, where a live line may show progress.

A reader that goes away (`| head -1`) is not an error: the stream falls silent and the command is stopped. Only results
matter so much: without a reader of stderr the command goes on.
"""

import logging
import os
import stat
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import rich  # noqa: F401  # if the extra is not installed, say so before anything is done
import typer

from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.streams import to_nowhere
from flux_klein_async.text import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flux_klein_async.cli.run import Totals

__all__ = [
    "LiveLine",
    "PlainLines",
    "Screen",
    "duration",
    "is_terminal",
    "print_help",
    "progress_shown",
    "shortened",
    "shown",
]


def shortened(text: str, length: int) -> str:
    """The text as `shown`, cut to `length` characters."""
    safe = shown(text[: length + 1])
    return safe if len(safe) <= length else safe[: length - 3] + "..."


def duration(seconds: float) -> str:
    """Seconds in words: 4.1 s, 2:05, 1:00:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


def print_help(context: typer.Context) -> None:
    """Print a command's help on stderr."""
    screen = Screen()
    for line in context.get_help().splitlines():
        screen.note(line)


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
        _shown_if_possible(meter.show)

    def restore(self) -> None:
        """Remove the meter and leave the terminal as it was."""
        meter, self._meter = self._meter, None
        if meter is not None:
            _shown_if_possible(meter.hide)

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
            _shown_if_possible(hidden.hide)
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
                _shown_if_possible(hidden.show)
        return True


def _is_pipe(stream: TextIO) -> bool:
    """Whether another process reads the stream; it may print to the same terminal."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # a stream without a file
        return False


def _shown_if_possible(draw: Callable[[], object]) -> None:
    """Draw progress; without a reader of stderr, or a terminal that hung up, the work goes on unseen."""
    try:
        draw()
    except OSError:
        to_nowhere(sys.stderr)


_WIDEST_BAR = 24
_NARROWEST_BAR = 6
_REDRAW = 0.1  # seconds between two updates of the progress display
_SAMPLE, _SAMPLES = 1.0, 30  # seconds between two samples of the rate, and their number
_PARTS = 4  # plain lines in a run: one at each quarter
_SILENCE = 30.0  # seconds after which a plain line is due although no quarter was finished


class PlainLines:
    """Progress for logs and pipes: a line at each quarter of the items, or after 30 s without one."""

    def __init__(self, totals: "Totals", clock: Callable[[], float]) -> None:
        self._totals = totals
        self._clock = clock
        self._begun = self._last = clock()
        self._ends = deque([(self._begun, 0)], maxlen=_SAMPLES)  # instants, and how many items had ended
        self._rate = 0.0
        self._quarter = 0

    def tick(self) -> None:
        """Print a line if one is due; the summary reports the end."""
        totals, now = self._totals, self._clock()
        quarter = _PARTS * totals.ends.total() // totals.total if totals.total else 0
        if (quarter == self._quarter and now - self._last < _SILENCE) or totals.ends.total() == totals.total:
            return
        self._quarter, self._last = quarter, now
        sys.stderr.write(f"{', '.join(words for words, _ in self._words())}\n")
        sys.stderr.flush()

    def show(self) -> None:
        """Show the display, or show it again."""

    def hide(self) -> None:
        """Erase the display until the next tick."""

    def _words(self, room: int | None = None) -> list[tuple[str, str]]:
        """The counts, the money and the time, each with its style; with less room, without what matters least."""
        totals, now = self._totals, self._clock()
        done = f"{totals.done}" if totals.total is None else f"{totals.done}/{totals.total}"
        uncertain, failed, slowed = totals.ends["uncertain"], totals.ends["failed"], totals.slowed_for(now)
        # What is dropped first has the highest number; None is not shown at all.
        words: list[tuple[str | None, str, int]] = [
            (f"{done} done", "bold green" if totals.done else "bold", 0),
            (f"{totals.running} running", "cyan" if totals.running else "dim", 5),
            (f"{totals.queued} queued" if totals.queued else None, "yellow", 6),
            (f"{totals.saving} saving" if totals.saving else None, "cyan", 8),
            (f"{failed} failed" if failed else None, "bold red", 1),
            (f"{uncertain} uncertain" if uncertain else None, "bold red", 1),
            (self._money(), "", 4),
            (*self._held(now, slowed), 2),
            (*self._speed(now), 7),
            (self._left(), "", 3),
            (duration(now - self._begun), "dim", 9),
        ]
        shown = [word for word in words if word[0] is not None]
        while room is not None and len(shown) > 1 and sum(len(text or "") + 2 for text, _, _ in shown) - 2 > room:
            shown.remove(max(shown, key=lambda word: word[2]))
        return [(text, style) for text, style, _ in shown if text is not None]

    def _money(self) -> str | None:
        from flux_klein_async.journal.budget import dollars

        totals = self._totals
        spent = dollars(totals.spent_usd + totals.cost_usd)
        if totals.bound_usd is not None:
            return f"{spent} of {dollars(totals.bound_usd)}"
        return spent if totals.charged and totals.cost_usd else None

    def _held(self, now: float, slowed: float | None) -> tuple[str | None, str]:
        """Whether the service wants a pause, or refuses calls, and for how long."""
        if now < self._totals.held_until:
            return f"held for {duration(self._totals.held_until - now)}", "bold yellow"
        return None if slowed is None else f"service slow for {duration(slowed)}", "yellow"

    def _speed(self, now: float) -> tuple[str | None, str]:
        """Items a second over the last half minute."""
        ended = self._totals.ends.total()
        if now - self._ends[-1][0] >= _SAMPLE:
            self._ends.append((now, ended))
        begun, before = self._ends[0]
        self._rate = (ended - before) / (now - begun) if now > begun else 0.0
        return f"{self._rate:.1f}/s" if self._rate else None, ""

    def _left(self) -> str | None:
        """How long the rest takes at this rate."""
        total = self._totals.total
        if total is None or not self._rate:
            return None
        return f"ETA {duration(max(0, total - self._totals.ends.total()) / self._rate)}"


class LiveLine(PlainLines):
    """Bar, counts and time on the last line of the terminal. It has no thread: `tick` redraws it."""

    def __init__(self, totals: "Totals", clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(totals, clock)
        self._shown = False
        # `is_terminal` decides; rich would also believe FORCE_COLOR and its like. It honours NO_COLOR itself.
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

    def line(self) -> "RenderableType":
        """The line, fitted to the terminal: a narrow one loses the bar."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        words = Text(no_wrap=True, overflow="ellipsis")
        for number, (text, style) in enumerate(self._words(self._console.width - 1)):
            words.append(f"{'  ' if number else ''}{text}", style)
        bar = min(_WIDEST_BAR, self._console.width - words.cell_len - 3)
        if self._totals.total is None or bar < _NARROWEST_BAR:
            return words
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=self._totals.total, completed=self._totals.ends.total(), width=bar), words)
        return line


class _Notes(logging.Handler):
    """Prints what libraries log or warn of as notes, so that it never tears the live line."""

    def __init__(self, screen: Screen) -> None:
        import asyncio

        super().__init__(logging.WARNING)
        self._screen = screen
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, from whatever thread it comes."""
        lines = self.format(record).splitlines()
        with suppress(RuntimeError):  # the loop is closed
            for line in lines:
                self._loop.call_soon_threadsafe(self._screen.note, line)


@contextmanager
def _logged_to(screen: Screen) -> Iterator[None]:
    """Print as notes what would otherwise be written to stderr: warnings, and logs for which no handler is set up."""
    last_resort, warned, notes = logging.lastResort, logging.getLogger("py.warnings"), _Notes(screen)
    logging.lastResort = notes
    logging.captureWarnings(True)
    warned.addHandler(notes)
    try:
        yield
    finally:
        warned.removeHandler(notes)
        logging.captureWarnings(False)
        logging.lastResort = last_resort


@asynccontextmanager
async def progress_shown(screen: Screen, totals: "Totals") -> AsyncIterator[None]:
    """Progress for the length of the block: a live line on a terminal, else plain lines."""
    import asyncio

    display = LiveLine if is_terminal(sys.stderr) else PlainLines
    if screen.quiet:
        yield
        return
    meter = display(totals, asyncio.get_running_loop().time)

    async def redraw() -> None:
        while True:
            _shown_if_possible(meter.tick)
            await asyncio.sleep(_REDRAW)

    screen.attach(meter)
    ticking = asyncio.create_task(redraw())
    try:
        with _logged_to(screen):
            yield
    finally:
        screen.restore()
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
