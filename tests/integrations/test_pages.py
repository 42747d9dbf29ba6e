"""The apps on the page about web backends serve, and its table of errors is true."""

import asyncio
import json
import re
from types import SimpleNamespace

import httpx
import pytest
from fastapi import HTTPException

from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.fastapi import ClientDep
from flux_klein_async.journal.reader import JournalReader
from tests.pages import ROOT, shown

from .serving import AiohttpWeb, Asgi, post
from .test_web import CASES

PAGE = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
# The last is run as a test.
ON_FASTAPI, WITH_A_LIFESPAN, ON_AIOHTTP, AT_ONCE, WHEN_FULL, WITH_A_JOURNAL, _ = shown("docs/web.md")


def app_of(block):
    names = {"__name__": "an_app"}
    exec(compile(block, "docs/web.md", "exec"), names)
    return names


@pytest.fixture
async def service(monkeypatch):
    """The emulator, where the client of an app finds it by itself."""
    async with Emulator(profile="fixed:0.01") as emulator:
        monkeypatch.setenv("RUNCOMFY_API_TOKEN", emulator.api_key)
        monkeypatch.setenv("RUNCOMFY_MODEL_API_BASE", emulator.base_url)
        yield emulator


async def test_the_fastapi_app_serves(service):
    async with Asgi(app_of(ON_FASTAPI)["app"]) as server:
        assert ".png" in (await post(server, "/pictures"))[2]
        watched = (await post(server, "/pictures/events"))[2]
        request_id = json.loads(watched.split("data: ")[1].partition("\n")[0])["request_id"]
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as session:
            again = (await session.get(f"/requests/{request_id}/events")).text
        assert "event: result" in watched
        assert "event: result" in again
    assert service.accepted == 2


async def test_the_aiohttp_app_serves(service):
    async with AiohttpWeb(app_of(ON_AIOHTTP)["app"]) as server:
        assert ".png" in (await post(server, "/pictures"))[2]
        assert "event: result" in (await post(server, "/pictures/events"))[2]


async def test_the_app_that_answers_at_once_gives_the_picture_later(service):
    async with (
        AiohttpWeb(app_of(AT_ONCE)["app"]) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as session,
    ):
        ordered = await session.post("/orders", content="a snow leopard")
        assert ordered.status_code == 202
        while (answer := await session.get(f"/orders/{ordered.json()['id']}")).status_code != 200:
            assert answer.status_code == 202
        assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")


async def test_the_app_with_a_lifespan_of_its_own_has_both_states(service):
    async with app_of(WITH_A_LIFESPAN)["lifespan"](None) as state:
        assert len(state) == 2


async def test_a_visitor_who_cannot_be_served_in_time_is_told_at_once():
    names, client = app_of(WHEN_FULL), SimpleNamespace(generate=lambda _: asyncio.sleep(0, "a picture"))
    assert (await names["generate_or_refuse"](client, "a cat"), names["under_way"]) == ("a picture", 0)
    names["under_way"] = names["WAITING"]
    with pytest.raises(HTTPException) as refused:
        await names["generate_or_refuse"](client, "a cat")
    assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "5"})


async def test_an_app_with_a_journal_records_every_request_and_reuses_only_items(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = app_of(WITH_A_JOURNAL)["app"]

    @app.post("/pictures")
    async def create_twice(client: ClientDep) -> list[str]:
        return [(await client.generate("a cat")).request_id for _ in range(2)]

    @app.post("/items")
    async def create_items(client: ClientDep) -> list[bool]:
        return [(await client.generate_all(["a dog"]))[0].from_journal for _ in range(2)]

    async with Asgi(app) as server:
        twice = json.loads((await post(server, "/pictures"))[2])
        assert json.loads((await post(server, "/items"))[2]) == [False, True]
    assert service.accepted == 3
    with JournalReader(tmp_path / "requests.sqlite") as reader:
        requests = {request.request_id: request for request in reader.requests()}
    assert set(twice) < set(requests)
    assert {request.state for request in requests.values()} == {"completed"}
    assert not list(tmp_path.glob("*.lock"))  # the journal was closed with the app


def test_the_table_of_errors_is_what_is_sent():
    rows = re.findall(r"^\| (`\w+Error`.*?) \| (\d+).*? \| `(\w+)` \|$", PAGE, re.MULTILINE)
    listed = {name: (int(status), code) for names, status, code in rows for name in re.findall(r"`(\w+)`", names)}
    sent = {type(error).__name__: (status, code) for error, status, code, *_ in CASES if code != "upstream_error"}
    assert listed == sent
