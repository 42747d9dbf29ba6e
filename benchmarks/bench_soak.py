"""Does one client that makes a hundred thousand generations stay as small as it was?

    python benchmarks/bench_soak.py in-process [--count 100000] [--faults 0.01]
    python benchmarks/bench_soak.py port [--count 20000] [--faults 0]
    python benchmarks/bench_soak.py PLACE --quick          # a few thousand
    python benchmarks/bench_soak.py PLACE --trace          # slow: names the lines that hold more at the end

In process everything is in one process and in virtual time, the service included, and one call in a hundred goes wrong,
since what is forgotten is forgotten on the way of an error. On a port the service is in another process and in real
time; its memory is measured as well. The emulator remembers little (`max_records`, `max_generations`).

A sample is taken after each tenth, when nothing is in flight, after a full garbage collection. Bars: memory after every
later tenth (resident, blocks of Python's allocator, objects that the collector knows) at most 5 % above that after the
first; less than one block gained for every two generations; after closing, as many tasks and descriptors as before.
"""

import argparse
import asyncio
import gc
import logging
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from measure import descriptors, resident, trouble
from service import Service
from storm import PIXELS

from flux_klein_async import FluxKleinClient, FluxKleinError, GenerationResult, Limits, TextToImageInput
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop

TENTHS = 10
BAR = 1.05
BAR_BLOCKS = 0.5  # a generation
CONCURRENCY = 128
TIMEOUT = 60.0
READ_EACH = 20  # of so many results one is read
SETTLE = 60.0  # virtual seconds after which nothing of an abandoned call is left
LIMITS = Limits(max_in_flight=CONCURRENCY, max_file_bytes=1_500_000)


Place = Callable[["Soak", float], Awaitable[None]]


class Sample(NamedTuple):
    """What a process holds; `service` is the resident size of the service's process, 0 where it has none."""

    resident: int
    blocks: int
    objects: int
    descriptors: int
    tasks: int
    service: int = 0


def sample(service: Callable[[], int]) -> Sample:
    gc.collect()
    gc.collect()  # what finalizers let go of
    blocks, objects = sys.getallocatedblocks(), len(gc.get_objects())
    return Sample(resident(), blocks, objects, descriptors(), len(asyncio.all_tasks()), service())


