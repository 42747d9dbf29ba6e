"""The client as a whole: one loop, one session, one token, and a clean end."""

import asyncio
import gc
import gzip
import logging
import pickle
import re
from collections import Counter
from functools import partial
from typing import Any, ClassVar

import aiohttp
import pytest

from flux_klein_async import (
    KLEIN_4B_TEXT_TO_IMAGE,
    ConfigurationError,
    FixedPolling,
    FluxKleinClient,
    GenerationResult,
    InputRejectedError,
    InvalidInputError,
    Limits,
    NotFoundError,
    RequestState,
    TextToImage9BInput,
)
from flux_klein_async.api.messages import Kind
from flux_klein_async.emulator import Garbage, Generation, InProcessEmulator, Reply, error_reply
from flux_klein_async.events import Failed
from flux_klein_async.integrations.logging import LogEvents
from flux_klein_async.transport.throttle import InProcessLimiter
from tests.fakes import Events, now, outcome, png, settle

# --- the verbs


async def test_every_verb_of_the_service_works(klein_emulator, klein_client):
    handle = await klein_client.submit("a snow leopard at dawn", width=640, height=384)
    assert (await klein_client.status(handle)).state is RequestState.IN_PROGRESS
    result = await handle.wait_for_result()
    assert (await klein_client.result(handle.request_id)).output == result.output
    assert (await handle.result()).request_id == handle.request_id
    assert (await handle.status()).state is RequestState.COMPLETED
    assert (await handle.cancel()).cancelled is False
    info = await klein_client.get_model()
    assert (info.model_id, info.base_price_usd) == ("blackforestlabs/flux-2-klein/4b/text-to-image", 0.01)
    [picture] = await klein_client.download_bytes(result)
    assert picture.startswith(b"\x89PNG")
    submit = klein_emulator.records[0]
    assert submit.body == b'{"prompt":"a snow leopard at dawn","width":640,"height":384}'
    assert submit.headers["authorization"] == f"Bearer {klein_emulator.api_key}"
    assert submit.headers["content-type"] == "application/json"
    assert submit.headers["user-agent"].startswith("flux_klein_async/")
    assert repr(handle) == f"RequestHandle({handle.request_id!r})"


@pytest.mark.parametrize("verb", ["generate", "submit", "wait_for_result"])
async def test_an_error_is_told_with_the_verb_that_it_leaves(klein_emulator, connect, verb):
    events = Events()
    client = connect(on_event=events)
    klein_emulator.script("submit", error_reply(422, 422001))
    klein_emulator.script("status", *10 * [error_reply(404, 404001)])
    error = await outcome(getattr(client, verb)("a-cat"))
    [told] = events.of(Failed)
    assert (told.verb, told.error_type, told.request_id) == (verb, type(error).__name__, error.request_id)
    assert told.model == (None if verb == "wait_for_result" else client._model)


async def test_a_queued_request_can_be_cancelled(connect):
    async with InProcessEmulator(workers=0) as idle:
        client = connect(idle.api_key, session=idle.session())
        handle = await client.submit("a cat")
        assert (await handle.status()).queue_position is not None
        assert (await handle.cancel()).cancelled is True
        assert (await client.status(handle)).state is RequestState.CANCELLED


async def test_a_request_of_another_process_is_taken_up_by_its_id(klein_emulator, connect):
    handle = await connect().submit("a cat")
    result = await connect().handle(handle.request_id).wait_for_result()
    assert result.request_id == handle.request_id
    assert (result.timings.submit, result.timings.queued) == (None, None)


async def test_other_models_take_a_mapping_and_typed_input_names_its_own_model(klein_emulator, connect):
    client = connect()
    typed = await client.generate(TextToImage9BInput(prompt="a cat", steps=8))
    video = await client.generate({"prompt": "waves"}, model="emulator/any/text-to-video")
    paths = [record.path for record in klein_emulator.records if record.endpoint == "submit"]
    assert paths == [
        "/v1/models/blackforestlabs/flux-2-klein/9b/text-to-image",
        "/v1/models/emulator/any/text-to-video",
    ]
    assert typed.image_url
    assert video.output.video


@pytest.mark.parametrize("verb", ["status", "result", "cancel", "wait_for_result", "handle", "updates"])
@pytest.mark.parametrize("request_id", ["", "../x", "a/b", "a?b", "x" * 129, "ä", None, 7])
async def test_an_id_that_could_lead_elsewhere_is_refused_before_anything_is_sent(
    klein_emulator, klein_client, verb, request_id
):
    with pytest.raises(InvalidInputError):
        made = getattr(klein_client, verb)(request_id)
        await made
    assert sum(klein_emulator.calls.values()) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"timeout": "5"},
        {"timeout": True},
        {"timeout": float("nan")},
        {"on_abandon": "forget"},
        {"width": 63},
        {"height": 2049},
        {"width": 512.5},
        {"width": True},
        {"width": "512"},
        {"model": "../x"},
        *[{"input": prompt} for prompt in ("", " \n", "\ud800", b"bytes", 7, None, ["a"])],
    ],
    ids=ascii,
)
async def test_bad_options_and_inputs_are_refused_before_anything_is_sent(klein_emulator, klein_client, options):
    with pytest.raises(InvalidInputError):
        await klein_client.generate(**{"input": "a cat", **options})
    assert sum(klein_emulator.calls.values()) == 0


