"""The service moves while the client lives: the next call reaches the new address, and no submit is sent twice."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest

from flux_klein_async import APIConnectionError, FluxKleinClient, RetryPolicy, SubmissionUncertainError
from flux_klein_async.emulator import Emulator, Generation, Pass
from flux_klein_async.events import Retrying, Submitted
from tests.fakes import Events, outcome
from tests.networks import Names, closed_port, until

pytestmark = pytest.mark.slow

TOKEN = "emulator-token"
NAME = "http://service.test"
QUICK = RetryPolicy(initial=0.001, maximum=0.001)


@asynccontextmanager
async def named(names, events, monkeypatch, *, borrowed=False):
    """A client whose base URL has a name, which `names` resolves."""
    session = None
    if borrowed:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=names, use_dns_cache=False))
    else:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    options = {"base_url": NAME, "allow_insecure": True, "retry": QUICK, "on_event": events, "session": session}
    async with FluxKleinClient(TOKEN, **options) as client:
        yield client
    if session is not None:
        await session.close()


def port(emulator: Emulator) -> int:
    return int(emulator.base_url.rsplit(":", 1)[1])


SESSIONS = pytest.mark.parametrize("borrowed", [True, False], ids=["borrowed session", "own session"])


@SESSIONS
async def test_a_service_that_moved_is_found_at_once_and_no_submit_is_lost_or_sent_twice(monkeypatch, borrowed):
    names, events = Names(), Events()
    async with named(names, events, monkeypatch, borrowed=borrowed) as client:
        old = Emulator(profile="fixed:0.05")
        async with old:
            names.ports = [port(old)]
            first = await client.generate("a cat")
            old.script("submit", Generation(after=0.3))
            waiting = asyncio.ensure_future(client.generate("a dog"))
            await until(lambda: len(events.of(Submitted)) == 2)
            old.script("submit", Pass(delay=60))
            cut_off = asyncio.ensure_future(client.submit("a fish"))
            await until(lambda: old.accepted == 3)
        assert not waiting.done()
        async with old as new:  # on another free port
            names.ports = [port(new)]
            error = await outcome(cut_off)
            assert (type(error), error.charged, old.accepted) == (SubmissionUncertainError, "unknown", 3)
            second = await waiting  # polls fail in between
            third = await client.generate("a bird")
    assert len({first.request_id, second.request_id, third.request_id}) == 3
    assert old.accepted == 4


async def test_a_name_is_resolved_again_once_its_address_refuses(monkeypatch):
    names, events = Names(), Events()
    async with named(names, events, monkeypatch) as client, Emulator() as emulator:
        names.ports = [closed_port()]
        error = await outcome(client.submit("a cat"))
        assert (type(error), error.sent, error.charged) == (APIConnectionError, False, "no")
        names.ports = [port(emulator)]
        await client.submit("a cat")
        assert (emulator.accepted, len(events.of(Retrying))) == (1, QUICK.attempts - 1)
        resolved = names.asked
        await client.submit("a cat")
        assert names.asked == resolved  # the connection is still open


@SESSIONS
async def test_the_next_address_is_tried_if_one_refuses(monkeypatch, borrowed):
    names, events = Names(), Events()
    async with named(names, events, monkeypatch, borrowed=borrowed) as client, Emulator() as emulator:
        names.ports = [closed_port(), closed_port(), port(emulator)]
        await client.submit("a cat")
        assert (emulator.accepted, events.of(Retrying)) == (1, [])
