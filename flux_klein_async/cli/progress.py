"""How far a run is: a live line on a terminal, else plain lines, on stderr. Plain lines need no rich."""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from flux_klein_async.cli.output import Screen, duration, if_possible, is_terminal
from flux_klein_async.journal.budget import dollars

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flux_klein_async.cli.run import Totals

__all__ = ["LiveLine", "PlainLines", "progress_shown"]

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
        # Instants, and how many items had ended by work, and by the journal's answer.
        self._ends = deque([(self._begun, 0, totals.known)], maxlen=_SAMPLES)
        self._rate = 0.0
        self._recalls = False  # more than it works, and more than was foreseen: nobody knows how many are left
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
            (self._left(now), "", 3),
            (duration(now - self._begun), "dim", 9),
        ]
        shown = [word for word in words if word[0] is not None]
        while room is not None and len(shown) > 1 and sum(len(text or "") + 2 for text, _, _ in shown) - 2 > room:
            shown.remove(max(shown, key=lambda word: word[2]))
        return [(text, style) for text, style, _ in shown if text is not None]

    def _money(self) -> str | None:
        totals = self._totals
        if totals.bound_usd is not None:
            runs = " in all runs" if totals.spent_usd else ""
            return f"{dollars(totals.spent_usd + totals.cost_usd)} of {dollars(totals.bound_usd)}{runs}"
        return dollars(totals.cost_usd) if totals.charged and totals.cost_usd else None

    def _held(self, now: float, slowed: float | None) -> tuple[str | None, str]:
        """Whether the service wants a pause, fails or refuses calls, for how long, and with which status."""
        status = self._totals.refusal
        why = "" if status is None else f" (HTTP {status})"
        if now < self._totals.held_until:
            return f"held for {duration(self._totals.held_until - now)}{why}", "bold yellow"
        if (failing := self._totals.failing_for(now)) is not None:
            return f"every call fails for {duration(failing)}", "bold red"
        return None if slowed is None else f"service slow for {duration(slowed)}{why}", "yellow"

    def _speed(self, now: float) -> tuple[str | None, str]:
        """Items a second over the last half minute of work, without those that the journal answered, and their time."""
        ended, now = self._totals.worked, now - self._totals.recalling
        if now - self._ends[-1][0] >= _SAMPLE:
            self._ends.append((now, ended, self._totals.known))
        begun, before, known = self._ends[0]
        foreseen = self._totals.ends["done before"] <= self._totals.recalled
        self._recalls = not foreseen and self._totals.known - known > ended - before
        self._rate = (ended - before) / (now - begun) if now > begun else 0.0
        return f"{self._rate:.1f}/s" if self._rate else None, ""

    def _left(self, now: float) -> str | None:
        """How long the rest takes at this rate, or the money lasts; None if nobody can know."""
        to_work, unknown = self._totals.to_work, self._recalls or self._totals.failing_for(now) is not None
        return None if to_work is None or not self._rate or unknown else f"ETA {duration(to_work / self._rate)}"


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

    def __init__(self, screen: Screen, like: logging.Handler | None) -> None:
        super().__init__(logging.WARNING if like is None else like.level)
        self.formatter = None if like is None else like.formatter
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
    last_resort, warned = logging.lastResort, logging.getLogger("py.warnings")
    notes = _Notes(screen, last_resort)
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
    display = LiveLine if is_terminal(sys.stderr) else PlainLines
    if screen.quiet:
        yield
        return
    meter = display(totals, asyncio.get_running_loop().time)

    async def redraw() -> None:
        while True:
            if_possible(meter.tick)
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
