"""The apps of the page on web backends serve, and its table of answers is true."""

import json
import re

import httpx
import pytest

from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.fastapi import Klein
from flux_klein_async.journal.reader import JournalReader
from tests.pages import ROOT, shown

from .serving import AiohttpWeb, Asgi
from .test_aiohttp_web import post as post_text
from .test_fastapi import post
from .test_web import CASES

PAGE = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
ON_FASTAPI, WITH_A_LIFESPAN, ON_AIOHTTP, WITH_A_JOURNAL, _ = shown(
    "docs/web.md"
)  # the last is a test, and run as such with all pages


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
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as visitor:
            again = (await visitor.get(f"/requests/{request_id}/events")).text
        assert "event: result" in watched
        assert "event: result" in again
    assert service.accepted == 2


async def test_the_app_with_a_lifespan_of_its_own_has_both_states(service):
    async with app_of(WITH_A_LIFESPAN)["lifespan"](None) as state:
        assert len(state) == 2


async def test_an_app_with_a_journal_writes_each_order_down_and_makes_each_anew(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = app_of(WITH_A_JOURNAL)["app"]

    @app.post("/pictures")
    async def picture(klein: Klein) -> list[str]:
        return [(await klein.generate("a cat")).request_id for _ in range(2)]

    @app.post("/recalled")
    async def recalled(klein: Klein) -> list[bool]:
        return [(await klein.generate_all(["a dog"]))[0].from_journal for _ in range(2)]

    async with Asgi(app) as server:
        twice = json.loads((await post(server, "/pictures"))[2])
        assert json.loads((await post(server, "/recalled"))[2]) == [False, True]
    assert service.accepted == 3
    with JournalReader(tmp_path / "orders.sqlite") as reader:
        orders = {order.request_id: order for order in reader.requests()}
    assert set(twice) < set(orders)
    assert {order.state for order in orders.values()} == {"completed"}


async def test_a_journal_is_closed_with_its_app(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with app_of(WITH_A_JOURNAL)["lifespan"](None) as state:
        client = state["flux_klein_client"]
        await client.generate("a cat")
    assert not list(tmp_path.glob("*.lock"))


async def test_the_aiohttp_app_serves(service):
    async with AiohttpWeb(app_of(ON_AIOHTTP)["app"]) as server:
        assert ".png" in (await post_text(server, "/pictures"))[2]
        assert "event: result" in (await post_text(server, "/pictures/events"))[2]


def test_the_table_of_answers_is_what_is_answered():
    rows = re.findall(r"^\| (`\w+Error`.*?) \| (\d+).*? \| `(\w+)` \|$", PAGE, re.MULTILINE)
    told = {name: (int(status), word) for names, status, word in rows for name in re.findall(r"`(\w+)`", names)}
    answered = {}
    for error, status, word, *_ in CASES:
        if word != "upstream_error":
            answered[type(error).__name__] = (status, word)
    assert told == answered
