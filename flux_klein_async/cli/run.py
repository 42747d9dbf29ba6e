"""The one driver of `generate` and `batch`: generates rows, saves files, prints each end, stops in order, sums up.

It decides nothing about the service: the client and the journal know what to submit, resume or leave alone.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import typer

from flux_klein_async.batch.manifest import Manifest, json_line, record
from flux_klein_async.batch.rows import Row
from flux_klein_async.cli import connect
from flux_klein_async.cli.exit_codes import ExitCode, exit_code, worst
from flux_klein_async.cli.forecast import affordable_at
from flux_klein_async.cli.output import Screen, duration
from flux_klein_async.cli.progress import progress_shown
from flux_klein_async.cli.signals import Stop
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import (
    LOOK_FOR_IT,
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    BudgetExceededError,
    ConfigurationError,
    DownloadError,
    FanOutHaltedError,
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    InputRejectedError,
    InvalidInputError,
    ItemClaimedError,
    JournalError,
    NotFoundError,
    PermissionDeniedError,
    SubmissionUncertainError,
)
from flux_klein_async.events import Cancelled, Event, Finished, Held, Polled, Retrying, StateChanged, Submitted
from flux_klein_async.integrations.logging import LogEvents, combine
from flux_klein_async.journal.budget import dollars, generation_price
from flux_klein_async.journal.writer import Spending
from flux_klein_async.models import (
    ModelInfo,
    Outcome,
    RequestState,
    brief_url,
    missing_files,
)
from flux_klein_async.operations.fanout import dooms
from flux_klein_async.operations.files import unwritable
from flux_klein_async.options import Limits

__all__ = [
    "Options",
    "Run",
    "Totals",
    "check_writable",
    "entry_of",
]

_GRACE = 30.0  # seconds for running generations once the command is told to stop
_UNREACHED = 5  # items at the beginning that found no service, model or readiness, after which no more are tried
_MOST_REPORTED = 20  # failures that are printed; a manifest has all of them
_CLAIMED = "claimed by another run"
_FAILING = 2.0  # seconds in which every call fails, after which that is said
_TRIED_EACH = 5.0  # seconds after which a row is tried while every call fails
_OUTAGE_CHECKS = 25  # in that time, of whether calls succeed again
_SLOWED = 10.0  # seconds after a refusal during which the service counts as slow
_NOTHING = 1e-6  # USD; less comes of rounding
_PRICED_WITHIN = 2.0  # seconds for the price of what may have been charged
_NOT_SUBMITTED = "not submitted"
_ENDS = {
    SubmissionUncertainError: "uncertain",
    ItemClaimedError: _CLAIMED,
    GenerationCancelledError: "cancelled",
    InvalidInputError: "bad",  # refused here: what an earlier run did with the item may be charged all the same
}
_OVER = (GenerationFailedError, NotFoundError)  # nothing is left to resume
_AGAIN = {
    SubmissionUncertainError: f"{LOOK_FOR_IT}; if it is there, `flux-klein result ID` saves it; if it is not there, "
    "--resubmit-uncertain submits it again",
    GenerationFailedError: "--retry-failed submits it again",
}
_FETCHED_AGAIN = "the same command fetches it again, for nothing"
_ASKED_AGAIN = "the same command asks for it again, for nothing"


def check_writable(directory: Path, option: str = "--output-dir") -> None:
    """Refuse a directory where files cannot be written; nothing is made."""
    if (problem := unwritable(directory)) is not None:
        raise typer.BadParameter(f"nothing can be written to {str(directory)!r}: {problem}", param_hint=option)


@dataclass(kw_only=True)
class Options:
    """What `generate` and `batch` both take."""

    model: str
    width: int | None
    height: int | None
    steps: int | None
    output_dir: Path
    concurrency: int
    timeout: float
    no_download: bool
    file_host: list[str]
    as_json: bool
    quiet: bool
    emulator: bool
    base_url: str | None

    @property
    def fields(self) -> dict[str, int]:
        """The fields of the input that are given as options."""
        given = {"width": self.width, "height": self.height, "steps": self.steps}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def directory(self) -> Path | None:
        """Where files go; None prints URLs instead."""
        return None if self.no_download else self.output_dir

    def client(self, service: connect.Address, totals: "Totals", **parts: Any) -> FluxKleinClient:
        """A client of the service, which tells the totals its events."""
        return FluxKleinClient(
            service.token,
            base_url=service.base_url,
            model=self.model,
            timeout=self.timeout,
            limits=Limits(max_in_flight=self.concurrency, file_hosts=tuple(self.file_host)),
            on_event=combine(totals.note, LogEvents()),
            **parts,
        )


@dataclass(slots=True)
class Totals:
    """How far a run is, from the client's events and the outcomes.

    Attributes:
        total: How many items there are; None before the file was read to its end.
        ends: How many items ended in each way.
        cost_usd: The cost of this run's generations, as far as the service reports it.
        highest_usd: The highest cost of one of them, or None.
        unpriced: The ids of this run's requests that are or may be charged, with no cost reported and no result.
        uncertain: The indices of the items whose submit may have been accepted, with no id known.
        free: How many items failed and were not charged.
        passing: How many of these failed for now, for example without a network.
        unreported: How many of this run's results came without a cost.
        charged: The service charges; an emulator does not.
        bound_usd: What may be spent, or None.
        spent_usd: What was spent of that before this run.
        price_usd: What the catalogue says that a generation costs, or None.
        known: How many items ended with what an earlier run had submitted.
        recalled: How many items are known to be done before.
        bad: How many items are known to be refused here, whether or not the run has come to them.
        recalling: Seconds in which the journal answered and nothing was generated.
        held_until: The instant before which the service wants no calls (`Retry-After`).
        refusal: The HTTP status of its last refusal, or None if there was no answer.
        failing_since: When the first call failed after the last one that did not; None if none did.
        polls, generations: Polls, and submits that were accepted.
        requests: The request ids and states of the items under way, by index of the fan-out.
    """

    total: int | None = None
    ends: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    highest_usd: float | None = None
    unpriced: set[str | None] = field(default_factory=set)
    uncertain: set[object] = field(default_factory=set)
    free: int = 0
    passing: int = 0
    unreported: int = 0
    charged: bool = True
    bound_usd: float | None = None
    spent_usd: float = 0.0
    price_usd: Decimal | float | None = None
    known: int = 0
    recalled: int = 0
    bad: int = 0
    recalling: float = 0.0
    held_until: float = -math.inf
    refusal: int | None = None
    failing_since: float | None = None
    _slowed: float = 0.0
    _refused: float = -math.inf
    polls: int = 0
    generations: int = 0
    requests: dict[int, tuple[str, RequestState]] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Take in an event; the client's `tag` is the index of the item."""
        self.polls += isinstance(event, Polled)
        self.generations += isinstance(event, Submitted)
        self._note_cost(event)
        if isinstance(event, Retrying) or (isinstance(event, Polled) and event.error is not None):
            self.failing_since = event.at if self.failing_since is None else self.failing_since
        elif isinstance(event, Polled | Submitted | Finished):
            self.failing_since = None
        if isinstance(event, Held | Retrying) and event.kind in {"submit", "read"}:
            self._slowed = self._slowed if self.slowed_for(event.at) is not None else event.at
            self._refused, self.refusal = event.at, event.status_code
            if isinstance(event, Held):
                self.held_until = max(self.held_until, event.at + event.seconds)
        state, tag = _state_after(event), event.tag
        if state is None or not isinstance(tag, int) or event.request_id is None:
            return
        if tag in self.requests or isinstance(event, Submitted | StateChanged):  # else the item has ended
            self.requests[tag] = event.request_id, state

    def _note_cost(self, event: Event) -> None:
        if isinstance(event, Submitted):
            self.unpriced.add(event.request_id)
            self.uncertain.discard(event.tag)  # its id came after its item had ended
        elif isinstance(event, Cancelled) and event.cancelled:
            self.unpriced.discard(event.request_id)
        elif isinstance(event, Finished):
            self._charge(event.request_id, event.cost_usd)

    def _charge(self, request_id: str | None, cost_usd: float | None) -> None:
        if cost_usd is not None and request_id in self.unpriced:
            self.unpriced.discard(request_id)
            self.cost_usd += cost_usd
            self.highest_usd = max(cost_usd, self.highest_usd or 0.0)

    def end(self, outcome: Outcome[Any]) -> None:
        """An item has ended."""
        if not isinstance(outcome.error, SubmissionUncertainError):
            self.requests.pop(outcome.index, None)
        elif outcome.index not in self.requests and not outcome.from_journal:  # else its id has just come
            self.uncertain.add(outcome.index)
        if outcome.result is not None and outcome.result.request_id in self.unpriced:
            self.unpriced.discard(outcome.result.request_id)
            self.unreported += 1
        elif outcome.error is not None and outcome.error.charged == "no":
            self.unpriced.discard(outcome.error.request_id)
        elif isinstance(outcome.error, GenerationFailedError):
            self._charge(outcome.error.request_id, outcome.error.cost_usd)
        self.known += outcome.from_journal
        if outcome.error is not None:
            end = _end_of(outcome.error)
            self.ends["failed before" if end == "failed" and outcome.from_journal else end] += 1
            is_free = end == "failed" and outcome.error.charged == "no" and not outcome.from_journal
            self.free += is_free
            self.passing += is_free and outcome.error.transient
        elif outcome.from_journal:
            self.ends["done before"] += 1
        else:
            self.ends["done"] += 1

    @property
    def possibly_charged(self) -> int:
        """How many requests of this run may have been charged at a cost that is not known."""
        return len(self.unpriced) + len(self.uncertain) + self.unreported

    @property
    def done(self) -> int:
        """How many items have a result."""
        return self.ends["done"] + self.ends["done before"]

    @property
    def reached(self) -> int:
        """How many items ended after they had their turn."""
        return self.ends.total() - self.ends[_NOT_SUBMITTED]

    @property
    def worked(self) -> int:
        """How many items ended by this run's work, not by the journal's answer or a refusal here."""
        return self.ends.total() - self.known - sum(self.ends[end] for end in ("bad", _CLAIMED, _NOT_SUBMITTED))

    @property
    def to_work(self) -> int | None:
        """How many items are left that the journal is not known to answer, as far as the money goes."""
        if self.total is None:
            return None
        left = max(0, self.total - self.ends.total() - max(0, self.recalled - self.ends["done before"]))
        affordable = affordable_at(self.highest_usd or self.price_usd, self.bound_usd, self.spent_usd + self.cost_usd)
        return left if affordable is None else min(left, affordable)

    @property
    def left(self) -> list[str]:
        """The ids of the requests under way, without those that were cancelled."""
        return [request_id for request_id, state in self.requests.values() if state is not RequestState.CANCELLED]

    @property
    def queued(self) -> int:
        """How many requests wait in the service's queue."""
        return sum(state is RequestState.IN_QUEUE for _, state in self.requests.values())

    @property
    def saving(self) -> int:
        """How many are finished, and their files not saved yet."""
        return sum(state is RequestState.COMPLETED for _, state in self.requests.values())

    @property
    def running(self) -> int:
        """How many are generated."""
        return len(self.requests) - self.queued - self.saving

    def failing_for(self, now: float) -> float | None:
        """For how many seconds every call has failed; None for less than 2 s."""
        since = now if self.failing_since is None else self.failing_since
        return now - since if now - since >= _FAILING else None

    def slowed_for(self, now: float) -> float | None:
        """For how many seconds the service has been refusing calls; None 10 s after the last hold or refusal."""
        return now - self._slowed if now <= max(self._refused, self.held_until) + _SLOWED else None


