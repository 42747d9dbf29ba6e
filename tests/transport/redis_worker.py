"""One process of `test_redis_server`: generates without end, until it is killed or its standard input ends."""

import asyncio
import itertools
import sys
from contextlib import suppress

from flux_klein_async import FixedPolling, FluxKleinClient, FluxKleinError, RedisLimiter


async def main(name: str, url: str, base_url: str, token: str) -> None:
    limiter = RedisLimiter(url, max_in_flight=50, polls_per_second=200)
    async with FluxKleinClient(
        token, base_url=base_url, limits=limiter, polling=FixedPolling(0.15), timeout=300
    ) as client:

        async def work() -> None:
            while True:
                with suppress(FluxKleinError):
                    await client.generate(f"{name} {next(numbers)}")

        numbers = itertools.count()
        tasks = [asyncio.ensure_future(work()) for _ in range(20)]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
