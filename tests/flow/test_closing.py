"""Closing: calls finish or end, the background is seen through, and what still runs is said."""

import asyncio
from typing import Any

import pytest

from flux_klein_async import (
    ClientClosedError,
    FixedPolling,
    FluxKleinClient,
    GenerationResult,
    InvalidInputError,
)
from flux_klein_async.emulator import Generation, Hang, InProcessEmulator, Pass, VirtualTimeLoop
from flux_klein_async.events import Closed
from flux_klein_async.ledger.base import Entry, EntryState
from tests.fakes import Events, now, outcome, settle, strays

EVERY_SECOND = FixedPolling(1.0)


async def test_closing_twice_gives_the_same_answer_and_use_after_it_is_an_error(klein_emulator, connect):
    client = connect()
    await client.generate("a cat")
    assert await client.aclose() == ()
    assert await client.aclose() == ()
    for call in (client.generate("a dog"), client.model(), client.status("x"), client.submit("a dog")):
        assert type(await outcome(call)) is ClientClosedError
    assert "closed" in repr(client)


async def test_a_client_never_used_closes_too(connect):
    assert await connect().aclose() == ()


@pytest.mark.parametrize("drain", [0.0, 2.0])
async def test_calls_under_way_end_with_client_closed_after_the_drain(klein_emulator, connect, drain):
    events = Events()
    client = connect(polling=EVERY_SECOND, on_event=events)
    klein_emulator.script("submit", Generation(after=0.5), Generation(after=50), Generation(after=50))
    calls = [
        asyncio.ensure_future(outcome(client.generate("done within two seconds"))),
        asyncio.ensure_future(outcome(client.generate("left", on_abandon="leave"))),
        asyncio.ensure_future(outcome(client.generate("cancelled"))),
    ]
    await asyncio.sleep(0.25)
    left = await client.aclose(drain=drain)
    assert now() == 0.25 + drain
    first, *others = await asyncio.gather(*calls)
    assert isinstance(first, ClientClosedError if drain == 0 else GenerationResult)
    assert [type(error) for error in others] == [ClientClosedError] * 2
    assert {error.charged for error in others} == {"unknown"}
    # The emulator runs them all at once: none could be cancelled any more.
    still = {error.request_id for error in others} | ({first.request_id} if drain == 0 else set())
    assert set(left) == still
    assert [event.left_running for event in events.of(Closed)] == [left]
    assert strays() == []


async def test_what_is_cancelled_upstream_while_closing_is_not_left_running(connect):
    async with InProcessEmulator(workers=0) as idle:
        client = connect(idle.api_key, session=idle.session())
        call = asyncio.ensure_future(outcome(client.generate("a cat")))
        await asyncio.sleep(1)
        assert await client.aclose() == ()
        assert isinstance(await call, ClientClosedError)


@pytest.mark.parametrize(("count", "shown"), [(50, 10), (11, 10), (10, 10)])
async def test_closing_takes_five_seconds_at_most_beyond_its_drain(klein_emulator, connect, caplog, count, shown):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("cancel", *[Hang()] * 100)
    klein_emulator.script("submit", *[Generation(after=500)] * count)
    calls = [asyncio.ensure_future(outcome(client.generate("a cat"))) for _ in range(count)]
    await asyncio.sleep(1.5)
    left = await client.aclose(drain=3)
    assert now() == 1.5 + 3 + 5
    assert len(left) == count
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Closed")]
    more = f" and {count - shown} more" if count > shown else ""
    assert line == f"Closed; still running: {', '.join(left[:shown])}{more}"
    await asyncio.gather(*calls)
    assert strays() == []


async def test_a_submit_under_way_while_closing_is_seen_through(klein_emulator, connect):
    client = connect()
    klein_emulator.script("submit", Pass(delay=3.0))
    call = asyncio.ensure_future(outcome(client.generate("a cat")))
    await asyncio.sleep(1)
    left = await client.aclose()
    error = await call
    assert (type(error), error.charged) == (ClientClosedError, "unknown")
    assert (now(), klein_emulator.calls["cancel"]) == (3.0, 1)
    assert left == tuple(klein_emulator.completions)


async def test_a_fan_out_under_way_while_closing_ends_with_client_closed(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND)

    async def run() -> list[Any]:
        return await client.generate_all([f"picture {number}" for number in range(20)], concurrency=2)

    running = asyncio.ensure_future(run())
    await asyncio.sleep(2.5)
    await client.aclose(drain=1)
    outcomes = await running
    assert len([found for found in outcomes if found.error is None]) == 6
    assert {type(found.error) for found in outcomes if found.error} == {ClientClosedError}


@pytest.mark.parametrize("drain", [-1, "5", float("nan")])
async def test_a_drain_that_is_no_number_leaves_the_client_open(klein_emulator, connect, drain):
    client = connect()
    with pytest.raises(InvalidInputError):
        await client.aclose(drain=drain)
    assert await client.generate("a cat")
    assert await client.aclose() == ()


async def test_a_drain_without_limit_waits_for_every_call(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=90.5))
    call = asyncio.ensure_future(client.generate("a cat"))
    await asyncio.sleep(1)
    assert await client.aclose(drain=None) == ()
    assert (now(), (await call).state) == (91.0, "completed")


def test_a_closing_that_the_end_of_the_loop_cuts_short_leaves_no_warning():
    emulator = InProcessEmulator()
    emulator.script("cancel", Hang())

    async def main() -> None:
        connector = emulator.connector()
        client = FluxKleinClient(
            "emulator-token", base_url=emulator.base_url, session=emulator.session(connector=connector)
        )
        call = asyncio.ensure_future(outcome(client.generate("a cat", timeout=1)))
        await call
        asyncio.ensure_future(client.aclose())  # noqa: RUF006  # nobody waits: the loop ends first
        await asyncio.sleep(0.1)
        await emulator.aclose()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


async def test_a_closing_that_is_cancelled_goes_on(klein_emulator, connect):
    client = connect(polling=EVERY_SECOND)
    klein_emulator.script("submit", Generation(after=3.5))
    call = asyncio.ensure_future(outcome(client.generate("a cat")))
    await asyncio.sleep(0.5)
    closing = asyncio.ensure_future(client.aclose(drain=10))
    await settle()
    closing.cancel()
    assert await client.aclose() == ()
    assert (now(), isinstance(await call, GenerationResult)) == (4.0, True)


async def test_an_id_that_comes_to_light_at_the_very_end_of_closing_is_left_running_and_starts_nothing(
    klein_emulator, connect
):
    class Slow:
        async def record(self, entry: Entry) -> None:
            if entry.state is EntryState.SUBMITTED:
                await asyncio.sleep(100)

    events = Events()
    client = connect(journal=Slow(), on_event=events)
    call = asyncio.ensure_future(client.generate("a cat"))
    await asyncio.sleep(1)
    call.cancel()
    await asyncio.wait({call})
    left = await client.aclose()
    assert (now(), left, strays()) == (6.0, tuple(klein_emulator.completions), [])
    assert isinstance(events[-1], Closed)
    await asyncio.sleep(10)
    assert isinstance(events[-1], Closed)
