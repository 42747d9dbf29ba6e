"""Is anything lost, paid twice or spent beyond the budget when a tenth of all calls go wrong in every way there is?

    python benchmarks/bench_faults.py [--count 2000] [--concurrency 200] [--probability 0.1] [--seed 7]
    python benchmarks/bench_faults.py --quick                   # 300 generations, in process only
    python benchmarks/bench_faults.py --batches [--count 2000] [--concurrency 64] [--processes 3]
    python benchmarks/bench_faults.py --batches --count 150 --quick     # without faults that take seconds

One client: at every endpoint each call goes wrong with this probability, in a way drawn from the whole catalogue
(`flux-klein emulator --faults`), connections included. Seven items of ten are generated and downloaded; one is
abandoned within 5 s; one is submitted and cancelled; one is submitted, resumed by its id and saved. Then what the
callers know is compared with what the emulator knows. Once in process, in virtual time, and once on a loopback port.

Batches: `flux-klein batch` in several processes with one file, one journal, and one `--max-spend` that is too small.
Faults that rightly end a run, and those that lie about money, are left out. After a fifth of the submits one process is
killed. When the others have ended, one more process with enough money and without faults finishes the rest. Then the
journal, the pictures and the manifest are compared with what the emulator accepted.

Every bar is 0; the exit code says whether all are met.
"""

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faulty_batches import LEFT_OUT, SLOW, BatchPlan, run_batches
from faulty_client import Plan, RunRecord, accepted_submits, audit, run_items
from harness import Service, descriptors, problems, verdict

from flux_klein_async import Event, FluxKleinClient, Limits
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop

ALL_RECORDS = 10_000_000
TIMEOUT = 30.0  # seconds for each verb
WORKERS = 50  # of the service, so that some requests wait in its queue and can be cancelled
# Small enough for endless pictures, large enough that their beginning is on disk when the download stops.
LIMITS: dict[str, Any] = {"max_connections": 100, "max_file_bytes": 1_500_000}
ROUND_TRIP = 0.05  # seconds of virtual time, so that calls are under way when a caller stops waiting


def print_bars(found: Mapping[str, int]) -> bool:
    """Print what must be 0; whether it is."""
    for what, number in found.items():
        print(f"  {what:62}{number:4}   bar 0: {verdict(number == 0)}")
    return not any(found.values())


def print_run(run: RunRecord, calls: Mapping[str, int], wrong: Mapping[str, int]) -> None:
    """Print which calls went wrong, and how the items ended."""
    for endpoint, number in sorted(calls.items()):
        print(
            f"  {endpoint:24}{number:7} calls" + ("" if endpoint == "connect" else f" {wrong[endpoint]:6} went wrong")
        )
    for end, number in Counter(end for item in run.items for end in item.ends).most_common():
        print(f"  {end:24}{number:7}")
    print(f"  {'files saved':24}{sum(len(item.files) for item in run.items):7}", flush=True)


async def in_process(plan: Plan, probability: float, directory: Path) -> dict[str, int]:
    """In virtual time; what must be 0."""
    async with InProcessEmulator(
        round_trip=ROUND_TRIP, workers=WORKERS, seed=plan.seed, max_records=ALL_RECORDS
    ) as emulator:
        emulator.storm(probability)

        def connect(on_event: Callable[[Event], None]) -> FluxKleinClient:
            return FluxKleinClient(
                emulator.api_key,
                base_url=emulator.base_url,
                timeout=TIMEOUT,
                limits=Limits(max_in_flight=plan.concurrency, **LIMITS),
                session=emulator.session(),
                on_event=on_event,
            )

        run = await run_items(plan, connect, emulator.base_url, directory)
        submits = accepted_submits(emulator.records)
        print_run(
            run, emulator.calls, Counter(record.endpoint for record in emulator.records if record.answer is not None)
        )
        unrecorded = abs(len(submits) - emulator.accepted)
    return {**audit(run, submits, seed=plan.seed), "submits not recorded": unrecorded}


