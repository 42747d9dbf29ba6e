import asyncio
import json

import pytest

from flux_klein_async import GenerationFailedError, InvalidInputError, RequestState, RequestStatus, WaitTimeoutError
from flux_klein_async.emulator import Generation
from flux_klein_async.integrations.frames import KEEP_ALIVE
from flux_klein_async.integrations.progress import tell
from flux_klein_async.integrations.visitors import VisitorGoneError


class Reader:
    """Takes what is written, and reads it back as events."""

    def __init__(self):
        self.written = []

    async def write(self, data):
        self.written.append(data)

    def events(self):
        frames = [data.decode().split("\n")[:2] for data in self.written if data != KEEP_ALIVE]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]

    def names(self):
        return [name for name, _ in self.events()]


async def test_every_change_then_the_result(klein_client, klein_emulator):
    reader = Reader()
    await tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write)
    assert reader.names() == [*["status"] * (len(reader.written) - 1), "result"]
    assert [data["state"] for _, data in reader.events()][-2:] == ["completed", "completed"]
    assert reader.events()[-1][1]["urls"] == [
        f"{klein_emulator.base_url}/files/{reader.events()[0][1]['request_id']}.png"
    ]


async def test_an_error_after_an_event_is_an_event(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(ends="failed", after=30.0))
    reader = Reader()
    await tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write)
    name, data = reader.events()[-1]
    assert (name, data["status"], data["error"], data["charged"]) == ("error", 502, "generation_failed", "unknown")


async def test_an_error_before_any_event_is_raised(klein_client):
    reader = Reader()
    with pytest.raises(InvalidInputError):
        await tell(lambda changed: klein_client.generate(" ", on_status=changed), reader.write)
    assert reader.written == []


async def test_a_change_is_told_when_it_happens(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(after=100.0))
    reader = Reader()
    telling = asyncio.ensure_future(
        tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write, keep_alive=1000.0)
    )
    await asyncio.sleep(50.0)
    assert set(reader.names()) == {"status"}
    await telling
    assert reader.names()[-1] == "result"


async def test_silence_is_bridged(klein_client, klein_emulator):
    klein_emulator.script("submit", Generation(after=100.0))
    reader = Reader()
    await tell(lambda changed: klein_client.generate("x", on_status=changed), reader.write)
    assert reader.written.count(KEEP_ALIVE) == 6
    assert reader.names()[-1] == "result"


async def test_a_comment_is_a_beginning_too(klein_client, klein_emulator):
    async def late(_):
        await asyncio.sleep(20.0)
        raise WaitTimeoutError(request_id="an-id")

    reader = Reader()
    await tell(late, reader.write)
    assert (reader.written[0], reader.names()) == (KEEP_ALIVE, ["error"])


async def test_a_slow_reader_gets_the_latest_and_the_last(klein_client):
    reader = Reader()

    async def slow(data):
        await asyncio.sleep(1.0)
        await reader.write(data)

    async def quick(changed):
        for position in range(1000, 0, -1):
            changed(RequestStatus(request_id="an-id", state=RequestState.IN_QUEUE, queue_position=position))
            await asyncio.sleep(0.01)
        changed(RequestStatus(request_id="an-id", state=RequestState.FAILED))
        raise GenerationFailedError(request_id="an-id")

    await tell(quick, slow)
    assert len(reader.written) < 15
    assert [data.get("state") for _, data in reader.events()][-2:] == ["failed", None]
    positions = [data["queue_position"] for name, data in reader.events()[:-2]]
    assert positions == sorted(positions, reverse=True)


async def test_the_result_can_be_told_in_the_apps_own_words(klein_client):
    reader = Reader()
    run = lambda changed: klein_client.generate("x", on_status=changed)  # noqa: E731
    await tell(run, reader.write, facts=lambda result: {"picture": result.image_url})
    assert set(reader.events()[-1][1]) == {"picture"}


async def test_a_line_that_is_dead_ends_the_work(klein_client, klein_emulator):
    async def dead(_):
        raise ConnectionResetError

    klein_emulator.script("submit", Generation(after=100.0))
    with pytest.raises(VisitorGoneError):
        await tell(lambda changed: klein_client.generate("x", on_status=changed), dead)
    await klein_client.aclose()
    assert klein_emulator.calls["cancel"] == 1


async def test_a_mistake_of_the_app_is_raised_as_it_is(klein_client):
    async def mistaken(_):
        raise KeyError(1)

    with pytest.raises(KeyError):
        await tell(mistaken, Reader().write)
