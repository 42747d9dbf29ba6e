"""Progress: the live line of a terminal, plain lines elsewhere."""

import asyncio
import io
import logging
import sys
import warnings
from functools import partial

import pytest
from rich.console import Console

from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.progress import LiveLine, PlainLines, _Notes, progress_shown
from flux_klein_async.cli.run import Totals
from flux_klein_async.errors import DownloadError, FluxKleinError, SubmissionUncertainError
from flux_klein_async.events import Finished, Held, Polled, Submitted
from flux_klein_async.models import GenerationOutput, GenerationResult, Outcome, RequestState


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


@pytest.mark.parametrize(
    ("facts", "rate", "eta"),
    [
        ({}, "5.0/s", "17.8 s"),
        ({"recalling": 1.0}, "10.0/s", "8.9 s"),
        ({"bound_usd": 0.3, "spent_usd": 0.1, "price_usd": 0.01}, "5.0/s", "4.0 s"),
        ({"bound_usd": 0.3, "spent_usd": 0.1, "price_usd": 0.01, "highest_usd": 0.02}, "5.0/s", "2.0 s"),
        ({"bound_usd": 9.0, "price_usd": 0.01}, "5.0/s", "17.8 s"),
        ({"bound_usd": 0.1, "spent_usd": 0.3, "price_usd": 0.01}, "5.0/s", "0.0 s"),
    ],
)
def test_rate_and_eta_count_the_work_of_this_run_alone(facts: dict[str, float], rate: str, eta: str) -> None:
    """Neither what the journal answers nor the time that takes, and no more than there is money for."""
    clock, totals = Clock(), Totals(total=1000, recalled=900, known=500)
    lines = PlainLines(totals, clock)
    totals.ends.update({"done before": 500, "bad": 1})
    clock.now += 1.0
    assert [text for text, _ in lines._words()] == ["500/1000 done", "0 running", "1.0 s"]
    for name, value in facts.items():
        setattr(totals, name, value)
    totals.ends["done"] += 10
    clock.now += 1.0
    words = [text for text, _ in lines._words() if "$" not in text]
    assert words == ["510/1000 done", "0 running", rate, f"ETA {eta}", "2.0 s"]


def test_there_is_no_eta_while_the_journal_answers_more_than_was_foreseen() -> None:
    clock, totals = Clock(), Totals(total=10_000, recalled=100)
    lines = PlainLines(totals, clock)
    seen = []
    for known, made in ((90, 2), (2_000, 0), (10, 3_000)):
        totals.known += known
        totals.ends.update({"done before": known, "done": made})
        clock.now += 40.0
        seen.append(any(text.startswith("ETA") for text, _ in lines._words()))
    assert seen == [True, False, True]


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
    totals.note(Held(at=clock.now - 1.0, kind="submit", seconds=8.0, status_code=503))
    words = "1/8 done  0 running  1 queued  1 saving  1 failed  1 uncertain  $1.12 of $25.00 in all runs"
    words += "  held for 7.0 s (HTTP 503)  0.5/s  ETA 10.0 s"
    assert rendered(line, 153).endswith(f"{words}  6.0 s")
    assert rendered(line, 103) == words.replace("  0 running  1 queued  1 saving", "").replace("  0.5/s", "")
    assert rendered(line, 61) == "1/8 done  1 failed  1 uncertain  held for 7.0 s (HTTP 503)"
    assert rendered(line, 9) == "1/8 done"
    clock.now += 8.0
    assert "service slow for 9.0 s (HTTP 503)" in rendered(line, 110)
    assert "ETA" in rendered(line, 153)
    polled = partial(Polled, request_id="r", tag=3, poll=1, state=None)
    totals.note(polled(at=clock.now, error="Cannot connect"))
    clock.now += 3.0
    totals.note(polled(at=clock.now, error="Cannot connect"))
    assert "every call fails for 3.0 s" in rendered(line, 153)
    assert "ETA" not in rendered(line, 153)
    totals.note(polled(at=clock.now, error=None))
    assert "fails" not in rendered(line, 153)
    totals.bound_usd = None
    assert "  $0.12  " in rendered(line, 142), "without a bound, what this run has spent"


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
