"""Do ten thousand generations in flight on one loop cost little more than waiting?

    python benchmarks/bench_in_flight.py [--count 10000] [--seconds 60] [--skip-memory | --skip-time]

Each generation takes `--seconds` in the emulated service, which runs in another process. Three bars:

errors  none.
time    at most the ideal plus the client's CPU (`time.process_time`). The ideal is the time of one generation.
memory  at most 8 KiB a waiting generation above the handwritten client. Taken in separate runs, since tracemalloc is
        slow: when each request has been polled once, what is allocated since before the client was made.

The polls come at a third, two thirds and the whole of the generation's time, so the end is noticed at once.
"""

import argparse
import asyncio
import gc
import sys
import time
import tracemalloc

from harness import HandwrittenClient, Service, prompts, verdict

from flux_klein_async import FixedPolling, FluxKleinClient, Limits

BAR_BYTES = 8 * 1024
CONNECTIONS = 100  # fits the usual limit of open files
HAND, OURS = "by hand", "generate_all"


async def generate_all(name: str, service: Service, texts: list[str], seconds: float) -> int:
    """All generations with this client; the number of errors (the handwritten one stops at the first)."""
    interval, timeout = seconds / 3, 10 * seconds + 300
    if name == HAND:
        async with HandwrittenClient(
            service.base_url, service.api_key, interval=interval, timeout=timeout, connections=CONNECTIONS
        ) as handwritten:
            return len(texts) - len(await handwritten.generate_all(texts, len(texts)))
    async with FluxKleinClient(
        service.api_key,
        base_url=service.base_url,
        timeout=timeout,
        limits=Limits(max_in_flight=len(texts), max_connections=CONNECTIONS),
        polling=FixedPolling(interval),
    ) as client:
        outcomes = await client.generate_all(texts, concurrency=len(texts), on_abandon="leave")
        return sum(outcome.error is not None for outcome in outcomes)


async def measure_time(name: str, texts: list[str], seconds: float) -> bool:
    """Print errors and time; whether both bars are met."""
    with Service(f"fixed:{seconds}") as service:
        start, cpu_start = time.perf_counter(), time.process_time()
        errors = await generate_all(name, service, texts, seconds)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        calls = service.calls()
    bar = seconds + cpu
    met = errors == 0 and wall <= bar
    made = ", ".join(f"{endpoint} {number}" for endpoint, number in sorted(calls.items()))
    print(f"{name:14}errors {errors}   wall {wall:.2f} s   CPU {cpu:.2f} s   calls: {made}")
    print(f"{'':14}bar 0 errors, wall at most {bar:.2f} s: {verdict(met)}", flush=True)
    return met


async def measure_memory(name: str, texts: list[str], seconds: float) -> float:
    """Bytes a waiting generation."""
    with Service("fixed:0") as service:  # warm up: imports, caches, compiled patterns
        await generate_all(name, service, texts[:CONNECTIONS], 0.01)
    with Service(f"fixed:{seconds}") as service:
        tracemalloc.start()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        running = asyncio.ensure_future(generate_all(name, service, texts, seconds))
        while service.calls()["status"] < len(texts) and not running.done():  # noqa: ASYNC110  # another process counts
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # until the last answers are read
        if (calls := service.calls())["status"] != len(texts) or calls["submit"] != len(texts):
            raise RuntimeError(f"{dict(calls)}: use more --seconds or a smaller --count")
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        running.cancel()
        await asyncio.wait({running})
    return (allocated - before) / len(texts)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-time", action="store_true")
    options = parser.parse_args()
    texts, met = prompts(options.count), True
    if not options.skip_time:
        await measure_time(HAND, texts, options.seconds)
        met = await measure_time(OURS, texts, options.seconds)
    if not options.skip_memory:
        used = {name: await measure_memory(name, texts, options.seconds) for name in (HAND, OURS)}
        above = used[OURS] - used[HAND]
        print(
            "memory a waiting generation: " + ", ".join(f"{name} {size / 1024:.2f} KiB" for name, size in used.items())
        )
        print(f"{'':14}bar 8 KiB above by hand: {above / 1024:.2f} KiB, {verdict(above <= BAR_BYTES)}", flush=True)
        met = above <= BAR_BYTES and met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
