"""The emulator without sockets: pipes that behave like TCP, and a real aiohttp session in virtual time."""

import asyncio
import gc
import warnings

import aiohttp
import pytest
import pytest_asyncio

from flux_klein_async.emulator import (
    Drop,
    Endless,
    Garbage,
    Generation,
    Hang,
    InProcessEmulator,
    Pass,
    Refuse,
    Reply,
    Reset,
    Truncate,
    VirtualTimeLoop,
)
from flux_klein_async.emulator.inprocess import join

from .helpers import SUBMIT, run

AUTH = {"Authorization": "Bearer emulator-token"}
LOST, RESET = ("lost", type(None)), ("lost", ConnectionResetError)


def clock():
    return asyncio.get_running_loop().time()


class Listener(asyncio.Protocol):
    """Writes down what happens to it, and when."""

    def __init__(self):
        self.log = []
        self.keep_open = False

    def _note(self, *event):
        self.log.append((clock(), *event))

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self._note(data)

    def eof_received(self):
        self._note("eof")
        return self.keep_open

    def pause_writing(self):
        self._note("pause")

    def resume_writing(self):
        self._note("resume")

    def connection_lost(self, exc):
        self._note("lost", type(exc))


@pytest.fixture
def connect(klein_emulator):
    """Connects two listeners; the emulator's fixture makes time virtual."""

    def connect(latency=0.0):
        near, far = Listener(), Listener()
        join(asyncio.get_running_loop(), near, far, latency=latency, server_address=("host", 443))
        return near, far, near.transport, far.transport

    return connect


@pytest.mark.parametrize("latency", [0.0, 0.25])
async def test_bytes_arrive_in_order_after_the_latency(connect, latency):
    near, far, client, server = connect(latency)
    for letter in (b"a", b"b", b"c", b""):
        client.write(letter)
    await asyncio.sleep(0.1)
    client.writelines([b"d", bytearray(b"e"), memoryview(b"f")])
    server.write(b"z")
    await asyncio.sleep(1)
    assert near.log == [(0.1 + latency, b"z")]
    assert far.log == [(latency, b"a"), (latency, b"b"), (latency, b"c"), (0.1 + latency, b"def")]


async def test_both_ends_know_their_addresses(connect):
    _, _, client, server = connect()
    assert client.get_extra_info("peername") == server.get_extra_info("sockname") == ("host", 443)
    assert client.get_extra_info("sockname") == server.get_extra_info("peername") == ("127.0.0.1", 0)


@pytest.mark.parametrize("latency", [0.0, 0.25])
async def test_a_close_is_seen_after_the_bytes(connect, latency):
    near, far, client, server = connect(latency)
    client.write(b"last")
    client.close()
    client.close()
    client.write(b"late")
    assert (client.is_closing(), server.is_closing()) == (True, False)
    await asyncio.sleep(1)
    assert near.log == [(0.0, *LOST)]
    assert far.log == [(latency, b"last"), (latency, "eof"), (latency, *LOST)]


async def test_a_protocol_may_keep_its_half_open(connect):
    _, far, client, server = connect()
    far.keep_open = True
    client.close()
    await asyncio.sleep(1)
    server.close()
    await asyncio.sleep(0)
    assert far.log == [(0.0, "eof"), (1.0, *LOST)]


@pytest.mark.parametrize("latency", [0.0, 0.25])
async def test_an_abort_loses_what_is_under_way(connect, latency):
    near, far, client, _ = connect(latency)
    client.write(b"lost")
    client.abort()
    client.abort()
    await asyncio.sleep(1)
    assert (near.log, far.log) == ([(0.0, *LOST)], [(latency, *RESET)])


async def test_an_abort_reaches_a_reader_that_has_paused(connect):
    _, far, client, server = connect()
    server.pause_reading()
    client.write(b"unread")
    await asyncio.sleep(1)
    client.abort()
    await asyncio.sleep(1)
    assert far.log == [(1.0, *RESET)]


async def test_a_paused_reader_gets_its_bytes_and_the_close_later(connect):
    _, far, client, server = connect()
    server.pause_reading()
    client.write(b"one")
    client.write(b"two")
    client.close()
    await asyncio.sleep(1)
    server.resume_reading()
    server.resume_reading()
    await asyncio.sleep(1)
    assert far.log == [(1.0, b"one"), (1.0, b"two"), (1.0, "eof"), (1.0, *LOST)]


async def test_a_reader_may_pause_in_the_middle(connect):
    _, far, client, server = connect()

    def receive_one(data):
        Listener.data_received(far, data)
        server.pause_reading()

    far.data_received = receive_one
    server.pause_reading()
    server.resume_reading()  # with nothing kept back
    client.write(b"one")
    client.write(b"two")
    await asyncio.sleep(1)
    server.resume_reading()
    await asyncio.sleep(1)
    assert far.log == [(0.0, b"one"), (1.0, b"two")]


