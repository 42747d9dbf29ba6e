"""Many generations through one client while calls go wrong, and an audit of what the callers were told.

`run_items` makes the generations, each in one of four ways; `audit` compares what the callers know with what the
emulator knows. The caller decides where the emulator runs, and in virtual or real time.
"""

import asyncio
import base64
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flux_klein_async import (
    Event,
    FluxKleinClient,
    FluxKleinError,
    GenerationCancelledError,
    GenerationResult,
    SubmissionUncertainError,
    TextToImageInput,
)
from flux_klein_async.emulator import Generation, Pass, Record, Reply, Rewrite, fault, faults_at, pictures
from flux_klein_async.events import Uncertain

__all__ = ["FALSE_PICTURES", "PIXELS", "Item", "Plan", "RunRecord", "Submit", "accepted_submits", "audit", "run_items"]

PIXELS = 64  # width and height of every picture
_ENDLESS = 1e6  # seconds
_ABANDONED_WITHIN = 5.0  # seconds


def _inline_picture() -> bytes:
    answer = fault("out-inline")
    assert isinstance(answer, Rewrite)
    return base64.b64decode(answer.fields["output"]["image"].partition(",")[2])


FALSE_PICTURES = frozenset(  # what a server can send as a picture without a sign that it is none
    {
        _inline_picture(),
        *(
            answer.body if isinstance(answer.body, bytes) else answer.body.encode()
            for answer in faults_at("file")
            if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.body, bytes | str)
        ),
    }
)


class Submit(NamedTuple):
    """One accepted submit, as the emulator knows it.

    Attributes:
        told: Its id was sent at once, in a readable answer.
        endless: It never ends, or its result never comes.
    """

    prompt: str
    request_id: str
    told: bool
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How many generations, and which."""

    count: int
    concurrency: int
    seed: int


@dataclass(slots=True, eq=False)
class Item:
    """One generation, and what its caller was told.

    Attributes:
        ids: Ids from results, errors and handles.
        heard: Ids from events.
        uncertain: An error or event said that it may or may not have been accepted.
        abandoned: Its caller stopped waiting, and can be told by events alone.
        free: An error said that it cost nothing, other than that the service cancelled it.
    """

    prompt: str
    rng: random.Random
    ids: set[str] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)
    uncertain: bool = False
    abandoned: bool = False
    free: bool = False
    ends: list[str] = field(default_factory=list)
    files: list[tuple[str, Path]] = field(default_factory=list)
    strange: list[BaseException] = field(default_factory=list)

    @property
    def input(self) -> TextToImageInput:
        """What is submitted."""
        return TextToImageInput(prompt=self.prompt, width=PIXELS, height=PIXELS)

    def hear(self, event: Event) -> None:
        """An event with this item as its tag."""
        if event.request_id is not None:
            self.heard.add(event.request_id)
        self.uncertain = self.uncertain or isinstance(event, Uncertain)

    def met(self, error: FluxKleinError) -> None:
        """An error that the caller received."""
        self.ends.append(type(error).__name__)
        if error.request_id is not None:
            self.ids.add(error.request_id)
        self.uncertain = self.uncertain or isinstance(error, SubmissionUncertainError)
        self.free = self.free or (error.charged == "no" and not isinstance(error, GenerationCancelledError))

    def got(self, result: GenerationResult) -> None:
        """A result that the caller received."""
        self.ends.append("result")
        self.ids.add(result.request_id)


@dataclass(slots=True)
class RunRecord:
    """What came of a run. `untagged`: ids in events of no item, such as those of a submit that nobody awaits."""

    items: list[Item]
    directory: Path
    untagged: set[str] = field(default_factory=set)

    def hear(self, event: Event) -> None:
        """The client's `on_event`."""
        if isinstance(event.tag, Item):
            event.tag.hear(event)
        elif event.request_id is not None:
            self.untagged.add(event.request_id)


# --- four ways to make a generation


class _Caller:
    """Makes the generations through a client."""

    def __init__(self, client: FluxKleinClient, base_url: str, directory: Path) -> None:
        self._client = client
        self._base_url = base_url
        self._directory = directory

    async def to_disk(self, item: Item) -> None:
        """Generate and download."""
        await self._save(item, await self._client.generate(item.input, tag=item))

    async def abandoned(self, item: Item) -> None:
        """Generate, and cancel the awaiting task at any time."""
        on_abandon: Literal["cancel", "leave"] = "cancel" if item.rng.random() < 0.5 else "leave"
        task = asyncio.ensure_future(self._client.generate(item.input, on_abandon=on_abandon, tag=item))
        await asyncio.wait({task}, timeout=item.rng.uniform(0.0, _ABANDONED_WITHIN))
        task.cancel()
        try:
            item.got(await task)
        except asyncio.CancelledError:
            item.abandoned = True
            item.ends.append("abandoned")

    async def cancelled(self, item: Item) -> None:
        """Submit, cancel, and wait for the end."""
        handle = await self._client.submit(item.input)
        item.ids.add(handle.request_id)
        try:
            outcome = await self._client.cancel(handle)
            item.ends.append("cancelled" if outcome.cancelled else "not cancellable")
        except FluxKleinError as error:
            item.met(error)
        item.got(await self._client.wait_for_result(handle))

    async def resumed(self, item: Item) -> None:
        """Submit, forget all but the id, wait and save."""
        request_id = (await self._client.submit(item.input)).request_id
        item.ids.add(request_id)
        await self._save(item, await self._client.wait_for_result(request_id))

    async def _save(self, item: Item, result: GenerationResult) -> None:
        item.got(result)
        # A faulty result can name a file of another item; on a port, of another host, too.
        if all(url.startswith(self._base_url) for url in result.urls):
            for path in await self._client.download(result, self._directory):
                item.files.append((result.request_id, path))


