"""The FastAPI integration under a real uvicorn, on sockets, against the emulator on a port."""

import asyncio
import json
import logging

import aiohttp
import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware

from flux_klein_async import (
    ClientClosedError,
    FluxKleinClient,
    GenerationOutput,
    GenerationResult,
    RequestState,
    RequestStatus,
    TextToImageInput,
)
from flux_klein_async.emulator import Emulator, Generation, error_reply
from flux_klein_async.integrations.fastapi import (
    EventStream,
    Klein,
    VisitorGoneError,
    answer_errors,
    klein_lifespan,
    klein_of,
    while_connected,
)

from .serving import Asgi, accepted, client_of, nothing_left_behind, states

RESULT = GenerationResult(request_id="an-id", state=RequestState.COMPLETED, output=GenerationOutput())


def made(emulator, *, lifespan=None, handled=True, **options):
    app = FastAPI(lifespan=lifespan or klein_lifespan(client_of(emulator, **options)))
    if handled:
        answer_errors(app)

    @app.post("/read")  # the framework has read the body before
    async def read(order: TextToImageInput, klein: Klein, request: Request):
        return {"url": (await while_connected(request, klein.generate(order))).image_url}

    @app.post("/unread")  # nobody has, and somebody will later
    async def unread(klein: Klein, request: Request):
        result = await while_connected(request, klein.generate("x"))
        return {"url": result.image_url, "body": (await request.body()).decode()}

    @app.post("/streamed")  # it was read without being kept
    async def streamed(klein: Klein, request: Request):
        prompt = b"".join([chunk async for chunk in request.stream()]).decode()
        return {"url": (await while_connected(request, klein.generate(prompt))).image_url}

    @app.post("/events")
    async def events(order: dict, klein: Klein):
        return EventStream(lambda tell: klein.generate(order, on_status=tell), keep_alive=60)

    return app


async def post(server, path, order=None):
    async with (
        aiohttp.ClientSession(server.url) as visitor,
        visitor.post(path, json=order or {"prompt": "x"}) as answer,
    ):
        return answer.status, answer.headers, await answer.text()


@pytest.mark.parametrize("path", ["/read", "/unread", "/streamed", "/events"])
async def test_a_visitor_gets_a_picture(path):
    async with nothing_left_behind(), Emulator(profile="fixed:0.01") as emulator, Asgi(made(emulator)) as server:
        status, _, text = await post(server, path)
        assert status == 200
        assert f"{emulator.base_url}/files/" in text
        if path == "/unread":
            assert json.loads(json.loads(text)["body"]) == {"prompt": "x"}


def test_the_log_says_that_the_visitor_has_gone():
    app = FastAPI()
    answer_errors(app)

    @app.get("/")
    async def left():
        raise VisitorGoneError

    answer = TestClient(app).get("/")
    assert (answer.status_code, answer.content) == (499, b"")


@pytest.mark.parametrize("middleware", [False, True], ids=["plain", "BaseHTTPMiddleware"])
@pytest.mark.parametrize("path", ["/read", "/unread", "/streamed", "/events"])
async def test_a_visitor_who_hangs_up_costs_nothing(path, middleware, caplog):
    async with nothing_left_behind(), Emulator(workers=0) as emulator:
        app = made(emulator)
        if middleware:

            async def through(request, call_next):
                return await call_next(request)

            app.add_middleware(BaseHTTPMiddleware, dispatch=through)
        async with Asgi(app) as server:
            visit = asyncio.create_task(post(server, path))
            await accepted(emulator, 1)
            visit.cancel()
            await accepted(emulator, 1, "cancel")
        assert states(emulator) == ["cancelled"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("length", [10, 4], ids=["half of the body", "whole"])
async def test_a_handler_is_told_that_its_visitor_hung_up(length):
    gone = asyncio.Event()
    async with nothing_left_behind(), Emulator() as emulator:
        app = made(emulator)

        @app.post("/waits")
        async def waits(klein: Klein, request: Request):
            try:
                await while_connected(request, asyncio.Event().wait())
            except VisitorGoneError:
                gone.set()
                raise

        async with Asgi(app) as server:
            host, port = server.url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, port)
            writer.write(f"POST /waits HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\nhalf".encode())
            await writer.drain()
            writer.close()
            async with asyncio.timeout(60):
                await gone.wait()


