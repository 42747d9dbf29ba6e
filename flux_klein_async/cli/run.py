"""The one driver of `generate` and `batch`: generates rows, saves, prints each end, stops in good order, sums up.

It decides nothing about the service: the client and the journal know what to submit, resume or leave alone.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flux_klein_async.batch.manifest import Manifest, json_line, record
from flux_klein_async.batch.rows import BadRow, Row
from flux_klein_async.cli import connect
from flux_klein_async.cli.exits import ExitCode, exit_code, worst
from flux_klein_async.cli.output import Screen, duration, progress_shown
from flux_klein_async.cli.stopping import Stop
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import (
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    ItemClaimedError,
    NotFoundError,
    SubmissionUncertainError,
)
from flux_klein_async.events import Cancelled, Event, Finished, Polled, StateChanged, Submitted
from flux_klein_async.journal.base import Journal, SpendingLimit
from flux_klein_async.journal.budget import dollars
from flux_klein_async.models import Outcome, RequestState
from flux_klein_async.polling.policies import PollPolicy

__all__ = ["RunOptions", "Totals", "connected", "run_rows"]

_GRACE = 30.0  # seconds for running generations once the command is told to stop
_MOST_REPORTED = 20  # different failures that are printed; a manifest has all of them
_OVER = (GenerationFailedError, GenerationCancelledError, NotFoundError)  # nothing is left to resume
_AGAIN = {SubmissionUncertainError: "--resubmit-uncertain", GenerationFailedError: "--retry-failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What `generate` and `batch` share of their options.

    Attributes:
        directory: Where files go; None prints URLs instead.
        as_json: Print a record for each item instead of its paths.
    """

    model: str
    concurrency: int
    timeout: float
    directory: Path | None
    as_json: bool
    quiet: bool
    emulator: bool
    base_url: str | None


@dataclass(slots=True)
class Totals:
    """How far a run is, from the client's events and the outcomes.

    Attributes:
        total: How many items there are; None before the file was read to its end.
        done: Items with a result, `from_journal` of them from an earlier run.
        failed, uncertain, cancelled: Items without one.
        claimed: Items that another run works on.
        bad: Rows that could not be read.
        cost_usd: The cost of this run's generations, as far as the service reports it.
        polls, generations: Polls, and submits that were accepted.
        requests: The request ids and states of the items under way, by index of the fan-out.
    """

    total: int | None = None
    done: int = 0
    from_journal: int = 0
    failed: int = 0
    uncertain: int = 0
    cancelled: int = 0
    claimed: int = 0
    bad: int = 0
    cost_usd: float = 0.0
    polls: int = 0
    generations: int = 0
    requests: dict[int, tuple[str, RequestState]] = field(default_factory=dict)
    _states: Counter[RequestState] = field(default_factory=Counter)

    def note(self, event: Event) -> None:
        """Take in an event; the client's `tag` is the index of the item."""
        if isinstance(event, Polled):
            self.polls += 1
        self.generations += isinstance(event, Submitted)
        state = _state_after(event)
        if state is not None and isinstance(event.tag, int) and event.request_id is not None:
            if event.tag in self.requests:
                self._states[self.requests[event.tag][1]] -= 1
            elif not isinstance(event, Submitted | StateChanged):
                return  # the item has ended already
            self.requests[event.tag] = event.request_id, state
            self._states[state] += 1

    def end(self, outcome: Outcome[Any]) -> None:
        """An item has ended."""
        if (known := self.requests.pop(outcome.index, None)) is not None:
            self._states[known[1]] -= 1
        if outcome.result is not None:
            self.done += 1
            self.from_journal += outcome.from_journal
            self.cost_usd += 0.0 if outcome.from_journal else outcome.result.cost_usd or 0.0
        elif isinstance(outcome.error, SubmissionUncertainError):
            self.uncertain += 1
        elif isinstance(outcome.error, ItemClaimedError):
            self.claimed += 1
        elif isinstance(outcome.error, GenerationCancelledError):
            self.cancelled += 1
        else:
            self.failed += 1

    @property
    def ended(self) -> int:
        """How many items have ended, in any way."""
        return self.done + self.failed + self.uncertain + self.claimed + self.cancelled + self.bad

    @property
    def queued(self) -> int:
        """How many requests wait in the service's queue."""
        return self._states[RequestState.IN_QUEUE]

    @property
    def running(self) -> int:
        """How many are generated or, finished, saved."""
        return len(self.requests) - self.queued

    def summary(self, job: RunOptions, seconds: float) -> str:
        """One line for the end of a run."""
        total = "" if self.total is None else f" of {self.total:,}"
        counts = {
            "done before": self.from_journal,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "uncertain": self.uncertain,
            "claimed by another run": self.claimed,
            "left running": len(self.requests),
            "bad": self.bad,
        }
        others = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
        where = f" in {job.directory}" if job.directory is not None and self.done else ""
        spent = "" if job.emulator else f"; {dollars(self.cost_usd)} spent"
        made = self.done - self.from_journal
        rate = f", {made / seconds:.1f} a second" if made > 1 and seconds > 0 else ""
        polls = f", {self.polls / self.generations:.1f} polls each" if self.generations else ""
        return f"{self.done:,}{total} done{where}{others}{spent}{rate}{polls}, {duration(seconds)}"


