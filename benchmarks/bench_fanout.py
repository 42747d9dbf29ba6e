"""Do ten thousand generations in flight on one loop cost little more than the waiting itself?

    python benchmarks/bench_fanout.py [--count 10000] [--seconds 60] [--skip-memory | --skip-time]

Every generation takes `--seconds` in the emulated service, which runs in another process. Three bars:

errors  none.
time    at most the ideal plus the CPU used. The ideal is the time of one generation, since all of them run side by
        side; the CPU is the client process's own (`time.process_time`) during the run.
memory  at most 8 KiB a waiting generation above the hand-written loop. Taken in runs of its own, since tracemalloc
        slows everything down: in mid-wait, when every request was submitted and polled once, what is allocated
        more than before the client was made, divided by the count.

The polls come at a third, two thirds and the whole of the generation's time, so that the end is seen when it comes.
Connections are bounded (100), so that the usual limit of open files is enough.
"""

import argparse
import asyncio
import gc
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from handwritten import Loop
from service import Service

from flux_klein_async import FixedPolling, FluxKleinClient, Limits

BAR_BYTES = 8 * 1024
CONNECTIONS = 100

FanOut = Callable[[Service, list[str], float, float], Awaitable[int]]


async def by_hand(service: Service, prompts: list[str], interval: float, timeout: float) -> int:
    """The hand-written loop; the number of errors (it stops at the first)."""
    async with Loop(
        service.base_url, service.api_key, interval=interval, timeout=timeout, connections=CONNECTIONS
    ) as loop:
        return len(prompts) - len(await loop.generate_all(prompts, len(prompts)))


async def generate_all(service: Service, prompts: list[str], interval: float, timeout: float) -> int:
    """The package; the number of errors."""
    count = len(prompts)
    async with FluxKleinClient(
        service.api_key,
        base_url=service.base_url,
        timeout=timeout,
        limits=Limits(max_in_flight=count, max_connections=CONNECTIONS),
        polling=FixedPolling(interval),
    ) as client:
        outcomes = await client.generate_all(prompts, concurrency=count, on_abandon="leave")
        return sum(outcome.error is not None for outcome in outcomes)


VARIANTS: dict[str, FanOut] = {"by hand": by_hand, "generate_all": generate_all}


@dataclass(frozen=True)
class Plan:
    """What is to be waited for."""

    prompts: list[str]
    seconds: float

    @property
    def interval(self) -> float:
        """Seconds between polls."""
        return self.seconds / 3

    @property
    def timeout(self) -> float:
        """Seconds that no generation may take."""
        return 10 * self.seconds + 300

    def run(self, name: str, service: Service) -> Awaitable[int]:
        """Fan out with this variant."""
        return VARIANTS[name](service, self.prompts, self.interval, self.timeout)


async def timed(plan: Plan, name: str) -> bool:
    """Run once and print the first two bars; whether both are met."""
    with Service(f"fixed:{plan.seconds}") as service:
        gc.collect()
        begun, cpu = time.perf_counter(), time.process_time()
        errors = await plan.run(name, service)
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        calls = service.calls()
    bar = plan.seconds + cpu
    met = errors == 0 and wall <= bar
    made = ", ".join(f"{endpoint} {number}" for endpoint, number in sorted(calls.items()))
    print(f"{name:14} errors {errors}   wall {wall:.2f} s   CPU {cpu:.2f} s   calls: {made}")
    print(f"{'':14} bar 0 errors, wall at most {bar:.2f} s: {'met' if met else 'missed'}", flush=True)
    return met


async def waiting_bytes(plan: Plan, name: str) -> float:
    """Bytes a waiting generation."""
    with Service("fixed:0") as service:  # first fill what is filled once: imports, caches, compiled patterns
        await Plan(plan.prompts[:CONNECTIONS], 0.01).run(name, service)
    with Service(f"fixed:{plan.seconds}") as service:
        tracemalloc.start()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        fan_out = asyncio.ensure_future(plan.run(name, service))
        await all_polled_once(service, len(plan.prompts), fan_out)
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        fan_out.cancel()
        await asyncio.wait({fan_out})
    return (allocated - before) / len(plan.prompts)


async def all_polled_once(service: Service, count: int, fan_out: "asyncio.Future[int]") -> None:
    """Wait until every generation is asleep between its first poll and its second.

    Raises:
        RuntimeError: Some are further than that already.
    """
    while service.calls()["status"] < count and not fan_out.done():  # noqa: ASYNC110  # another process counts
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # for the last answers to be read
    if (calls := service.calls())["status"] != count or calls["submit"] != count:
        raise RuntimeError(f"{dict(calls)}: give it more --seconds, or a smaller --count")


async def memory(plan: Plan) -> bool:
    """Print the third bar; whether it is met."""
    used = {name: await waiting_bytes(plan, name) for name in VARIANTS}
    above = used["generate_all"] - used["by hand"]
    met = above <= BAR_BYTES
    print("memory a waiting generation: " + ", ".join(f"{name} {size / 1024:.2f} KiB" for name, size in used.items()))
    print(f"{'':14} bar 8 KiB above by hand: {above / 1024:.2f} KiB, {'met' if met else 'missed'}", flush=True)
    return met


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-time", action="store_true")
    options = parser.parse_args()
    plan = Plan([f"a snow leopard at dawn, number {number}" for number in range(options.count)], options.seconds)
    met = True
    if not options.skip_time:
        await timed(plan, "by hand")
        met = await timed(plan, "generate_all")
    if not options.skip_memory:
        met = await memory(plan) and met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