async def test_a_full_window_pauses_the_writer_until_the_reader_has_read(connect):
    near, _, client, server = connect()
    server.pause_reading()
    for data in (b"x" * 65_536, b"y", b"z"):
        client.write(data)
    await asyncio.sleep(1)
    assert client.get_write_buffer_size() == 65_538
    server.resume_reading()
    await asyncio.sleep(1)
    assert (near.log, client.get_write_buffer_size()) == ([(0.0, "pause"), (1.0, "resume")], 0)


async def test_a_paused_writer_learns_of_the_readers_end(connect):
    near, _, client, server = connect()
    server.pause_reading()
    client.write(b"x" * 70_000)
    await asyncio.sleep(1)
    server.close()
    await asyncio.sleep(1)
    assert near.log == [(0.0, "pause"), (1.0, "eof"), (1.0, *LOST)]


async def test_writing_to_a_closed_end_is_answered_with_a_reset(connect):
    near, _, client, server = connect()
    client.pause_reading()
    server.close()
    await asyncio.sleep(1)
    client.write(b"late")
    await asyncio.sleep(1)
    assert near.log == [(1.0, *RESET)]


async def test_bytes_that_cross_a_close_are_lost(connect):
    near, far, client, server = connect(0.5)
    client.close()
    server.write(b"crossing")
    await asyncio.sleep(1)
    assert (near.log, far.log) == ([(0.0, *LOST)], [(0.5, "eof"), (0.5, *LOST)])


@pytest_asyncio.fixture
async def session(klein_emulator):
    timeout = aiohttp.ClientTimeout(60)
    return klein_emulator.session(headers=AUTH, base_url=klein_emulator.base_url, timeout=timeout)


async def fetch(session, method, url, **options):
    async with session.request(method, url, **options) as response:
        return response.status, await response.read()


async def submit(session):
    async with session.post(SUBMIT, json={"prompt": "a snow leopard", "width": 64, "height": 64}) as response:
        return (await response.json())["request_id"]


async def test_a_generation_runs_in_virtual_time(klein_emulator, session):
    klein_emulator.script("submit", Generation(after=2.0))
    request_id, seen = await submit(session), []
    for _ in range(3):
        async with session.get(f"/v1/requests/{request_id}/status") as response:
            seen.append((clock(), (await response.json())["status"]))
        await asyncio.sleep(1)
    assert seen == [(0.0, "in_progress"), (1.0, "in_progress"), (2.0, "completed")]
    async with session.get(f"/v1/requests/{request_id}/result") as response:
        assert (await response.json())["finished_at"] == "2026-01-01T00:00:02.000Z"


async def test_the_picture_comes_as_a_file_and_costs_no_virtual_time(klein_emulator, session):
    request_id = await submit(session)
    await asyncio.sleep(2)
    url = f"https://files.runcomfy.net/files/{request_id}.png"
    async with aiohttp.ClientSession(connector=klein_emulator.connector()) as plain, plain.get(url) as response:
        picture = await response.read()
    assert picture.startswith(b"\x89PNG")
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Content-Length"] == str(len(picture))
    assert clock() == 2.0
    record = klein_emulator.records[-1]
    assert (record.endpoint, record.headers["host"]) == ("file", "files.runcomfy.net")
    assert "authorization" not in record.headers


async def test_every_address_leads_to_the_emulator_with_a_connector_of_the_users_too(klein_emulator):
    session = klein_emulator.session(connector=klein_emulator.connector(limit=3), headers=AUTH)
    assert session.connector.limit == 3
    for origin in ("http://a.test:81", "https://b.test"):
        assert (await fetch(session, "GET", f"{origin}/v1/models"))[0] == 200
        assert klein_emulator.records[-1].headers["host"] == origin.split("/")[2]


async def test_a_round_trip_takes_its_time_half_each_way(klein_emulator, session):
    klein_emulator.round_trip = 0.5
    for _ in range(2):
        await fetch(session, "GET", "/v1/models")
    # The first call connects, which takes a round trip of its own.
    assert [record.at for record in klein_emulator.records] == [0.75, 1.25]
    assert (clock(), klein_emulator.calls["connect"]) == (1.5, 1)


@pytest.mark.parametrize(
    ("answer", "status", "body", "elapsed"),
    [
        (Reply(599, "odd"), 599, b"odd", 0.0),
        (Reply(200, b"ab", dribble=1.5), 200, b"ab", 3.0),
        (Reply(204, {"a": 1}), 204, b"", 0.0),
        (Pass(2.5), 401, None, 2.5),
        (Reply(429, b"x", delay=4.0), 429, b"x", 4.0),
    ],
)
async def test_an_answer_arrives_as_scripted(klein_emulator, session, answer, status, body, elapsed):
    klein_emulator.script("models", answer)
    got = await fetch(session, "GET", "/v1/models", headers={"Authorization": "none"})
    assert (got[0], clock()) == (status, elapsed)
    assert body is None or got[1] == body
    assert (await fetch(session, "GET", "/v1/models"))[0] == 200


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Reset(), aiohttp.ClientOSError),
        (Reset(delay=1.0), aiohttp.ClientOSError),
        (Garbage(), aiohttp.ClientResponseError),
        (Garbage(b""), aiohttp.ServerDisconnectedError),
        (Truncate(), aiohttp.ClientPayloadError),
        (Hang(), TimeoutError),
    ],
)
async def test_a_broken_answer_breaks_as_it_does_on_a_socket(klein_emulator, session, answer, error):
    klein_emulator.script("submit", answer)
    with pytest.raises(error):
        await fetch(session, "POST", SUBMIT, json={"prompt": "x"})
    assert (klein_emulator.accepted, (await fetch(session, "GET", "/v1/models"))[0]) == (0, 200)


