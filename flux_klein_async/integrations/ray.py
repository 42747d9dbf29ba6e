"""Ray Data: a picture for each row of a dataset, on any number of nodes.

Each actor has one client. Ray runs rows again when a node is lost; the journal that all clients share recognises them,
so that none is paid for twice.
"""

import asyncio
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from threading import Thread
from typing import Any, Final

from flux_klein_async.batch.manifest import end_facts
from flux_klein_async.client import FluxKleinClient
from flux_klein_async.errors import FluxKleinError, InvalidInputError, ItemClaimedError, JournalError
from flux_klein_async.models import Input, Outcome
from flux_klein_async.operations.fanout import not_submitted

try:
    import pyarrow as pa
    from ray.data import ActorPoolStrategy, Dataset
except ImportError as error:
    raise ImportError("generate_dataset needs an extra: pip install 'flux_klein_async[ray]'") from error

__all__ = ["generate_dataset"]

_Row = dict[str, Any]

# Of each actor. While the last rows of a batch generate, those of others do.
_BATCHES: Final = 4
_RETRY: Final = 1.0  # seconds
# Seconds for which a row waits until another run lets go of it: longer than a generation's default timeout, and than
# a server takes to notice that a node is gone.
_PATIENCE: Final = 180.0
_TEXTS: Final = pa.list_(pa.string())
_COLUMNS: Final[Mapping[str, pa.DataType]] = {
    "request_id": pa.string(),
    "state": pa.string(),
    "urls": _TEXTS,
    "files": _TEXTS,
    "cost_usd": pa.float64(),
    "charged": pa.string(),
    "error": pa.string(),
}


def generate_dataset(
    dataset: Dataset,
    *,
    make_client: Callable[[], AbstractAsyncContextManager[FluxKleinClient]],
    to_input: Callable[[_Row], Input] | None = None,
    to_id: Callable[[_Row], str | int | None] | None = None,
    concurrency: int = 64,
    files: str | os.PathLike[str] | None = None,
    actors: int | tuple[int, int] = 1,
    num_cpus: float = 0.2,
) -> Dataset:
    """Generate for each row of a Ray dataset; lazily, as all of Ray Data.

    Each row comes back once, with these columns, which replace columns of the same name: `request_id`, `state`, `urls`,
    `files` (paths), `cost_usd`, `charged` ("yes", "no", "unknown") and `error` (class and message, or null). A row that
    fails has an error, and does not fail the job; nor does an error that dooms every further submit: the rows after it
    have it too. Run the job again with the same journal to go on. What was paid for then costs nothing.

    Ray generates when the dataset that you get is read, and again each time that it is read: with a journal that costs
    nothing. Without one, what Ray runs again is paid for again. `take` and `limit` on it generate more rows than they
    give: limit the input.

    Args:
        dataset: The rows.
        make_client: Makes the client of an actor, in the actor, with a `PostgresJournal` that all actors share
            (`SqliteJournal` on a single machine). It may also return an async context manager that gives the client.
        to_input: Maps a row to its input. None: the row without its null values, as a Mapping.
        to_id: Maps a row to the id by which the journal recognises it. None: by its input. Rows with equal inputs, or
            ids, are then one item: it is paid for once, and all of them get its result.
        concurrency: Rows under way at once in each actor, downloads included; the client's limits bound the generations
            among them.
        files: The directory where files are saved, which all nodes should share. None: nothing is downloaded.
        actors: How many actors, and so clients; or the fewest and the most, between which Ray chooses.
        num_cpus: The part of a core that Ray sets aside for each actor.

    Raises:
        InvalidInputError: `concurrency` is not a whole number of at least 1.
    """
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise InvalidInputError("concurrency must be a whole number of at least 1")
    fewest, most = (actors, actors) if isinstance(actors, int) else actors
    batches = min(_BATCHES, concurrency)
    return dataset.map_batches(
        _RowGenerator,
        batch_size=math.ceil(concurrency / batches),
        batch_format="pyarrow",  # the types of the columns stay as they are
        # Two calls at once, so that an actor is busy while the last rows of a block generate.
        compute=ActorPoolStrategy(min_size=fewest, max_size=most, max_concurrent_calls_per_actor=2),
        num_cpus=num_cpus,
        fn_constructor_kwargs={
            "make_client": make_client,
            "batches": batches,
            "options": {
                "to_input": to_input or _input_of,
                "to_id": to_id,
                "concurrency": concurrency,
                "directory": files,
            },
        },
    )


