"""What does it cost to share limits between processes?

    python benchmarks/bench_redis.py [URL] [--count 20000] [--generations 100000]

With a URL of a Redis server: the CPU of a process for acquire, the submit's turn, three polls' turns and release, with
50 at once, against the in-process limiter. Always: 100 clients that share 1,000 slots in virtual time, against the
script on a model of the server. Two bars there: at most 1,000 in flight at any instant, at least 90 % of them used.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from harness import verdict
from redis_model import ModelledLimiter, ModelServer

from flux_klein_async import Kind, Limits, RedisLimiter
from flux_klein_async.emulator import VirtualTimeLoop
from flux_klein_async.transport.throttle import InProcessLimiter

SLOTS, CLIENTS, SECONDS = 1000, 100, 0.5


async def each(count: int, at_once: int, job: Callable[[], Awaitable[None]]) -> None:
    """Run so many jobs."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await job()

    await asyncio.gather(*(work() for _ in range(at_once)))


async def cpu(limiter: InProcessLimiter, count: int) -> float:
    """Microseconds of CPU for what a generation asks of a limiter."""

    async def generation() -> None:
        await limiter.acquire()
        await limiter.turn(Kind.SUBMIT)
        limiter.over(Kind.SUBMIT)
        for _ in range(3):
            await asyncio.sleep(0)
            await limiter.turn(Kind.READ, limiter.poll_price())
            limiter.over(Kind.READ)
        limiter.release()

    begun = time.process_time()
    await each(count, 50, generation)
    return (time.process_time() - begun) / count * 1e6


async def compare(url: str, count: int) -> None:
    """Print both."""
    limiter = RedisLimiter(url, account="bench", max_in_flight=50)
    limiter.attach(print)
    shared = await cpu(limiter, count)
    await limiter.detach(print)
    alone = await cpu(InProcessLimiter(Limits(max_in_flight=50)), count)
    print(f"in-process {alone:.1f} us, Redis {shared:.1f} us a generation")


async def simulate(generations: int) -> bool:
    """Run all clients; whether both bars are met."""
    server = ModelServer()
    limiters = [ModelledLimiter(server, max_in_flight=SLOTS) for _ in range(CLIENTS)]
    in_flight = most = 0
    loop = asyncio.get_running_loop()

    def job(limiter: RedisLimiter) -> Callable[[], Awaitable[None]]:
        async def generation() -> None:
            nonlocal in_flight, most
            await limiter.acquire()
            await limiter.turn(Kind.SUBMIT)
            in_flight += 1
            most = max(most, in_flight)
            await asyncio.sleep(SECONDS)
            in_flight -= 1
            limiter.release()

        return generation

    for limiter in limiters:
        limiter.attach(print)
    begun, cpu_begun = loop.time(), time.process_time()
    await asyncio.gather(*(each(generations // CLIENTS, 15, job(limiter)) for limiter in limiters))
    seconds = loop.time() - begun
    for limiter in limiters:
        await limiter.detach(print)
    used = generations * SECONDS / seconds / SLOTS
    print(
        f"{CLIENTS} clients, {generations} generations in {seconds:.0f} virtual seconds "
        f"({time.process_time() - cpu_begun:.0f} s of CPU): at most {most} in flight, {used:.0%} used, "
        f"{server.exchanges / seconds / CLIENTS:.1f} exchanges a second for each client"
    )
    holds = most <= SLOTS and used >= 0.9
    print(verdict(holds))
    return holds


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--generations", type=int, default=100_000)
    options = parser.parse_args()
    if options.url:
        asyncio.run(compare(options.url, options.count))
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return 0 if runner.run(simulate(options.generations)) else 1


if __name__ == "__main__":
    sys.exit(main())
