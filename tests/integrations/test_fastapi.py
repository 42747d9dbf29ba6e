"""What only FastAPI needs: ASGI's messages, bodies, dependencies, the test client. Else: test_frameworks."""

import asyncio
import json

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from flux_klein_async import ConfigurationError, GenerationOutput, GenerationResult, RequestState, RequestStatus
from flux_klein_async.emulator import Emulator, error_reply
from flux_klein_async.integrations.fastapi import (
    ClientDep,
    DisconnectedError,
    ProgressResponse,
    client_lifespan,
    get_client,
    run_until_disconnected,
)
from tests.served import in_thread

from .serving import Asgi, OnFastAPI, client_of, nothing_left_behind, post

RESULT = GenerationResult(request_id="an-id", state=RequestState.COMPLETED, output=GenerationOutput())


@pytest.mark.parametrize(
    ("length", "streamed"), [(10, False), (4, False), (4, True)], ids=["half of the body", "whole", "read as a stream"]
)
async def test_a_disconnect_is_noticed_wherever_the_body_stands(length, streamed):
    disconnected = asyncio.Event()

    async def handler(request):
        if streamed:
            assert b"".join([chunk async for chunk in request.stream()]) == b"half"
        try:
            await run_until_disconnected(request, asyncio.Event().wait())
        except DisconnectedError:
            disconnected.set()
            raise

    framework = OnFastAPI()
    framework.route(app := framework.bare_app(), "/", handler)
    async with nothing_left_behind(), framework.serve(app) as server:
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, port)
        writer.write(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\nhalf".encode())
        await writer.drain()
        writer.close()
        async with asyncio.timeout(60):
            await disconnected.wait()


async def test_only_a_disconnect_is_one():
    """A server may repeat that the body has ended."""
    body = {"type": "http.request", "body": b"", "more_body": False}
    messages = [body, body, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    with pytest.raises(DisconnectedError):
        await run_until_disconnected(Request({"type": "http", "headers": []}, receive), asyncio.Event().wait())
    assert messages == []


async def respond(run, receive, send):
    await ProgressResponse(run)({"type": "http", "headers": []}, receive, send)


async def test_a_disconnect_after_the_last_event_is_no_error():
    sent = []

    async def run(_):
        return RESULT

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if message.get("more_body") is False:
            raise OSError("disconnected")
        sent.append(message["type"])

    await respond(run, receive, send)
    assert sent == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize(("has_events", "statuses"), [(False, [499]), (True, [200])])
@pytest.mark.parametrize("broken", [False, True])
async def test_a_disconnect_before_the_first_event_is_a_response_even_if_nobody_receives_it(
    has_events, statuses, broken
):
    sent, started = [], asyncio.Event()

    async def run(on_status):
        if has_events:
            on_status(RequestStatus(request_id="an-id", state=RequestState.IN_QUEUE))
        else:
            started.set()
        await asyncio.Event().wait()

    async def receive():
        await started.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        started.set()
        if broken:
            raise OSError("disconnected")

    await respond(run, receive, send)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == statuses


async def test_a_progress_response_needs_no_error_handlers():
    async with Emulator() as emulator:
        app = FastAPI(lifespan=client_lifespan(client_of(emulator)))

        @app.post("/events")
        async def events(client: ClientDep):
            return ProgressResponse(lambda on_status: client.generate("x", on_status=on_status))

        async with Asgi(app) as server:
            emulator.script("submit", error_reply(402, 400002))
            status, _, text = await post(server, "/events")
    assert (status, json.loads(text)["error"]) == (402, "payment_required")


def test_a_lifespan_that_was_not_called_says_so():
    with (
        pytest.raises(ConfigurationError, match="lifespan=client_lifespan"),
        TestClient(FastAPI(lifespan=client_lifespan)),
    ):
        pass


def test_a_test_client_runs_the_app_on_a_loop_of_its_own():
    """The lifespan makes the client there; a client from this loop is refused there."""
    with in_thread(Emulator(profile="fixed:0.01")) as emulator:
        app = FastAPI(lifespan=client_lifespan(client_of(emulator)))

        @app.post("/")
        async def create_picture(client: ClientDep):
            return (await client.generate("x")).image_url

        with TestClient(app) as session:
            assert session.post("/").status_code == 200

        async def used_here():
            client = client_of(emulator)()
            await client.get_model()
            return client

        with asyncio.Runner() as here:
            client = here.run(used_here())

            async def override():
                return client

            app.dependency_overrides[get_client] = override
            with TestClient(app) as session, pytest.raises(Exception, match="loop"):
                session.post("/")
            here.run(client.aclose())