def _input_of(row: _Row) -> Input:
    return {name: value for name, value in row.items() if value is not None and name not in _COLUMNS}


class _RowGenerator:
    """An actor's client, in a loop of its own: Ray blocks its loop while nobody takes the rows that are done."""

    def __init__(
        self,
        make_client: Callable[[], AbstractAsyncContextManager[FluxKleinClient]],
        batches: int,
        options: dict[str, Any],
    ) -> None:
        self._options = options
        self._batches = asyncio.Semaphore(batches)
        self._doomed: FluxKleinError | None = None
        self._stack = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._open(make_client), self._loop).result()

    async def _open(self, make_client: Callable[[], AbstractAsyncContextManager[FluxKleinClient]]) -> FluxKleinClient:
        return await self._stack.enter_async_context(make_client())

    def __del__(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stack.aclose(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        ends = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._generate(rows), self._loop))
        table = table.drop_columns([name for name in _COLUMNS if name in table.column_names])
        for name, type_ in _COLUMNS.items():
            table = table.append_column(name, pa.array([end[name] for end in ends], type_))
        return table

    async def _generate(self, rows: Sequence[_Row]) -> list[_Row]:
        """The new columns of each row."""
        ended: dict[int, Outcome[_Row]] = {}
        async with self._batches:
            give_up = self._loop.time() + _PATIENCE
            while waiting := [number for number in range(len(rows)) if number not in ended]:
                first = {self._key(rows[number]): number for number in reversed(waiting)}
                now = sorted(first.values())
                made = zip(now, await self._outcomes([rows[number] for number in now]), strict=True)
                patient = self._loop.time() < give_up
                ended |= {
                    number: outcome
                    for number, outcome in made
                    if not (patient and isinstance(outcome.error, ItemClaimedError))
                }
                if ended.keys().isdisjoint(now):
                    await asyncio.sleep(_RETRY)
        return [_columns(ended[number]) for number in range(len(rows))]

    def _key(self, row: _Row) -> object:
        """Equal for rows that a journal takes for one item: one after the other, they get its one result."""
        to_input, to_id = self._options["to_input"], self._options["to_id"]
        try:
            return repr((to_id and to_id(row)) or to_input(row))
        except Exception:  # noqa: BLE001  # it is the outcome of this row
            return object()

    async def _outcomes(self, rows: Sequence[_Row]) -> list[Outcome[_Row]]:
        """The outcomes of different rows, in their order."""
        ended: dict[int, Outcome[_Row]] = {}
        doomed = self._doomed
        if doomed is None:
            try:
                async with self._client.generate_many(rows, **self._options) as outcomes:
                    async for outcome in outcomes:
                        ended[outcome.index] = outcome
            except FluxKleinError as error:
                doomed = error
                if not isinstance(error, JournalError):  # which may be reached again
                    self._doomed = error
        return [
            ended.get(number) or Outcome(index=number, item=row, error=doomed and not_submitted(doomed))
            for number, row in enumerate(rows)
        ]


def _columns(outcome: Outcome[_Row]) -> _Row:
    facts, error = end_facts(outcome), outcome.error
    return {
        **facts,
        "files": [file["path"] for file in facts["files"]],
        "charged": "yes" if error is None else error.charged,
        "error": None if error is None else f"{type(error).__name__}: {error}",
    }