async def test_an_endless_body_flows_only_as_fast_as_it_is_read(klein_emulator, session):
    klein_emulator.script("models", Endless(b"x" * 10_000))
    async with session.get("/v1/models") as response:
        assert len(await response.content.readexactly(300_000)) == 300_000
        await asyncio.sleep(5)
        assert 0 < response.connection.transport.peer.get_write_buffer_size() < 200_000


async def test_a_connection_can_be_refused_as_a_real_connector_does_or_dropped(klein_emulator, session):
    klein_emulator.script("connect", Refuse(), Drop())
    with pytest.raises(aiohttp.ClientConnectorError, match="Cannot connect to host") as caught:
        await fetch(session, "POST", SUBMIT, json={"prompt": "x"})
    assert type(caught.value.os_error) is ConnectionRefusedError
    with pytest.raises(aiohttp.ClientConnectionError):
        await fetch(session, "POST", SUBMIT, json={"prompt": "x"})
    assert len(klein_emulator.records) == 0
    assert (await fetch(session, "GET", "/v1/models"))[0] == 200


async def test_a_connection_can_come_late_or_never(klein_emulator, session):
    klein_emulator.script("connect", Pass(3.0), Hang())
    await fetch(session, "GET", "/v1/models")
    assert clock() == 3.0
    with pytest.raises(aiohttp.ConnectionTimeoutError):
        await fetch(session, "GET", "http://other.test/", timeout=aiohttp.ClientTimeout(sock_connect=2))
    assert (clock(), klein_emulator.calls["connect"]) == (5.0, 2)


def test_a_deadlock_is_found_although_connections_idle():
    async def main():
        async with InProcessEmulator(script={"submit": [Hang()]}) as emulator:
            session = emulator.session(headers=AUTH, base_url=emulator.base_url, timeout=aiohttp.ClientTimeout(None))
            await fetch(session, "GET", "/v1/models")
            await submit(session)

    with (
        pytest.raises(RuntimeError, match="deadlock in virtual time"),
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(grace=0.0)) as runner,
    ):
        runner.run(main())


@pytest.mark.parametrize("answer", [Hang(), Pass(1e6), Reply(body=b"ab", dribble=1e6), None])
async def test_closing_ends_everything_at_once_and_leaves_nothing(klein_emulator, session, answer):
    klein_emulator.script("models", answer)
    before = asyncio.all_tasks()
    call = asyncio.create_task(fetch(session, "GET", "/v1/models"))
    await asyncio.sleep(0.5)
    await klein_emulator.aclose()
    await asyncio.wait([call])
    assert (session.closed, clock(), asyncio.all_tasks() - before) == (True, 0.5, set())
    assert (call.exception() is None) is (answer is None)


async def test_a_client_that_goes_away_ends_its_handler(klein_emulator, session):
    klein_emulator.script("models", Hang())
    before = len(asyncio.all_tasks())
    with pytest.raises(TimeoutError):
        await fetch(session, "GET", "/v1/models", timeout=aiohttp.ClientTimeout(1))
    await asyncio.sleep(1)
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("steps", range(4))
async def test_a_client_that_leaves_an_endless_body_is_no_error_of_the_server(klein_emulator, session, steps, caplog):
    klein_emulator.script("models", Endless(b"x"))
    async with session.get("/v1/models") as response:
        await response.content.readany()
        for _ in range(steps):
            await asyncio.sleep(0)
        response.close()
    await asyncio.sleep(1)
    assert (await fetch(session, "GET", "/v1/models"))[0] == 200
    assert caplog.records == []


def test_dropped_sessions_are_closed_too():
    async def main():
        async with InProcessEmulator() as emulator:
            for _ in range(3):
                await fetch(emulator.session(headers=AUTH), "GET", emulator.base_url + "/v1/models")
            await emulator.session().close()
            emulator.session()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(main())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_an_emulator_can_be_used_after_it_was_closed_and_on_one_loop_after_the_other():
    emulator = InProcessEmulator()

    async def main():
        await emulator.aclose()
        await emulator.aclose()
        for close in (emulator.aclose, emulator.aclose, None):
            session = emulator.session(headers=AUTH, base_url=emulator.base_url)
            await submit(session)
            await (close or session.close)()

    run(main())
    run(main())
    run(emulator.aclose())
    assert emulator.accepted == 6
