import asyncio
import os
import signal

import pytest

from flux_klein_async.cli import stopping
from flux_klein_async.cli.exits import ExitCode
from flux_klein_async.cli.stopping import Stop


def test_a_body_that_ends_by_itself_gives_its_code() -> None:
    async def body(_stop: Stop) -> ExitCode:
        return ExitCode.TRY_LATER

    assert stopping.run(body) == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_body_which_leaves_in_good_order(number: signal.Signals, code: int) -> None:
    cleaned = []

    async def body(_stop: Stop) -> ExitCode:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)
        return ExitCode.OK

    assert stopping.run(body) == code
    assert cleaned == [True]


def test_the_first_reason_counts() -> None:
    async def body(stop: Stop) -> ExitCode:
        stop.because(ExitCode.READER_GONE)
        stop.because(ExitCode.OTHER)
        await asyncio.sleep(10)
        return ExitCode.OK

    assert stopping.run(body) == 141


def test_a_second_signal_puts_the_terminal_in_order_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[object] = []
    monkeypatch.setattr(os, "_exit", left.append)

    async def body(stop: Stop) -> ExitCode:
        stop.before_leaving = lambda: left.append("restored")
        stop.signalled(signal.SIGINT)
        assert left == []
        stop.signalled(signal.SIGINT)
        await asyncio.sleep(10)
        return ExitCode.OK

    stopping.run(body)
    assert left == ["restored", 130]


def test_a_signal_after_the_reader_has_gone_does_not_cancel_twice() -> None:
    async def body(stop: Stop) -> ExitCode:
        stop.because(ExitCode.READER_GONE)
        try:
            await asyncio.sleep(10)
        finally:
            stop.signalled(signal.SIGINT)
            await asyncio.sleep(0)
        return ExitCode.OK

    assert stopping.run(body) == 130


def test_a_cancellation_that_nobody_asked_for_passes() -> None:
    async def body(_stop: Stop) -> ExitCode:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        stopping.run(body)