async def test_a_visitor_who_leaves_with_the_last_event_has_heard_all_there_was():
    sent = []

    async def run(_):
        return RESULT

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if message.get("more_body") is False:
            raise OSError("the visitor has gone")
        sent.append(message["type"])

    await EventStream(run)({"type": "http", "headers": []}, receive, send)
    assert sent == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize(("told", "statuses"), [(False, [499]), (True, [200])], ids=["before", "after"])
async def test_a_visitor_who_leaves_is_an_answer_of_its_own_unless_one_has_begun(told, statuses):
    sent = []
    begun = asyncio.Event()

    async def run(tell):
        if told:
            tell(RequestStatus(request_id="an-id", state=RequestState.IN_QUEUE))
        else:
            begun.set()
        await asyncio.Event().wait()

    async def receive():
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        begun.set()

    await EventStream(run)({"type": "http", "headers": []}, receive, send)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == statuses


async def test_events_are_told_as_they_happen():
    async with Emulator(profile="fixed:0.05") as emulator, Asgi(made(emulator)) as server:
        status, headers, text = await post(server, "/events")
    names = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert (headers["Cache-Control"], "Content-Length" in headers) == ("no-store", False)
    assert (names[0], names[-1]) == ("status", "result")


ERRORS = [
    ({"prompt": "x"}, error_reply(402, 400002, "sk-secret"), (402, "payment_required")),
    ({"prompt": "x"}, error_reply(401, 400004, "sk-secret"), (502, "upstream_error")),
    ({"prompt": " "}, None, (422, "invalid_input")),
]


@pytest.mark.parametrize("handled", [True, False], ids=["answer_errors", "bare"])
@pytest.mark.parametrize(("order", "reply", "expected"), ERRORS)
async def test_an_error_before_the_first_event_is_an_ordinary_answer(order, reply, expected, handled, caplog):
    async with Emulator() as emulator, Asgi(made(emulator, handled=handled)) as server:
        emulator.script("submit", reply)
        if order["prompt"] == " ":  # our own check is for typed inputs: a mapping is the service's to refuse
            emulator.script("submit", error_reply(422, 422001, "blank"))
        status, _, text = await post(server, "/events", order)
        assert (status, json.loads(text)["error"]) == expected
        assert "secret" not in text


async def test_errors_are_answered_and_the_operator_told(caplog):
    async with Emulator() as emulator, Asgi(made(emulator)) as server:
        emulator.script("submit", error_reply(401, 400004, "the token has expired"))
        status, _, text = await post(server, "/read")
        assert (status, json.loads(text)["charged"]) == (502, "no")
        assert "token" not in text
        assert "the token has expired" in caplog.text
        assert emulator.api_key not in caplog.text
        caplog.clear()
        emulator.script("submit", error_reply(422, 422001, "no"))
        status, _, text = await post(server, "/read")
        assert (status, json.loads(text)["fields"], caplog.text) == (422, [], "")


async def test_busy_is_said_with_how_long():
    async with Emulator() as emulator, Asgi(made(emulator, timeout=1.0)) as server:
        emulator.script("submit", error_reply(429, message="busy", retry_after="30"))
        status, headers, text = await post(server, "/read")
    assert (status, json.loads(text)["error"], json.loads(text)["retryable"]) == (429, "rate_limited", True)
    assert 28 <= int(headers["Retry-After"]) <= 30


async def test_a_deadline_names_the_request():
    async with Emulator(workers=0) as emulator, Asgi(made(emulator, timeout=0.3)) as server:
        status, _, text = await post(server, "/read")
        said = json.loads(text)
        assert (status, said["error"], said["retryable"]) == (504, "wait_timeout", False)
        assert said["request_id"] in emulator.service.queue.jobs


