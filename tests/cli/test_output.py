"""What a person sees: safe lines on two streams, and a progress display that fits the terminal."""

import asyncio
import io
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from flux_klein_async.cli.output import LiveLine, PlainLines, Screen, _Notes, duration, progress_shown, shortened
from flux_klein_async.cli.run import Totals
from flux_klein_async.errors import DownloadError, FluxKleinError, SubmissionUncertainError
from flux_klein_async.events import Finished, Held, Submitted
from flux_klein_async.models import GenerationOutput, GenerationResult, Outcome, RequestState


def test_shortens_to_a_length_after_escaping() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abc..."
    assert shortened("\x1b" * 9, 6) == "\\x1..."


@pytest.mark.parametrize(("seconds", "expected"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (125, "2:05"), (3603, "1:00:03")])
def test_durations_read_as_people_write_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


class Terminal(io.StringIO):
    """A stream that claims to be a screen."""

    def isatty(self) -> bool:
        return True


class Meter:
    """Writes down when it is shown and hidden, on the terminal that it shares with the lines."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    def tick(self) -> None:
        """Nothing moves."""

    def show(self) -> None:
        self._stream.write("<")

    def hide(self) -> None:
        self._stream.write(">")


def test_the_meter_makes_room_for_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    screen = Screen()
    screen.attach(Meter(terminal))
    screen.out("out/a.png")
    screen.note("\x1b[2Jfailed")
    screen.restore()
    screen.out("end")
    assert terminal.getvalue() == "<>out/a.png\n<>\\x1b[2Jfailed\n<>end\n"


def test_the_meter_stays_where_results_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setattr(sys, "stderr", terminal)
    screen = Screen()
    screen.attach(Meter(terminal))
    screen.out(Path("name\x07.png"))
    screen.out("https://files.example/\x1b[2J\r\n\u202e")
    screen.restore()
    assert terminal.getvalue() == "<>"
    assert pipe.getvalue().splitlines() == ["name\x07.png", r"https://files.example/\x1b[2J\r\n\u202e"]


def test_quiet_keeps_errors(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True)
    screen.say("progress")
    screen.note("error")
    screen.restore()  # without a meter there is nothing to restore
    assert capsys.readouterr().err == "error\n"


def test_the_meter_waits_for_the_reader_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader):
        monkeypatch.setattr(sys, "stdout", stream)
        screen = Screen()
        screen.attach(Meter(terminal))
        screen.out("out/a.png")
        assert terminal.getvalue() == "<>", "the next tick shows it again"
        monkeypatch.undo()


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_no_path_is_too_strange_to_be_printed(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    Screen().out(Path("\udcff🐆"))
    expected = b"\xff" + "🐆".encode() if encoding == "utf-8" else b"\\udcff\\U0001f406"
    assert raw.getvalue().rstrip() == expected


def test_a_reader_who_has_gone_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    told: list[int] = []
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        screen = Screen(on_reader_gone=told.append)
        screen.out("one")
        screen.out("two")
        assert told == [141]
        assert screen.reader_gone
        monkeypatch.undo()


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_results_that_cannot_be_written_are_reported_on_stderr_and_stop_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    stopped: list[int] = []
    screen = Screen(on_reader_gone=stopped.append)
    screen.out("out/a.png")
    screen.out("out/b.png")
    assert (screen.results_lost, screen.reader_gone, stopped) == (True, True, [1])
    assert capsys.readouterr().err == "Results cannot be written: No space left on device\n" * 2
    monkeypatch.setattr(sys, "stderr", Full())
    screen.note("nobody reads this")


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


def half_way() -> Totals:
    totals = Totals(total=8)
    for index in range(4):
        totals.note(Submitted(at=0.0, request_id="r", tag=index, seconds=0.1))
    totals.end(ended(0))
    totals.end(ended(1, DownloadError()))
    return totals


def ended(index: int, error: FluxKleinError | None = None) -> Outcome[str]:
    result = GenerationResult(request_id="r", state=RequestState.COMPLETED, output=GenerationOutput())
    return Outcome(index=index, item="x", result=None if error else result, error=error)


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
    assert "1/8 done  0 running  2 queued  1 failed  0.5/s  ETA 12.3 s  4.1 s" in text
    assert "━" in text
    assert len(text) < 80
    assert rendered(line, 48) == "1/8 done  0 running  1 failed  ETA 12.3 s", "no room for a bar"


def test_the_live_line_says_what_the_service_does_and_drops_what_matters_least(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    clock, totals = Clock(), half_way()
    totals.bound_usd, totals.spent_usd, totals.cost_usd = 25.0, 1.0, 0.12
    totals.end(ended(4, SubmissionUncertainError()))
    totals.note(Finished(at=0.0, request_id="r", tag=3, seconds=1.0, polls=1, lag_max=0.0, cost_usd=None))
    line = LiveLine(totals, clock)
    clock.now += 6.0
    totals.note(Held(at=clock.now - 1.0, kind="submit", seconds=8.0))
    words = "1/8 done  0 running  1 queued  1 saving  1 failed  1 uncertain  $1.12 of $25.00  held for 7.0 s  0.5/s"
    words += "  ETA 10.0 s"
    assert rendered(line, 130).endswith(f"{words}  6.0 s")
    assert rendered(line, 80) == words.replace("  0 running  1 queued  1 saving", "").replace("  0.5/s", "")
    assert rendered(line, 50) == "1/8 done  1 failed  1 uncertain  held for 7.0 s"
    assert rendered(line, 9) == "1/8 done"
    clock.now += 8.0
    assert "service slow for 9.0 s" in rendered(line, 110)


async def test_what_libraries_warn_of_is_printed_above_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_terminal(monkeypatch), Screen()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    async with progress_shown(screen, half_way()):
        logging.getLogger("some.library").warning("first!\nsecond!")
        await asyncio.to_thread(logging.getLogger("another").error, "third!")
        warnings.showwarning("fourth!", UserWarning, "a.py", 1)  # as `warnings.warn` calls it
        await asyncio.sleep(0.01)
    for note in ("first!", "second!", "third!", "UserWarning: fourth!"):
        before, found, _ = terminal.getvalue().partition(note)
        assert found, note
        assert "\x1b[2K" in before.rpartition("1/8 done")[2], "the line was erased"
    assert not isinstance(logging.lastResort, _Notes)


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


@pytest.mark.parametrize(
    ("term", "terminal", "kind"),
    [("xterm", True, LiveLine), ("dumb", True, PlainLines), ("xterm", False, PlainLines)],
)
async def test_a_dumb_terminal_and_a_pipe_get_plain_lines(
    monkeypatch: pytest.MonkeyPatch, term: str, terminal: bool, kind: type
) -> None:
    on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    if not terminal:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
    screen = Screen()
    async with progress_shown(screen, Totals(total=1)):
        assert type(screen._meter) is kind


class HungUp(io.StringIO):
    """A terminal that hung up, or a pipe whose reader has gone."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]

    def write(self, _: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("terminal", [True, False])
async def test_progress_that_nobody_sees_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    on_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", HungUp(terminal=terminal))
    screen = Screen()
    async with progress_shown(screen, half_way()):
        await asyncio.sleep(0.3)
        screen.note("still there")


def test_plain_lines_are_a_handful(capsys: pytest.CaptureFixture[str]) -> None:
    board, clock = Totals(total=1000), Clock()
    lines = PlainLines(board, clock)
    lines.show()
    for index in range(1000):
        board.end(ended(index))
        lines.tick()
    lines.hide()
    err = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in err] == ["250/1000 done", "500/1000 done", "750/1000 done"]


def test_a_long_silence_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = PlainLines(Totals(total=2), clock)
    for _ in range(70):
        clock.now += 1.0
        lines.tick()
    assert capsys.readouterr().err.splitlines() == [
        "0/2 done, 0 running, 30.0 s",
        "0/2 done, 0 running, 1:00",
    ]
