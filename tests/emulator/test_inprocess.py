"""The emulator without sockets: pipes that behave like TCP, and a real aiohttp session in virtual time."""

import asyncio
import gc
import tracemalloc
import warnings

import aiohttp
import pytest

from flux_klein_async.emulator import (
    Drop,
    Endless,
    Garbage,
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


class Listener(asyncio.Protocol):
    """Writes down what happens to it, and when."""

    def __init__(self, *, keep_open=False):
        self.log = []
        self.keep_open = keep_open

    def _note(self, *event):
        self.log.append((asyncio.get_running_loop().time(), *event))

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


LOST, RESET = ("lost", type(None)), ("lost", ConnectionResetError)


def story(tell, *, latency=0.0, keep_open=False):
    """Let `tell` act on two connected ends and return their logs and what it returned."""

    async def main():
        near, far = Listener(), Listener(keep_open=keep_open)
        join(asyncio.get_running_loop(), near, far, latency=latency, server_address=("host", 443))
        told = await tell(near, far)
        await asyncio.sleep(10)
        return near.log, far.log, told

    return run(main())


@pytest.mark.parametrize("latency", [0.0, 0.25])
def test_bytes_arrive_in_order_after_the_latency(latency):
    async def tell(near, far):
        for letter in b"abc":
            near.transport.write(bytes([letter]))
        near.transport.write(b"")
        await asyncio.sleep(0.1)
        near.transport.writelines([b"d", bytearray(b"e"), memoryview(b"f")])
        far.transport.write(b"z")

    near, far, _ = story(tell, latency=latency)
    assert near == [(0.1 + latency, b"z")]
    assert far == [(latency, b"a"), (latency, b"b"), (latency, b"c"), (0.1 + latency, b"def")]


@pytest.mark.parametrize("latency", [0.0, 0.25])
def test_a_close_is_seen_after_the_bytes(latency):
    async def tell(near, far):
        near.transport.write(b"last")
        near.transport.close()
        near.transport.close()
        near.transport.write(b"late")
        return near.transport.is_closing(), far.transport.is_closing()

    near, far, told = story(tell, latency=latency)
    assert near == [(0.0, *LOST)]
    assert far == [(latency, b"last"), (latency, "eof"), (latency, *LOST)]
    assert told == (True, False)


def test_a_protocol_may_keep_its_half_open():
    async def tell(near, far):
        near.transport.close()
        await asyncio.sleep(1)
        open_still = not far.transport.is_closing()
        far.transport.close()
        return open_still

    assert story(tell, keep_open=True) == ([(0.0, *LOST)], [(0.0, "eof"), (1.0, *LOST)], True)


@pytest.mark.parametrize("latency", [0.0, 0.25])
def test_an_abort_loses_what_is_under_way(latency):
    async def tell(near, far):
        near.transport.write(b"lost")
        near.transport.abort()
        near.transport.abort()

    assert story(tell, latency=latency) == ([(0.0, *LOST)], [(latency, *RESET)], None)


def test_an_abort_reaches_a_reader_that_has_paused():
    async def tell(near, far):
        far.transport.pause_reading()
        near.transport.write(b"unread")
        await asyncio.sleep(1)
        near.transport.abort()

    assert story(tell)[1] == [(1.0, *RESET)]


def test_a_paused_reader_gets_its_bytes_and_the_close_later():
    async def tell(near, far):
        far.transport.pause_reading()
        near.transport.write(b"one")
        near.transport.write(b"two")
        near.transport.close()
        await asyncio.sleep(1)
        far.transport.resume_reading()
        far.transport.resume_reading()

    assert story(tell)[1] == [(1.0, b"one"), (1.0, b"two"), (1.0, "eof"), (1.0, *LOST)]


def test_a_reader_may_pause_in_the_middle():
    async def tell(near, far):
        receive = far.data_received

        def receive_one(data):
            receive(data)
            far.transport.pause_reading()

        far.data_received = receive_one
        far.transport.pause_reading()
        far.transport.resume_reading()  # with nothing kept back
        near.transport.write(b"one")
        near.transport.write(b"two")
        await asyncio.sleep(1)
        far.transport.resume_reading()

    assert story(tell)[1] == [(0.0, b"one"), (1.0, b"two")]


def test_a_full_window_pauses_the_writer_until_the_reader_has_read():
    async def tell(near, far):
        far.transport.pause_reading()
        near.transport.write(b"x" * 65_536)
        near.transport.write(b"y")
        near.transport.write(b"z")
        await asyncio.sleep(1)
        waiting = near.transport.get_write_buffer_size()
        far.transport.resume_reading()
        await asyncio.sleep(1)
        return waiting, near.transport.get_write_buffer_size()

    near, _, told = story(tell)
    assert near == [(0.0, "pause"), (1.0, "resume")]
    assert told == (65_538, 0)


def test_a_writer_that_was_paused_hears_of_the_readers_end():
    async def tell(near, far):
        far.transport.pause_reading()
        near.transport.write(b"x" * 70_000)
        await asyncio.sleep(1)
        far.transport.close()

    assert story(tell)[0] == [(0.0, "pause"), (1.0, "eof"), (1.0, *LOST)]


def test_writing_to_somebody_who_has_gone_is_answered_with_a_reset():
    async def tell(near, far):
        near.transport.pause_reading()
        far.transport.close()
        await asyncio.sleep(1)
        near.transport.write(b"anybody there?")

    assert story(tell)[0] == [(1.0, *RESET)]


def test_bytes_that_cross_a_close_are_lost():
    async def tell(near, far):
        near.transport.close()
        far.transport.write(b"crossing")

    near, far, _ = story(tell, latency=0.5)
    assert near == [(0.0, *LOST)]
    assert far == [(0.5, "eof"), (0.5, *LOST)]


def test_a_writer_that_obeys_fills_no_memory():
    async def tell(near, far):
        far.data_received = lambda _: None
        tracemalloc.start()
        chunk, paused = bytes(32_768), asyncio.Event()
        near.pause_writing, near.resume_writing = paused.clear, paused.set
        paused.set()
        for _ in range(500):
            near.transport.write(chunk)
            await paused.wait()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert story(tell)[2] < 500_000


def test_both_ends_know_their_addresses():
    async def tell(near, far):
        return [
            (end.transport.get_extra_info("peername"), end.transport.get_extra_info("sockname")) for end in (near, far)
        ]

    client, server = ("127.0.0.1", 0), ("host", 443)
    assert story(tell)[2] == [(server, client), (client, server)]


AUTH = {"Authorization": "Bearer emulator-token"}


def told_through_a_session(tell, *, limit=None, **options):
    """Let `tell` use an emulator through a session, in virtual time."""

    async def main():
        async with InProcessEmulator(**{"profile": "fixed:2", **options}) as emulator:
            session = emulator.session(headers=AUTH, base_url=emulator.base_url, timeout=aiohttp.ClientTimeout(60))
            return await tell(emulator, session)

    return run(main())


async def fetch(session, method, url, **options):
    async with session.request(method, url, **options) as response:
        return response.status, await response.read()


async def submit(session, **given):
    async with session.post(SUBMIT, json={"prompt": "a snow leopard", "width": 64, "height": 64, **given}) as response:
        return (await response.json())["request_id"]


def clock():
    return asyncio.get_running_loop().time()


def test_a_generation_runs_in_virtual_time():
    async def tell(emulator, session):
        request_id = await submit(session)
        seen = []
        for _ in range(3):
            async with session.get(f"/v1/requests/{request_id}/status") as response:
                seen.append((clock(), (await response.json())["status"]))
            await asyncio.sleep(1)
        async with session.get(f"/v1/requests/{request_id}/result") as response:
            return seen, emulator.completions[request_id], (await response.json())["finished_at"]

    seen = [(0.0, "in_progress"), (1.0, "in_progress"), (2.0, "completed")]
    assert told_through_a_session(tell) == (seen, 2.0, "2026-01-01T00:00:02.000Z")


def test_the_picture_comes_as_a_file_and_costs_no_virtual_time():
    async def tell(emulator, session):
        request_id = await submit(session)
        await asyncio.sleep(2)
        url = f"https://files.runcomfy.net/files/{request_id}.png"
        async with aiohttp.ClientSession(connector=emulator.connector()) as plain, plain.get(url) as response:
            picture = await response.read()
            return response.headers, picture, clock(), emulator.records[-1]

    headers, picture, now, record = told_through_a_session(tell)
    assert picture.startswith(b"\x89PNG")
    assert (headers["Content-Type"], headers["Content-Length"]) == ("image/png", str(len(picture)))
    assert now == 2.0
    assert (record.endpoint, record.headers["host"]) == ("file", "files.runcomfy.net")
    assert "authorization" not in record.headers


@pytest.mark.parametrize("url", ["http://a.test:81/v1/models", "https://b.test/v1/models"])
def test_every_address_leads_to_the_emulator(url):
    async def tell(emulator, session):
        return (await fetch(session, "GET", url))[0], emulator.records[-1].headers["host"]

    assert told_through_a_session(tell) == (200, url.split("/")[2])


def test_a_round_trip_takes_its_time_half_each_way():
    async def tell(emulator, session):
        await fetch(session, "GET", "/v1/models")
        await fetch(session, "GET", "/v1/models")
        return [record.at for record in emulator.records], clock(), emulator.calls["connect"]

    # The first call connects, which takes a round trip of its own.
    assert told_through_a_session(tell, round_trip=0.5) == ([0.75, 1.25], 1.5, 1)


@pytest.mark.parametrize(
    ("answer", "status", "body", "elapsed"),
    [
        (Reply(599, "odd"), 599, b"odd", 0.0),
        (Reply(200, b"ab", dribble=1.5), 200, b"ab", 3.0),
        (Reply(204, {"a": 1}), 204, b"", 0.0),
        (Pass(2.5), 200, None, 2.5),
        (Reply(429, b"x", delay=4.0), 429, b"x", 4.0),
    ],
)
def test_an_answer_arrives_as_scripted(answer, status, body, elapsed):
    async def tell(emulator, session):
        emulator.script("models", answer)
        got = await fetch(session, "GET", "/v1/models")
        return *got, clock(), (await fetch(session, "GET", "/v1/models"))[0]

    got = told_through_a_session(tell)
    assert (got[0], got[2], got[3]) == (status, elapsed, 200)
    assert body is None or got[1] == body


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
def test_a_broken_answer_breaks_as_it_does_on_a_socket(answer, error):
    async def tell(emulator, session):
        emulator.script("submit", answer)
        with pytest.raises(error):
            await fetch(session, "POST", SUBMIT, json={"prompt": "x"})
        return emulator.accepted, (await fetch(session, "GET", "/v1/models"))[0]

    assert told_through_a_session(tell) == (0, 200)


def test_an_endless_body_flows_only_as_fast_as_it_is_read():
    async def tell(emulator, session):
        emulator.script("models", Endless(b"x" * 10_000))
        async with session.get("/v1/models") as response:
            first = await response.content.readexactly(300_000)
            await asyncio.sleep(5)
            transport = response.connection.transport
            return len(first), transport.peer.get_write_buffer_size()

    read, waiting = told_through_a_session(tell)
    assert read == 300_000
    assert 0 < waiting < 200_000


def test_a_connection_can_be_refused_as_a_real_connector_does_or_dropped():
    async def tell(emulator, session):
        emulator.script("connect", Refuse(), Drop())
        with pytest.raises(aiohttp.ClientConnectorError, match="Cannot connect to host") as caught:
            await fetch(session, "POST", SUBMIT, json={"prompt": "x"})
        with pytest.raises(aiohttp.ClientConnectionError):
            await fetch(session, "POST", SUBMIT, json={"prompt": "x"})
        return type(caught.value.os_error), len(emulator.records), (await fetch(session, "GET", "/v1/models"))[0]

    assert told_through_a_session(tell) == (ConnectionRefusedError, 0, 200)


def test_a_connection_can_come_late_or_never():
    async def tell(emulator, session):
        emulator.script("connect", Pass(3.0), Hang())
        await fetch(session, "GET", "/v1/models")
        late = clock()
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await fetch(session, "GET", "http://other.test/", timeout=aiohttp.ClientTimeout(sock_connect=2))
        return late, clock(), emulator.calls["connect"]

    assert told_through_a_session(tell) == (3.0, 5.0, 2)


def test_a_deadlock_is_found_although_connections_idle():
    async def main():
        async with InProcessEmulator() as emulator:
            session = emulator.session(headers=AUTH, timeout=aiohttp.ClientTimeout(None))
            await fetch(session, "GET", emulator.base_url + "/v1/models")
            emulator.script("submit", Hang())
            await fetch(session, "POST", emulator.base_url + SUBMIT, json={"prompt": "x"})

    with (
        pytest.raises(RuntimeError, match="deadlock in virtual time"),
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(grace=0.0)) as runner,
    ):
        runner.run(main())