async def on_a_port(plan: Plan, probability: float, directory: Path) -> dict[str, int]:
    """In real time; what must be 0."""
    before = descriptors()
    options = {"workers": WORKERS, "seed": plan.seed, "max_records": ALL_RECORDS}
    with Service("klein", faults=probability, **options) as service:

        def connect(on_event: Callable[[Event], None]) -> FluxKleinClient:
            return FluxKleinClient(
                service.api_key,
                base_url=service.base_url,
                timeout=TIMEOUT,
                limits=Limits(max_in_flight=plan.concurrency, **LIMITS),
                on_event=on_event,
            )

        run = await run_items(plan, connect, service.base_url, directory)
        submits = service.submits()
        print_run(run, service.calls(), service.faults())
    await asyncio.sleep(0)  # aiohttp closes its sockets in the next step of the loop
    return {**audit(run, submits, seed=plan.seed), "descriptors left": descriptors() - before}


async def one_client(name: str, plan: Plan, probability: float) -> bool:
    """Run with one client and print the table; whether the bars are met."""
    loop = asyncio.get_running_loop()
    print(f"{name}: {plan.count} generations, {plan.concurrency} at once, {probability:.0%} of all calls go wrong")
    wall, start, tasks = time.perf_counter(), loop.time(), len(asyncio.all_tasks())
    place = in_process if isinstance(loop, VirtualTimeLoop) else on_a_port
    with tempfile.TemporaryDirectory() as directory, problems() as strange:
        found = await place(plan, probability, Path(directory))
        found["tasks left"] = len(asyncio.all_tasks()) - tasks
    found["unhandled, unraisable, warnings"] = len(strange)
    met = print_bars(found)
    for line in strange[:10]:
        print(f"    {line[:300]}")
    print(f"  {time.perf_counter() - wall:.1f} s, on the loop's clock {loop.time() - start:.1f} s\n", flush=True)
    return met


def batches(plan: BatchPlan) -> bool:
    """Run batch processes and print the table; whether the bars are met."""

    def listed(counts: Counter[str]) -> str:
        return ", ".join(f"{count} {what}" for what, count in counts.most_common())

    print(f"{plan.count} items, {plan.processes} processes on one journal, {plan.concurrency} at once in each")
    with tempfile.TemporaryDirectory() as folder:
        run = asyncio.run(run_batches(plan, Path(folder)))
    (codes, last), (between, after) = run.codes, run.ends
    print(f"  calls            {listed(run.calls)}")
    print(f"  went wrong       {listed(run.faults)}")
    print(f"  with faults      {run.seconds[0]:.0f} s, exit codes {codes}: {listed(between)}")
    print(f"  without          {run.seconds[1]:.0f} s, exit code {last}: {listed(after)}")
    print(f"  accepted         {run.accepted[0]} with faults, {run.accepted[1]} in all")
    print(f"  spent at most    ${run.peak_usd:.2f} of ${plan.max_usd:.2f} with faults")
    met = print_bars(run.found)
    if not met:
        print(run.stderr)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", action="store_true", help="processes that share a journal, not one client")
    parser.add_argument("--count", type=int)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--probability", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    count = options.count or (300 if options.quick and not options.batches else 2000)
    if options.batches:
        plan = BatchPlan(
            count=count,
            processes=options.processes,
            concurrency=options.concurrency or 64,
            seed=options.seed,
            max_usd=round(count * 0.008, 2),  # of a cent each
            killed_at=count // 5,
            probability=options.probability,
            without=LEFT_OUT | SLOW if options.quick else LEFT_OUT,
            timeout=10.0 if options.quick else TIMEOUT,
        )
        return 0 if batches(plan) else 1
    items = Plan(count, options.concurrency or 200, options.seed)
    logging.disable(logging.WARNING)  # uncertain submits are logged there, as they should be
    random.seed(options.seed)  # of the client's pauses
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        met = runner.run(one_client("in process", items, options.probability))
    if not options.quick:
        met = asyncio.run(one_client("on a port", items, options.probability)) and met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
