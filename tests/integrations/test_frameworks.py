"""Both web frameworks under their real servers, on sockets, against the emulator on a port: one set of promises."""

import asyncio
import json
import logging

import aiohttp
import pytest

from flux_klein_async import ClientClosedError, FluxKleinClient, GenerationOutput, GenerationResult, RequestState
from flux_klein_async.emulator import Emulator, Generation, error_reply
from flux_klein_async.integrations.web import DisconnectedError

from .serving import OnAiohttp, OnFastAPI, accepted, client_of, nothing_left_behind, post, states

RESULT = GenerationResult(request_id="an-id", state=RequestState.COMPLETED, output=GenerationOutput())
PATHS = pytest.mark.parametrize("path", ["/read", "/unread", "/events"])


@pytest.fixture(params=[OnFastAPI(), OnAiohttp()], ids=["fastapi", "aiohttp.web"])
def framework(request):
    return request.param


def served(framework, emulator, **options):
    """The app under its server, with a client of the emulator."""
    return framework.serve(framework.app(client_of(emulator, **options)))


@PATHS
async def test_a_generation_is_the_response(framework, path):
    async with nothing_left_behind(), Emulator(profile="fixed:0.01") as emulator, served(framework, emulator) as server:
        status, _, text = await post(server, path)
        assert status == 200
        assert f"{emulator.base_url}/files/" in text
        if path == "/unread":
            assert json.loads(text)["body"] == {"prompt": "x"}


