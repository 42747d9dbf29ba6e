"""What does a journal cost? CPU of an entry, of a claim and of opening, with many callers at once.

    python benchmarks/bench_journal.py [--requests 20000] [--callers 64]

Each request is recorded as a generation is: intent, id, result. Then all its items are claimed again, and the file is
opened again.
"""

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from flux_klein_async.journal.base import Claim, Entry, EntryState, Reservation
from flux_klein_async.journal.sqlite import SqliteJournal

MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"


def body_of(number: int) -> bytes:
    """A prompt of usual length."""
    prompt = f"{number}: a snow leopard at dawn, volumetric light, 85 mm, detailed fur, mist over the valley"
    return json.dumps({"prompt": prompt, "width": 1024, "height": 768}).encode()


def answer_of(request_id: str) -> bytes:
    """An answer of usual length."""
    url = f"https://playgrounds-storage-public.runcomfy.net/tools/{request_id}/media-files/usecase/0.png"
    return json.dumps(
        {"request_id": request_id, "status": "completed", "output": {"image": url}, "cost": 0.01}
    ).encode()


def size_of(path: Path) -> int:
    """Bytes on the disk."""
    return path.stat().st_size


async def by_many(callers: int, count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """So many callers share the numbers."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(caller() for _ in range(callers)))


async def measured(name: str, count: int, work: Awaitable[None]) -> None:
    """CPU of all threads, and wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    await work
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{name:34} {cpu / count * 1e6:8.1f} us of CPU each {count / wall:10.0f}/s")


async def run(path: Path, requests: int, callers: int) -> None:
    """Write, claim, open."""
    async with SqliteJournal(path) as journal:
        ledger = journal.for_account("a token")
        items = ledger.items()
        claims: dict[int, Claim] = {}

        async def take(number: int) -> None:
            claims[number] = await items.claim(MODEL, body_of(number), None)

        async def write(number: int) -> None:
            key = hashlib.sha256(b"%d" % number).hexdigest()
            request_id = f"{key[16:24]}-{key[24:28]}-{key[28:32]}-{key[32:36]}-{key[36:48]}"
            await ledger.record(
                Entry(
                    state=EntryState.SUBMITTING,
                    key=key[:16],
                    item=claims[number].item,
                    model=MODEL,
                    body=body_of(number),
                    reservation=Reservation(usd=0.01, max_usd=1e6),
                )
            )
            await ledger.record(Entry(state=EntryState.SUBMITTED, key=key[:16], model=MODEL, request_id=request_id))
            await ledger.record(
                Entry(state=EntryState.COMPLETED, request_id=request_id, cost_usd=0.01, answer=answer_of(request_id))
            )
            items.release(claims[number])

        async def take_again(number: int) -> None:
            await again.claim(MODEL, body_of(number), None)

        await measured("claim, new", requests, by_many(callers, requests, take))
        await measured("record", 3 * requests, by_many(callers, requests, write))
        again = ledger.items()
        await measured("claim, done before", requests, by_many(callers, requests, take_again))
    print(f"{size_of(path) / requests:.0f} bytes a request")
    begun = time.perf_counter()
    async with SqliteJournal(path):
        print(f"opened and checked in {time.perf_counter() - begun:.2f} s")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "run.sqlite", options.requests, options.callers))


if __name__ == "__main__":
    main()