@dataclass
class Soak:
    """One client's long life, a tenth at a time."""

    count: int
    trace: bool
    service: Callable[[], int] = lambda: 0
    settle: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    first: tracemalloc.Snapshot | None = None

    @property
    def remembered(self) -> int:
        """How much the emulator is to remember: full before the first sample, and enough for what is in flight."""
        return max(2 * CONCURRENCY, self.count // 50)

    async def run(self, client: FluxKleinClient) -> None:
        """Make all generations, with a sample after each tenth."""
        print(f"{'':6}{'s':>8} {'MiB':>9} {'blocks':>10} {'objects':>10} {'open':>5} {'tasks':>6} {'service MiB':>12}")
        begun = time.perf_counter()
        for tenth in range(TENTHS):
            size = self.count // TENTHS
            prompts = (f"a snow leopard, number {tenth * size + number}" for number in range(size))
            await self._drive(client, prompts)
            await asyncio.sleep(self.settle)
            now = sample(self.service)
            self.samples.append(now)
            print(
                f"{(tenth + 1) * size:6}{time.perf_counter() - begun:8.1f} {now.resident / 2**20:9.2f} {now.blocks:10} "
                f"{now.objects:10} {now.descriptors:5} {now.tasks:6} {now.service / 2**20:12.2f}",
                flush=True,
            )
            if self.trace:
                self._trace()

    def _trace(self) -> None:
        snapshot = tracemalloc.take_snapshot()
        if self.first is None:
            self.first = snapshot
        elif len(self.samples) == TENTHS:
            for line in snapshot.compare_to(self.first, "lineno")[:15]:
                print(f"  {line}")

    async def _drive(self, client: FluxKleinClient, prompts: Iterator[str]) -> None:
        """Fan out until the prompts are used up; an error that dooms the rest ends one fan-out, not the next."""
        made = -1
        while made != self.ends.total():
            made = self.ends.total()
            try:
                async with client.generate_many(prompts, concurrency=CONCURRENCY, to_input=small) as outcomes:
                    async for outcome in outcomes:
                        end = "result" if outcome.error is None else type(outcome.error).__name__
                        self.ends[end] += 1
                        if outcome.result is not None and not outcome.index % READ_EACH:
                            self.ends[await self._read(client, outcome.result)] += 1
            except FluxKleinError:
                pass  # it was its item's outcome, too

    async def _read(self, client: FluxKleinClient, result: GenerationResult) -> str:
        try:
            [picture] = await client.download_bytes(result)
        except FluxKleinError as error:
            return type(error).__name__
        return "picture" if picture.startswith(b"\x89PNG") else "no picture"


def small(prompt: str) -> TextToImageInput:
    return TextToImageInput(prompt=prompt, width=PIXELS, height=PIXELS)


def verdict(samples: list[Sample], count: int) -> bool:
    """Print the bars on memory; whether they are met."""
    met = True
    for name in ("resident", "blocks", "objects", "service"):
        first, *later = (getattr(each, name) for each in samples)
        if not first:
            continue
        ratio = max(later) / first
        met = met and ratio <= BAR
        print(f"{name:12} {ratio:6.3f} of that after the first tenth, at most   bar {BAR}: {_met(ratio <= BAR)}")
    gained = (samples[-1].blocks - samples[0].blocks) / (count * (TENTHS - 1) / TENTHS)
    print(f"{'blocks':12} {gained:6.3f} gained a generation   bar {BAR_BLOCKS}: {_met(gained < BAR_BLOCKS)}")
    return met and gained < BAR_BLOCKS


def _met(holds: bool) -> str:
    return "met" if holds else "MISSED"


async def live(client: FluxKleinClient, soak: Soak) -> None:
    """The client's whole life."""
    async with client:
        await soak.run(client)


async def in_process(soak: Soak, faults: float) -> None:
    """Client and service in this process, in virtual time."""
    soak.settle = SETTLE
    async with InProcessEmulator(seed=7, max_records=soak.remembered, max_generations=soak.remembered) as emulator:
        emulator.storm(faults)
        client = FluxKleinClient(
            emulator.api_key, base_url=emulator.base_url, timeout=TIMEOUT, limits=LIMITS, session=emulator.session()
        )
        await live(client, soak)


async def on_a_port(soak: Soak, faults: float) -> None:
    """The service in another process, in real time."""
    few = soak.remembered
    with Service("klein", storm=faults, seed=7, max_records=few, max_generations=few) as service:
        soak.service = lambda: service.cost()["resident"]
        client = FluxKleinClient(service.api_key, base_url=service.base_url, timeout=TIMEOUT, limits=LIMITS)
        await live(client, soak)
    await asyncio.sleep(0)  # aiohttp closes its sockets in the next step of the loop


async def run(place: Place, soak: Soak, faults: float) -> bool:
    """One soak with its tables; whether all bars are met."""
    before = len(asyncio.all_tasks()), descriptors()
    with trouble() as seen:
        await place(soak, faults)
    after = len(asyncio.all_tasks()), descriptors()
    print(", ".join(f"{end} {number}" for end, number in soak.ends.most_common()))
    met = verdict(soak.samples, soak.count)
    print(f"tasks and descriptors before {before}, after {after}: {_met(after == before)}")
    print(f"unhandled, unraisable, warnings: {len(seen)}: {_met(not seen)}")
    for line in seen[:10]:
        print(f"  {line[:300]}")
    return met and after == before and not seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", choices=["in-process", "port"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--faults", type=float, help="probability; default 0.01 in process, 0 on a port")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    inside = options.place == "in-process"
    count = options.count or ((6_000 if inside else 2_000) if options.quick else (100_000 if inside else 20_000))
    faults = options.faults if options.faults is not None else (0.01 if inside else 0.0)
    logging.disable(logging.WARNING)  # each submit that stays uncertain is told there, as it should be
    random.seed(7)  # of the client's own pauses
    if options.trace:
        tracemalloc.start()
    print(f"{options.place}: {count} generations, {CONCURRENCY} at once, {faults:.1%} of all calls go wrong")
    with asyncio.Runner(loop_factory=VirtualTimeLoop if inside else None) as runner:
        met = runner.run(run(in_process if inside else on_a_port, Soak(count, options.trace), faults))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
