"""How far a run is: one live line on a terminal, a handful of plain lines elsewhere. Must not know the client."""

import sys
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flux_klein_async.cli.board import Board
from flux_klein_async.cli.render import Meter, is_terminal
from flux_klein_async.cli.text import duration

__all__ = ["LiveLine", "PlainLines", "make_meter"]

Clock = Callable[[], float]

_WIDEST_BAR = 24
_NARROWEST_BAR = 6
_PARTS = 4  # plain lines in a run: one at each quarter
_SILENCE = 30.0  # seconds after which a plain line is due although no quarter was finished


def make_meter(board: Board, clock: Clock) -> Meter:
    """The display that fits standard error."""
    return LiveLine(board, clock) if is_terminal(sys.stderr) else PlainLines(board, clock)


class LiveLine:
    """Bar, counts and time on the last line of the terminal. It has no thread: `tick` redraws it."""

    def __init__(self, board: Board, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._begun = clock()
        self._shown = False
        # is_terminal has looked; rich would also believe FORCE_COLOR and its like. NO_COLOR it heeds by itself.
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
        words.append(f"{board.done}/{board.total} done", "bold green" if board.done else "bold")
        words.append(f"  {board.running} running", "cyan" if board.running else "dim")
        words.append(f"  {board.queued} queued", "yellow" if board.queued else "dim")
        words.append(f"  {board.failed} failed", "bold red" if board.failed else "dim")
        words.append(f"  {duration(self._clock() - self._begun)}")
        bar = min(_WIDEST_BAR, self._console.width - words.cell_len - 3)
        if bar < _NARROWEST_BAR:
            return words
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=board.total, completed=board.ended, width=bar), words)
        return line


class PlainLines:
    """For logs and pipes: a line at each quarter of the items, or after half a minute of silence."""

    def __init__(self, board: Board, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._begun = self._last = clock()
        self._quarter = 0

    def tick(self) -> None:
        """Print a line, if one is due; the end has a line of its own."""
        board, now = self._board, self._clock()
        quarter = _PARTS * board.ended // board.total
        if (quarter == self._quarter and now - self._last < _SILENCE) or board.ended == board.total:
            return
        self._quarter, self._last = quarter, now
        sys.stderr.write(
            f"{board.done}/{board.total} done, {board.running} running, {board.queued} queued, "
            f"{board.failed} failed, {duration(now - self._begun)}\n"
        )
        sys.stderr.flush()

    def show(self) -> None:
        """Nothing is shown between lines."""

    def hide(self) -> None:
        """Nothing is there to be hidden."""
