"""How far a run is: one live line on a terminal, a handful of plain lines elsewhere. Must not know the client."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flux_klein_async.cli.render import Meter, Screen, is_terminal
from flux_klein_async.cli.text import duration

__all__ = ["Counts", "LiveLine", "PlainLines", "make_meter", "metered"]

Clock = Callable[[], float]


_WIDEST_BAR = 24
_NARROWEST_BAR = 6
_REDRAW = 0.1  # seconds between two updates of the progress display
_PARTS = 4  # plain lines in a run: one at each quarter
_SILENCE = 30.0  # seconds after which a plain line is due although no quarter was finished


class Counts(Protocol):
    """What is shown; `total` is None where nobody knows yet how many there are."""

    @property
    def total(self) -> int | None:
        """How many items there are."""

    @property
    def done(self) -> int:
        """How many have their result."""

    @property
    def failed(self) -> int:
        """How many ended without."""

    @property
    def running(self) -> int:
        """How many are being made."""

    @property
    def queued(self) -> int:
        """How many wait in the service's queue."""

    @property
    def ended(self) -> int:
        """How many have ended, in whatever way."""


def make_meter(board: Counts, clock: Clock) -> Meter:
    """The display that fits standard error."""
    return LiveLine(board, clock) if is_terminal(sys.stderr) else PlainLines(board, clock)


@asynccontextmanager
async def metered(screen: Screen, board: Counts) -> AsyncIterator[None]:
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
    """For logs and pipes: a line at each quarter of the items, or after half a minute of silence."""

    def __init__(self, board: Counts, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._begun = self._last = clock()
        self._quarter = 0

    def tick(self) -> None:
        """Print a line, if one is due; the end has a line of its own."""
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
        """Nothing is there to be hidden."""


def _done(board: Counts) -> str:
    return f"{board.done}" if board.total is None else f"{board.done}/{board.total}"
