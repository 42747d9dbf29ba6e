"""Takes the rows of a batch from the file to saved pictures, and writes down what became of each.

Decides nothing about the service: what is submitted, taken up or left alone is the journal's and the client's affair.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flux_klein_async.batch.manifest import Manifest
from flux_klein_async.batch.rows import BadRow, Row
from flux_klein_async.cli.exits import ExitCode, exit_code, worst
from flux_klein_async.cli.feed import Feed
from flux_klein_async.cli.records import Record, error_record, json_line, result_record
from flux_klein_async.cli.render import Screen
from flux_klein_async.cli.stopping import Stop
from flux_klein_async.cli.tally import Tally
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import (
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    ItemClaimedError,
    SubmissionUncertainError,
)
from flux_klein_async.models import Outcome

__all__ = ["BatchPlan", "BatchRun"]

_GRACE = 30.0  # seconds for what runs when the command is told to stop
_TOLD = 20  # failures that are told one by one; the manifest has all of them
_AGAIN = {SubmissionUncertainError: "--resubmit-uncertain", GenerationFailedError: "--retry-failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What to do with the rows.

    Attributes:
        directory: Where files go; None leaves them where they are and prints their URLs.
        as_json: A record for each row instead of its paths.
    """

    concurrency: int
    directory: Path | None
    as_json: bool


class BatchRun:
    """One run over the rows of a file."""

    def __init__(
        self, client: FluxKleinClient, tally: Tally, screen: Screen, plan: BatchPlan, manifest: Manifest
    ) -> None:
        self._client = client
        self._tally = tally
        self._screen = screen
        self._plan = plan
        self._manifest = manifest
        self._codes: set[ExitCode] = set()
        self._stopping = False
        self._told = 0

    async def through(self, feed: Feed, stop: Stop) -> ExitCode:
        """Every row, to the exit code of the worst; told to stop, it ends in good order."""
        patience = asyncio.timeout(None)
        try:
            async with (
                patience,
                self._client.generate_many(
                    self._good(feed),
                    concurrency=self._plan.concurrency,
                    to_input=lambda item: item.row.fields,
                    to_id=lambda item: item.row.id,
                    directory=self._plan.directory,
                ) as outcomes,
            ):
                stop.gently(partial(self._wind_up, outcomes.stop, patience))
                async for outcome in outcomes:
                    await self._take(outcome)
        except FluxKleinError as error:  # it would doom every further submit too
            self._codes.add(exit_code(error))
            self._screen.note(f"The rest was not submitted: {error}")
        except TimeoutError:
            if not patience.expired():
                raise
        finally:
            stop.gently(_nothing)
        if self._told > _TOLD:
            self._screen.note(f"{self._told - _TOLD} more: see {self._manifest.path}")
        return worst(self._codes) if stop.code is None else stop.code

    def _wind_up(self, end: Callable[[], None], patience: asyncio.Timeout) -> None:
        """Submit no more; after the grace, wait no more either."""
        self._screen.say("Stopping: what is queued is cancelled, what runs is brought home. Once more leaves at once.")
        self._stopping = True
        end()
        patience.reschedule(asyncio.get_running_loop().time() + _GRACE)

    async def _good(self, feed: Feed) -> AsyncIterator["_Item"]:
        """The rows that can be submitted; the others are told and left out."""
        async for number, row in feed:
            if isinstance(row, BadRow):
                self._tally.bad += 1
                self._codes.add(ExitCode.BAD_INPUT)
                self._tell(row.line, row.problem)
            else:
                yield _Item(number, row)
        self._tally.total = feed.count

    async def _take(self, outcome: "Outcome[_Item]") -> None:
        self._tally.end(outcome)
        number, row = outcome.item
        ended = Outcome(
            index=number,
            item=row,
            result=outcome.result,
            error=outcome.error,
            files=outcome.files,
            from_journal=outcome.from_journal,
        )
        if not self._unheard(outcome.error):
            await _in_thread(partial(self._manifest.append, ended))
        if outcome.error is not None:
            self._fail(row, outcome.error)
        if self._plan.as_json:
            self._screen.out(json_line(_record(ended)))
        elif outcome.result is not None:
            for line in [str(path) for path in outcome.paths] or outcome.result.urls:
                self._screen.out(line)

    def _unheard(self, error: FluxKleinError | None) -> bool:
        """Whether an item had no turn before the run was stopped; what the manifest says of it stays true."""
        return self._stopping and isinstance(error, GenerationCancelledError) and error.request_id is None

    def _fail(self, row: Row, error: FluxKleinError) -> None:
        if isinstance(error, GenerationCancelledError) and error.charged == "no" and self._stopping:
            return  # as it was told; the next run makes them
        self._codes.add(exit_code(error))
        if isinstance(error, ItemClaimedError):
            return  # the summary counts them: another run makes them
        again = next((option for kind, option in _AGAIN.items() if isinstance(error, kind)), None)
        self._tell(row.line, f"{error}; {again} submits it again" if again else str(error))

    def _tell(self, line: int, sentence: str) -> None:
        self._told += 1
        if self._told <= _TOLD:
            self._screen.note(f"Line {line}: {sentence}")


class _Item(NamedTuple):
    """A row that can be submitted, and its number, from 0."""

    number: int
    row: Row


def _nothing() -> None:
    """How a run stops that has ended already."""


async def _in_thread(job: Callable[[], object]) -> None:
    """Do what may take long without holding up the loop; begun, it is done, even if its caller is cancelled."""
    done = asyncio.get_running_loop().run_in_executor(None, job)
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait({done})
        raise


def _record(outcome: Outcome[Row]) -> Record:
    fields = outcome.item.fields
    if outcome.result is not None:
        return result_record(outcome.index, fields, outcome.result, files=[str(path) for path in outcome.paths])
    assert outcome.error is not None  # noqa: S101  # exactly one of the two is set
    return error_record(outcome.index, fields, outcome.error)
