"""The counts of a batch: told by events and outcomes, in constant room."""

import pytest

from flux_klein_async.cli.tally import Tally
from flux_klein_async.errors import (
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    ItemClaimedError,
    NotFoundError,
    SubmissionUncertainError,
)
from flux_klein_async.events import Cancelled, Polled, StateChanged, Submitted
from flux_klein_async.models import GenerationOutput, GenerationResult, Outcome, RequestState

QUEUED, RUNNING = RequestState.IN_QUEUE, RequestState.IN_PROGRESS


def submitted(tag: object) -> Submitted:
    return Submitted(at=0.0, request_id="r", tag=tag, seconds=0.0)


def changed(tag: object, state: RequestState) -> StateChanged:
    return StateChanged(at=0.0, request_id="r", tag=tag, state=state, queue_position=None)


def done(index: int, cost: float | None = None, *, from_journal: bool = False) -> Outcome[str]:
    result = GenerationResult(request_id="r", state=RequestState.COMPLETED, output=GenerationOutput(), cost_usd=cost)
    return Outcome(index=index, item="x", result=result, from_journal=from_journal)


def failed(index: int, error: FluxKleinError) -> Outcome[str]:
    return Outcome(index=index, item="x", error=error)


def test_an_item_is_queued_then_runs_then_is_done():
    tally, seen = Tally(), []
    for event in (submitted(0), changed(0, RUNNING), submitted(1)):
        tally.note(event)
        seen.append((tally.queued, tally.running))
    tally.end(done(0, 0.01))
    assert seen == [(1, 0), (0, 1), (1, 1)]
    assert (tally.queued, tally.running, tally.done, tally.cost_usd, tally.generations) == (1, 0, 1, 0.01, 2)


def test_what_could_not_be_cancelled_runs():
    tally = Tally()
    tally.note(submitted(0))
    tally.note(Cancelled(at=0.0, tag=0, cancelled=False))
    tally.note(Cancelled(at=0.0, tag=7, cancelled=False))
    assert (tally.queued, tally.running) == (0, 1)


def test_events_of_others_are_nobodys():
    tally = Tally()
    for event in (submitted("mine"), submitted(None), changed(None, RUNNING)):
        tally.note(event)
    assert (tally.queued, tally.running, tally.generations) == (0, 0, 0)


def test_polls_are_counted_whoevers_they_are():
    tally = Tally()
    for tag in (0, None, "x"):
        tally.note(Polled(at=0.0, tag=tag, poll=1, state=None))
    assert tally.polls == 3


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        (done(0, 0.5), {"done": 1, "cost_usd": 0.5}),
        (done(0), {"done": 1}),
        (done(0, 0.5, from_journal=True), {"done": 1, "recalled": 1}),  # it was paid by the run before
        (failed(0, SubmissionUncertainError()), {"uncertain": 1}),
        (failed(0, ItemClaimedError()), {"taken": 1}),
        (failed(0, GenerationFailedError()), {"failed": 1}),
        (failed(0, GenerationCancelledError()), {"cancelled": 1}),
        (failed(0, NotFoundError()), {"failed": 1}),
    ],
)
def test_every_end_is_counted_once(outcome, counted):
    tally = Tally()
    tally.end(outcome)
    names = ("done", "recalled", "failed", "uncertain", "taken", "cancelled", "bad", "cost_usd")
    assert {name: getattr(tally, name) for name in names if getattr(tally, name)} == counted
    assert tally.ended == 1
