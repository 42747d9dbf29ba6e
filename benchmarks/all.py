"""The claims of benchmarks/README.md, taken anew: a table of them, with bar, figure and command.

Not those of memory, a million lines, and what needs a Redis or PostgreSQL server: these have commands of their own.

    python benchmarks/all.py --quick     # with few turns; some 10 minutes
    python benchmarks/all.py             # as the page has them; an hour

Exits with 1 if a bar is missed. The claims are the lines in which a benchmark says whether a bar is met.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
# The arguments of each benchmark, and those that make it quick.
RUNS: list[tuple[str, str, str]] = [
    ("bench_start.py", "", "--turns 5"),
    ("bench_policy.py", "--table", "--table --requests 800 --seeds 1"),
    ("bench_polling.py", "", "--count 500 --fresh 20 --ours"),
    ("bench_burst.py", "--virtual", "--virtual"),
    ("bench_burst.py", "", "--turns 1"),
    ("bench_overhead.py", "", "--generations 64 --concurrency 64 --turns 5"),
    ("bench_events.py", "", "--generations 32 --turns 3"),
    ("bench_journal.py", "", "--turns 3"),
    ("bench_in_flight.py", "", "--count 200 --seconds 20"),
    ("bench_faults.py", "", "--quick"),
]
_BAR = re.compile(r"\b(met|MISSED)\b")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    failed = []
    for script, full, quick in RUNS:
        arguments = (quick if options.quick else full).split()
        begun = time.monotonic()
        ran = subprocess.run([sys.executable, HERE / script, *arguments], capture_output=True, text=True, check=False)
        print(f"\n## {script} {' '.join(arguments)}   ({time.monotonic() - begun:.0f} s)", flush=True)
        lines = ran.stdout.splitlines() or ran.stderr.splitlines()[-3:]
        bars = False
        for line in lines:
            bars = bars or line.startswith("bar ")  # a table of bars follows
            if not options.quick or bars or _BAR.search(line) or ran.returncode not in {0, 1}:
                print(f"  {line.strip()}", flush=True)
        if ran.returncode:
            failed.append(script)
    print(f"\nload after: {os.getloadavg()[0]:.1f}; bars missed or failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
