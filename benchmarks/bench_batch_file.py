"""What does a batch file of a million lines take: how much memory, and how long?

    python benchmarks/bench_batch_file.py [--counts 10000 100000 1000000] [--skip-formats | --skip-dry-run]

Formats: each format is read as `flux-klein batch --dry-run` reads it (every row checked, every id compared, the time
estimated), each file in a process of its own. What Python allocates is traced in another process, since that is slow.

Dry run: the whole command on a `.jsonl` file, without a journal and with one; the most memory it ever had
(`ru_maxrss`), above that of the shortest file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from harness import Service, resident, verdict

from flux_klein_async.batch.formats import FileFormat
from flux_klein_async.batch.rows import read_rows
from flux_klein_async.cli.forecast import Estimate

# MiB that the longest file may take more than the shortest; the ids alone of a million lines are 60 MiB.
BAR_RESIDENT, BAR_DRY_RUN = 8.0, 24.0
BAR_TRACED = 2.0  # MiB of any file


def lines(kind: FileFormat, count: int, sides: tuple[int, ...]) -> Iterator[str]:
    """A file with ids and sizes, where the format has them."""
    if kind is FileFormat.CSV:
        yield "id,width,height,prompt\n"
    for number in range(count):
        prompt = f"a snow leopard at dawn, picture {number}, 35 mm, soft light, \u732b"
        side = sides[number % len(sides)]
        row_id = f"{number * 0x9E3779B1 % 0xFFFFFFFB:08x}-{number}"  # in no order, like hashes
        if kind is FileFormat.CSV:
            yield f'{row_id},{side},{side},"{prompt}"\n'
        elif kind is FileFormat.JSONL:
            yield json.dumps({"id": row_id, "prompt": prompt, "width": side, "height": side}) + "\n"
        else:
            yield prompt + "\n"


def write(path: Path, kind: FileFormat, count: int, sides: tuple[int, ...] = (512, 768, 1024, 1536)) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines(kind, count, sides))


def read(path: Path, kind: FileFormat, *, traced: bool) -> dict[str, float]:
    """Read a file in this process: rows, seconds of CPU, MiB gained and traced."""
    if traced:
        tracemalloc.start()
    before = resident()
    most, estimate, start = before, Estimate(), time.process_time()
    with path.open("rb") as file:
        for row in read_rows(file, kind):
            if row.problem:
                raise SystemExit(str(row))
            estimate.add(row.fields)
            if estimate.count % 100_000 == 0:
                most = max(most, resident())
    seconds, most = time.process_time() - start, max(most, resident())
    peak = tracemalloc.get_traced_memory()[1] if traced else 0
    return {"rows": estimate.count, "seconds": seconds, "resident": (most - before) / 2**20, "traced": peak / 2**20}


def formats(folder: Path, counts: list[int]) -> bool:
    """Print a line for each file; whether the bars are met."""
    met = True
    for kind in FileFormat:
        gained = []
        for count in counts:
            path = folder / f"rows.{kind}"
            write(path, kind, count)
            plain, traced = (
                json.loads(subprocess.check_output([sys.executable, __file__, "--read", path, "--kind", kind, *flags]))
                for flags in ((), ("--traced",))
            )
            gained.append(plain["resident"])
            met = met and traced["traced"] <= BAR_TRACED
            print(
                f"{kind:6}{count:10,} lines  {path.stat().st_size / 2**20:6.1f} MiB  "
                f"{plain['rows'] / plain['seconds']:9,.0f} rows/s of CPU  resident +{plain['resident']:5.2f} MiB  "
                f"traced {traced['traced']:5.2f} MiB",
                flush=True,
            )
        met = met and gained[-1] - gained[0] <= BAR_RESIDENT
    print(f"bars {BAR_RESIDENT:.0f} MiB more for the longest, {BAR_TRACED:.0f} MiB traced: {verdict(met)}")
    return met


def batch(folder: Path, service: Service, *options: str) -> tuple[float, float]:
    """Run the command: its MiB at most, and seconds."""
    environment = {**os.environ, "RUNCOMFY_MODEL_API_BASE": service.base_url, "RUNCOMFY_API_TOKEN": service.api_key}
    command = [sys.executable, "-m", "flux_klein_async", "batch", "prompts.jsonl", "--quiet", "--no-report", *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_maxrss / 1024, time.perf_counter() - start


def dry_run(folder: Path, counts: list[int]) -> bool:
    """Print a line for each file; whether the bar is met."""
    path, more = folder / "prompts.jsonl", []
    with Service("fixed:0.01") as service:
        for journaled in (False, True):
            print("dry run " + ("with a journal that knows 100 rows" if journaled else "without a journal"))
            if journaled:
                write(path, FileFormat.JSONL, 100, (64,))
                batch(folder, service)
            most = []
            for count in counts:
                write(path, FileFormat.JSONL, count, (64,))
                memory, seconds = batch(folder, service, "--dry-run")
                most.append(memory)
                print(
                    f"  {count:10,} lines  {memory:6.1f} MiB  {seconds:6.1f} s  {count / seconds:8,.0f} lines/s",
                    flush=True,
                )
            more.append(most[-1] - most[0])
    met = max(more) <= BAR_DRY_RUN
    print(f"more for the longest: {more[0]:.1f} and {more[1]:.1f} MiB; bar {BAR_DRY_RUN:.0f}: {verdict(met)}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--skip-formats", action="store_true")
    parser.add_argument("--skip-dry-run", action="store_true")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", type=FileFormat, help=argparse.SUPPRESS)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read, options.kind, traced=options.traced)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        met = options.skip_formats or formats(Path(name), options.counts)
        met = (options.skip_dry_run or dry_run(Path(name), options.counts)) and met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
