"""How long does a burst take: from the call to the result, with many more calls than connections?

    python benchmarks/bench_burst.py                     # real sockets, CPU counted: 1,000 at once; 2 minutes
    python benchmarks/bench_burst.py --count 10000       # 15 minutes
    python benchmarks/bench_burst.py --virtual           # virtual time, in which only the wire takes time
    python benchmarks/bench_burst.py --virtual --seconds 0.51 0.53 0.55 0.57 0.59 0.61

So many generations at once over 100 connections, with a round trip of 0 and of 40 ms: ours; a plain loop with aiohttp
that polls every 0.1 s; and an oracle, the same loop with a single poll, at the instant of the end. The variants take
turns; the medians of the ratios count. Bars: no later than the loop, and 1.25 times the oracle, at the median and last.
A generation takes `--seconds`. With one length it is chance whose poll falls on the end; of several, the median counts.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import aiohttp
from harness import HandwrittenClient, Service, in_parallel, prompts, verdict

from flux_klein_async import FluxKleinClient, Limits
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop

CONNECTIONS = 100
Run = Callable[[], Awaitable[list[float]]]


class Oracle(HandwrittenClient):
    """Polls once, at the end, which it knows."""

    def __init__(self, base_url: str, api_key: str, *, seconds: float, **options: Any) -> None:
        super().__init__(base_url, api_key, interval=seconds + 0.001, **options)


async def timed(generate: Callable[[str], Awaitable[object]], count: int) -> list[float]:
    """Seconds from the start to each result."""
    clock = asyncio.get_running_loop().time
    begun = clock()

    async def one(prompt: str) -> float:
        await generate(prompt)
        return clock() - begun

    return await in_parallel(one, prompts(count), count)


async def ours(
    base_url: str, api_key: str, count: int, _seconds: float, session: aiohttp.ClientSession | None
) -> list[float]:
    limits = Limits(max_in_flight=count, max_connections=CONNECTIONS)
    async with FluxKleinClient(api_key, base_url=base_url, limits=limits, session=session, timeout=None) as client:
        begun, times = asyncio.get_running_loop().time(), []
        async with client.generate_many(prompts(count), concurrency=count) as outcomes:
            async for outcome in outcomes:
                if outcome.result is None:
                    raise outcome.error or AssertionError
                times.append(asyncio.get_running_loop().time() - begun)
        return times


async def by_hand(
    kind: Callable[..., HandwrittenClient],
    base_url: str,
    api_key: str,
    count: int,
    seconds: float,
    session: aiohttp.ClientSession | None,
) -> list[float]:
    async with kind(
        base_url, api_key, seconds=seconds, timeout=3600.0, connections=CONNECTIONS, session=session
    ) as client:
        return await timed(client.generate, count)


def loop_client(base_url: str, api_key: str, *, seconds: float, **options: Any) -> HandwrittenClient:
    del seconds  # it does not know them
    return HandwrittenClient(base_url, api_key, interval=0.1, **options)


VARIANTS: dict[str, Callable[..., Awaitable[list[float]]]] = {
    "ours": ours,
    "plain loop": lambda *where: by_hand(loop_client, *where),
    "oracle": lambda *where: by_hand(Oracle, *where),
}


def virtual(
    run: Callable[..., Awaitable[list[float]]], count: int, seconds: float, round_trip: float
) -> tuple[list[float], float]:
    async def inside() -> list[float]:
        profile = f"fixed:{seconds}"
        async with InProcessEmulator(profile=profile, seed=1, round_trip=round_trip, max_records=1) as emulator:
            session = emulator.session(connector=emulator.connector(limit=CONNECTIONS))
            return await run(emulator.base_url, emulator.api_key, count, seconds, session)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(inside()), 0.0


def on_sockets(
    run: Callable[..., Awaitable[list[float]]], count: int, seconds: float, round_trip: float
) -> tuple[list[float], float]:
    with Service(f"fixed:{seconds}", seed=1, round_trip=round_trip) as service:
        start = time.process_time()
        times = asyncio.run(_awaited(run(service.base_url, service.api_key, count, seconds, None)))
        return times, time.process_time() - start


async def _awaited(found: Awaitable[list[float]]) -> list[float]:
    return await found


def measure(count: int, round_trip: float, lengths: list[float], where: Callable[..., Any]) -> bool:
    """Print the table for one round trip; whether the bars are met."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
    for seconds in lengths:
        for name, run in VARIANTS.items():
            times, cpu = where(run, count, seconds, round_trip)
            found[name].append((median(times), max(times), cpu))
    print(f"\n{count} at once, round trip {round_trip * 1000:.0f} ms{'median':>12}{'last':>9}{'CPU':>9}")
    for name, rows in found.items():
        middle, last, cpu = (median(column) for column in zip(*rows, strict=True))
        print(f"{name:34}{middle:9.2f}{last:9.2f}{cpu:9.2f}", flush=True)
    met = True
    for other, bar in (("plain loop", 1.0), ("oracle", 1.25)):
        for column, what in enumerate(("median", "last")):
            ratio = median(own[column] / their[column] for own, their in zip(found["ours"], found[other], strict=True))
            met = met and ratio <= bar
            print(
                f"  {what} over that of the {other:12}{ratio:7.3f}  bar {bar:.2f}: {verdict(ratio <= bar)}", flush=True
            )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.57])
    parser.add_argument("--virtual", action="store_true")
    options = parser.parse_args()
    where, turns = (virtual, 1) if options.virtual else (on_sockets, options.turns)
    met = [measure(options.count, round_trip, options.seconds * turns, where) for round_trip in (0.0, 0.04)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