def _not_submitted(error: FluxKleinError) -> bool:
    """Whether an item was not submitted, or was refused with an error that every further submit would get too."""
    stopped = isinstance(error, GenerationCancelledError) and error.request_id is None
    return isinstance(error, FanOutHaltedError) or ((stopped or dooms(error)) and error.charged == "no")


def _refuses_all(error: FluxKleinError) -> bool:
    """Whether also the submits that are on their way get this error."""
    if isinstance(error, BudgetExceededError):
        return not error.price_known
    return isinstance(error, AuthenticationError | PermissionDeniedError | ConfigurationError)


def _up_to(usd: float | None) -> str:
    return "an unknown amount" if usd is None else f"up to {dollars(usd)}"


def _end_of(error: FluxKleinError) -> str:
    if _not_submitted(error):
        return _NOT_SUBMITTED
    return next((words for kind, words in _ENDS.items() if isinstance(error, kind)), "failed")


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


def _file_in_row(name: str, text: str) -> str:
    written = json_line({"file": text.removeprefix("@")})
    return f"{name}: a text goes as it is; to send a local file write {written} in its place"


@dataclass(kw_only=True)
class Run:
    """One run over rows.

    Told to stop, it submits no more and waits for running generations, for 30 s at most. Told twice, it prints what is
    left and ends the process.

    Attributes:
        manifest: Where each end is written too.
        to_name: Gives the stem of a row's files; None: the request id.
        label: Names the row of a line in a message; what happened to it may be its name.
        resume: The command that resumes a request, for runs without a journal.
        local_file: How to write that a text of a field is the name of a local file.
        spending: What all runs on the journal have spent.
    """

    client: FluxKleinClient
    totals: Totals
    screen: Screen
    stop: Stop
    options: Options
    manifest: Manifest | None = None
    to_name: Callable[[Row], str] | None = None
    label: Callable[[Row, str], str] = lambda row, _: row.place
    resume: Callable[[str], str] | None = None
    local_file: Callable[[str, str], str] = _file_in_row
    spending: Callable[[], Awaitable[Spending]] | None = None
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _codes: set[ExitCode] = field(default_factory=set, init=False)
    _stopping: bool = field(default=False, init=False)
    _failures: Counter[str] = field(default_factory=Counter, init=False)
    _advised: set[str] = field(default_factory=set, init=False)
    _reported: int = field(default=0, init=False)
    _hidden: int = field(default=0, init=False)
    _unreached: int | None = field(default=0, init=False)  # such items; None once another answer came
    _renamed: int = field(default=0, init=False)  # items whose files got a number, since others had their names
    _turns: int = field(default=0, init=False)  # items that have had their turn, or have it
    _told: bool = field(default=False, init=False)  # why the rest was not submitted
    _ended: float = field(default=0.0, init=False)  # when the last item did
    _unanswered: Callable[[], int] = field(default=lambda: 0, init=False)  # how many submits are on their way

    async def generate(self, rows: AsyncIterator[Row]) -> ExitCode:
        """Generate every good row and report the bad ones; the code of the worst item, or of what stopped the run."""
        restore_terminal = self.stop.before_leaving

        clock = asyncio.get_running_loop().time
        begun = self._ended = clock()

        def leave() -> None:
            restore_terminal()
            on_their_way = self._unanswered()
            self.totals.ends["uncertain"] += on_their_way
            self.totals.uncertain |= {("on its way", number) for number in range(on_their_way)}
            price = self.totals.price_usd if self.totals.highest_usd is None else self.totals.highest_usd
            self.screen.say(
                self._summary(clock() - begun) + self._possibly_charged(None if price is None else float(price))
            )
            self._print_left()

        self.stop.before_leaving = leave
        async with progress_shown(self.screen, self.totals):
            await self._generate(rows)
            self._report_repeated()
            if self._renamed:
                files = "1 item has files" if self._renamed == 1 else f"{self._renamed:,} items have files"
                self.screen.say(
                    f"{files} with a number behind the name (-2): other files had it, and none is replaced."
                )
            seconds = clock() - begun
            price = await self._price_of_unknown(await self._in_all_runs())
            await self.client.aclose()  # a submit that was on its way may still get its id, and its cancel an answer
            spending = await self._in_all_runs()  # what was not sent is written down by now
        self.stop.before_leaving = restore_terminal
        self.screen.say(self._summary(seconds) + self._possibly_charged(price) + self._elsewhere(price, spending))
        self._print_left()
        return worst(self._codes) if self.stop.code is None else self.stop.code

    async def _generate(self, rows: AsyncIterator[Row]) -> None:
        grace = asyncio.timeout(None)
        try:
            async with (
                grace,
                self.client.generate_many(
                    self._good(rows),
                    concurrency=self.options.concurrency,
                    to_input=lambda row: row.fields,
                    to_id=lambda row: row.id,
                    directory=self.options.directory,
                    to_name=None if self.options.no_download else self.to_name,
                ) as outcomes,
            ):
                self._unanswered = lambda: outcomes.unanswered
                outcomes.reads_on = self.totals.total is not None  # a pipe may never end
                self.stop.gently(partial(self._wind_up, outcomes.stop, grace))
                async for outcome in outcomes:
                    self._note_reached(outcome)
                    unreachable = self._unreached == _UNREACHED and not self._stopping
                    if unreachable:  # while its line is written, further items would be submitted
                        self._stopping = True
                        outcomes.stop()
                    await self._end(outcome)
                    if unreachable:
                        self._report_unreachable(outcome.error)
        except FluxKleinError as error:  # every further submit would fail the same way
            self._codes.add(exit_code(error))
            self._report_stopped_by(error)
        except TimeoutError:
            if not grace.expired():
                raise
        finally:
            self.stop.gently(lambda: None)  # nothing is left to stop

    def _wind_up(self, end: Callable[[], None], grace: asyncio.Timeout) -> None:
        """Submit no more; after the grace, stop waiting."""
        if not self.screen.reader_gone:
            self.screen.say(f"Waiting for running generations ({_GRACE:.0f} s). Press Ctrl-C again to quit now.")
        self._stopping = True
        end()
        grace.reschedule(asyncio.get_running_loop().time() + _GRACE)

    async def _good(self, rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
        """The rows that can be submitted; the others are printed and skipped."""
        count = 0
        async for row in rows:
            count += 1
            if row.problem is None:
                await self._outlast_outage()
                self._turns += 1
                yield row
                continue
            self.totals.ends["bad"] += 1
            self._codes.add(ExitCode.BAD_INPUT)
            error = InvalidInputError(f"Line {row.line}: {row.problem}")
            await self._written(Outcome(index=row.number, item=row, error=error))
            if row.is_told:
                self._hidden += 1
            else:
                self._report(row, row.problem)
        self.totals.total = count

    async def _outlast_outage(self) -> None:
        """Return once calls succeed, or after 5 s: while every call fails, few rows come to their turn and fail."""
        clock = asyncio.get_running_loop().time
        for _ in range(_OUTAGE_CHECKS):
            if not self.totals.generations or self.totals.failing_for(clock()) is None:
                return
            await asyncio.sleep(_TRIED_EACH / _OUTAGE_CHECKS)

    async def _end(self, outcome: Outcome[Row]) -> None:
        before, self._ended = self._ended, asyncio.get_running_loop().time()
        if outcome.from_journal and not self.totals.requests:
            self.totals.recalling += self._ended - before
        self.totals.end(outcome)
        error = outcome.error
        connect.advise(error, self.options.model)
        if isinstance(error, SubmissionUncertainError) and self.manifest is not None:
            error.advice = ""  # it is given once, with the option
        if isinstance(error, InputRejectedError) and error.file_names:
            error.advice = "; ".join(starmap(self.local_file, error.file_names.items()))
        # An item without a turn before the run was stopped: what the manifest says of it stays true.
        had_no_turn = self._stopping and isinstance(error, GenerationCancelledError) and error.request_id is None
        await self._written(outcome, in_manifest=not had_no_turn)
        if error is not None:
            self._fail(outcome.item, error)
        elif outcome.result is not None and outcome.result.missing:
            self._report(outcome.item, missing_files(outcome.result), what="Incomplete")
        if self.manifest is not None and self.to_name is not None and outcome.paths and not outcome.from_journal:
            self._renamed += outcome.paths[0].stem != self.to_name(outcome.item)
        if outcome.result is not None and not self.options.as_json:
            for line in outcome.paths or map(brief_url, outcome.result.urls):
                self.screen.out(line)
        lost = self.screen.results_lost or (self.screen.reader_gone and self.options.no_download)
        if lost and outcome.result is not None and self.resume is not None:
            self.screen.note(f"Not printed: {self.resume(outcome.result.request_id)}")

    async def _written(self, outcome: Outcome[Row], *, in_manifest: bool = True) -> None:
        """Write an end to the manifest and, with --json, to stdout. Bad rows end while others do."""
        if self.manifest is not None and in_manifest:
            async with self._writing:
                await _in_thread(partial(self.manifest.append, outcome))
        if self.options.as_json:
            self.screen.out(json_line(record(outcome)))

    def _fail(self, row: Row, error: FluxKleinError) -> None:
        if isinstance(error, GenerationCancelledError) and error.charged == "no" and self._stopping:
            return  # cancelled as asked; the next run submits it
        self._codes.add(exit_code(error))
        if isinstance(error, ItemClaimedError):
            return  # the summary counts them
        if _not_submitted(error):
            self._report_stopped_by(error)
            return
        if isinstance(error, APIConnectionError) and (self._unreached or 0) > 1:
            self._hidden += 1  # it says the same as the first
            return
        paid = error.charged == "yes"  # its result may still hold a file later
        resumable = paid or (error.charged == "unknown" and not isinstance(error, _OVER))
        if self.resume is not None and error.request_id is not None and resumable:
            self._report(row, f"{error}; resume with:", f"  {self.resume(error.request_id)}")
            return
        again = next((advice for kind, advice in _AGAIN.items() if isinstance(error, kind) and not paid), None)
        again = _FETCHED_AGAIN if isinstance(error, DownloadError) else again
        again = _ASKED_AGAIN if paid and isinstance(error, GenerationFailedError) else again
        if again is None or self.manifest is None or again in self._advised:  # advice is given once
            self._report(row, str(error))
        else:
            self._advised.add(again)
            self._report(row, f"{error}; {again}")

    def _report(self, row: Row, sentence: str, *resume: str, what: str = "Failed") -> None:
        """Print a failure, unless there are too many; without a manifest, equal ones once."""
        if self.manifest is None:
            self._failures[sentence] += 1
            if self._failures[sentence] > 1:
                return
        if self._reported >= _MOST_REPORTED and not resume:  # the command that resumes a paid request is always printed
            self._hidden += 1
            return
        self._reported += 1
        for part in (f"{self.label(row, what)}: {sentence}", *resume):
            self.screen.note(part)

    def _note_reached(self, outcome: Outcome[Row]) -> None:
        """Count an item whose submit was not answered, or refused as all of them may be, before any was accepted."""
        if self._unreached is None:
            return
        error, totals = outcome.error, self.totals
        refused = isinstance(error, APIStatusError) and (error.transient or connect.is_of_model(error))
        answered = isinstance(error, SubmissionUncertainError) or (isinstance(error, APIStatusError) and not refused)
        if totals.generations or totals.polls or answered:
            self._unreached = None
        elif isinstance(error, APIStatusError | APIConnectionError):
            self._unreached += error.charged == "no"

    def _report_unreachable(self, error: FluxKleinError | None) -> None:
        self._told = True
        if connect.is_of_model(error):
            self.screen.note("The other rows name the same model; nothing was submitted")
            return
        self._codes.add(ExitCode.UNAVAILABLE)
        if isinstance(error, APIStatusError):
            self.screen.note(f"The service refuses every submit (HTTP {error.status_code}); nothing was submitted")
            return
        self.screen.note(
            f"The service cannot be reached at {connect.origin_of(self.options.base_url)}: check the network, "
            "--base-url or the proxy; nothing was submitted"
        )

    def _report_stopped_by(self, error: FluxKleinError) -> None:
        """Print once why nothing more is submitted; of a halt after the last item, its failures have told enough."""
        is_end = isinstance(error, FanOutHaltedError) and self.totals.ends.total() == self.totals.total
        if not self._told and (not is_end or self.totals.ends[_NOT_SUBMITTED]):
            self._told = True
            under_way = self._turns - self.totals.ends.total() + self.totals.ends["bad"]
            some = self.totals.generations or self.totals.done or self.totals.ends["uncertain"]
            some = some or (under_way and not _refuses_all(error))
            what = "The rest was not submitted" if some else "Nothing was submitted"
            what = "Failed" if self.totals.total == 1 else what
            more = ""
            if isinstance(error, BudgetExceededError) and not error.price_known:
                more = "; without --max-spend it is submitted, whatever it costs"
            elif isinstance(error, BudgetExceededError) and self.manifest is not None:
                more = "; the same command with a higher --max-spend goes on"
                if error.reserved_usd:
                    more = "; the same command goes on once these have ended, or with a higher --max-spend"
                if spent := self.totals.spent_usd:
                    more += f" (it counts all runs on the journal, {dollars(spent)} before this one)"
            self.screen.note(f"{what}: {error}{more}")

    def _report_repeated(self) -> None:
        for sentence, count in self._failures.items():
            if count > 1:
                self.screen.note(f"{count - 1:,} more: {sentence}")
        if self._hidden:
            where = "" if self.manifest is None else f": see {self.manifest.path}"
            self.screen.note(f"{self._hidden:,} more{where}")

    def _summary(self, seconds: float) -> str:
        totals = self.totals
        total = "" if totals.total is None else f" of {totals.total:,}"
        all_free = totals.free == totals.ends["failed"]
        free = f" ({'' if all_free else f'{totals.free:,} '}not charged)" if totals.charged and totals.free else ""
        counts = {"done before": totals.ends["done before"], f"failed{free}": totals.ends["failed"]}
        counts["failed before"] = totals.ends["failed before"]
        counts |= {name: totals.ends[name] for name in _ENDS.values()} | {"left running": len(totals.left)}
        counts["bad"] = max(totals.ends["bad"], totals.bad)
        if totals.total is not None:  # the rest, with items that were not read
            ended = totals.reached + counts["bad"] - totals.ends["bad"]
            counts[_NOT_SUBMITTED] = max(0, totals.total - ended - len(totals.requests))
        if counts["bad"] > totals.ends["bad"]:  # the run did not come to all of them
            counts["bad (--dry-run names them)"] = counts.pop("bad")
        others = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
        where = f" in {self.options.output_dir}" if not self.options.no_download and totals.done else ""
        spent = f"; {dollars(totals.cost_usd)} spent" if totals.charged else ""
        made, working = totals.ends["done"], seconds - totals.recalling
        rate = f", {made / working:.1f} a second" if made > 1 and working > 0 else ""
        polls = f", {totals.polls / totals.generations:.1f} polls each" if totals.generations else ""
        return f"{totals.done:,}{total} done{where}{others}{spent}{rate}{polls}, {duration(seconds)}"

    async def _in_all_runs(self) -> Spending:
        """What all runs have spent; nothing if there is no journal, or it cannot be read."""
        if self.spending is not None and self.totals.charged:
            with suppress(JournalError):
                return await self.spending()
        return Spending(settled_usd=0.0, held_usd=0.0)

    async def _price_of_unknown(self, spending: Spending) -> float | None:
        """What a request without a known cost may have cost, in USD: the highest of this run, else the catalogue's."""
        any_unknown = self.totals.possibly_charged or spending.unpriced
        if self.totals.highest_usd is not None or not self.totals.charged or not any_unknown:
            return self.totals.highest_usd
        try:
            entry = await entry_of(self.client)
        except AuthenticationError:  # in the middle of the run
            return None
        price = None if entry is None else generation_price(entry)
        return None if price is None else float(price)

    def _possibly_charged(self, each: float | None) -> str:
        count = self.totals.possibly_charged
        if not count or not self.totals.charged:
            return ""
        amount = _up_to(None if each is None else count * each)
        plural = "s" if count > 1 else ""
        return f"; {amount} may have been charged for {count:,} request{plural} of unknown cost"

    def _elsewhere(self, each: float | None, spending: Spending) -> str:
        """What other runs on the journal may have been charged beyond the known costs, in words."""
        unpriced = spending.unpriced - self.totals.possibly_charged
        others = None if each is None and unpriced > 0 else spending.held_usd + unpriced * (each or 0.0)
        if others is not None and others < _NOTHING:
            return ""
        return f"; {_up_to(others)} may have been charged for requests of other runs"

    def _print_left(self) -> None:
        """Print how to resume what is left."""
        if claimed := self.totals.ends[_CLAIMED]:
            lines = "1 line is" if claimed == 1 else f"{claimed:,} lines are"
            self.screen.note(f"{lines} claimed by another run. Run the same command again when it has ended.")
        left = self.totals.left
        if self.resume is None:
            if self.manifest is not None and not claimed and (left or self.stop.code is not None):
                self.screen.say("Run the same command again to resume it.")
            elif self.manifest is not None and not self._told and (passing := self.totals.passing):
                lines = "1 line" if passing == 1 else f"{passing:,} lines"
                self.screen.say(f"{lines} failed for now, at no charge: run the same command again.")
        elif left:
            self.screen.note("Still queued or running, and may be charged; resume with:")
            for request_id in left:
                self.screen.note(f"  {self.resume(request_id)}")


async def entry_of(client: FluxKleinClient) -> ModelInfo | None:
    """The model's catalogue entry, for a price on the terminal: None if it is not known in 2 s.

    Raises:
        AuthenticationError: As every submit would.
    """
    try:
        return await client.get_model(timeout=_PRICED_WITHIN)
    except AuthenticationError:
        raise
    except FluxKleinError:
        return None


async def _in_thread(job: Callable[[], object]) -> None:
    """Do what may block; once begun it is finished, even if its caller is cancelled."""
    done = asyncio.get_running_loop().run_in_executor(None, job)
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait({done})
        raise
