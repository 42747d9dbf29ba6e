"""The engine behind HTTP, on a loopback port, down to the bytes."""

import asyncio
import gzip
import io
import re
import socket
import threading
from contextlib import suppress

import aiohttp
import pytest

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import (
    Cut,
    Drop,
    Emulator,
    Endless,
    Garbage,
    Hang,
    Pass,
    Refuse,
    Reply,
    Reset,
    Rewrite,
    Truncate,
    Unasked,
    fault,
    pictures,
)
from flux_klein_async.emulator import server as emulator_server
from flux_klein_async.emulator.server import encode_head, encode_response

from .helpers import SUBMIT


def split(data):
    top, _, body = data.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("body", "data", "content_type"),
    [
        (b"\x00", b"\x00", "application/octet-stream"),
        ("<p>é", "<p>é".encode(), "text/html; charset=utf-8"),
        ({"a": ["雪\u2028\ud800", 0.1]}, rb'{"a":["\u96ea\u2028\ud800",0.1]}', "application/json"),
        (None, b"null", "application/json"),
    ],
)
def test_a_body_decides_its_type(body, data, content_type):
    status, headers, sent = split(encode_response(200, {}, body, 0.0, keep=True))
    assert (status, sent) == ("HTTP/1.1 200 OK", data)
    assert headers == {
        "Content-Type": content_type,
        "Content-Length": str(len(data)),
        "Server": "flux-klein-emulator",
        "Date": "Thu, 01 Jan 1970 00:00:00 GMT",
    }


def test_given_headers_win():
    given = {"content-TYPE": "a/b", "Content-length": "7", "date": "never", "SERVER": "x"}
    _, headers, _ = split(encode_response(200, given, b"x", 0.0, keep=False))
    assert headers == {**given, "Connection": "close"}