async def test_a_closing_app_says_so():
    async with Emulator() as emulator:
        client = client_of(emulator)()
        await client.aclose()
        app = made(emulator)
        app.dependency_overrides[klein_of] = lambda: client
        async with Asgi(app) as server:
            status, _, text = await post(server, "/read")
            assert (status, json.loads(text)["error"]) == (503, "closing")


async def test_the_client_is_made_and_closed_with_the_app():
    clients = []
    async with Emulator() as emulator:

        def make():
            asyncio.get_running_loop()  # it is made inside of it
            clients.append(client_of(emulator)())
            return clients[-1]

        async with Asgi(made(emulator, lifespan=klein_lifespan(make))) as server:
            await post(server, "/read")
            assert len(clients) == 1
        with pytest.raises(ClientClosedError):
            await clients[0].generate("x")


async def test_the_lifespan_lets_calls_end():
    async with Emulator(profile="fixed:0.05") as emulator:
        app = FastAPI()
        async with klein_lifespan(client_of(emulator))(app) as state:
            [client] = state.values()
            calling = asyncio.create_task(client.generate("x"))
            await accepted(emulator, 1)
        assert (await calling).image_url


async def test_visitors_who_outstay_the_shutdown_are_abandoned(caplog):
    async with nothing_left_behind(), Emulator(workers=0) as emulator:
        async with Asgi(made(emulator), timeout_graceful_shutdown=0) as server:
            visits = [asyncio.create_task(post(server, path)) for path in ("/read", "/events")]
            await accepted(emulator, 2)
            await server.stop()
            await asyncio.wait(visits)
            assert [visit.exception() is None and visit.result()[0] == 200 for visit in visits] == [False, False]
        assert states(emulator) == ["cancelled", "cancelled"]


async def test_an_app_without_a_client_is_told_what_to_do(caplog):
    app = FastAPI()
    answer_errors(app)

    @app.get("/")
    async def index(klein: Klein): ...

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as visitor:
        answer = await visitor.get("/")
    assert (answer.status_code, answer.json()["error"]) == (500, "internal_error")
    ours = [record for record in caplog.records if record.name == "flux_klein_async"]
    assert ["klein_lifespan" in record.getMessage() for record in ours] == [True]


def test_a_test_client_runs_the_app_on_a_loop_of_its_own():
    """The lifespan makes the client there; one made here is refused there."""
    from tests.served import in_thread

    with in_thread(Emulator(profile="fixed:0.01")) as emulator:
        app = made(emulator)
        with TestClient(app) as visitor:
            assert visitor.post("/read", json={"prompt": "x"}).status_code == 200

        async def used_here():
            client = client_of(emulator)()
            await client.get_model()
            return client

        with asyncio.Runner() as here:
            client = here.run(used_here())
            app.dependency_overrides[klein_of] = lambda: client
            with TestClient(app) as visitor:
                assert visitor.post("/read", json={"prompt": "x"}).json()["error"] == "internal_error"
            here.run(client.aclose())


async def test_a_generation_that_fails_under_way_is_an_event(caplog):
    caplog.set_level(logging.WARNING)
    async with Emulator() as emulator, Asgi(made(emulator)) as server:
        emulator.script("submit", Generation(ends="failed", after=0.05, error="sk-secret"))
        status, _, text = await post(server, "/events")
    assert (status, "event: error" in text, "generation_failed" in text, "secret" in text) == (200, True, True, False)


async def test_what_is_told_and_how_often_is_the_apps_choice():
    heard = asyncio.Event()

    async def run(_):
        await heard.wait()
        return RESULT

    app = FastAPI()

    @app.get("/")
    async def slow():
        return EventStream(run, keep_alive=0.001, facts=lambda result: {"mine": result.request_id})

    async with Asgi(app) as server, aiohttp.ClientSession(server.url) as visitor, visitor.get("/") as answer:
        assert (await answer.content.readline()).startswith(b":")
        heard.set()
        assert b'event: result\ndata: {"mine":"an-id"}\n\n' in await answer.read()


def test_the_default_client_is_the_plain_one():
    assert klein_lifespan.__defaults__ == (FluxKleinClient,)
    assert klein_lifespan.__kwdefaults__ == {"drain": 30.0}
