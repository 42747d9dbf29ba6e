"""How much CPU does a journal add to a run?

    python benchmarks/bench_ledger.py [--generations 256] [--concurrency 64] [--pairs 15] [--save]

`generate_many` over the same items without a journal, with `SqliteJournal`, and with `SqliteJournal` and `Budget`.
Client side CPU of all threads (`time.process_time`); the emulated service runs in another process and counts its calls:
all variants make the same ones, but for one to the catalogue with the budget. They take turns, in a request that
is turned round from pair to pair, and the median of the ratios is what counts. With `--save` the pictures are
downloaded too, as `flux-klein batch` does.
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from service import Service

from flux_klein_async import FixedPolling, FluxKleinClient, Limits, TextToImageInput
from flux_klein_async.journal.budget import Budget
from flux_klein_async.journal.sqlite import SqliteJournal

BAR = 1.20
INTERVAL = 0.6  # seconds between polls
PROFILE = "fixed:1.5"  # ends between the second poll and the third, with 0.3 s to spare on either side
CALLS = {"submit": 1, "status": 3, "result": 1}
STRAY = 0.05  # of the generations may have a poll less or more: on a busy machine some polls come late
PIXELS = 64
TIMEOUT = 30.0
WITHOUT, JOURNAL, BUDGET = "without", "SqliteJournal", "SqliteJournal, Budget"
VARIANTS = (WITHOUT, JOURNAL, BUDGET)


@dataclass
class Run:
    """CPU microseconds a generation of each variant, run by run."""

    service: Service
    count: int
    concurrency: int
    save: bool
    cpu: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in VARIANTS})

    def once(self, name: str) -> float:
        """Run a variant once; its CPU microseconds a generation.

        Raises:
            RuntimeError: It did not make the calls that all are to make.
        """
        before = self.service.calls()
        with tempfile.TemporaryDirectory() as folder:
            gc.collect()
            begun = time.process_time()
            done = asyncio.run(self._run(name, Path(folder)))
            used = time.process_time() - begun
        made = self.service.calls() - before
        off = max(abs(made[endpoint] - calls * self.count) for endpoint, calls in CALLS.items())
        if done != self.count or off > STRAY * self.count:
            raise RuntimeError(f"{name}: {done} of {self.count} done with {dict(made)}; is the machine too busy?")
        return used / self.count * 1e6

    async def _run(self, name: str, folder: Path) -> int:
        """One run, from opening the journal to closing it."""
        items = (TextToImageInput(prompt=f"a leopard, {n}", width=PIXELS, height=PIXELS) for n in range(self.count))
        directory = folder / "out" if self.save else None
        async with (
            self._client(name, folder / "run.sqlite") as flux,
            flux.generate_many(items, concurrency=self.concurrency, directory=directory) as outcomes,
        ):
            return sum([outcome.result is not None async for outcome in outcomes])

    @asynccontextmanager
    async def _client(self, name: str, path: Path) -> AsyncIterator[FluxKleinClient]:
        make: Callable[..., FluxKleinClient] = FluxKleinClient
        options = {
            "base_url": self.service.base_url,
            "timeout": TIMEOUT,
            "limits": Limits(max_in_flight=self.concurrency),
            "polling": FixedPolling(INTERVAL),
        }
        if name == WITHOUT:
            async with make(self.service.api_key, **options) as flux:
                yield flux
            return
        budget = Budget(1_000_000) if name == BUDGET else None
        async with (
            SqliteJournal(path) as journal,
            make(self.service.api_key, journal=journal, budget=budget, **options) as flux,
        ):
            yield flux

    def turn(self, number: int) -> None:
        """Run every variant once."""
        for name in VARIANTS if number % 2 else reversed(VARIANTS):
            self.cpu[name].append(self.once(name))
        shown = "".join(f"{values[-1]:9.0f} µs" for values in self.cpu.values())
        print(f"{number:4}{shown}{self.cpu[JOURNAL][-1] / self.cpu[WITHOUT][-1]:9.3f}", flush=True)

    def ratio(self, name: str) -> float:
        """Median over the turns of this variant against the run without a journal of the same turn."""
        return median(ours / plain for ours, plain in zip(self.cpu[name], self.cpu[WITHOUT], strict=True))


def report(run: Run) -> bool:
    print(f"\n{'CPU a generation':24} {'median':>10} {'ratio':>7}")
    for name, values in run.cpu.items():
        print(f"{name:24} {median(values):7.0f} µs {run.ratio(name):7.3f}")
    met = max(run.ratio(JOURNAL), run.ratio(BUDGET)) <= BAR
    print(f"bar {BAR:.2f}: {'met' if met else 'missed'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="download the pictures too")
    options = parser.parse_args()
    with Service(PROFILE) as service:
        run = Run(service, options.generations, options.concurrency, options.save)
        for name in VARIANTS:  # warm up: imports, caches, the service's own
            run.once(name)
        print("pair  " + "".join(f"{name:>12.12}" for name in VARIANTS) + "    ratio")
        for number in range(1, options.pairs + 1):
            run.turn(number)
    return 0 if report(run) else 1


if __name__ == "__main__":
    sys.exit(main())