async def test_a_cancel_goes_through_a_hold_on_reads(klein_emulator, connect):
    client = connect(timeout=60)
    handle = await client.submit("a cat")
    klein_emulator.script("status", error_reply(429, retry_after=30))
    polling = asyncio.ensure_future(client.status(handle))
    await settle()
    await client.cancel(handle)
    assert now() == 0.0
    await polling
    assert now() == 30.0


@pytest.mark.parametrize("name", ["limits", "polling", "retry", "journal", "budget", "on_event"])
@pytest.mark.parametrize("part", [0.5, object(), "status"], ids=["number", "object", "text"])
def test_a_part_that_cannot_do_its_work_is_refused_before_anything_is_paid_for(name, part):
    with pytest.raises(ConfigurationError, match=name):
        FluxKleinClient("some-token", **{name: part})


@pytest.mark.parametrize("poll_endpoint", ["stars", [], None, 5])
def test_polling_anything_else_is_refused(poll_endpoint):
    with pytest.raises(ConfigurationError, match="poll_endpoint"):
        FluxKleinClient("some-token", poll_endpoint=poll_endpoint)


async def test_a_model_that_does_not_exist_is_not_found(klein_client):
    near = KLEIN_4B_TEXT_TO_IMAGE.removesuffix("age")
    for call, model in ((klein_client.get_model, near), (partial(klein_client.generate, "a cat"), near + "s")):
        error = await outcome(call(model=model))
        assert (type(error), error.charged) == (NotFoundError, "no")
        said = f"Unknown model {model!r}; client.list_models() lists them; did you mean {KLEIN_4B_TEXT_TO_IMAGE!r}?"
        assert str(error).endswith(said)
    error = await outcome(klein_client.get_model("blackforestlabs/flux-2/dev/text-to-img"))
    assert str(error).endswith("; client.list_models() lists them")
    assert "list_models" not in str(await outcome(klein_client.status("no-such-request")))


async def test_a_limiter_of_the_applications_own_is_asked(klein_emulator, connect):
    class Counting(InProcessLimiter):
        slots = 0
        turns: ClassVar = Counter[Kind]()

        async def acquire(self) -> None:
            Counting.slots += 1
            await super().acquire()

        async def turn(self, kind: Kind, price: float = 1.0) -> None:
            Counting.turns[kind] += 1
            await super().turn(kind, price)

    result = await connect(limits=Counting(Limits())).generate("a cat")
    assert (Counting.slots, Counting.turns) == (1, {Kind.SUBMIT: 1, Kind.READ: result.timings.polls})


@pytest.mark.parametrize("answer", [None, error_reply(422)])
async def test_a_slot_is_given_back_whatever_the_end(klein_emulator, connect, answer):
    client = connect(limits=Limits(max_in_flight=1))
    for _ in range(3):
        klein_emulator.script("submit", answer)
        await outcome(client.generate("a cat"))
        klein_emulator.script("submit", answer)
        await client.generate_all(["a", "b"])
    assert now() < 10


# --- one token, one origin


@pytest.mark.parametrize(
    "base_url", ["http://example.com", "ftp://example.com", "https://u:p@example.com", "example.com", "https://"]
)
def test_a_bad_base_url_is_refused_at_once(base_url):
    with pytest.raises(ConfigurationError):
        FluxKleinClient("some-token", base_url=base_url)


def test_plain_http_is_possible_when_asked_for():
    assert "example.com" in repr(FluxKleinClient("some-token", base_url="http://example.com", allow_insecure=True))


def test_without_a_token_the_ways_to_give_one_are_named():
    with pytest.raises(ConfigurationError, match=r"RUNCOMFY_API_TOKEN.*emulator"):
        FluxKleinClient()


def test_token_and_base_url_are_found_in_the_environment(monkeypatch):
    monkeypatch.setenv("RUNCOMFY_TOKEN", "from-the-environment")
    monkeypatch.setenv("RUNCOMFY_MODEL_API_BASE", "http://127.0.0.1:9/v1")
    assert "http://127.0.0.1:9 " in repr(FluxKleinClient())