@pytest.mark.parametrize("answer", [Hang(), Pass(1e6), Reply(body=b"ab", dribble=1e6), None])
def test_closing_ends_everything_at_once_and_leaves_nothing(answer):
    async def main():
        emulator = InProcessEmulator(script={"models": [answer]})
        session = emulator.session(headers=AUTH)
        call = asyncio.create_task(fetch(session, "GET", emulator.base_url + "/v1/models"))
        await asyncio.sleep(0.5)
        await emulator.aclose()
        await asyncio.wait([call])
        left = asyncio.all_tasks() - {asyncio.current_task()}
        return session.closed, clock(), left, call.exception() is None

    closed, now, left, answered = run(main())
    assert (closed, now, left) == (True, 0.5, set())
    assert answered is (answer is None)


def test_a_client_that_goes_away_ends_its_handler():
    async def tell(emulator, session):
        emulator.script("models", Hang())
        before = len(asyncio.all_tasks())
        with pytest.raises(TimeoutError):
            await fetch(session, "GET", "/v1/models", timeout=aiohttp.ClientTimeout(1))
        await asyncio.sleep(1)
        return len(asyncio.all_tasks()) - before

    assert told_through_a_session(tell) == 0


def test_sessions_that_were_let_go_are_closed_too():
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
        for _ in range(2):
            await submit(emulator.session(headers=AUTH, base_url=emulator.base_url))
            await emulator.aclose()
        session = emulator.session(headers=AUTH, base_url=emulator.base_url)
        await submit(session)
        await session.close()

    run(main())
    run(main())
    run(emulator.aclose())
    assert emulator.accepted == 6


