"""The aiohttp.web integration under its real server, on sockets, against the emulator on a port."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from flux_klein_async import ClientClosedError, FluxKleinClient, GenerationOutput, GenerationResult, RequestState
from flux_klein_async.emulator import Emulator, Generation, error_reply
from flux_klein_async.integrations.aiohttp_web import (
    KLEIN,
    VisitorGoneError,
    answer_errors,
    event_stream,
    klein_context,
    klein_of,
    while_connected,
)

from .serving import AiohttpWeb, accepted, client_of, nothing_left_behind, states

RESULT = GenerationResult(request_id="an-id", state=RequestState.COMPLETED, output=GenerationOutput())


async def read(request):
    prompt = await request.text()
    result = await while_connected(request, klein_of(request).generate(prompt))
    return web.json_response({"url": result.image_url})


async def unread(request):
    result = await while_connected(request, klein_of(request).generate("x"))
    return web.json_response({"url": result.image_url, "body": await request.text()})


async def events(request):
    prompt, klein = await request.text(), klein_of(request)
    return await event_stream(request, lambda tell: klein.generate(prompt, on_status=tell), keep_alive=60)


def made(emulator, *, context=None, **options):
    app = web.Application(middlewares=[answer_errors])
    app.cleanup_ctx.append(context or klein_context(client_of(emulator, **options)))
    app.add_routes([web.post("/read", read), web.post("/unread", unread), web.post("/events", events)])
    return app


async def post(server, path, prompt="x"):
    async with aiohttp.ClientSession(server.url) as visitor, visitor.post(path, data=prompt) as answer:
        return answer.status, answer.headers, await answer.text()


@pytest.mark.parametrize("path", ["/read", "/unread", "/events"])
async def test_a_visitor_gets_a_picture(path):
    async with nothing_left_behind(), Emulator(profile="fixed:0.01") as emulator, AiohttpWeb(made(emulator)) as server:
        status, _, text = await post(server, path)
        assert status == 200
        assert f"{emulator.base_url}/files/" in text
        if path == "/unread":
            assert json.loads(text)["body"] == "x"


@pytest.mark.parametrize("handler_cancellation", [False, True])
@pytest.mark.parametrize("path", ["/read", "/unread", "/events"])
async def test_a_visitor_who_hangs_up_costs_nothing(path, handler_cancellation, caplog):
    async with nothing_left_behind(), Emulator(workers=0) as emulator:
        async with AiohttpWeb(made(emulator), handler_cancellation=handler_cancellation) as server:
            visit = asyncio.create_task(post(server, path))
            await accepted(emulator, 1)
            visit.cancel()
            await accepted(emulator, 1, "cancel")
        assert states(emulator) == ["cancelled"]
    assert caplog.text == ""


async def test_the_log_says_that_the_visitor_has_gone():
    async def left(request):
        raise VisitorGoneError

    app = web.Application(middlewares=[answer_errors])
    app.add_routes([web.get("/", left)])
    async with TestClient(TestServer(app)) as visitor, visitor.get("/") as answer:
        assert (answer.status, await answer.text()) == (499, "")


async def test_events_are_told_as_they_happen():
    async with Emulator(profile="fixed:0.05") as emulator, AiohttpWeb(made(emulator)) as server:
        status, headers, text = await post(server, "/events")
    names = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert (headers["Cache-Control"], "Content-Length" in headers) == ("no-store", False)
    assert (names[0], names[-1]) == ("status", "result")


@pytest.mark.parametrize(
    ("prompt", "reply", "status", "word"),
    [
        ("x", error_reply(402, 400002, "sk-secret"), 402, "payment_required"),
        ("x", error_reply(401, 400004, "sk-secret"), 502, "upstream_error"),
        (" ", None, 422, "invalid_input"),
    ],
)
@pytest.mark.parametrize("path", ["/read", "/events"])
async def test_an_error_before_the_first_event_is_an_ordinary_answer(path, prompt, reply, status, word, caplog):
    async with Emulator() as emulator, AiohttpWeb(made(emulator)) as server:
        emulator.script("submit", reply)
        got, _, text = await post(server, path, prompt)
    assert (got, json.loads(text)["error"]) == (status, word)
    assert "secret" not in text
    assert ("secret" in caplog.text) == (status >= 500)
    assert {record.name for record in caplog.records} <= {"flux_klein_async"}
    if status == 422:
        assert [item["field"] for item in json.loads(text)["fields"]] == ["prompt"]


async def test_busy_is_said_with_how_long():
    async with Emulator() as emulator, AiohttpWeb(made(emulator, timeout=1.0)) as server:
        emulator.script("submit", error_reply(429, message="busy", retry_after="30"))
        status, headers, text = await post(server, "/read")
    assert (status, json.loads(text)["error"]) == (429, "rate_limited")
    assert 28 <= int(headers["Retry-After"]) <= 30


async def test_a_generation_that_fails_under_way_is_an_event():
    async with Emulator() as emulator, AiohttpWeb(made(emulator)) as server:
        emulator.script("submit", Generation(ends="failed", after=0.05, error="sk-secret"))
        status, _, text = await post(server, "/events")
    assert (status, "event: error" in text, "generation_failed" in text, "secret" in text) == (200, True, True, False)


async def test_the_client_is_closed_with_the_app_and_calls_may_end():
    async with Emulator(profile="fixed:0.05") as emulator:
        async with AiohttpWeb(app := made(emulator)):
            client = app[KLEIN]
            calling = asyncio.create_task(client.generate("x"))
            await accepted(emulator, 1)
        assert (await calling).image_url
        with pytest.raises(ClientClosedError):
            await client.generate("x")


async def test_visitors_who_outstay_the_shutdown_are_abandoned():
    async with nothing_left_behind(), Emulator(workers=0) as emulator:
        async with AiohttpWeb(made(emulator), shutdown_timeout=0.01) as server:
            visits = [asyncio.create_task(post(server, path)) for path in ("/read", "/events")]
            await accepted(emulator, 2)
            await server.stop()
            await asyncio.wait(visits)
        assert [visit.exception() is None and visit.result()[0] == 200 for visit in visits] == [False, False]
        assert states(emulator) == ["cancelled", "cancelled"]


async def test_a_part_of_an_app_finds_the_apps_client():
    async with Emulator(profile="fixed:0.01") as emulator:
        part = web.Application()
        part.add_routes([web.post("/read", read)])
        app = made(emulator)
        app.add_subapp("/part", part)
        async with AiohttpWeb(app) as server:
            assert (await post(server, "/part/read"))[0] == 200


async def test_an_app_without_a_client_is_told_what_to_do(caplog):
    app = web.Application(middlewares=[answer_errors])
    app.add_routes([web.post("/read", read)])
    async with AiohttpWeb(app) as server:
        status, _, text = await post(server, "/read")
    assert (status, json.loads(text)["error"]) == (500, "internal_error")
    assert [(record.name, "klein_context" in record.getMessage()) for record in caplog.records] == [
        ("flux_klein_async", True)
    ]


async def test_aiohttps_test_client_shares_the_tests_loop():
    """So that the test may use, and give, the very client."""
    async with Emulator(profile="fixed:0.01") as emulator, client_of(emulator)() as client:
        app = web.Application(middlewares=[answer_errors])
        app.add_routes([web.post("/read", read)])
        app[KLEIN] = client
        async with TestClient(TestServer(app)) as visitor, visitor.post("/read", data="x") as answer:
            assert answer.status == 200
        assert (await client.generate("y")).image_url


async def test_what_is_told_and_how_often_is_the_apps_choice():
    heard = asyncio.Event()

    async def run(_):
        await heard.wait()
        return RESULT

    async def slow(request):
        return await event_stream(request, run, keep_alive=0.001, facts=lambda result: {"mine": result.request_id})

    app = web.Application()
    app.add_routes([web.get("/", slow)])
    async with TestClient(TestServer(app)) as visitor, visitor.get("/") as answer:
        assert (await answer.content.readline()).startswith(b":")
        heard.set()
        assert b'event: result\ndata: {"mine":"an-id"}\n\n' in await answer.read()


class Connection:
    """A request whose visitor hangs up after a while."""

    def __init__(self, seconds, *, forgotten):
        self._leaves = asyncio.get_running_loop().time() + seconds
        self._forgotten = forgotten

    def is_closing(self):
        return asyncio.get_running_loop().time() >= self._leaves

    @property
    def transport(self):
        return None if self._forgotten and self.is_closing() else self


@pytest.mark.parametrize("forgotten", [True, False])
async def test_a_visitor_who_left_is_noticed_within_a_tenth_of_a_second(klein_emulator, forgotten):
    """In virtual time; the server may have forgotten the connection by then, or be about to."""
    begun = asyncio.get_running_loop().time()
    with pytest.raises(VisitorGoneError):
        await while_connected(Connection(0.25, forgotten=forgotten), asyncio.Event().wait())
    assert asyncio.get_running_loop().time() - begun == pytest.approx(0.3)


def test_the_default_client_is_the_plain_one():
    assert klein_context.__defaults__ == (FluxKleinClient,)
    assert klein_context.__kwdefaults__ == {"drain": 30.0}
