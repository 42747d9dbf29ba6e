"""Generations in their queue: who waits, who runs, who has ended, at any instant.

Pure: time is an argument that never runs backwards. Must not know HTTP, JSON or scripts; a generation's
length and fate are given to it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .answers import Generation
    from .catalogue import Model

__all__ = ["KEPT_FOR", "Job", "Queue", "State"]

State = Literal["in_queue", "in_progress", "completed", "failed", "cancelled"]

KEPT_FOR = 7 * 86_400.0
"""Seconds after its end for which the service keeps a generation."""


@dataclass(slots=True, eq=False)
class Job:
    """One accepted generation."""

    request_id: str
    model: Model
    input: Mapping[str, Any]
    submitted: float
    duration: float
    fate: Generation
    number: int = 0
    started: float | None = None
    finished: float | None = None
    state: State = "in_queue"


class Queue:
    """First come, first served, by `workers` workers (`None`: one for each; 0: nothing ever starts).

    The last `keep` generations that have ended are remembered.
    """

    def __init__(self, workers: int | None, *, keep: int) -> None:
        if keep < 0:
            raise ValueError(f"max_generations cannot be below 0, at {keep}")
        self.jobs: dict[str, Job] = {}
        # By request id the instant at which each generation that has started ends, or ended.
        self.completions: dict[str, float] = {}
        self._workers = workers
        self._keep = keep
        self._submitted = 0
        self._waiting: dict[int, Job] = {}
        # The waiting numbers in order: a place in the queue is then a bisection and not a walk.
        self._order: list[int] = []
        self._running: list[tuple[float, int, Job]] = []
        self._ended: deque[Job] = deque()

    def add(self, job: Job) -> None:
        """Take a generation in at `job.submitted`; it starts at once if a worker is free."""
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
        """Let everything happen that is due by `now`, in its order and at its own instant."""
        while self._running and self._running[0][0] <= now:
            end, _, job = heapq.heappop(self._running)
            job.state = job.fate.ends
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
