"""One generation: what is known of a request that was accepted just now."""

import pytest

from flux_klein_async.emulator import Reply
from tests.fakes import now


async def test_the_wait_knows_how_long_the_submit_took_and_when_it_was_accepted(klein_emulator, connect):
    klein_emulator.round_trip = 0.2
    klein_emulator.script("submit", Reply(429, b"", {"Retry-After": "3"}))
    client, begun = connect(), now()
    result = await client.generate("a cat")
    timings = result.timings
    assert timings.submit == pytest.approx(3.6, abs=0.1)  # the refused one, the hold, the accepted one
    whole = (timings.submit or 0) + (timings.queued or 0) + (timings.running or 0) + (timings.fetch or 0)
    assert whole == pytest.approx(now() - begun)
