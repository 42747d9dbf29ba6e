"""What a person sees: safe lines on two streams, and a progress display that fits the terminal."""

import io
import os
import sys
from pathlib import Path

import pytest

from flux_klein_async.cli.output import Screen, duration


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
