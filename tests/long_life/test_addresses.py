"""The service moves while the client lives: the next call reaches it where it is now, and no submit is doubled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from flux_klein_async import APIConnectionError, FluxKleinClient, RetryPolicy
from flux_klein_async.emulator import Emulator, Generation, Pass
from flux_klein_async.events import Retrying, Submitted
from tests.fakes import Events, outcome
from tests.networks import Names, closed_port, until

pytestmark = pytest.mark.slow

TOKEN = "emulator-token"
NAME = "http://service.test"
QUICK = RetryPolicy(initial=0.001, maximum=0.001)


@asynccontextmanager
async def named(names: Names, *, borrowed: bool, events: Events, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """A client that knows the service by its name alone."""
    session = None
    if borrowed:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=names, use_dns_cache=False))
    else:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    options: dict[str, Any] = {"base_url": NAME, "allow_insecure": True, "retry": QUICK, "on_event": events}
    async with FluxKleinClient(TOKEN, session=session, **options) as client:
        yield client
    if session is not None:
        await session.close()


def port(emulator: Emulator) -> int:
    return int(emulator.base_url.rsplit(":", 1)[1])


@pytest.mark.parametrize("borrowed", [True, False], ids=["borrowed session", "own session"])
async def test_a_service_that_moved_is_found_at_once_and_no_submit_is_lost_or_doubled(monkeypatch, borrowed):
    names, events = Names(), Events()
    async with named(names, borrowed=borrowed, events=events, monkeypatch=monkeypatch) as client:
        old = Emulator(profile="fixed:0.05")
        async with old:
            names.ports = [port(old)]
            first = await client.generate("a cat")
            old.script("submit", Generation(after=0.3))
            waiting = asyncio.ensure_future(client.generate("a dog"))
            await until(lambda: len(events.of(Submitted)) == 2)
        assert not waiting.done()
        async with old as new:  # on another free port
            names.ports = [port(new)]
            second = await waiting  # a poll that finds nobody saw nothing
            third = await client.generate("a bird")
    assert len({first.request_id, second.request_id, third.request_id}) == 3
    assert old.accepted == 3


async def test_an_address_that_refuses_is_not_believed_any_longer(monkeypatch):
    """The name is asked again at once, not when the last answer has aged."""
    names, events = Names(), Events()
    async with named(names, borrowed=False, events=events, monkeypatch=monkeypatch) as client, Emulator() as emulator:
        names.ports = [closed_port()]
        error = await outcome(client.submit("a cat"))
        assert (type(error), error.sent, error.charged) == (APIConnectionError, False, "no")
        names.ports = [port(emulator)]
        await client.submit("a cat")
        assert (emulator.accepted, len(events.of(Retrying))) == (1, QUICK.attempts - 1)
        asked = names.asked
        await client.submit("a cat")
        assert names.asked == asked  # the connection is still there, and the answer young


@pytest.mark.parametrize("borrowed", [True, False], ids=["borrowed session", "own session"])
async def test_of_several_addresses_the_next_is_tried_where_one_refuses(monkeypatch, borrowed):
    names, events = Names(), Events()
    async with (
        named(names, borrowed=borrowed, events=events, monkeypatch=monkeypatch) as client,
        Emulator() as emulator,
    ):
        names.ports = [closed_port(), closed_port(), port(emulator)]
        await client.submit("a cat")
        assert (emulator.accepted, events.of(Retrying)) == (1, [])
        names.ports = [closed_port(), closed_port()]
        [[(protocol, _)]] = client._context.transport._api.connector._conns.values()
        protocol.close()
        client._context.transport._api.connector.clear_dns_cache()
        error = await outcome(client.submit("a cat"))
        assert (type(error), error.sent, error.charged) == (APIConnectionError, False, "no")
        assert emulator.accepted == 1


async def test_a_submit_under_way_when_the_service_moves_is_not_sent_to_the_new_address(monkeypatch):
    names, events = Names(), Events()
    async with named(names, borrowed=False, events=events, monkeypatch=monkeypatch) as client:
        old = Emulator()
        async with old:
            names.ports = [port(old)]
            old.script("submit", Pass(delay=60))
            submit = asyncio.ensure_future(client.submit("a cat"))
            await until(lambda: old.accepted)
        async with old as new:  # on another free port
            names.ports = [port(new)]
            error = await outcome(submit)
            assert (type(error).__name__, error.charged, old.accepted) == ("SubmissionUncertainError", "unknown", 1)
            await client.submit("a dog")
    assert old.accepted == 2