def _state_after(event: Event) -> RequestState | None:
    if isinstance(event, StateChanged):
        return event.state
    if isinstance(event, Submitted):
        return RequestState.IN_QUEUE
    if isinstance(event, Finished):
        return RequestState.COMPLETED
    if isinstance(event, Cancelled) and event.cancelled is not None:
        return RequestState.CANCELLED if event.cancelled else RequestState.IN_PROGRESS  # too late to cancel
    return None


@asynccontextmanager
async def connected(
    job: RunOptions,
    screen: Screen,
    totals: Totals,
    address: connect.Address,
    *,
    polling: PollPolicy,
    journal: Journal | None = None,
    budget: SpendingLimit | None = None,
) -> AsyncIterator[FluxKleinClient]:
    """A client for the length of the block; notes how far it is in `totals`."""
    if job.emulator:
        screen.note("Emulator: the pictures are placeholders, and nothing is charged.")
    async with connect.build_client(
        address,
        model=job.model,
        timeout=job.timeout,
        concurrency=job.concurrency,
        on_event=totals.note,
        polling=polling,
        journal=journal,
        budget=budget,
    ) as client:
        yield client


async def run_rows(
    rows: AsyncIterator[Row | BadRow],
    client: FluxKleinClient,
    job: RunOptions,
    totals: Totals,
    screen: Screen,
    stop: Stop,
    *,
    manifest: Manifest | None = None,
    label: Callable[[int], str] = "Line {}".format,
    resume: Callable[[str], str] | None = None,
) -> ExitCode:
    """Generate every row; returns the code of the worst item, or of what stopped the run.

    Args:
        rows: Bad ones are printed and skipped.
        client: Generates; its journal says what was done before.
        job: The options.
        totals: Counts.
        screen: Where results, failures and the summary go.
        stop: Told to stop, the run submits no more and waits for running generations, for 30 s at most. Told twice,
            it prints what is left and ends the process.
        manifest: Where each end is written too.
        label: How to call the row of a line in a message.
        resume: The command that resumes a request, for runs without a journal.
    """
    driver = _Driver(client, job, totals, screen, manifest, label, resume)
    restore_terminal = stop.before_leaving

    def print_left() -> None:
        left = [request_id for request_id, state in totals.requests.values() if state is not RequestState.CANCELLED]
        if resume is None:
            if manifest is not None and (left or totals.claimed or stop.code is not None):
                screen.say("Run the same command again to resume it.")
        elif left:
            screen.note("Still queued or running, and may be charged; resume with:")
            for request_id in left:
                screen.note(f"  {resume(request_id)}")

    def leave_now() -> None:
        restore_terminal()
        print_left()

    stop.before_leaving = leave_now
    begun = asyncio.get_running_loop().time()
    async with progress_shown(screen, totals):
        code = await driver.run(rows, stop)
    screen.say(totals.summary(job, asyncio.get_running_loop().time() - begun))
    print_left()
    return code


