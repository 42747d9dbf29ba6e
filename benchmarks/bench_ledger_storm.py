"""Is anything lost, paid twice or spent beyond the budget when several processes share a journal in a storm?

    python benchmarks/bench_ledger_storm.py [--count 2000] [--processes 3] [--concurrency 64] [--seed 7]
    python benchmarks/bench_ledger_storm.py --count 150 --quick     # nothing that takes seconds

`flux-klein batch` runs in three processes at once, with one file, one journal and one `--max-spend` that is not enough
for all. A tenth of the calls of each endpoint goes wrong, in a way drawn from the whole catalogue but for what is to
end a run and what lies about money. A fifth of the way one process is killed with SIGKILL. When the others have ended,
because the money has, the weather clears, and one more run with enough of it does the rest.

Then the journal, the pictures and the manifest are compared with what the emulator accepted. Every bar is 0; the exit
code says whether all are met.
"""

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from ledger_storm import LEFT_OUT, SLOW, Plan, Raged, rage

TIMEOUT, QUICK_TIMEOUT = 30.0, 10.0  # seconds for a picture


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(
        count=options.count,
        processes=options.processes,
        concurrency=options.concurrency,
        seed=options.seed,
        max_usd=round(options.count * 0.008, 2),  # of a cent each
        killed_at=options.count // 5,
        without=LEFT_OUT | SLOW if options.quick else LEFT_OUT,
        timeout=QUICK_TIMEOUT if options.quick else TIMEOUT,
    )


def shown(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def tell(plan: Plan, raged: Raged) -> None:
    (storm, last), (between, after) = raged.codes, raged.ends
    print(f"  calls            {shown(raged.calls)}")
    print(f"  went wrong       {shown(raged.faults)}")
    print(f"  storm            {raged.seconds[0]:.0f} s, exit codes {storm}: {shown(between)}")
    print(f"  the run after    {raged.seconds[1]:.0f} s, exit code {last}: {shown(after)}")
    print(f"  accepted         {raged.accepted[0]} in the storm, {raged.accepted[1]} in all")
    print(f"  spent at most    ${raged.peak_usd:.2f} of ${plan.max_usd:.2f} in the storm")
    for what, number in raged.found.items():
        print(f"  {what:62}{number:4}   bar 0: {'met' if number == 0 else 'MISSED'}")
    if any(raged.found.values()):
        print(raged.told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="leave out what takes seconds")
    options = parser.parse_args()
    plan = plan_of(options)
    print(f"{plan.count} items, {plan.processes} processes on one journal, {plan.concurrency} at once in each")
    with tempfile.TemporaryDirectory() as folder:
        raged = asyncio.run(rage(plan, Path(folder)))
    tell(plan, raged)
    return 1 if any(raged.found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
