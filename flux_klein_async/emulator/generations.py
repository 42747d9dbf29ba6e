"""When each generation starts and ends: how long it takes, and the queue in which it waits for a worker.

Pure: the instant is an argument that never runs backwards, and randomness comes from a seed. So one code serves real
and virtual time.
"""

import heapq
import math
import random
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from flux_klein_async.emulator.catalogue import Model
from flux_klein_async.emulator.scripts import Generation

__all__ = ["KEPT_FOR", "Job", "Profile", "Queue", "parse_profile"]

# --- how long generations take

_QUEUE_WORKERS = "4"
_WORKERS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Profile:
    """How long generations take, and how many run side by side.

    Attributes:
        name: What to call it.
        base: Seconds of every generation.
        per_megapixel: Seconds added for each million pixels.
        spread: Standard deviation of the logarithm of the seconds; 0: none.
        workers: How many run side by side; None: no limit.
    """

    name: str
    base: float
    per_megapixel: float = 0.0
    spread: float = 0.0
    workers: int | None = None

    def duration(self, rng: random.Random, width: int, height: int) -> float:
        """Draw the seconds that a picture of this size takes; log-normal, so never negative."""
        seconds = self.base + self.per_megapixel * width * height / 1e6
        return seconds * rng.lognormvariate(0.0, self.spread) if self.spread else seconds


# Published for FLUX.2 [klein] 4B in 4 steps on one H100: 0.19 s at 512x512 and 0.57 s at 1024x1024.
# The straight line through both points, with a megapixel of 1e6 pixels.
_KLEIN = Profile("klein", base=0.063, per_megapixel=0.483, spread=0.15)


def parse_profile(text: str) -> Profile:
    """Read `klein`, `queue`, `queue:WORKERS` or `fixed:SECONDS`.

    Raises:
        ValueError: The text has none of these forms.
    """
    name, colon, value = text.strip().partition(":")
    if name == "klein" and not colon:
        return _KLEIN
    if name == "queue" and _WORKERS.fullmatch(value if colon else _QUEUE_WORKERS):
        return replace(_KLEIN, name=name, workers=int(value or _QUEUE_WORKERS))
    if name == "fixed":
        with suppress(ValueError):
            if math.isfinite(seconds := float(value)) and seconds >= 0:
                return Profile(name, seconds)
    forms = "'klein', 'queue', 'queue:WORKERS' or 'fixed:SECONDS', such as 'fixed:0.5'"
    raise ValueError(f"no latency profile {text!r}: write {forms}")


# --- the queue

KEPT_FOR = 7 * 86_400.0  # seconds after its end for which the service keeps a generation


@dataclass(slots=True, eq=False)
class Job:
    """One accepted generation; `plan` says how it goes, `input` what its placeholder is drawn from."""

    request_id: str
    model: Model
    input: Mapping[str, Any]
    submitted: float
    duration: float
    plan: Generation
    number: int = 0
    started: float | None = None
    finished: float | None = None
    state: Literal["in_queue", "in_progress", "completed", "failed", "cancelled"] = "in_queue"

    @property
    def cost(self) -> float:
        """What it costs, in US dollars."""
        return self.model.price if self.plan.cost is None else self.plan.cost


class Queue:
    """First come, first served, by `workers` workers (`None`: no limit; 0: nothing ever starts).

    The last `keep` ended generations are kept. `completions`: by request id, the instant at which each generation that
    has started ends or ended.
    """

    def __init__(self, workers: int | None, *, keep: int) -> None:
        if keep < 0:
            raise ValueError(f"max_generations cannot be below 0, at {keep}")
        self.jobs: dict[str, Job] = {}
        self.completions: dict[str, float] = {}
        self._workers = workers
        self._keep = keep
        self._submitted = 0
        self._waiting: dict[int, Job] = {}
        # The waiting numbers, sorted: a bisection finds a place in the queue.
        self._order: list[int] = []
        self._running: list[tuple[float, int, Job]] = []
        self._ended: deque[Job] = deque()

    def add(self, job: Job) -> None:
        """Take in a generation at `job.submitted`; it starts at once if a worker is free."""
        self.advance(job.submitted)
        self._submitted += 1
        job.number = self._submitted
        self.jobs[job.request_id] = job
        if self._workers is None or len(self._running) < self._workers:
            self._start(job, job.submitted)
        else:
            self._waiting[job.number] = job
            self._order.append(job.number)

    def advance(self, now: float) -> None:
        """Let everything happen that is due by `now`, in order and each at its own instant."""
        while self._running and self._running[0][0] <= now:
            end, _, job = heapq.heappop(self._running)
            job.state = job.plan.ends
            self._ended.append(job)
            if self._order:
                self._start(self._waiting.pop(self._order.pop(0)), end)
        self._forget(now)

    def position(self, job: Job) -> int:
        """Count the generations that wait before this one."""
        return bisect_left(self._order, job.number)

    def cancel(self, job: Job, now: float) -> bool:
        """End a waiting generation and let those behind it move up; False if it does not wait."""
        if job.state != "in_queue":
            return False
        del self._order[self.position(job)]
        del self._waiting[job.number]
        job.state = "cancelled"
        job.finished = now
        self._ended.append(job)
        return True

    def _start(self, job: Job, at: float) -> None:
        job.state = "in_progress"
        job.started = at
        job.finished = at + job.duration
        self.completions[job.request_id] = job.finished
        heapq.heappush(self._running, (job.finished, job.number, job))

    def _forget(self, now: float) -> None:
        while self._ended and (len(self._ended) > self._keep or (self._ended[0].finished or 0.0) + KEPT_FOR <= now):
            old = self._ended.popleft()
            del self.jobs[old.request_id]
            self.completions.pop(old.request_id, None)
