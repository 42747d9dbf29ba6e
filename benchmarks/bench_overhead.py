"""How much CPU does the package add to a generation, over the same calls written by hand with aiohttp?

    python benchmarks/bench_overhead.py [--generations 512] [--concurrency 256] [--turns 15]

Client CPU only (`time.process_time`); the emulated service runs in another process and counts its calls. All variants
make the same calls at the same concurrency. They take turns, and the median of the ratios counts.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable

from harness import Comparison, HandwrittenClient, Service, in_parallel, prompts, verdict

from flux_klein_async import Event, FixedPolling, FluxKleinClient, Limits

BAR, OTHERS = 1.15, 1.20
INTERVAL = 0.4  # seconds between polls
PROFILE = "fixed:1.0"  # ends between the second poll and the third, 0.2 s from either
CALLS = {"submit": 1, "status": 3, "result": 1}
TIMEOUT = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=512)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    texts, concurrency = prompts(options.generations), options.concurrency
    with Service(PROFILE) as service:

        def client(on_event: Callable[[Event], None] | None = None) -> FluxKleinClient:
            return FluxKleinClient(
                service.api_key,
                base_url=service.base_url,
                timeout=TIMEOUT,
                limits=Limits(max_in_flight=concurrency),
                polling=FixedPolling(INTERVAL),
                on_event=on_event,
            )

        async def by_hand() -> int:
            async with HandwrittenClient(
                service.base_url, service.api_key, interval=INTERVAL, timeout=TIMEOUT
            ) as handwritten:
                return len(await handwritten.generate_all(texts, concurrency))

        async def generate() -> int:
            async with client() as flux:
                return len(await in_parallel(flux.generate, texts, concurrency))

        async def with_events() -> int:
            counts: defaultdict[type[Event], int] = defaultdict(int)

            def count(event: Event) -> None:  # next to nothing: what a handler does is its own
                counts[type(event)] += 1

            async with client(count) as flux:
                return len(await in_parallel(flux.generate, texts, concurrency))

        async def generate_many() -> int:
            async with client() as flux, flux.generate_many(texts, concurrency=concurrency) as outcomes:
                return sum([outcome.result is not None async for outcome in outcomes])

        variants = {
            "by hand": by_hand,
            "generate": generate,
            "generate, on_event set": with_events,
            "generate_many": generate_many,
        }
        comparison = Comparison(service, variants, options.generations, CALLS)
        comparison.run(options.turns)
    comparison.table()
    met = True
    for name in list(variants)[1:]:
        ratio, bar = comparison.ratio(name), BAR if name == "generate" else OTHERS
        met = met and ratio <= bar
        print(f"{name}: {ratio:.3f} times by hand, bar {bar:.2f}: {verdict(ratio <= bar)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
