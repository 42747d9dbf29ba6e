"""Does a client that makes two hundred thousand generations stay as small as it was?

    python benchmarks/bench_memory.py in-process [--count 200000] [--faults 0.01]
    python benchmarks/bench_memory.py port [--count 200000] [--faults 0]
    python benchmarks/bench_memory.py PLACE --quick          # a few thousand
    python benchmarks/bench_memory.py PLACE --trace          # slow: the lines that allocated more at the end

In process, everything is in one process and in virtual time, the service included, and one call in a hundred goes
wrong, since errors take the paths on which things are forgotten. On a port, the service is in another process, and its
memory is measured as well. The emulator remembers little (`max_records`, `max_generations`).

A sample is taken after each tenth, with nothing in flight, after a full garbage collection. Bars: memory after each
later tenth (resident, blocks of Python's allocator, objects known to the collector) at most 5 % above that after the
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

from faulty_client import PIXELS
from harness import Service, descriptors, problems, resident, verdict

from flux_klein_async import FluxKleinClient, FluxKleinError, GenerationResult, Limits, TextToImageInput
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop

TENTHS = 10
BAR = 1.05
BAR_BLOCKS = 0.5  # a generation
CONCURRENCY = 128
TIMEOUT = 60.0
DOWNLOAD_EACH = 20  # one result of so many
SETTLE = 60.0  # virtual seconds, after which abandoned calls have ended
LIMITS = Limits(max_in_flight=CONCURRENCY, max_file_bytes=1_500_000)


class Sample(NamedTuple):
    """What a process holds; `service` is the resident size of the service's process, 0 where it has none."""

    resident: int
    blocks: int
    objects: int
    descriptors: int
    tasks: int
    service: int


def small(prompt: str) -> TextToImageInput:
    return TextToImageInput(prompt=prompt, width=PIXELS, height=PIXELS)


