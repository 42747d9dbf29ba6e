import io
import os
import sys

import pytest

from flux_klein_async.cli.render import Screen, is_terminal


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
    with screen.metered(Meter(terminal)):
        screen.out("out/a.png")
        screen.note("\x1b[2Jfailed")
    screen.out("end")
    assert terminal.getvalue() == "<>out/a.png\n<>\\x1b[2Jfailed\n<>end\n"


def test_the_meter_stays_where_results_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setattr(sys, "stderr", terminal)
    screen = Screen()
    with screen.metered(Meter(terminal)):
        screen.out("name\x07.png")
    assert terminal.getvalue() == "<>"
    assert pipe.getvalue() == "name\x07.png\n", "a path for a program is not touched"


def test_quiet_keeps_errors(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True)
    screen.say("progress")
    screen.note("error")
    assert capsys.readouterr().err == "error\n"


def test_the_meter_waits_for_the_reader_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader):
        monkeypatch.setattr(sys, "stdout", stream)
        screen = Screen()
        with screen.metered(Meter(terminal)):
            screen.out("out/a.png")
            assert terminal.getvalue() == "<>", "the next tick shows it again"
        monkeypatch.undo()


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_no_path_is_too_strange_to_be_printed(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    Screen().out("\udcff🐆")
    expected = b"\xff" + "🐆".encode() if encoding == "utf-8" else b"\\udcff\\U0001f406"
    assert raw.getvalue().rstrip() == expected


def test_a_reader_who_has_gone_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    told = []
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        screen = Screen()
        screen.when_reader_gone(lambda: told.append(True))
        screen.out("one")
        screen.out("two")
        assert told == [True]
        assert screen.reader_gone
        monkeypatch.undo()


def test_a_terminal_is_a_screen_whose_cursor_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(Terminal())
    assert not is_terminal(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())