class _Driver:
    """One run over the rows."""

    def __init__(
        self,
        client: FluxKleinClient,
        job: RunOptions,
        totals: Totals,
        screen: Screen,
        manifest: Manifest | None,
        label: Callable[[int], str],
        resume: Callable[[str], str] | None,
    ) -> None:
        self._client = client
        self._job = job
        self._totals = totals
        self._screen = screen
        self._manifest = manifest
        self._label = label
        self._resume = resume
        self._codes: set[ExitCode] = set()
        self._stopping = False
        self._failures: Counter[str] = Counter()
        self._reported = self._hidden = 0

    async def run(self, rows: AsyncIterator[Row | BadRow], stop: Stop) -> ExitCode:
        grace = asyncio.timeout(None)
        try:
            async with (
                grace,
                self._client.generate_many(
                    self._good(rows),
                    concurrency=self._job.concurrency,
                    to_input=lambda row: row.fields,
                    to_id=lambda row: row.id,
                    directory=self._job.directory,
                ) as outcomes,
            ):
                stop.gently(partial(self._wind_up, outcomes.stop, grace))
                async for outcome in outcomes:
                    await self._take(outcome)
        except FluxKleinError as error:  # every further submit would fail the same way
            self._codes.add(exit_code(error))
            self._screen.note(f"The rest was not submitted: {error}")
        except TimeoutError:
            if not grace.expired():
                raise
        finally:
            stop.gently(_nothing)
        self._report_repeated()
        return worst(self._codes) if stop.code is None else stop.code

    def _wind_up(self, end: Callable[[], None], grace: asyncio.Timeout) -> None:
        """Submit no more; after the grace, stop waiting."""
        if not self._screen.reader_gone:
            self._screen.say(f"Waiting for running generations ({_GRACE:.0f} s). Press Ctrl-C again to quit now.")
        self._stopping = True
        end()
        grace.reschedule(asyncio.get_running_loop().time() + _GRACE)

    async def _good(self, rows: AsyncIterator[Row | BadRow]) -> AsyncIterator[Row]:
        """The rows that can be submitted; the others are printed and skipped."""
        count = 0
        async for row in rows:
            count += 1
            if isinstance(row, Row):
                yield row
                continue
            self._totals.bad += 1
            self._codes.add(ExitCode.BAD_INPUT)
            self._report(row.line, row.problem)
        self._totals.total = count

    async def _take(self, outcome: Outcome[Row]) -> None:
        self._totals.end(outcome)
        error = outcome.error
        # An item without a turn before the run was stopped: what the manifest says of it stays true.
        had_no_turn = self._stopping and isinstance(error, GenerationCancelledError) and error.request_id is None
        if self._manifest is not None and not had_no_turn:
            await _in_thread(partial(self._manifest.append, outcome))
        if error is not None:
            self._fail(outcome.item, error)
        if self._job.as_json:
            self._screen.out(json_line(record(outcome)))
        elif outcome.result is not None:
            for line in [str(path) for path in outcome.paths] or outcome.result.urls:
                self._screen.out(line)
        if self._screen.results_lost and outcome.result is not None and self._resume is not None:
            self._screen.note(f"Not printed: {self._resume(outcome.result.request_id)}")

    def _fail(self, row: Row, error: FluxKleinError) -> None:
        if isinstance(error, GenerationCancelledError) and error.charged == "no" and self._stopping:
            return  # cancelled as asked; the next run submits it
        self._codes.add(exit_code(error))
        if isinstance(error, ItemClaimedError):
            return  # the summary counts them
        if self._resume is not None and error.request_id is not None and not isinstance(error, _OVER):
            self._report(row.line, f"{error}; resume with:", f"  {self._resume(error.request_id)}")
            return
        again = next((option for kind, option in _AGAIN.items() if isinstance(error, kind)), None)
        if again is None or self._manifest is None:
            self._report(row.line, str(error))
        else:
            self._report(row.line, f"{error}; {again} submits it again")

    def _report(self, line: int, sentence: str, *resume: str) -> None:
        """Print a failure, unless there are too many; without a manifest, equal ones once."""
        if self._manifest is None:
            self._failures[sentence] += 1
            if self._failures[sentence] > 1:
                return
        if self._reported >= _MOST_REPORTED and not resume:  # the command that resumes a paid request is always printed
            self._hidden += 1
            return
        self._reported += 1
        for part in (f"{self._label(line)}: {sentence}", *resume):
            self._screen.note(part)

    def _report_repeated(self) -> None:
        for sentence, count in self._failures.items():
            if count > 1:
                self._screen.note(f"{count - 1:,} more: {sentence}")
        if self._hidden:
            where = "" if self._manifest is None else f": see {self._manifest.path}"
            self._screen.note(f"{self._hidden:,} more{where}")


def _nothing() -> None:
    """How to stop a run that has ended."""


async def _in_thread(job: Callable[[], object]) -> None:
    """Do what may block; once begun it is finished, even if its caller is cancelled."""
    done = asyncio.get_running_loop().run_in_executor(None, job)
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait({done})
        raise
