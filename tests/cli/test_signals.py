"""What stops a command: signals, or a reader that has gone."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.signals import Stop, run
from flux_klein_async.emulator import Emulator
from tests.served import PATIENCE, in_thread, once


@pytest.fixture(autouse=True)
def _no_signal_is_ignored_at_the_start() -> Iterator[None]:
    """`nohup pytest` would leave a hangup ignored, here and in the processes that these tests start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def stopped_by(act: Callable[[Stop], object], cleaned: list[str] | None = None) -> ExitCode:
    """Run a body that acts and then sleeps; the code that it ends with."""

    async def body(_screen: Screen, stop: Stop) -> ExitCode:
        try:
            act(stop)
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0)
            if cleaned is not None:
                cleaned.append("cleaned")
        return ExitCode.OK

    return run(body)


def test_a_body_that_ends_by_itself_gives_its_code() -> None:
    async def body(_screen: Screen, _stop: Stop) -> ExitCode:
        return ExitCode.TRY_LATER

    assert run(body) == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cancels_the_body_which_cleans_up(number: signal.Signals, code: int) -> None:
    cleaned: list[str] = []
    assert stopped_by(lambda _: os.kill(os.getpid(), number), cleaned) == code
    assert cleaned == ["cleaned"]


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored() -> None:
    """As `nohup` starts a command."""

    async def body(_screen: Screen, _stop: Stop) -> ExitCode:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.01)
        return ExitCode.OK

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(body) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("first", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_a_hangup_is_never_the_second_signal(monkeypatch: pytest.MonkeyPatch, first: signal.Signals, code: int) -> None:
    """The kernel and the shell both send one when a terminal closes, and systemd sends one after SIGTERM."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)

    def act(stop: Stop) -> None:
        stop.signalled(first)
        stop.signalled(signal.SIGHUP)

    assert stopped_by(act) == code
    assert left == []


def test_a_reader_that_goes_away_at_the_last_line_is_no_error() -> None:
    async def body(_screen: Screen, stop: Stop) -> ExitCode:
        stop.because(ExitCode.READER_GONE)
        return ExitCode.OK

    assert run(body) == 141


def test_a_thread_that_hangs_does_not_hold_the_command() -> None:
    released, ended = threading.Event(), threading.Event()

    def hang() -> None:
        released.wait(PATIENCE)
        ended.set()

    async def body(_screen: Screen, _stop: Stop) -> ExitCode:
        asyncio.get_running_loop().run_in_executor(None, hang)
        return ExitCode.TRY_LATER

    try:
        assert run(body) == 75
        assert not ended.is_set()
    finally:
        released.set()


_HUNG_RESOLVER = """
import socket, sys, threading, time
def hang(*_, **__):
    print("resolving", flush=True)
    time.sleep(600)  # more than PATIENCE
socket.getaddrinfo = hang
from flux_klein_async.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("line", ["generate x --timeout 2", "batch prompts.txt --timeout 2"])
@pytest.mark.parametrize("stopped", [False, True], ids=["deadline", "ctrl-c"])
def test_a_resolver_that_hangs_does_not_hold_the_process(tmp_path: Path, line: str, stopped: bool) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    settings = {"RUNCOMFY_MODEL_API_BASE": "https://service.invalid", "RUNCOMFY_API_TOKEN": "token-of-the-test"}
    with subprocess.Popen(
        [sys.executable, "-c", _HUNG_RESOLVER, *line.replace("2", "60" if stopped else "2").split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parent.parent.parent), "NO_PROXY": "*"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "resolving\n"
        if stopped:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)  # a second or two on an idle machine
    assert process.returncode == (130 if stopped else 75), err
    # `batch` was asking for the price.
    assert err == "Nothing was submitted.\n" if stopped and line.startswith("batch") else "0 of 1 done" in err


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_nothing_queued(tmp_path: Path) -> None:
    """The progress line has no terminal any more, which does not hold up the cancels."""
    begun = threading.Event()
    keyboard, terminal = os.openpty()
    with in_thread(Emulator(workers=0)) as emulated:
        once(emulated, lambda: emulated.calls["status"] >= 8, begun.set)
        settings = {"RUNCOMFY_MODEL_API_BASE": emulated.base_url, "RUNCOMFY_API_TOKEN": emulated.api_key}
        with subprocess.Popen(
            [sys.executable, "-m", "flux_klein_async", "generate", "x", "--count", "8"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=tmp_path,
            env={**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parent.parent.parent), "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # one system call
        ) as process:
            os.close(terminal)
            assert begun.wait(PATIENCE)
            os.close(keyboard)
            assert process.wait(PATIENCE) == 129
        assert emulated.calls["cancel"] == 8


def test_the_first_reason_counts_and_a_signal_after_it_does_not_cancel_twice() -> None:
    def act(*reasons: ExitCode | signal.Signals) -> Callable[[Stop], None]:
        def body(stop: Stop) -> None:
            for reason in reasons:
                (stop.signalled if isinstance(reason, signal.Signals) else stop.because)(reason)  # type: ignore[operator]

        return body

    cleaned: list[str] = []
    assert stopped_by(act(ExitCode.READER_GONE, ExitCode.OTHER), cleaned) == 141
    assert stopped_by(act(ExitCode.READER_GONE, signal.SIGINT), cleaned) == 130
    assert cleaned == ["cleaned"] * 2


def test_a_second_signal_restores_the_terminal_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[object] = []
    monkeypatch.setattr(os, "_exit", left.append)

    def act(stop: Stop) -> None:
        stop.before_leaving = lambda: left.append("restored")
        stop.signalled(signal.SIGTERM)
        stop.signalled(signal.SIGTERM)  # at once, as GNU `timeout` does: still the first
        assert left == []
        stop.signalled(signal.SIGINT)

    stopped_by(act)
    assert left == ["restored", 130]


def test_a_cancellation_without_a_reason_passes() -> None:
    def act(_: Stop) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        stopped_by(act)