@PATHS
@pytest.mark.parametrize(
    "framework",
    [OnFastAPI(), OnFastAPI(behind_middleware=True), OnAiohttp(), OnAiohttp(handler_cancellation=True)],
    ids=["fastapi", "fastapi behind a middleware", "aiohttp.web", "aiohttp.web with cancellation"],
)
async def test_a_disconnect_cancels_the_generation(framework, path, caplog):
    async with nothing_left_behind(), Emulator(workers=0) as emulator:
        async with served(framework, emulator) as server:
            call = asyncio.create_task(post(server, path))
            await accepted(emulator, 1)
            call.cancel()
            await accepted(emulator, 1, "cancel")
        assert states(emulator) == ["cancelled"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_disconnect_is_499_in_the_access_log(framework):
    async def disconnected(_):
        raise DisconnectedError

    framework.route(app := framework.bare_app(), "/", disconnected)
    async with framework.serve(app) as server:
        status, _, text = await post(server, "/")
    assert (status, text) == (499, "")


async def test_events_are_sent_as_they_happen(framework):
    async with Emulator(profile="fixed:0.05") as emulator, served(framework, emulator) as server:
        status, headers, text = await post(server, "/events")
    names = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert "Content-Length" not in headers
    assert (names[0], names[-1]) == ("status", "result")


async def test_a_head_request_for_events_gets_the_headers_and_starts_nothing(framework):
    """The connection is used again: a body of the first response would be the start of the second one."""
    async with Emulator(profile="fixed:0.05") as emulator, served(framework, emulator) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        ask = "HEAD /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n"
        ask += 'Connection: {}\r\n\r\n{{"prompt":"x"}}'
        writer.write((ask.format("keep-alive") + ask.format("close")).encode())
        async with asyncio.timeout(10):
            answers = (await reader.read()).decode().lower().split("http/1.1 200 ok\r\n")
        writer.close()
        assert emulator.calls["submit"] == 0
    assert [answer.partition("\r\n\r\n")[2] for answer in answers] == ["", "", ""]
    assert len(answers) == 3
    assert all("content-type: text/event-stream" in answer for answer in answers[1:])


async def test_the_app_chooses_the_data_of_a_result_and_when_a_comment_is_sent(framework):
    commented = asyncio.Event()

    async def run(_):
        await commented.wait()
        return RESULT

    async def handler(request):
        return await framework.stream(request, run, keep_alive=0.001, to_json=lambda result: {"id": result.request_id})

    framework.route(app := framework.bare_app(), "/", handler)
    async with (
        framework.serve(app) as server,
        aiohttp.ClientSession(server.url) as session,
        session.get("/") as response,
    ):
        assert (await response.content.readline()).startswith(b":")
        commented.set()
        assert b'event: result\ndata: {"id":"an-id"}\n\n' in await response.read()


@pytest.mark.parametrize(
    ("prompt", "reply", "status", "code"),
    [
        ("x", error_reply(402, 400002, "sk-secret"), 402, "payment_required"),
        ("x", error_reply(401, 400004, "sk-secret"), 502, "upstream_error"),
        ("x", error_reply(422, 422001, "sk-secret"), 422, "invalid_input"),
        ("x", error_reply(429, message="sk-secret", retry_after="30"), 429, "rate_limited"),
        (" ", None, 422, "invalid_input"),
    ],
)
@pytest.mark.parametrize("path", ["/read", "/events"])
async def test_an_error_before_the_first_event_is_an_ordinary_response(
    framework, path, prompt, reply, status, code, caplog
):
    async with Emulator() as emulator, served(framework, emulator, timeout=5.0) as server:
        emulator.script("submit", reply)
        found, headers, text = await post(server, path, {"prompt": prompt})
        assert emulator.api_key not in caplog.text
    assert (found, json.loads(text)["error"]) == (status, code)
    assert "secret" not in text
    assert ("sk-secret" in caplog.text) == (status >= 500)
    assert ("Retry-After" in headers and 28 <= int(headers["Retry-After"]) <= 30) == (status == 429)
    if prompt == " ":
        assert [item["field"] for item in json.loads(text)["fields"]] == ["prompt"]


async def test_an_error_after_the_first_event_is_an_event(framework):
    async with Emulator() as emulator, served(framework, emulator) as server:
        emulator.script("submit", Generation(ends="failed", after=0.05, error="sk-secret"))
        status, _, text = await post(server, "/events")
    assert (status, "event: error" in text, "generation_failed" in text, "secret" in text) == (200, True, True, False)


async def test_a_timeout_names_the_request(framework):
    async with Emulator(workers=0) as emulator, served(framework, emulator, timeout=0.3) as server:
        status, _, text = await post(server, "/read")
        body = json.loads(text)
        assert (status, body["error"], body["retryable"]) == (504, "wait_timeout", False)
        assert body["request_id"] in emulator.service.queue.jobs


async def test_the_client_lives_as_long_as_the_app_and_its_calls_may_end(framework):
    clients = []

    def make():
        asyncio.get_running_loop()  # raises outside of the loop
        clients.append(client_of(emulator)())
        return clients[-1]

    async with Emulator(profile="fixed:0.05") as emulator:
        async with framework.serve(framework.app(make)) as server:
            await post(server, "/read")
            [client] = clients
            running = asyncio.create_task(client.generate("x"))
            await accepted(emulator, 2)
        assert (await running).image_url
        with pytest.raises(ClientClosedError):
            await client.generate("x")


def test_the_default_client_has_no_options_and_half_a_minute_to_drain(framework):
    manager = getattr(framework.module, "client_lifespan", None) or framework.module.client_context
    assert (manager.__defaults__, manager.__kwdefaults__) == ((FluxKleinClient,), {"drain": 30.0})


async def test_handlers_that_outlast_the_shutdown_abandon_their_generations(framework):
    async with nothing_left_behind(), Emulator(workers=0) as emulator:
        timeout = 0.01 if isinstance(framework, OnAiohttp) else 0
        async with framework.serve(framework.app(client_of(emulator)), shutdown_timeout=timeout) as server:
            calls = [asyncio.create_task(post(server, path)) for path in ("/read", "/events")]
            await accepted(emulator, 2)
            await server.stop()
            await asyncio.wait(calls)
        assert [call.exception() is None and call.result()[0] == 200 for call in calls] == [False, False]
        assert states(emulator) == ["cancelled", "cancelled"]


async def test_an_app_without_a_client_logs_what_to_do(framework, caplog):
    async with framework.serve(framework.app()) as server:
        status, _, text = await post(server, "/read")
    assert (status, json.loads(text)["error"]) == (500, "internal_error")
    [message] = [record.getMessage() for record in caplog.records if record.name == "flux_klein_async"]
    assert "client_lifespan" in message or "client_context" in message
