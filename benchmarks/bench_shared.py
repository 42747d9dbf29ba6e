"""What does each place cost where the state of a client may be?

    python benchmarks/bench_shared.py [--postgres DSN] [--redis URL] [--turns 15]

`generate_all` without a journal, with `SqliteJournal`, and with `PostgresJournal`; and with limits in this process and
with `RedisLimiter`, which have no journal. Latency: the median of generations one after the other, each a submit, a
poll and a result, of which the service takes 50 ms. CPU: all threads of the client's process, 64 generations at once.
The variants take turns, and the medians of the differences to the first in the same turn count. The service runs in
another process. The bar is on the latency that a journal in a file or in a database adds.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from bench_journal import new_journal
from harness import Service, prompts, verdict

from flux_klein_async import FixedPolling, FluxKleinClient, Limits, RedisLimiter, TextToImageInput
from flux_klein_async.journal.writer import StoredJournal
from flux_klein_async.transport.throttle import Limiter

BAR = 0.05  # seconds
SECONDS = 0.05
IN_A_ROW, AT_ONCE = 12, 128

MakeJournal = Callable[[Path], StoredJournal]
MakeLimits = Callable[[], Limits | Limiter]


async def run(service: Service, journal: MakeJournal | None, limits: MakeLimits) -> tuple[float, float]:
    """Seconds of a generation, and seconds of CPU."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened = None if journal is None else await stack.enter_async_context(journal(folder))
        client = await stack.enter_async_context(
            FluxKleinClient(
                service.api_key,
                base_url=service.base_url,
                limits=limits(),
                polling=FixedPolling(SECONDS),
                journal=opened,
            )
        )

        async def made(texts: list[str], at_once: int) -> None:
            items = [TextToImageInput(prompt=text, width=64, height=64) for text in texts]
            outcomes = await client.generate_all(items, concurrency=at_once)
            assert all(outcome.result is not None for outcome in outcomes)

        texts = prompts(IN_A_ROW + AT_ONCE + 1)
        await made(texts[:1], 1)  # connects
        latencies = []
        for text in texts[1 : IN_A_ROW + 1]:
            begun = time.perf_counter()
            await made([text], 1)
            latencies.append(time.perf_counter() - begun)
        cpu = time.process_time()
        await made(texts[IN_A_ROW + 1 :], 64)
        return median(latencies), (time.process_time() - cpu) / AT_ONCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", default="", metavar="DSN", help="a database for PostgresJournal")
    parser.add_argument("--redis", default="", metavar="URL", help="a server for RedisLimiter")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()

    variants: dict[str, tuple[MakeJournal | None, MakeLimits]] = {
        "no journal, Limits": (None, Limits),
        "SqliteJournal": (lambda folder: new_journal(folder / "run.sqlite", ""), Limits),
    }
    if options.postgres:
        variants["PostgresJournal"] = (lambda _: new_journal(Path(), options.postgres), Limits)
    if options.redis:
        account = f"bench {secrets.token_hex(6)}"
        variants["RedisLimiter"] = (None, lambda: RedisLimiter(options.redis, account=account, max_in_flight=64))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    with Service(f"fixed:{SECONDS * 0.9:g}") as service:
        names = list(variants)
        for _ in range(options.turns + 1):
            for name in names:
                found[name].append(asyncio.run(run(service, *variants[name])))
            names.reverse()
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    first, *_ = variants
    added = {}
    for name, turns in found.items():
        pairs = list(zip(turns[1:], found[first][1:], strict=True))  # without the warm-up
        added[name], cpu = (median(own[part] - other[part] for own, other in pairs) for part in (0, 1))
        latency, used = (median(turn[part] for turn in turns[1:]) for part in (0, 1))
        print(
            f"{name:20} {latency * 1e3:7.1f} ms, {added[name] * 1e3:+6.1f}"
            f"   CPU {used * 1e3:6.2f} ms, {cpu * 1e3:+6.2f} ({1 + cpu / (used - cpu):.2f} times)"
        )
    met = max(added.values()) <= BAR
    print(f"bar {BAR * 1e3:.0f} ms: {verdict(met)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
