"""Takes many inputs from submit to saved files and prints each as it ends. Decides nothing about the service.

Saving overlaps with the generation of other items: outcomes are taken as they come and each is saved by a task of its
own, a few at a time.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_klein_async.cli.board import Board
from flux_klein_async.cli.exits import ExitCode, exit_code, worst
from flux_klein_async.cli.records import Record, error_record, json_line, result_record, stopped_record
from flux_klein_async.cli.render import Screen
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import (
    FluxKleinError,
    GenerationCancelledError,
    GenerationFailedError,
    NotFoundError,
)
from flux_klein_async.models import GenerationResult, Outcome, RequestState

__all__ = ["Plan", "Production"]

_SAVED_AT_ONCE = 8
_GRACE = 5.0  # seconds for files under way when the command is told to stop
# After these there is nothing left to be taken up.
_OVER = (GenerationFailedError, GenerationCancelledError, NotFoundError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to generate and what to do with it.

    Attributes:
        inputs: What is posted, item by item.
        directory: Where files go; None leaves them where they are and prints their URLs.
        as_json: A record for each item instead of its paths.
        take_up: The command that takes up a request again; None where requests end with the run.
    """

    inputs: Sequence[Mapping[str, Any]]
    concurrency: int
    directory: Path | None
    as_json: bool
    take_up: Callable[[str], str] | None


class Production:
    """One run over many items.

    Attributes:
        cost_usd: What the finished ones cost, as far as the service says so.
    """

    def __init__(self, client: FluxKleinClient, board: Board, screen: Screen, plan: Plan) -> None:
        self._client = client
        self._board = board
        self._screen = screen
        self._plan = plan
        self._slots = asyncio.Semaphore(_SAVED_AT_ONCE)
        self._saving: set[asyncio.Task[None]] = set()
        self._codes: set[ExitCode] = set()
        self._told: Counter[str] = Counter()
        self.cost_usd = 0.0

    async def run(self) -> ExitCode:
        """Everything, to the exit code of the worst item; cancelled, it leaves in good order."""
        try:
            await self._generate()
            await self._all_saved()
        except asyncio.CancelledError:
            await self._wind_up()
            raise
        finally:
            for task in self._saving:
                task.cancel()
            self._tell_repeated()
        return worst(self._codes)

    async def _generate(self) -> None:
        plan = self._plan
        async with self._client.generate_many(plan.inputs, concurrency=plan.concurrency) as outcomes:
            try:
                async for outcome in outcomes:
                    self._take(outcome)
            except FluxKleinError as error:  # it would doom every further submit too
                self._refuse_rest(error)

    def _refuse_rest(self, error: FluxKleinError) -> None:
        being_saved = {int(task.get_name()) for task in self._saving}
        for index, item in enumerate(self._plan.inputs):
            if not self._board.is_ended(index) and index not in being_saved:
                self._end(error_record(index, item, error, submitted=False), error, submitted=False)

    def _take(self, outcome: Outcome[Mapping[str, Any]]) -> None:
        index, item = outcome.index, outcome.item
        if outcome.result is None:
            assert outcome.error is not None  # noqa: S101  # exactly one of the two is set
            self._end(error_record(index, item, outcome.error), outcome.error)
            return
        self.cost_usd += outcome.result.cost_usd or 0.0
        if self._plan.directory is None:
            self._end_well(index, item, outcome.result, [])
        else:
            saving = self._save(index, item, outcome.result, self._plan.directory)
            task = asyncio.create_task(saving, name=str(index))
            self._saving.add(task)
            task.add_done_callback(self._saved)

    def _saved(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is None:
            self._saving.discard(task)  # one that raised stays, for its exception to be seen

    async def _all_saved(self) -> None:
        # Not gather: that would cancel the files under way where this is cancelled.
        if self._saving:
            ended, _ = await asyncio.wait(self._saving)
            for task in ended:
                task.result()

    async def _save(self, index: int, item: Mapping[str, Any], result: GenerationResult, directory: Path) -> None:
        async with self._slots:
            try:
                paths = await self._client.download(result, directory)
            except FluxKleinError as error:
                self._end(result_record(index, item, result, error=error), error)
            else:
                self._end_well(index, item, result, [str(path) for path in paths])

    # --- one item's end

    def _end_well(self, index: int, item: Mapping[str, Any], result: GenerationResult, files: list[str]) -> None:
        self._board.end(index, failed=False)
        if self._plan.as_json:
            self._screen.out(json_line(result_record(index, item, result, files=files)))
            return
        for line in files or result.urls:
            self._screen.out(line)

    def _end(self, record: Record, error: FluxKleinError, *, submitted: bool = True) -> None:
        self._codes.add(exit_code(error))
        self._board.end(record["index"], failed=True)
        if self._plan.as_json:
            self._screen.out(json_line(record))
        if not submitted:
            self._told[str(error)] += 1
        else:
            self._tell_failed(record["index"], record["request_id"], error)

    def _tell_failed(self, index: int, request_id: str | None, error: FluxKleinError) -> None:
        """Say it once: the same sentence about a hundred items helps nobody."""
        sentence = str(error)
        self._told[sentence] += 1
        if self._told[sentence] > 1:
            return
        name = f"Picture {index + 1} of {self._board.total}" if self._board.total > 1 else "Failed"
        if request_id is None or isinstance(error, _OVER) or self._plan.take_up is None:
            self._screen.note(f"{name}: {sentence}")
        else:
            self._screen.note(f"{name}: {sentence}; take it up again with:")
            self._screen.note(f"  {self._plan.take_up(request_id)}")

    def _tell_repeated(self) -> None:
        for sentence, count in self._told.items():
            if count > 1:
                self._screen.note(f"{count - 1} more: {sentence}")
        self._told.clear()

    # --- stopped from outside

    async def _wind_up(self) -> None:
        """Save what is finished, cancel what is queued, name what runs on."""
        if self._saving:
            _, late = await asyncio.wait(self._saving, timeout=_GRACE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        with suppress(FluxKleinError):
            await self._client.aclose()  # it sees the cancels through
        states: Counter[RequestState] = Counter()
        for index, standing in list(self._board.under_way()):
            states[standing.state] += 1
            if self._plan.as_json:
                item = self._plan.inputs[index]
                self._screen.out(json_line(stopped_record(index, item, standing.request_id, standing.state)))
        cancelled = states.pop(RequestState.CANCELLED, 0)
        lost = states and self._plan.take_up is not None
        if lost or not self._screen.reader_gone:  # whoever reads the first line and leaves wants no last words
            self._tell_stopped(cancelled)

    def _tell_stopped(self, cancelled: int) -> None:
        board, note, take_up = self._board, self._screen.note, self._plan.take_up
        note(f"Stopped: {board.done} of {board.total} done, {cancelled} cancelled before they ran.")
        if take_up is None:
            return
        if board.uncertain:
            note(f"{board.uncertain} more may or may not have been accepted, and may be charged.")
        finished, running = [], []
        for _, standing in board.under_way():
            if standing.state is RequestState.COMPLETED:
                finished.append(take_up(standing.request_id))
            elif standing.state is not RequestState.CANCELLED:
                running.append(take_up(standing.request_id))
        for title, commands in (
            ("Finished, but not saved; take up again with:", finished),
            ("Still running, and charged in any case; take up again with:", running),
        ):
            for line in [title, *(f"  {command}" for command in commands)] if commands else []:
                note(line)
