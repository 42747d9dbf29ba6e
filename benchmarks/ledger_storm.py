"""Several batch processes on one journal while much goes wrong, one of them killed; then one more, in calm weather.

`rage` runs them against an emulator in this process and gives back what its books say. How many, and in what weather,
is the caller's affair.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from books import PIXELS, Books, Rules, audit, ends
from storm import LIES, accepted_submits

from flux_klein_async.emulator import FAULTS, Emulator, Record

__all__ = ["LEFT_OUT", "SLOW", "Plan", "Raged", "rage"]

_DOOM = ("401", "402", "403", "400002", "400004")  # also what begins with them
# What ends a run, as it should, within seconds of its beginning; and a service that charges for what it calls
# cancelled, which nobody can keep within a budget.
LEFT_OUT: Final = frozenset(
    {
        *(name for name in FAULTS if name.startswith(_DOOM)),
        "no-price",
        "odd-price",
        "is-cancelled",
        "only-said",
    }
)
# What takes seconds, or megabytes.
SLOW: Final = frozenset(
    {
        *(name for name in FAULTS if name.endswith(("+after", "+date")) or name.startswith(("hang", "endless"))),
        *("slow", "drip", "gzip-bomb", "never-ends", "result-late", "result-never", "picture-endless"),
        *("overlong", "length-no-number", "failed-too-soon", "early-404"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of it, and which.

    Attributes:
        max_usd: What the processes may spend together: less than all items cost.
        killed_at: One process is killed when so many submits were accepted.
        without: Names of faults that do not happen.
        timeout: Seconds for each picture.
    """

    count: int
    processes: int
    concurrency: int
    seed: int
    max_usd: float
    killed_at: int
    probability: float = 0.1
    without: frozenset[str] = LEFT_OUT
    timeout: float = 30.0
    profile: str = "klein"
    workers: int | None = None


@dataclass(slots=True)
class Raged:
    """What came of it.

    Attributes:
        found: What must be 0, after the storm and at the end.
        codes: Exit codes of the processes in the storm, in any order, and of the last run.
        accepted: Submits that were accepted, in the storm and all in all.
        peak_usd: The most that was ever spent during the storm.
        ends: How many items ended in which state, after the storm and at the end.
        told: What the last run told.
    """

    found: dict[str, int]
    codes: tuple[list[int], int]
    accepted: tuple[int, int]
    peak_usd: float
    ends: tuple[Counter[str], Counter[str]]
    calls: Counter[str]
    faults: Counter[str]
    seconds: tuple[float, float]
    told: str


class _Watched(deque[Record]):
    """The emulator's records; `poll` is called at each."""

    def __init__(self, poll: Callable[[], None]) -> None:
        super().__init__()
        self._poll = poll

    def append(self, record: Record) -> None:
        super().append(record)
        self._poll()


@dataclass(slots=True)
class _Weather:
    """The emulator, what it has seen, and the processes that it is asked by."""

    plan: Plan
    folder: Path
    emulator: Emulator
    peak_usd: float = 0.0
    running: list[asyncio.subprocess.Process] = field(default_factory=list)
    killed: bool = False

    def sample(self) -> None:
        self.peak_usd = max(self.peak_usd, self.emulator.spent_usd)
        if not self.killed and self.emulator.accepted >= self.plan.killed_at:
            self.killed = True
            self.running[0].kill()

    async def run(self, max_usd: float) -> tuple[int, str]:
        """One batch process, to its end: its exit code, and what it told."""
        plan = self.plan
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flux_klein_async", "batch", "prompts.jsonl", "--quiet"),
            *("--concurrency", str(plan.concurrency), "--max-spend", str(max_usd), "--timeout", str(plan.timeout)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "RUNCOMFY_MODEL_API_BASE": self.emulator.base_url,
                "RUNCOMFY_API_TOKEN": self.emulator.api_key,
            },
            cwd=self.folder,
        )
        self.running.append(process)
        _, told = await process.communicate()
        assert process.returncode is not None
        return process.returncode, told.decode()

    def books(self, prompts: list[str]) -> Books:
        out = self.folder / "out"
        submits = accepted_submits(self.emulator.records)
        return Books(out / "journal.sqlite", out, submits, prompts, self.plan.seed, LIES)


async def rage(plan: Plan, folder: Path) -> Raged:
    """The storm, and one more run after it."""
    prompts = [f"a snow leopard, number {number}" for number in range(plan.count)]
    rows = [json.dumps({"prompt": prompt, "width": PIXELS, "height": PIXELS}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    async with Emulator(profile=plan.profile, workers=plan.workers, seed=plan.seed) as emulator:
        weather = _Weather(plan, folder, emulator)
        emulator.records = _Watched(weather.sample)
        emulator.storm(plan.probability, without=plan.without)
        begun = time.perf_counter()
        ran = await asyncio.gather(*(weather.run(plan.max_usd) for _ in range(plan.processes)))
        between, accepted, peak = weather.books(prompts), emulator.accepted, weather.peak_usd
        found = {f"{what}, in the storm": count for what, count in audit(between, Rules(at_home=False)).items()}
        emulator.calm()
        calm = time.perf_counter()
        code, told = await weather.run(2 * plan.count)
        after = weather.books(prompts)
        return Raged(
            found={
                **found,
                **audit(after, Rules()),
                "billionths above the budget": max(0, round((peak - plan.max_usd) * 1e9)),
            },
            codes=([code for code, _ in ran], code),
            accepted=(accepted, emulator.accepted),
            peak_usd=peak,
            ends=(ends(between.requests), ends(after.requests)),
            calls=Counter(emulator.calls),
            faults=Counter(record.endpoint for record in emulator.records if record.answer is not None),
            seconds=(calm - begun, time.perf_counter() - calm),
            told=told,
        )
