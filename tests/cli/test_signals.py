"""What stops a command: signals, or a reader that has gone."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from flux_klein_async.cli.exit_codes import ExitCode
from flux_klein_async.cli.output import Screen
from flux_klein_async.cli.signals import Stop, run


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_body_which_cleans_up(number: signal.Signals, code: int) -> None:
    cleaned: list[str] = []
    assert stopped_by(lambda _: os.kill(os.getpid(), number), cleaned) == code
    assert cleaned == ["cleaned"]


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
        stop.signalled(signal.SIGINT)
        assert left == []
        stop.signalled(signal.SIGINT)

    stopped_by(act)
    assert left == ["restored", 130]


def test_a_cancellation_without_a_reason_passes() -> None:
    def act(_: Stop) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        stopped_by(act)
