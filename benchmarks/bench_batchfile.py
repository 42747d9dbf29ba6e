"""A batch file of a million lines, checked and streamed: memory at 10,000, 100,000 and 1,000,000 lines, rows a second.

Each figure comes from a process of its own, which reads a real file as `flux-klein batch --dry-run` does:
every row checked, every id compared, the time estimated. What Python allocates is traced in a second
process, since tracing makes it several times slower.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from measure import resident

from flux_klein_async.batch.estimate import Estimate
from flux_klein_async.batch.rows import FileFormat, read_rows

SIZES = (512, 768, 1024, 1536)
RESIDENT_BAR = 8.0  # MiB that the longest file may take more than the shortest
TRACED_BAR = 2.0  # MiB


def lines(kind: FileFormat, count: int) -> Iterator[str]:
    """A file with ids and sizes, where the kind has them."""
    if kind is FileFormat.CSV:
        yield "id,width,height,prompt\n"
    for number in range(count):
        prompt = f"a snow leopard at dawn, picture {number}, 35 mm, soft light, \u732b"
        side = SIZES[number % len(SIZES)]
        # Keys in no order, as hashes are: what remembers them must find its way about in all of them.
        row_id = f"{number * 0x9E3779B1 % 0xFFFFFFFB:08x}-{number}"
        if kind is FileFormat.CSV:
            yield f'{row_id},{side},{side},"{prompt}"\n'
        elif kind is FileFormat.JSONL:
            yield json.dumps({"id": row_id, "prompt": prompt, "width": side, "height": side}) + "\n"
        else:
            yield prompt + "\n"


def one(path: Path, kind: FileFormat, *, traced: bool) -> dict[str, float]:
    """Read a file; MiB and seconds of CPU."""
    if traced:
        tracemalloc.start()
    before = resident()
    most, estimate = before, Estimate()
    start = time.process_time()
    with path.open("rb") as file:
        for row in read_rows(file, kind):
            if row.problem:
                raise SystemExit(str(row))
            estimate.add(row.fields)
            if estimate.count % 100_000 == 0:
                most = max(most, resident())
    seconds = time.process_time() - start
    most = max(most, resident())
    held = tracemalloc.get_traced_memory()[1] if traced else 0
    return {"rows": estimate.count, "seconds": seconds, "resident": (most - before) / 2**20, "traced": held / 2**20}


def measured(path: Path, kind: FileFormat, *flags: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", str(path), "--kind", kind, *flags]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def main() -> None:
    """Print a line a file; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", type=FileFormat, help=argparse.SUPPRESS)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.kind, traced=given.traced)))
        return
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for kind in FileFormat:
            grown = []
            for count in given.counts:
                path = Path(folder, f"rows.{kind}")
                with path.open("w", encoding="utf-8", newline="") as file:
                    file.writelines(lines(kind, count))
                plain, traced = measured(path, kind), measured(path, kind, "--traced")
                grown.append(plain["resident"])
                missed |= traced["traced"] > TRACED_BAR
                print(
                    f"{kind:6}{count:10,} lines  {path.stat().st_size / 2**20:6.1f} MiB  "
                    f"{plain['rows'] / plain['seconds']:9,.0f} rows/s of CPU  resident +{plain['resident']:5.2f} MiB  "
                    f"traced {traced['traced']:5.2f} MiB"
                )
            missed |= grown[-1] - grown[0] > RESIDENT_BAR
    raise SystemExit(missed)


if __name__ == "__main__":
    main()
