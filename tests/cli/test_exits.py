"""How a command ends: exit codes, signals, a reader that has gone."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from flux_klein_async import errors
from flux_klein_async.cli.exits import ExitCode, Stop, exit_code, run, worst
from flux_klein_async.cli.output import Screen
from flux_klein_async.errors import APIStatusError, FluxKleinError

EXPECTED = {
    "APIConnectionError": 69,
    "APIStatusError": 1,
    "APITimeoutError": 75,
    "AuthenticationError": 77,
    "BudgetExceededError": 1,
    "ClientClosedError": 77,
    "ConfigurationError": 77,
    "DownloadError": 1,
    "FluxKleinError": 1,
    "GenerationCancelledError": 1,
    "GenerationFailedError": 1,
    "InputRejectedError": 65,
    "InsufficientBalanceError": 77,
    "InvalidInputError": 65,
    "InvalidResponseError": 69,
    "ItemClaimedError": 75,
    "JournalError": 1,
    "NotFoundError": 65,
    "PermissionDeniedError": 77,
    "RateLimitError": 75,
    "ResultNotReadyError": 75,
    "ServerError": 69,
    "SubmissionUncertainError": 1,
    "WaitTimeoutError": 75,
}


def test_each_error_has_its_code() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, FluxKleinError)]
    assert {kind.__name__: exit_code(kind("broken")) for kind in found} == EXPECTED


def test_a_request_timeout_is_to_be_tried_later() -> None:
    assert exit_code(APIStatusError("slow", status_code=408)) == 75


def test_the_worst_item_decides() -> None:
    order = [ExitCode(code) for code in (77, 69, 75, 65, 1)]
    for place, code in enumerate(order):
        assert worst(reversed(order[place:])) == code
    assert worst([]) == 0


# --- what stops a command


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
