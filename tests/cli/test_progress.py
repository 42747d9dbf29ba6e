import io
import sys

import pytest
from rich.console import Console

from flux_klein_async.cli.board import Board
from flux_klein_async.cli.progress import LiveLine, PlainLines, make_meter
from flux_klein_async.events import Submitted


class Terminal(io.StringIO):
    """A stream that claims to be a screen."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a screen; no fixture, since pytest itself replaces the stream before each test's body."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def half_way() -> Board:
    board = Board(8)
    for index in range(4):
        board.note(Submitted(at=0.0, request_id="r", tag=index, seconds=0.1))
    board.end(0, failed=False)
    board.end(1, failed=True)
    return board


def rendered(line: LiveLine, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    line._console = console
    with console.capture() as capture:
        console.print(line.line())
    return capture.get().rstrip()


def test_the_live_line_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    clock = Clock()
    line = LiveLine(half_way(), clock)
    clock.now += 4.1
    text = rendered(line, 80)
    assert "1/8 done  0 running  2 queued  1 failed  4.1 s" in text
    assert "━" in text
    assert len(text) < 80
    assert rendered(line, 50) == "1/8 done  0 running  2 queued  1 failed  4.1 s", "no room for a bar"


def test_the_live_line_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    line = LiveLine(half_way(), Clock())
    line.tick()
    assert terminal.getvalue() == "", "not shown yet"
    line.show()
    line.tick()
    line.hide()
    assert terminal.getvalue().startswith("\x1b[?25l")
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is back"
    line.tick()
    assert terminal.getvalue().count("1/8 done") > terminal.getvalue().partition("\x1b[?25h")[0].count("1/8 done")
    line.hide()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    line = LiveLine(half_way(), Clock())
    line.show()
    line.hide()
    assert "\x1b[3" not in terminal.getvalue()
    assert "\x1b[1;3" not in terminal.getvalue()


def test_a_dumb_terminal_and_a_pipe_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    assert isinstance(make_meter(Board(1), Clock()), LiveLine)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_meter(Board(1), Clock()), PlainLines)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(make_meter(Board(1), Clock()), PlainLines)


def test_plain_lines_are_a_handful(capsys: pytest.CaptureFixture[str]) -> None:
    board, clock = Board(1000), Clock()
    lines = PlainLines(board, clock)
    lines.show()
    for index in range(1000):
        board.end(index, failed=False)
        lines.tick()
    lines.hide()
    err = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in err] == ["250/1000 done", "500/1000 done", "750/1000 done"]


def test_a_long_silence_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = PlainLines(Board(2), clock)
    for _ in range(70):
        clock.now += 1.0
        lines.tick()
    assert capsys.readouterr().err.splitlines() == [
        "0/2 done, 0 running, 0 queued, 0 failed, 30.0 s",
        "0/2 done, 0 running, 0 queued, 0 failed, 1:00",
    ]
