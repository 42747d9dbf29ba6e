"""A burst over few connections: how long finished generations wait unseen, with and without priority for polls.

In virtual time on the in-process emulator, so that the figures are exact and repeat: 10,000 generations submitted at
once over 100 connections, 40 ms from a request to its answer.
"""

import argparse
import asyncio
import statistics
from typing import Any

from flux_klein_async import FluxKleinClient, Limits
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop
from flux_klein_async.transport.throttle import Lanes

ROUND_TRIP = 0.04
BAR = 0.25


async def burst(count: int, connections: int, *, priority: bool) -> list[float]:
    """Seconds from each generation's end to the result in hand."""
    async with InProcessEmulator(profile="klein", seed=1, round_trip=ROUND_TRIP, max_records=10) as emulator:
        options: dict[str, Any] = {
            "session": emulator.session(connector=emulator.connector(limit=connections)),
            "base_url": emulator.base_url,
            "limits": Limits(max_in_flight=count, max_connections=connections),
        }
        loop = asyncio.get_running_loop()
        excess = []
        async with FluxKleinClient(emulator.api_key, timeout=None, **options) as client:
            if not priority:
                client._context.lanes = Lanes(count)  # noqa: SLF001  # all queue in aiohttp's pool, first come first served
            async with client.generate_many(["a cat"] * count, concurrency=count) as outcomes:
                async for outcome in outcomes:
                    if outcome.result is None:
                        raise outcome.error or AssertionError
                    excess.append(loop.time() - emulator.completions[outcome.result.request_id])
        return excess


def main() -> None:
    """Print both and their ratio; exit with 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=100)
    given = parser.parse_args()
    tails = []
    for priority in (True, False):
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            excess = runner.run(burst(given.count, given.connections, priority=priority))
        cuts = statistics.quantiles(excess, n=100)
        tails.append(cuts[94])
        name = "polls before submits" if priority else "first come first served"
        shown = "  ".join(f"p{at} {cuts[at - 1]:7.3f}" for at in (50, 95, 99))
        print(f"{name:24} mean {statistics.fmean(excess):7.3f} s  {shown}")
    ratio = tails[0] / tails[1]
    print(f"p95 with priority over p95 without: {ratio:.3f} (bar {BAR})")
    raise SystemExit(ratio > BAR)


if __name__ == "__main__":
    main()
