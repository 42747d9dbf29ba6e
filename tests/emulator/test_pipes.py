import asyncio
import tracemalloc

import pytest

from flux_klein_async.emulator.pipes import join

from .helpers import run


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
        reading = far.transport.is_reading()
        far.transport.resume_reading()
        far.transport.resume_reading()
        return reading, far.transport.is_reading()

    _, far, told = story(tell)
    assert far == [(1.0, b"one"), (1.0, b"two"), (1.0, "eof"), (1.0, *LOST)]
    assert told == (False, True)


def test_a_reader_may_pause_in_the_middle():
    async def tell(near, far):
        receive = far.data_received

        def receive_one(data):
            receive(data)
            far.transport.pause_reading()

        far.data_received = receive_one
        near.transport.write(b"one")
        near.transport.write(b"two")
        await asyncio.sleep(1)
        far.transport.resume_reading()

    assert story(tell)[1] == [(0.0, b"one"), (1.0, b"two")]


def test_resuming_with_nothing_kept_is_harmless():
    async def tell(near, far):
        far.transport.pause_reading()
        far.transport.resume_reading()
        near.transport.write(b"x")

    assert story(tell)[1] == [(0.0, b"x")]


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


def test_what_a_pipe_cannot_do_it_says():
    async def tell(near, far):
        return near.transport.can_write_eof(), near.transport.get_extra_info("socket")

    assert story(tell)[2] == (False, None)