@dataclass
class Run:
    """All generations of one client, a tenth at a time."""

    count: int
    trace: bool
    service: Callable[[], int] = lambda: 0
    settle: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    first: tracemalloc.Snapshot | None = None

    @property
    def remembered(self) -> int:
        """What the emulator remembers: full before the first sample, and enough for what is in flight."""
        return max(2 * CONCURRENCY, self.count // 50)

    async def generate(self, client: FluxKleinClient) -> None:
        """Make all generations, with a sample after each tenth, and close the client."""
        print(f"{'':6}{'s':>8} {'MiB':>9} {'blocks':>10} {'objects':>10} {'open':>5} {'tasks':>6} {'service MiB':>12}")
        start, size = time.perf_counter(), self.count // TENTHS
        async with client:
            for tenth in range(TENTHS):
                await self._fan_out(client, (f"a snow leopard, number {tenth * size + n}" for n in range(size)))
                await asyncio.sleep(self.settle)
                now = self._sample()
                print(
                    f"{(tenth + 1) * size:6}{time.perf_counter() - start:8.1f} {now.resident / 2**20:9.2f} "
                    f"{now.blocks:10} {now.objects:10} {now.descriptors:5} {now.tasks:6} {now.service / 2**20:12.2f}",
                    flush=True,
                )

    def _sample(self) -> Sample:
        gc.collect()
        gc.collect()  # what finalizers released
        blocks, objects = sys.getallocatedblocks(), len(gc.get_objects())
        now = Sample(resident(), blocks, objects, descriptors(), len(asyncio.all_tasks()), self.service())
        self.samples.append(now)
        if self.trace:
            snapshot = tracemalloc.take_snapshot()
            self.first = self.first or snapshot
            if len(self.samples) == TENTHS:
                for line in snapshot.compare_to(self.first, "lineno")[:15]:
                    print(f"  {line}")
        return now

    async def _fan_out(self, client: FluxKleinClient, prompts: Iterator[str]) -> None:
        """Fan out until the prompts are used up; an error that ends one fan-out does not end the next."""
        made = -1
        while made != self.ends.total():
            made = self.ends.total()
            try:
                async with client.generate_many(prompts, concurrency=CONCURRENCY, to_input=small) as outcomes:
                    async for outcome in outcomes:
                        self.ends["result" if outcome.error is None else type(outcome.error).__name__] += 1
                        if outcome.result is not None and not outcome.index % DOWNLOAD_EACH:
                            self.ends[await self._download(client, outcome.result)] += 1
            except FluxKleinError:
                pass  # it is the outcome of its item, too

    async def _download(self, client: FluxKleinClient, result: GenerationResult) -> str:
        try:
            pictures = await client.download_bytes(result)  # a faulty result may name several
        except FluxKleinError as error:
            return type(error).__name__
        return "picture" if all(picture.startswith(b"\x89PNG") for picture in pictures) else "no picture"

    def verdict(self) -> bool:
        """Print the bars on memory; whether they are met."""
        met = True
        for name in ("resident", "blocks", "objects", "service"):
            first, *later = (getattr(sample, name) for sample in self.samples)
            if first:
                ratio = max(later) / first
                met = met and ratio <= BAR
                print(
                    f"{name:12} {ratio:6.3f} of that after the first tenth, at most; bar {BAR}: {verdict(ratio <= BAR)}"
                )
        gained = (self.samples[-1].blocks - self.samples[0].blocks) / (self.count * (TENTHS - 1) / TENTHS)
        print(f"{'blocks':12} {gained:6.3f} gained a generation; bar {BAR_BLOCKS}: {verdict(gained < BAR_BLOCKS)}")
        return met and gained < BAR_BLOCKS


async def in_process(run: Run, faults: float) -> None:
    """Client and service in this process, in virtual time."""
    run.settle = SETTLE
    async with InProcessEmulator(seed=7, max_records=run.remembered, max_generations=run.remembered) as emulator:
        emulator.storm(faults)
        await run.generate(
            FluxKleinClient(
                emulator.api_key, base_url=emulator.base_url, timeout=TIMEOUT, limits=LIMITS, session=emulator.session()
            )
        )


async def on_a_port(run: Run, faults: float) -> None:
    """The service in another process, in real time."""
    few = run.remembered
    with Service("klein", faults=faults, seed=7, max_records=few, max_generations=few) as service:
        run.service = service.memory
        await run.generate(FluxKleinClient(service.api_key, base_url=service.base_url, timeout=TIMEOUT, limits=LIMITS))
    await asyncio.sleep(0)  # aiohttp closes its sockets in the next step of the loop


async def measure(place: Callable[[Run, float], Awaitable[None]], run: Run, faults: float) -> bool:
    """One run with its tables; whether all bars are met."""
    before = len(asyncio.all_tasks()), descriptors()
    with problems() as found:
        await place(run, faults)
    after = len(asyncio.all_tasks()), descriptors()
    print(", ".join(f"{end} {number}" for end, number in run.ends.most_common()))
    met = run.verdict()
    print(f"tasks and descriptors before {before}, after {after}: {verdict(after == before)}")
    print(f"unhandled, unraisable, warnings: {len(found)}: {verdict(not found)}")
    for line in found[:10]:
        print(f"  {line[:300]}")
    return met and after == before and not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", choices=["in-process", "port"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--faults", type=float, help="probability; default 0.01 in process, 0 on a port")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    inside = options.place == "in-process"
    count = options.count or ((6_000 if inside else 2_000) if options.quick else 200_000)
    faults = options.faults if options.faults is not None else (0.01 if inside else 0.0)
    logging.disable(logging.WARNING)  # uncertain submits are logged there, as they should be
    random.seed(7)  # of the client's pauses
    if options.trace:
        tracemalloc.start()
    print(f"{options.place}: {count} generations, {CONCURRENCY} at once, {faults:.1%} of all calls go wrong")
    with asyncio.Runner(loop_factory=VirtualTimeLoop if inside else None) as runner:
        met = runner.run(measure(in_process if inside else on_a_port, Run(count, options.trace), faults))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