@pytest.mark.parametrize("steps", range(4))
def test_a_client_that_leaves_an_endless_body_is_no_error_of_the_server(steps, caplog):
    async def tell(emulator, session):
        emulator.script("models", Endless(b"x"))
        async with session.get("/v1/models") as response:
            await response.content.readany()
            for _ in range(steps):
                await asyncio.sleep(0)
            response.close()
        await asyncio.sleep(1)
        return (await fetch(session, "GET", "/v1/models"))[0]

    assert told_through_a_session(tell) == 200
    assert caplog.records == []


def test_a_user_may_bring_a_connector():
    async def main():
        async with InProcessEmulator() as emulator:
            session = emulator.session(connector=emulator.connector(limit=3), headers=AUTH)
            return session.connector.limit, (await fetch(session, "GET", emulator.base_url + "/v1/models"))[0]

    assert run(main()) == (3, 200)


def test_runs_with_equal_seeds_are_equal():
    async def tell(emulator, session):
        emulator.fault("status", Reply(503), probability=0.5)
        ids = [await submit(session) for _ in range(5)]
        codes = [(await fetch(session, "GET", f"/v1/requests/{ids[0]}/status"))[0] for _ in range(20)]
        return ids, codes, dict(emulator.completions)

    one, other = (told_through_a_session(tell, seed=3, profile="klein") for _ in range(2))
    assert one == other
    assert set(one[1]) == {200, 503}
