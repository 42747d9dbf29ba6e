"""How much CPU does the package add to a generation, over the same calls written by hand with aiohttp?

    python benchmarks/bench_overhead.py [--generations 512] [--concurrency 256] [--pairs 15]

Client side CPU only (`time.process_time`); the emulated service runs in another process. All variants are driven at
the same concurrency and make the same number of calls, which the service counts. They take turns, in an order that
is turned round from pair to pair, and the median of the ratios is what counts.
"""

import argparse
import asyncio
import gc
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from handwritten import Loop
from service import Service

from flux_klein_async import Event, FixedPolling, FluxKleinClient, Limits

BAR = 1.30
INTERVAL = 0.4  # seconds between polls
PROFILE = "fixed:1.0"  # ends between the second poll and the third, with 0.2 s to spare on either side
POLLS = 3
TIMEOUT = 30.0
CALLS = {"submit": 1, "status": POLLS, "result": 1}

Variant = Callable[[Service, list[str], int], Awaitable[int]]


async def by_hand(service: Service, prompts: list[str], concurrency: int) -> int:
    async with Loop(service.base_url, service.api_key, interval=INTERVAL, timeout=TIMEOUT) as loop:
        return len(await loop.generate_all(prompts, concurrency))


def client(service: Service, concurrency: int, on_event: Callable[[Event], None] | None = None) -> FluxKleinClient:
    return FluxKleinClient(
        service.api_key,
        base_url=service.base_url,
        timeout=TIMEOUT,
        limits=Limits(max_in_flight=concurrency),
        polling=FixedPolling(INTERVAL),
        on_event=on_event,
    )


async def drive(flux: FluxKleinClient, prompts: Iterable[str], concurrency: int) -> int:
    """`generate`, driven just as the yardstick drives itself."""
    results = []
    left = iter(prompts)

    async def work(left: Iterator[str]) -> None:
        for prompt in left:
            results.append(await flux.generate(prompt))  # noqa: PERF401  # others append in between

    await asyncio.gather(*(work(left) for _ in range(concurrency)))
    return len(results)


async def generate(service: Service, prompts: list[str], concurrency: int) -> int:
    async with client(service, concurrency) as flux:
        return await drive(flux, prompts, concurrency)


async def with_events(service: Service, prompts: list[str], concurrency: int) -> int:
    seen: Counter[type[Event]] = Counter()

    def count(event: Event) -> None:
        seen[type(event)] += 1

    async with client(service, concurrency, count) as flux:
        return await drive(flux, prompts, concurrency)


async def many(service: Service, prompts: list[str], concurrency: int) -> int:
    done = 0
    async with client(service, concurrency) as flux, flux.generate_many(prompts, concurrency=concurrency) as outcomes:
        async for outcome in outcomes:
            done += outcome.result is not None
    return done


HAND, OURS = "by hand", "generate"
VARIANTS: dict[str, Variant] = {
    HAND: by_hand,
    OURS: generate,
    "generate, on_event set": with_events,
    "generate_many": many,
}


@dataclass
class Run:
    """CPU microseconds a generation of each variant, run by run."""

    service: Service
    prompts: list[str]
    concurrency: int
    cpu: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in VARIANTS})

    def once(self, name: str) -> float:
        """Run a variant once; its CPU microseconds a generation.

        Raises:
            RuntimeError: It did not make the calls that all are to make.
        """
        before = self.service.calls()
        gc.collect()
        begun = time.process_time()
        done = asyncio.run(self._run(name))
        used = time.process_time() - begun
        made = self.service.calls() - before
        count = len(self.prompts)
        if done != count or made != {endpoint: calls * count for endpoint, calls in CALLS.items()}:
            raise RuntimeError(f"{name}: {done} of {count} done with {dict(made)}; is the machine too busy?")
        return used / count * 1e6

    async def _run(self, name: str) -> int:
        return await VARIANTS[name](self.service, self.prompts, self.concurrency)

    def turn(self, number: int) -> None:
        """Run every variant once."""
        names = list(VARIANTS)
        for name in names if number % 2 else reversed(names):
            self.cpu[name].append(self.once(name))
        hand, ours = self.cpu[HAND][-1], self.cpu[OURS][-1]
        print(f"{number:4}  {hand:9.0f} µs {ours:9.0f} µs {ours / hand:9.3f}", flush=True)

    def ratio(self, name: str) -> float:
        """Median over the turns of this variant against the hand-written loop of the same turn."""
        return median(ours / hand for ours, hand in zip(self.cpu[name], self.cpu[HAND], strict=True))


def report(run: Run) -> bool:
    print(f"\n{'CPU a generation':24} {'median':>10} {'ratio':>7}")
    for name, values in run.cpu.items():
        print(f"{name:24} {median(values):7.0f} µs {run.ratio(name):7.3f}")
    met = run.ratio(OURS) <= BAR
    print(f"bar {BAR:.2f}: {'met' if met else 'missed'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=512)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    prompts = [f"a snow leopard at dawn, number {number}" for number in range(options.generations)]
    with Service(PROFILE) as service:
        run = Run(service, prompts, options.concurrency)
        for name in VARIANTS:  # warm up: imports, caches, the service's own
            run.once(name)
        print(f"pair  {HAND:>12} {OURS:>12} {'ratio':>9}")
        for number in range(1, options.pairs + 1):
            run.turn(number)
    return 0 if report(run) else 1


if __name__ == "__main__":
    sys.exit(main())