@pytest.mark.parametrize(
    "head",
    [
        encode_head(200, {}, "a/b", None, 0.0, keep=True),
        encode_response(200, {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n", 0.0, keep=True),
    ],
)
def test_a_body_in_chunks_has_no_length(head):
    _, headers, _ = split(head)
    assert (headers["Transfer-Encoding"], "Content-Length" in headers) == ("chunked", False)


@pytest.mark.parametrize(
    ("status", "phrase", "body"),
    [
        (204, "No Content", b""),
        (304, "Not Modified", b""),
        (503, "Service Unavailable", b"{}"),
        (599, "Unknown", b"{}"),
    ],
)
def test_a_status_has_its_phrase_and_some_have_no_body(status, phrase, body):
    line, headers, sent = split(encode_response(status, {}, {}, 0.0, keep=True))
    assert (line, sent, headers["Content-Length"]) == (f"HTTP/1.1 {status} {phrase}", body, str(len(body)))


AUTH = {"Authorization": "Bearer emulator-token"}


async def fetch(session, method, url, **options):
    async with session.request(method, url, **options) as response:
        return response.status, await response.read()


def open_session(emulator):
    return aiohttp.ClientSession(emulator.base_url, headers=AUTH, timeout=aiohttp.ClientTimeout(10))


async def raw(emulator, request):
    """Send bytes to the port and return all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection(*emulator.base_url.removeprefix("http://").split(":"))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_pictures_are_drawn_on_another_thread_and_only_once(monkeypatch):
    threads = []

    def note(*_args, **_options):
        threads.append(threading.current_thread())
        return b"drawn"

    monkeypatch.setattr(pictures, "draw", note)
    async with Emulator(profile="fixed:0") as emulator, open_session(emulator) as session:
        async with session.post(SUBMIT, json={"prompt": "x"}) as response:
            request_id = (await response.json())["request_id"]
        got = [await fetch(session, "GET", f"/files/{request_id}.png") for _ in range(3)]
    assert got == [(200, b"drawn")] * 3
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_no_two_emulators_on_a_port_give_the_same_ids_whatever_their_seed():
    """Or the second would contradict the journal of the first."""
    ids = []
    for _ in range(2):
        async with Emulator(seed=7) as emulator, open_session(emulator) as session:
            for _ in range(2):
                async with session.post(SUBMIT, json={"prompt": "x"}) as response:
                    ids.append((await response.json())["request_id"])
                emulator.reset()
    assert len(set(ids)) == 4


async def test_a_video_is_hosted_too_and_can_come_byte_by_byte():
    script = {"file": [Rewrite(headers={"X-Odd": "yes"}, dribble=1e-9)]}
    async with Emulator(profile="fixed:0", script=script) as emulator, open_session(emulator) as session:
        async with session.post("/v1/models/emulator/any/text-to-video", json={}) as response:
            request_id = (await response.json())["request_id"]
        async with session.get(f"/files/{request_id}.mp4") as response:
            assert (response.content_type, response.headers["X-Odd"]) == ("video/mp4", "yes")
            assert (await response.read())[4:8] == b"ftyp"


GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_picture_of_its_own_is_edited_by_its_url():
    async with (
        Emulator(profile="fixed:0.05") as emulator,
        FluxKleinClient(emulator.api_key, base_url=emulator.base_url) as client,
    ):
        made = await client.generate("a", width=64, height=64)
        edit = {"prompt": "b", "image_urls": [made.image_url]}
        assert (await client.generate(edit, model="blackforestlabs/flux-2/dev/edit")).image_url != made.image_url


async def test_a_reset_resets_the_connection():
    async with Emulator(script={"models": [Reset()]}) as emulator:
        with pytest.raises(ConnectionResetError):
            await raw(emulator, GET)


async def test_garbage_is_sent_to_the_byte():
    async with Emulator(script={"models": [Garbage(b"\x00\r\nHTTP?")]}) as emulator:
        assert await raw(emulator, GET) == b"\x00\r\nHTTP?"


@pytest.mark.parametrize(
    ("answer", "status", "promised", "sent"),
    [
        (Truncate(b"abc", missing=4, headers={"X": "y"}), 200, 7, 3),
        (Cut(9), 401, 68, 9),
        (Reply(401, b" " * 100, cut=Cut(9)), 401, 100, 9),
    ],
)
async def test_a_body_breaks_off_before_its_promised_length(answer, status, promised, sent):
    async with Emulator(script={"models": [answer]}) as emulator:
        line, headers, body = split(await raw(emulator, GET))
    assert (line.split()[1], headers["Content-Length"], len(body)) == (str(status), str(promised), sent)


@pytest.mark.parametrize("reply", [Reply(body=b"x" * 5_000_000), Reply(body=b"abc", dribble=0.0)])
async def test_a_large_or_slow_answer_arrives_whole(reply):
    async with Emulator(script={"models": [reply]}) as emulator, open_session(emulator) as session:
        assert await fetch(session, "GET", "/v1/models") == (200, reply.body)


async def test_a_large_request_is_taken_and_a_huge_one_refused(monkeypatch):
    monkeypatch.setattr(emulator_server, "_MAX_BODY", 16_000_000)
    async with Emulator() as emulator, open_session(emulator) as session:
        large = io.BytesIO(b'{"prompt": "%s"}' % (b"x" * 3_000_000))
        assert (await fetch(session, "POST", SUBMIT, data=large))[0] == 200
        assert (await fetch(session, "POST", SUBMIT, data=io.BytesIO(b"x" * 17_000_000)))[0] == 413
        assert emulator.accepted == 1


async def test_a_client_that_expects_100_continue_gets_it():
    async with Emulator() as emulator, open_session(emulator) as session:
        assert (await fetch(session, "POST", SUBMIT, json={"prompt": "x"}, expect100=True))[0] == 200


async def heard(emulator, *exchanges):
    """On one connection, write some bytes and read until a mark has come so many times; return what came, each time."""
    reader, writer = await asyncio.open_connection(*emulator.base_url.removeprefix("http://").split(":"))
    pieces = []
    async with asyncio.timeout(10):
        for data, mark, count in exchanges:
            writer.write(data)
            pieces.append(b"")
            while pieces[-1].count(mark) < count:
                pieces[-1] += await reader.read(2**20)
    writer.close()
    await writer.wait_closed()
    return pieces


def statuses(pieces):
    return [re.findall(rb"HTTP/1.1 ([0-9]+)", piece) for piece in pieces]


STALE = Reply(429, b"stale")


@pytest.mark.parametrize(
    ("unasked", "mark", "got"),
    [
        (Unasked(STALE), (b"stale", 1), [b"401", b"429"]),
        (Unasked(STALE, after=0.02), (b"stale", 1), [b"401", b"429"]),
        (Unasked(), (b"token", 2), [b"401", b"401"]),
    ],
)
async def test_an_answer_that_nobody_asked_for_follows_on_an_idle_connection(unasked, mark, got):
    async with Emulator(script={"models": [unasked, Reply(418, b"teapot")]}) as emulator:
        pieces = await heard(emulator, (GET, *mark), (GET, b"teapot", 1))
        assert (statuses(pieces), len(emulator.records)) == ([got, [b"418"]], 2)


async def test_an_answer_that_nobody_asked_for_can_come_with_the_head_of_the_next_request():
    body = b'{"prompt": "x"}'
    lines = f"POST {SUBMIT} HTTP/1.1", f"Authorization: {AUTH['Authorization']}", f"Content-Length: {len(body)}"
    head = "\r\n".join([*lines, "Host: x", "", ""]).encode()
    async with Emulator(script={"models": [Unasked(STALE, with_head=True)] * 2}) as emulator:
        await heard(emulator, (GET, b"token", 1))
        pieces = await heard(emulator, (GET, b"token", 1), (head, b"stale", 1), (body, b"request_id", 1))
        assert (statuses(pieces), emulator.accepted) == ([[b"401"], [b"429"], [b"200"]], 1)


@pytest.mark.parametrize(
    ("name", "mark", "count", "start"),
    [
        ("only-1xx", b"HTTP/1.1 102 Processing\r\n\r\n", 2, b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 102"),
        ("slow-extension", b"\r\n\r\n2;x=xx", 1, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"),
        ("slow-head", b"HT", 1, b"HT"),
    ],
)
async def test_an_answer_can_go_on_without_getting_anywhere(name, mark, count, start):
    async with Emulator(script={"models": [fault(name)]}) as emulator:
        [data] = await heard(emulator, (GET, mark, count))
    assert data.startswith(start)
    assert b"\r\n0\r\n" not in data


async def test_a_head_can_come_byte_by_byte_and_its_body_at_once():
    script = {"models": [Reply(401, b"abc", head_dribble=1e-4), Reply(401, b"abc", head_dribble=0.0, dribble=0.0)]}
    async with Emulator(script=script) as emulator, open_session(emulator) as session:
        assert [await fetch(session, "GET", "/v1/models") for _ in range(2)] == [(401, b"abc")] * 2


@pytest.mark.parametrize(("accepts", "packed"), [("gzip, deflate", True), ("identity", False)])
async def test_a_compressed_body_has_zeros_behind_it_for_a_client_that_accepts_it(accepts, packed):
    async with Emulator(script={"models": [Rewrite(gzip=512)]}) as emulator:
        get = GET.replace(b"Host: x", f"Host: x\r\nAccept-Encoding: {accepts}\r\nConnection: close".encode())
        _, headers, body = split(await raw(emulator, get))
    assert ("Content-Encoding" in headers) is packed
    assert len(body) == int(headers["Content-Length"])
    if packed:
        assert body.endswith(bytes(512))
    assert b"token" in (gzip.decompress(body) if packed else body)


@pytest.mark.parametrize(("name", "size"), [("header-9k", 9_000), ("header-60k", 60_000)])
async def test_a_header_can_be_large(name, size):
    async with Emulator(script={"models": [fault(name)]}) as emulator:
        _, headers, _ = split(await raw(emulator, GET.replace(b"Host: x", b"Host: x\r\nConnection: close")))
    assert len(headers["X-Noise"]) == size


async def test_signed_addresses_reach_the_service_as_they_are():
    async with Emulator(profile="fixed:0", script={"submit": [fault("signed-redirect")]}) as emulator:
        async with open_session(emulator) as session:
            async with session.post(SUBMIT, json={"prompt": "x", "width": 64, "height": 64}) as response:
                path = f"/v1/requests/{(await response.json())['request_id']}/result"
            async with session.get(path) as response:
                url = (await response.json())["output"]["image"]
        statuses = [
            (await raw(emulator, f"GET {target} HTTP/1.0\r\n\r\n".encode()))[9:12]
            for address in (url, url.replace("/moved/", "/signed/"))
            for target in (address.removeprefix(emulator.base_url), address.replace("%7E", "~"))
        ]
    assert statuses == [b"302", b"403", b"200", b"403"]


async def test_a_sound_is_hosted_too():
    async with Emulator(profile="fixed:0") as emulator, open_session(emulator) as session:
        async with session.post("/v1/models/emulator/voice/text-to-speech", json={"prompt": "x"}) as response:
            request_id = (await response.json())["request_id"]
        async with session.get(f"/files/{request_id}.wav") as response:
            assert (response.content_type, (await response.read())[8:12]) == ("audio/wav", b"WAVE")


@pytest.mark.parametrize("line", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
async def test_a_connection_is_closed_when_the_client_wants_that(line):
    async with Emulator() as emulator:
        data = await raw(emulator, b"GET /v1/models " + line + b"Host: x\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in data


@pytest.mark.parametrize(
    "answer", [Hang(), Cut(5, silent=True), Pass(3600.0), Reply(body=b"ab", dribble=3600.0), Endless()]
)
async def test_closing_does_not_wait_for_handlers(answer):
    async with asyncio.timeout(10):
        async with Emulator(script={"models": [answer]}) as emulator:
            session = open_session(emulator)
            call = asyncio.create_task(fetch(session, "GET", "/v1/models"))
            while not emulator.records:  # noqa: ASYNC110  # the kernel has no event for us
                await asyncio.sleep(0)
        assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], aiohttp.ClientError)
        await session.close()


async def test_a_connection_that_comes_as_it_closes_is_closed_too():
    """In whichever turn of the loop: the kernel has it, or asyncio is about to make it."""
    loop = asyncio.get_running_loop()
    for turns in range(6):
        async with Emulator() as emulator:
            address = ("127.0.0.1", int(emulator.base_url.rpartition(":")[2]))
            client = socket.create_connection(address)
            for _ in range(turns):
                await asyncio.sleep(0)
        with client, suppress(ConnectionResetError):
            client.setblocking(False)
            async with asyncio.timeout(10):
                assert await loop.sock_recv(client, 1) == b"", turns


async def test_a_port_is_taken_until_the_emulator_is_closed_and_an_emulator_can_be_opened_again():
    emulator = Emulator()
    await emulator.__aexit__()
    async with emulator:
        port = int(emulator.base_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await Emulator(port=port).__aenter__()
    async with Emulator(port=port) as again, emulator, open_session(emulator) as session:
        assert again.base_url == f"http://127.0.0.1:{port}" != emulator.base_url
        assert (await fetch(session, "GET", "/v1/models"))[0] == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_an_ipv6_address_is_bracketed():
    async with Emulator(host="::1") as emulator, open_session(emulator) as session:
        assert emulator.base_url.startswith("http://[::1]:")
        assert (await fetch(session, "GET", "/v1/models"))[0] == 200


async def test_a_connection_to_a_port_can_be_dropped():
    async with Emulator(script={"connect": [None, Drop()]}) as emulator:
        statuses = []
        for _ in range(2):
            async with open_session(emulator) as session:
                try:
                    statuses.append((await fetch(session, "POST", SUBMIT, data=b"{}"))[0])
                except aiohttp.ClientConnectionError:
                    statuses.append("dropped")
        assert (statuses, emulator.accepted, emulator.calls["connect"]) == ([422, "dropped"], 0, 2)


def test_only_a_drop_can_be_scripted_for_connections_to_a_port():
    emulator = Emulator()
    for attempt in (
        lambda: Emulator(script={"connect": [Refuse()]}),
        lambda: emulator.script("connect", Refuse()),
        lambda: emulator.fault("connect", Drop(), Refuse(), probability=1),
    ):
        with pytest.raises(ValueError, match="use InProcessEmulator"):
            attempt()


async def test_a_call_to_a_port_travels_half_the_round_trip_each_way():
    async with Emulator(profile="fixed:0", round_trip=0.02) as emulator, open_session(emulator) as session:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        assert (await fetch(session, "GET", "/v1/models"))[0] == 200
        [record] = emulator.records
        half = 0.01 - 0.001  # uvloop's clock counts whole milliseconds
        assert record.at - begun >= half
        assert loop.time() - record.at >= half


def test_an_emulator_that_was_not_entered_says_so_where_its_address_is_asked_for():
    with pytest.raises(RuntimeError, match="use it inside `async with Emulator"):
        repr(Emulator().base_url)
