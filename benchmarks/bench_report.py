"""How long does a report of 50,000 rows take to write, and to open in Chromium?

    python benchmarks/bench_report.py [--count 50000]

The rows share 200 small pictures. Writing is `write_report` on a manifest: first, with the thumbnails of those, and
again. Opening is the time from the address to the first 200 cards, then to those of a filter by text that reads every
row. Needs Chromium.
"""

import argparse
import asyncio
import json
import resource
import tempfile
import threading
import time
from pathlib import Path

from browser import Page, chromium
from harness import verdict
from PIL import Image

from flux_klein_async.cli.page import write_report

BAR_WRITE, BAR_OPEN, BAR_SEARCH = 30.0, 1.5, 4.0  # seconds
PICTURES = 200


def manifest(folder: Path, count: int) -> None:
    """A manifest of so many rows, and its pictures."""
    for number in range(PICTURES):
        Image.new("RGB", (256, 256), (number, 90, 255 - number)).save(folder / f"{number}.png")
    timings = {"submit": 0.1, "queued": 0.2, "running": 0.6, "fetch": 0.05, "lag_max": 0.03, "polls": 3}
    with (folder / "manifest.jsonl").open("w") as file:
        for index in range(count):
            record = {
                "index": index,
                "id": None,
                "input": {"prompt": f"a snow leopard at dawn, number {index}, 35 mm, soft light", "width": 1024},
                "request_id": f"{index:08x}-0000-4000-8000-000000000000",
                "state": "completed",
                "urls": [],
                "files": [{"path": f"{index % PICTURES}.png", "sha256": "0" * 64, "size": 1000}],
                "cost_usd": 0.01,
                "timings": timings,
                "error": None,
            }
            if index % 50 == 49:
                error = {
                    "type": "GenerationFailedError",
                    "message": "out of memory",
                    "charged": "no",
                    "retryable": False,
                }
                record |= {"files": [], "timings": None, "cost_usd": None, "state": "failed", "error": error}
            file.write(json.dumps(record) + "\n")


def write(folder: Path) -> float:
    """Write the report; the seconds it took."""
    start = time.perf_counter()
    write_report(folder, stop=threading.Event())
    print(f"written in {time.perf_counter() - start:.1f} s", flush=True)
    return time.perf_counter() - start


async def opened(page: Page, url: str) -> float:
    """Seconds until the cards of an address are there."""
    start = time.perf_counter()
    await page.open(url)
    await page.until("document.body.dataset.shown")
    return time.perf_counter() - start


async def browse(url: str) -> tuple[float, float]:
    """Seconds to open the page, and to filter all rows by a text."""
    async with chromium() as page:
        await opened(page, url)  # the first page of a new browser takes longer
        first = await opened(page, url)
        start = time.perf_counter()
        await page.evaluate("location.hash = 'text=number+49999'; void 0")
        await page.until("document.body.dataset.shown === '2'")
        seconds = time.perf_counter() - start
        if page.problems:
            raise RuntimeError(str(page.problems))
        return first, seconds


def main() -> None:
    """Write, open, and compare with the bars."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50_000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest(folder, count)
        written = max(write(folder), write(folder))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = sum(path.stat().st_size for path in folder.glob("index_files/*.js")) / 2**20
        first, search = asyncio.run(browse((folder / "index.html").as_uri()))
        print(f"{count:,} rows: {size:.0f} MiB of scripts, {memory:.0f} MiB of memory to write")
        print(f"opened in {first:.2f} s, filtered by text in {search:.2f} s")
        print(
            f"bars {BAR_WRITE:.0f} s to write, {BAR_OPEN} s to open, {BAR_SEARCH:.0f} s to filter: "
            f"{verdict(written <= BAR_WRITE and first <= BAR_OPEN and search <= BAR_SEARCH)}"
        )


if __name__ == "__main__":
    main()
