"""What only aiohttp.web needs: the check of the connection, apps in apps, the test client. Else: test_frameworks."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from flux_klein_async import ConfigurationError
from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.aiohttp_web import (
    CLIENT_KEY,
    DisconnectedError,
    client_context,
    run_until_disconnected,
)

from .serving import OnAiohttp, client_of, post


async def test_an_app_inside_an_app_finds_its_client():
    framework = OnAiohttp()
    async with Emulator(profile="fixed:0.01") as emulator:
        app = framework.app(client_of(emulator))
        app.add_subapp("/part", framework.app())
        async with framework.serve(app) as server:
            assert (await post(server, "/part/read"))[0] == 200


async def test_a_context_that_was_not_called_says_so():
    app = web.Application()
    app.cleanup_ctx.append(client_context)
    with pytest.raises(ConfigurationError, match="append"):
        await TestServer(app).start_server()


async def test_a_test_can_give_the_app_its_own_client():
    async with Emulator(profile="fixed:0.01") as emulator, client_of(emulator)() as client:
        app = OnAiohttp().app()
        app[CLIENT_KEY] = client
        async with TestClient(TestServer(app)) as session, session.post("/read", json={"prompt": "x"}) as response:
            assert response.status == 200
        assert (await client.generate("y")).image_url


class Connection:
    """A request whose client disconnects after a while."""

    def __init__(self, seconds, *, forgotten):
        self._end = asyncio.get_running_loop().time() + seconds
        self._forgotten = forgotten

    def is_closing(self):
        return asyncio.get_running_loop().time() >= self._end

    @property
    def transport(self):
        return None if self._forgotten and self.is_closing() else self


@pytest.mark.usefixtures("klein_emulator")
@pytest.mark.parametrize("forgotten", [True, False])
async def test_a_disconnect_is_noticed_within_a_tenth_of_a_second(forgotten):
    """In virtual time, whether or not the server still holds the connection."""
    with pytest.raises(DisconnectedError):
        await run_until_disconnected(Connection(0.25, forgotten=forgotten), asyncio.Event().wait())
    assert asyncio.get_running_loop().time() == pytest.approx(0.3)
