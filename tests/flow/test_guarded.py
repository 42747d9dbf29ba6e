"""A limiter or a budget that raises loses no request, and ends a call only in an error of ours."""

import asyncio
from typing import Any

import pytest

from flux_klein_async import ConfigurationError, FluxKleinError, GenerationResult, Limits, RateLimitError
from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import Reply, error_reply
from flux_klein_async.ledger.base import NoBudget
from flux_klein_async.transport.pacing import InProcessLimiter
from tests.fakes import outcome


def breaking(base: Any, method: str, error: BaseException) -> Any:
    """A part that does its work, and raises in one of its methods."""
    plain = getattr(base, method)

    def call(*arguments: Any) -> Any:
        plain(*arguments)
        raise error

    async def call_later(*arguments: Any) -> Any:
        await plain(*arguments)
        raise error

    setattr(base, method, call_later if asyncio.iscoroutinefunction(plain) else call)
    return base


def limiter(method: str, error: BaseException | None = None) -> Any:
    return breaking(InProcessLimiter(Limits()), method, error or LookupError("mine"))


ACCEPTED_YET_REFUSED = Reply(429, {"request_id": "known-1"}, {"Retry-After": "1"})


@pytest.mark.parametrize(
    ("method", "answer"),
    [("served", None), ("release", None), ("refused", ACCEPTED_YET_REFUSED), ("hold", ACCEPTED_YET_REFUSED)],
)
async def test_what_a_limiter_is_told_it_may_not_lose(klein_emulator, connect, caplog, method, answer):
    client = connect(limits=limiter(method))
    klein_emulator.script("submit", answer)
    if answer is None:
        assert isinstance(await client.generate("a cat"), GenerationResult)
    else:
        assert (await client.submit("a cat")).request_id == "known-1"
    assert klein_emulator.calls["submit"] == 1
    assert {record.getMessage() for record in caplog.records} == {"The limiter raised; ignored"}
    assert "LookupError: mine" in caplog.text


@pytest.mark.parametrize(
    ("method", "charged"),
    [("acquire", "no"), ("held_until", "no"), ("admit", "no"), ("look_price", "unknown"), ("look", "unknown")],
)
async def test_a_limiter_that_cannot_be_asked_ends_the_call_and_keeps_the_id(klein_emulator, connect, method, charged):
    part = limiter(method)
    if method == "admit":
        part.hold(Kind.SUBMIT, 5.0)
    error = await outcome(connect(limits=part).generate("a cat"))
    assert (type(error), error.charged, error.cause) == (ConfigurationError, charged, "LookupError: mine")
    assert isinstance(error.__cause__, LookupError)
    assert [error.request_id] == ([*klein_emulator.completions] or [None])


async def test_errors_of_ours_pass_unchanged(klein_emulator, connect):
    mine = RateLimitError("not today", status_code=429)
    assert await outcome(connect(limits=limiter("acquire", mine)).generate("a cat")) is mine


async def test_a_cancellation_passes(klein_emulator, connect):
    with pytest.raises(asyncio.CancelledError):
        await connect(limits=limiter("acquire", asyncio.CancelledError())).generate("a cat")


@pytest.mark.parametrize(
    ("method", "answer", "kind"),
    [("accepted", None, GenerationResult), ("settle", None, GenerationResult), ("release", error_reply(402), None)],
)
async def test_what_a_budget_is_told_it_may_not_lose(klein_emulator, connect, caplog, method, answer, kind):
    client = connect(budget=breaking(NoBudget(), method, LookupError("mine")))
    klein_emulator.script("submit", answer)
    found = await outcome(client.generate("a cat"))
    assert isinstance(found, kind or FluxKleinError)
    assert {record.getMessage() for record in caplog.records} == {"The budget raised; ignored"}


async def test_a_budget_that_cannot_be_asked_pays_for_nothing(klein_emulator, connect):
    error = await outcome(connect(budget=breaking(NoBudget(), "reserve", LookupError("mine"))).generate("a cat"))
    assert (type(error), error.charged, error.cause) == (ConfigurationError, "no", "LookupError: mine")
    assert klein_emulator.calls["submit"] == 0