_WAYS: tuple[Callable[[_Caller, Item], Awaitable[None]], ...] = (
    *[_Caller.to_disk] * 7,
    _Caller.abandoned,
    _Caller.cancelled,
    _Caller.resumed,
)


async def run_items(
    plan: Plan, connect: Callable[[Callable[[Event], None]], FluxKleinClient], base_url: str, directory: Path
) -> RunRecord:
    """Make `plan.count` generations through one client, `plan.concurrency` at once, and close it.

    `connect` makes the client with the `on_event` that it is given.
    """
    items = [
        Item(f"a snow leopard, number {number}", random.Random(f"{plan.seed}/{number}")) for number in range(plan.count)
    ]
    run = RunRecord(items, directory)
    async with connect(run.hear) as client:
        caller = _Caller(client, base_url, directory)
        left = iter(items)
        await asyncio.gather(*(_work(caller, left) for _ in range(plan.concurrency)))
    return run


async def _work(caller: _Caller, left: Iterator[Item]) -> None:
    for item in left:
        try:
            await item.rng.choice(_WAYS)(caller, item)
        except FluxKleinError as error:
            item.met(error)
        except Exception as error:  # noqa: BLE001  # none is expected: counted
            item.strange.append(error)


# --- the audit


def accepted_submits(records: Iterable[Record]) -> list[Submit]:
    """The submits that an emulator accepted, from its records."""
    return [
        Submit(json.loads(record.body)["prompt"], record.request_id, _told(record.answer), _endless(record.answer))
        for record in records
        if record.endpoint == "submit" and record.request_id is not None
    ]


def _endless(answer: Any) -> bool:
    return isinstance(answer, Generation) and max(answer.after or 0.0, answer.result_lag) > _ENDLESS


def _told(answer: Any) -> bool:
    if isinstance(answer, Rewrite):
        return "request_id" not in answer.fields and answer.dribble is None and not answer.delay
    return answer is None or (isinstance(answer, Pass | Generation) and not answer.delay)


def audit(run: RunRecord, submits: list[Submit], *, seed: int) -> dict[str, int]:
    """Counts contradictions between callers and emulator; each count must be 0. `seed`: the emulator's."""
    accepted: dict[str, list[Submit]] = {item.prompt: [] for item in run.items}
    for submit in submits:
        accepted.setdefault(submit.prompt, []).append(submit)
    wrong: Counter[str] = Counter()
    for item in run.items:
        _audit_item(item, accepted.pop(item.prompt), run.untagged, wrong)
    known = {submit.request_id for submit in submits}
    names = sorted(path.name for item in run.items for _, path in item.files)
    return {
        "items submitted twice": wrong["twice"],
        "submits of no item": sum(map(len, accepted.values())),
        "accepted, and nobody was told": wrong["untold"],
        "ids told and lost": wrong["lost"],
        "ids of another item": wrong["mixed"],
        "ids that the service never gave": len(run.untagged - known),
        "'not charged', yet accepted": wrong["free"],
        "files neither whole nor as served": sum(_spoilt(item, seed) for item in run.items),
        "files that nobody was told of": _surplus(names, run.directory),
        "exceptions outside the tree": sum(len(item.strange) for item in run.items),
    }


def _audit_item(item: Item, accepted: list[Submit], untagged: set[str], wrong: Counter[str]) -> None:
    ids = {submit.request_id for submit in accepted}
    known = item.ids | item.heard | untagged
    wrong["twice"] += len(accepted) > 1
    wrong["untold"] += 0 if item.uncertain else len(ids - known)
    wrong["lost"] += sum(submit.told and submit.request_id not in known for submit in accepted)
    # A caller that still waits must be told by the result or the error itself, not by events alone.
    wrong["lost"] += 0 if item.abandoned or item.uncertain else len(item.heard - item.ids)
    wrong["mixed"] += len((item.ids | item.heard) - ids)
    wrong["free"] += item.free and bool(accepted)


def _spoilt(item: Item, seed: int) -> int:
    """Files that are neither this item's own picture nor, byte for byte, what the server sent as one."""
    whole = [
        (pictures.draw(item.prompt, PIXELS, PIXELS, seed=seed, request_id=request_id), path.read_bytes())
        for request_id, path in item.files
    ]
    return sum(served != drawn and served not in FALSE_PICTURES for drawn, served in whole)


def _surplus(names: list[str], directory: Path) -> int:
    """Files on disk that no download returned, partial ones included, and returned files that are not there."""
    found = Counter(path.name for path in directory.iterdir())
    return sum(((found - Counter(names)) + (Counter(names) - found)).values())