TOKEN = "tok/en+very-secret-0123456789"
ECHO = {"error_message": f"who is Bearer {TOKEN}?", "echo": [TOKEN]}
LEAKY = [
    Reply(401, ECHO),
    Reply(500, ECHO, {"X-Echo": TOKEN}),
    Reply(500, ECHO["error_message"].replace("/", "\\/")),
    Reply(200, {"request_id": "x", "status": "failed", "error": TOKEN, "echo": TOKEN}),
    Reply(200, f"<html>{TOKEN}</html>"),
    Reply(302, TOKEN, {"Location": f"https://evil.example/?{TOKEN}"}),
    Garbage(f"HTTP/1.1 200 {TOKEN}\x00\r\nX: {TOKEN}\r\n{TOKEN}\r\n\r\n".encode()),
    Garbage(f"{TOKEN} {TOKEN} {TOKEN}\r\n\r\n".encode()),
]


def facets(error: BaseException) -> list[str]:
    """Everything of an error, its causes and its contexts that could be printed."""
    found, queue, seen = [], [error], set()
    while queue:
        current = queue.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        found += [str(current), repr(current), repr(current.args), repr(vars(current)), repr(pickle.dumps(current))]
        queue += [linked for linked in (current.__cause__, current.__context__) if linked is not None]
    return found


@pytest.mark.parametrize("answer", LEAKY)
@pytest.mark.parametrize("endpoint", ["submit", "status", "result", "cancel", "model", "file"])
@pytest.mark.usefixtures("klein_emulator")  # for its virtual time
async def test_the_token_is_in_no_error_event_or_log(endpoint, answer, caplog):
    emulator, events = InProcessEmulator(api_key=TOKEN), Events()
    emulator.script(endpoint, *[answer] * 3)
    shown: list[str] = []
    with caplog.at_level(logging.DEBUG):
        client = FluxKleinClient(TOKEN, base_url=emulator.base_url, session=emulator.session(), on_event=events)
        async with emulator, client:
            for attempt in (
                client.generate("a cat", width=64, height=64, timeout=5),
                client.status("some-id"),
                client.result("some-id"),
                client.cancel("some-id"),
                client.get_model(),
            ):
                found = await outcome(attempt)
                if isinstance(found, GenerationResult):
                    shown.append(repr(found) + repr(found.raw))
                    found = await outcome(client.download_bytes(found))
                    found = found if isinstance(found, BaseException) else "a file's bytes are the user's own"
                shown += facets(found) if isinstance(found, BaseException) else [repr(found)]
            shown += [repr(client), repr(vars(client)), repr(events)]
    shown += [record.getMessage() + str(record.exc_info) + str(record.exc_text) for record in caplog.records]
    for text in shown:
        assert TOKEN not in text
        assert TOKEN.replace("/", "\\/") not in text


FORGED = "no\r\nERROR forged\x1b[2J\x9b31m\u2028\u202e"


@pytest.mark.parametrize("answer", [Reply(500, {"message": FORGED}), Reply(200, FORGED), Reply(200, {"x": FORGED})])
async def test_no_record_of_the_log_holds_a_strangers_text_as_it_is(klein_emulator, connect, caplog, answer):
    caplog.set_level(logging.DEBUG, "flux_klein_async")
    client = connect(on_event=LogEvents(), polling=FixedPolling(1), timeout=5, poll_endpoint="result")
    klein_emulator.script("submit", answer)
    klein_emulator.script("status", *[Reply(200, {"status": FORGED})] * 9)
    klein_emulator.fault("cancel", answer, probability=1)
    for call in (client.generate("a cat"), client.generate("a dog", timeout=3), client.wait_for_result("some-id")):
        await outcome(call)
    await client.aclose()
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("flux_klein_async")]
    assert any("forged" in message for message in messages)
    for message in messages:
        assert not set(message) & set("\r\n\x1b\x9b\u2028\u202e"), message


async def test_the_token_goes_to_the_apis_origin_alone(klein_emulator, connect):
    own, foreign = "https://emulator.invalid", "https://files.runcomfy.net/files/a.png"
    picture = Reply(200, png())
    klein_emulator.script("submit", Generation(output={"images": [foreign, f"{own}/files/x.png"]}))
    klein_emulator.script(
        "file", Reply(302, "", {"Location": "https://other.runcomfy.com/files/b.png"}), picture, picture
    )
    client = connect()
    result = await client.generate("a cat")
    await client.download_bytes(result)
    hosts = [(record.headers["host"], "authorization" in record.headers) for record in klein_emulator.records]
    assert [entry for entry in hosts if not entry[1]] == [
        ("files.runcomfy.net", False),
        ("other.runcomfy.com", False),
        ("emulator.invalid", False),
    ]
    assert {host for host, token in hosts if token} == {"emulator.invalid"}


