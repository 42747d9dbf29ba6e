"""A handle has the client's verbs on one request, and is nothing but its id."""

from flux_klein_async import FixedPolling, RequestState
from flux_klein_async.emulator import Generation


async def test_a_handle_waits_with_the_options_of_the_client(klein_emulator, connect):
    klein_emulator.script("submit", Generation(after=1.5))
    handle = await connect(polling=FixedPolling(1)).submit("a cat")
    seen = []
    result = await handle.wait_for_result(timeout=5, on_abandon="cancel", on_status=seen.append)
    assert (result.request_id, [status.state for status in seen]) == (
        handle.request_id,
        [RequestState.IN_PROGRESS, RequestState.COMPLETED],
    )
    assert result.timings.submit == 0.0


async def test_dropping_a_handle_leaves_the_request_as_it_is(klein_emulator, connect):
    handle = await connect().submit("a cat")
    del handle
    assert klein_emulator.calls["cancel"] == 0
