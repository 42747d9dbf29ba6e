"""How a batch stands: counts alone, so that a million items need no more room than ten. Pure: shows nothing."""

from collections import Counter
from typing import Any

from flux_klein_async.errors import GenerationCancelledError, ItemClaimedError, SubmissionUncertainError
from flux_klein_async.events import Cancelled, Event, Polled, StateChanged, Submitted
from flux_klein_async.models import Outcome, RequestState

__all__ = ["Tally"]


class Tally:
    """The counts of one run.

    Attributes:
        total: How many items there are; None as long as the file was not read to its end.
        done: Items whose result is there, `recalled` of them since an earlier run.
        failed, uncertain: Items that ended without one; of an uncertain one nobody knows whether it was accepted.
        taken: Items that another run has under way.
        cancelled: Items that were not submitted, or cancelled in the queue: nothing was paid for them.
        bad: Rows that could not be read.
        cost_usd: What this run's generations cost, as far as the service says so.
        polls, generations: How often the service was asked, and for how many.
    """

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = self.from_journal = self.failed = self.uncertain = self.taken = self.cancelled = self.bad = 0
        self.cost_usd = 0.0
        self.polls = self.generations = 0
        self._open: dict[int, RequestState] = {}
        self._states: Counter[RequestState] = Counter()

    def note(self, event: Event) -> None:
        """Take in an event; the client's `tag` is the item's number."""
        if isinstance(event, Polled):
            self.polls += 1
        elif not isinstance(event.tag, int):
            return
        elif isinstance(event, Submitted):
            self.generations += 1
            self._set(event.tag, RequestState.IN_QUEUE)
        elif isinstance(event, StateChanged):
            self._set(event.tag, event.state)
        elif isinstance(event, Cancelled) and event.cancelled is False and event.tag in self._open:
            self._set(event.tag, RequestState.IN_PROGRESS)  # too late: it has begun

    def end(self, outcome: Outcome[Any]) -> None:
        """An item has ended."""
        if (state := self._open.pop(outcome.index, None)) is not None:
            self._states[state] -= 1
        if outcome.result is not None:
            self.done += 1
            self.from_journal += outcome.from_journal
            self.cost_usd += 0.0 if outcome.from_journal else outcome.result.cost_usd or 0.0
        elif isinstance(outcome.error, SubmissionUncertainError):
            self.uncertain += 1
        elif isinstance(outcome.error, ItemClaimedError):
            self.taken += 1
        elif isinstance(outcome.error, GenerationCancelledError):
            self.cancelled += 1
        else:
            self.failed += 1

    def _set(self, tag: int, state: RequestState) -> None:
        if (before := self._open.get(tag)) is not None:
            self._states[before] -= 1
        self._open[tag] = state
        self._states[state] += 1

    @property
    def ended(self) -> int:
        """How many items have ended, in whatever way."""
        return self.done + self.failed + self.uncertain + self.taken + self.cancelled + self.bad

    @property
    def left(self) -> int:
        """How many were submitted and have not ended: once a run is over, what the next one takes up."""
        return len(self._open)

    @property
    def queued(self) -> int:
        """How many are known to wait in the service's queue."""
        return self._states[RequestState.IN_QUEUE]

    @property
    def running(self) -> int:
        """How many are being generated or, finished, being saved."""
        return self.left - self.queued