async def test_a_file_host_sees_nothing_of_a_borrowed_session(klein_emulator, connect):
    jar = aiohttp.CookieJar(unsafe=True)
    jar.update_cookies({"session": "mine"})
    client = connect(session=klein_emulator.session(headers={"X-Mine": "1"}, cookie_jar=jar))
    await client.download_bytes(await client.generate("a cat", width=64, height=64))
    api, *_, file = klein_emulator.records
    assert (api.headers.get("x-mine"), api.headers.get("cookie")) == ("1", "session=mine")
    assert (file.endpoint, file.headers.get("x-mine"), file.headers.get("cookie")) == ("file", None, None)


# --- one loop, one session


def test_the_session_is_made_lazily_and_from_any_place():
    client = FluxKleinClient("some-token")  # outside of any loop
    del client
    gc.collect()  # nothing was opened: nothing to warn of


async def test_a_borrowed_session_is_never_closed(klein_emulator, connect):
    session = klein_emulator.session()
    async with connect(session=session) as client:
        result = await client.generate("a cat")
        await client.download_bytes(result)
    assert not session.closed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_session_that_is_closed_or_foreign_or_has_credentials_is_refused(klein_emulator, connect):
    closed = klein_emulator.session()
    await closed.close()
    credentials = [
        {"headers": {"Authorization": "Bearer mine"}},
        {"headers": {"authorization": "Basic eA=="}},
        {"auth": aiohttp.BasicAuth("me", "secret")},
    ]
    for unusable in (closed, object(), *[klein_emulator.session(**options) for options in credentials]):
        with pytest.raises(ConfigurationError):
            connect(session=unusable)


async def test_a_session_of_other_habits_is_used_as_ours_would_be(klein_emulator, connect):
    session = klein_emulator.session(raise_for_status=True, auto_decompress=False)
    client = connect(session=session)
    packed = gzip.compress(b'{"error_code": 422001, "error_message": "no"}')
    klein_emulator.script("submit", Reply(422, packed, {"Content-Encoding": "gzip"}))
    error = await outcome(client.submit("a cat"))
    assert (type(error), error.detail) == (InputRejectedError, "no")


async def test_a_session_closed_under_the_client_is_a_configuration_error(klein_emulator, connect):
    session = klein_emulator.session()
    client = connect(session=session)
    await session.close()
    error = await outcome(client.generate("a cat"))
    assert (type(error), error.charged) == (ConfigurationError, "no")


def test_use_from_another_loop_is_a_clear_error():
    emulator = InProcessEmulator()
    client: Any = None

    async def first() -> None:
        nonlocal client
        client = FluxKleinClient("emulator-token", base_url=emulator.base_url, session=emulator.session())
        await client.get_model()

    async def second() -> None:
        with pytest.raises(ConfigurationError, match="another event loop"):
            await client.get_model()
        with pytest.raises(ConfigurationError, match="another event loop"):
            await client.aclose()

    async def last() -> None:
        await client.aclose()
        await emulator.aclose()

    with asyncio.Runner() as runner:
        runner.run(first())
        asyncio.run(second())
        runner.run(last())


async def test_a_client_dropped_unclosed_gives_one_warning_that_names_it(klein_emulator):
    client = FluxKleinClient(klein_emulator.api_key, base_url=klein_emulator.base_url, session=klein_emulator.session())
    await client.download_bytes(await client.generate("a cat"))
    with pytest.warns(ResourceWarning) as caught:
        del client
        gc.collect()
    assert [re.findall("FluxKleinClient", str(warning.message)) for warning in caught] == [["FluxKleinClient"]]


async def test_an_unclosed_client_of_its_own_session_gives_one_warning(live_emulator):
    client = FluxKleinClient(live_emulator.api_key, base_url=live_emulator.base_url)
    await client.get_model()
    with pytest.warns(ResourceWarning) as caught:
        del client
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()
    assert ["FluxKleinClient" in str(warning.message) for warning in caught] == [True]


async def test_a_message_of_any_length_makes_a_short_error_and_small_events(klein_emulator, connect):
    events = Events()
    client = connect(on_event=events, polling=FixedPolling(1), timeout=3)
    klein_emulator.script("status", *[Reply(500, {"message": "x" * 5_000_000})] * 3)
    error = await outcome(client.wait_for_result("some-id"))
    assert len(str(error)) < 3000
    assert max(len(repr(event)) for event in events) < 3000


# --- events


async def test_a_handler_that_raises_is_logged_and_ignored(klein_emulator, connect, caplog):
    def on_event(_event: object) -> None:
        raise ValueError("mine")

    result = await connect(on_event=on_event).generate("a cat")
    assert result.image_url
    assert {record.getMessage() for record in caplog.records} == {"on_event raised; ignored"}
