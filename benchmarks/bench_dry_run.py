"""How much memory does a batch of a million lines take to be checked and told about?

    python benchmarks/bench_dry_run.py [--counts 10000 100000 1000000]

`flux-klein batch FILE --dry-run` as a process of its own: every line read in its thread, checked, handed to the loop
and counted; once where there is no journal, and once with one that is asked what it knows of each line. The most that
the process ever had in memory (`ru_maxrss`), above that of the shortest file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from service import Service

BAR = 24.0  # MiB that the longest file may take more than the shortest: bounded caches, where the ids alone are 60 MiB


def write(path: Path, count: int) -> None:
    """So many lines, each with an id."""
    with path.open("w") as file:
        for number in range(count):
            row = {
                "id": f"row {number}",
                "prompt": f"a snow leopard at dawn, picture {number}",
                "width": 64,
                "height": 64,
            }
            file.write(json.dumps(row) + "\n")


def run(folder: Path, service: Service, *options: str) -> tuple[float, float]:
    """MiB at most, and seconds."""
    access = {"RUNCOMFY_MODEL_API_BASE": service.base_url, "RUNCOMFY_API_TOKEN": service.api_key}
    command = [sys.executable, "-m", "flux_klein_async", "batch", "prompts.jsonl", "--quiet", *options]
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **access}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_maxrss / 1024, time.perf_counter() - begun


def measured(folder: Path, service: Service, counts: list[int]) -> float:
    """A line for each length; MiB that the longest takes more than the shortest."""
    most = []
    for count in counts:
        write(folder / "prompts.jsonl", count)
        memory, seconds = run(folder, service, "--dry-run")
        most.append(memory)
        print(f"  {count:10,} lines  {memory:6.1f} MiB  {seconds:6.1f} s  {count / seconds:8,.0f} lines/s", flush=True)
    return most[-1] - most[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Service("fixed:0.01") as service:
        folder = Path(name)
        print("without a journal")
        grown = [measured(folder, service, options.counts)]
        write(folder / "prompts.jsonl", 100)
        run(folder, service)
        print("with a journal, which knows the first hundred")
        grown.append(measured(folder, service, options.counts))
    met = max(grown) <= BAR
    print(f"more for the longest: {grown[0]:.1f} and {grown[1]:.1f} MiB; bar {BAR:.0f}: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
