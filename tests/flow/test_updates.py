"""Updates as an iterator: a change a step, one deadline, nothing held between two steps."""

import asyncio

from flux_klein_async import FixedPolling, WaitTimeoutError
from flux_klein_async.emulator import Generation
from flux_klein_async.events import Looked
from tests.fakes import Events, now, outcome, settle, strays


async def test_the_final_state_is_the_last_update(klein_emulator, connect):
    klein_emulator.script("submit", Generation(ends="failed", after=2.5))
    handle = await connect(polling=FixedPolling(1)).submit("a cat")
    updates = handle.updates()
    assert [status.state.value async for status in updates] == ["in_progress", "failed"]
    assert [status async for status in updates] == []


async def test_one_deadline_covers_all_updates(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=50))
    await asyncio.sleep(1.5)
    handle = await connect(polling=FixedPolling(1)).submit("a cat")
    updates = handle.updates(timeout=5)
    await anext(updates)
    await asyncio.sleep(2)
    error = await outcome(anext(updates))
    assert (type(error), now(), error.request_id) == (WaitTimeoutError, 6.5, handle.request_id)
    assert (error.looks, error.state) == (3, "in_progress")
    looks = klein_emulator.calls["status"]
    error = await outcome(anext(updates))
    assert (type(error), now(), error.state) == (WaitTimeoutError, 6.5, "in_progress")
    assert (error.looks, error.request_id) == (3, handle.request_id)
    error = await outcome(anext(handle.updates(timeout=0)))
    assert (type(error), now(), error.looks) == (WaitTimeoutError, 6.5, 0)
    await settle()
    assert klein_emulator.calls["status"] == looks  # nothing is asked that nobody can wait for


async def test_no_limit_and_a_reader_that_leaves_leave_nothing_running(klein_emulator, connect):
    events = Events()
    klein_emulator.script("submit", Generation(after=50))
    handle = await connect(polling=FixedPolling(1), on_event=events).submit("a cat")
    async for _ in handle.updates(timeout=None):
        break
    assert strays() == []
    async for _ in handle.updates(timeout=None):
        pass
    assert [event.look for event in events.of(Looked)][1:4] == [1, 2, 3]
