"""Many generations at once while one call in ten goes wrong, and the books afterwards.

`ride` sends them through one client, each in one of four ways; `audit` compares what the callers were told with what
the emulator knows. Where the emulator is, and in what time, is the caller's affair.
"""

import asyncio
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
from flux_klein_async.emulator import Generation, Pass, Record, Reply, Rewrite, faults_at, pictures
from flux_klein_async.events import Uncertain

__all__ = ["LIES", "PIXELS", "Item", "Plan", "Ridden", "Submit", "accepted_submits", "audit", "ride"]

PIXELS = 64  # pictures are not what this is about
_FOR_EVER = 1e6  # seconds
_PATIENCE = 5.0  # seconds; an abandoned generation is given up within so many
LIES = frozenset(  # what a server can call a picture without a sign that it is none
    answer.body if isinstance(answer.body, bytes) else answer.body.encode()
    for answer in faults_at("file")
    if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.body, bytes | str)
)


class Submit(NamedTuple):
    """One accepted submit, as the emulator knows it.

    Attributes:
        told: Its id left at once, in an answer that can be read.
        endless: It never ends, or its result never comes.
    """

    prompt: str
    request_id: str
    told: bool
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it, and which."""

    count: int
    concurrency: int
    seed: int


@dataclass(slots=True, eq=False)
class Item:
    """One generation, and what was said of it.

    Attributes:
        ids: What its caller was told by results, errors and handles.
        heard: What events told.
        uncertain: An error or an event said that nobody knows whether it was accepted.
        abandoned: Its caller gave up, and can be told by events alone.
        free: An error said that it cost nothing, and not since the service cancelled it.
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
        """Take in an event that carries this item as its tag."""
        if event.request_id is not None:
            self.heard.add(event.request_id)
        self.uncertain = self.uncertain or isinstance(event, Uncertain)

    def met(self, error: FluxKleinError) -> None:
        """Take in an error that its caller got."""
        self.ends.append(type(error).__name__)
        if error.request_id is not None:
            self.ids.add(error.request_id)
        self.uncertain = self.uncertain or isinstance(error, SubmissionUncertainError)
        self.free = self.free or (error.charged == "no" and not isinstance(error, GenerationCancelledError))

    def got(self, result: GenerationResult) -> None:
        """Take in a result."""
        self.ends.append("result")
        self.ids.add(result.request_id)


@dataclass(slots=True)
class Ridden:
    """What came of it. `untagged`: ids named in events of no item, such as those of a submit that nobody awaits."""

    items: list[Item]
    directory: Path
    untagged: set[str] = field(default_factory=set)

    def hear(self, event: Event) -> None:
        """The client's `on_event`."""
        if isinstance(event.tag, Item):
            event.tag.hear(event)
        elif event.request_id is not None:
            self.untagged.add(event.request_id)


# --- the ways of an item


class _Rider:
    """Takes items through a client."""

    def __init__(self, client: FluxKleinClient, base_url: str, directory: Path) -> None:
        self._client = client
        self._base_url = base_url
        self._directory = directory

    async def to_disk(self, item: Item) -> None:
        """Generate and download."""
        await self._save(item, await self._client.generate(item.input, tag=item))

    async def abandoned(self, item: Item) -> None:
        """Generate, and cancel the awaiting task at any instant."""
        on_abandon: Literal["cancel", "leave"] = "cancel" if item.rng.random() < 0.5 else "leave"
        task = asyncio.ensure_future(self._client.generate(item.input, on_abandon=on_abandon, tag=item))
        await asyncio.wait({task}, timeout=item.rng.uniform(0.0, _PATIENCE))
        task.cancel()
        try:
            item.got(await task)
        except asyncio.CancelledError:
            item.abandoned = True
            item.ends.append("abandoned")

    async def cancelled(self, item: Item) -> None:
        """Submit, cancel, and wait for whichever end it comes to."""
        handle = await self._client.submit(item.input)
        item.ids.add(handle.request_id)
        try:
            outcome = await self._client.cancel(handle)
            item.ends.append("cancelled" if outcome.cancelled else "not cancellable")
        except FluxKleinError as error:
            item.met(error)
        item.got(await self._client.wait_for_result(handle))

    async def taken_up(self, item: Item) -> None:
        """Submit, forget all but the id, wait for it and save."""
        request_id = (await self._client.submit(item.input)).request_id
        item.ids.add(request_id)
        await self._save(item, await self._client.wait_for_result(request_id))

    async def _save(self, item: Item, result: GenerationResult) -> None:
        item.got(result)
        # A result can name somebody else's file; on a port that would be somebody else's host, too.
        if all(url.startswith(self._base_url) for url in result.urls):
            for path in await self._client.download(result, self._directory):
                item.files.append((result.request_id, path))


_WAYS: tuple[Callable[[_Rider, Item], Awaitable[None]], ...] = (
    *[_Rider.to_disk] * 7,
    _Rider.abandoned,
    _Rider.cancelled,
    _Rider.taken_up,
)


async def ride(
    plan: Plan, connect: Callable[[Callable[[Event], None]], FluxKleinClient], base_url: str, directory: Path
) -> Ridden:
    """Take `plan.count` items through one client, `plan.concurrency` at once, and close it.

    `connect` makes the client with the `on_event` that it is given.
    """
    items = [
        Item(f"a snow leopard, number {number}", random.Random(f"{plan.seed}/{number}")) for number in range(plan.count)
    ]
    ridden = Ridden(items, directory)
    async with connect(ridden.hear) as client:
        rider = _Rider(client, base_url, directory)
        left = iter(items)
        await asyncio.gather(*(_work(rider, left) for _ in range(plan.concurrency)))
    return ridden


async def _work(rider: _Rider, left: Iterator[Item]) -> None:
    for item in left:
        try:
            await item.rng.choice(_WAYS)(rider, item)
        except FluxKleinError as error:
            item.met(error)
        except Exception as error:  # noqa: BLE001  # what must not happen is counted
            item.strange.append(error)


# --- the books


def accepted_submits(records: Iterable[Record]) -> list[Submit]:
    """What an emulator's records say of the submits that it accepted."""
    return [
        Submit(json.loads(record.body)["prompt"], record.request_id, _told(record.answer), _endless(record.answer))
        for record in records
        if record.endpoint == "submit" and record.request_id is not None
    ]


def _endless(answer: Any) -> bool:
    return isinstance(answer, Generation) and max(answer.after or 0.0, answer.result_lag) > _FOR_EVER


def _told(answer: Any) -> bool:
    if isinstance(answer, Rewrite):
        return "request_id" not in answer.fields and answer.dribble is None and not answer.delay
    return answer is None or (isinstance(answer, Pass | Generation) and not answer.delay)


def audit(ridden: Ridden, submits: list[Submit], *, seed: int) -> dict[str, int]:
    """Compare both sides; every number is one of things that must not be, and so must be 0. `seed`: the emulator's."""
    accepted: dict[str, list[Submit]] = {item.prompt: [] for item in ridden.items}
    for submit in submits:
        accepted.setdefault(submit.prompt, []).append(submit)
    wrong: Counter[str] = Counter()
    for item in ridden.items:
        _audit_item(item, accepted.pop(item.prompt), ridden.untagged, wrong)
    known = {submit.request_id for submit in submits}
    names = sorted(path.name for item in ridden.items for _, path in item.files)
    return {
        "items submitted twice": wrong["twice"],
        "submits of no item": sum(map(len, accepted.values())),
        "accepted, and nobody was told": wrong["untold"],
        "ids told and lost": wrong["lost"],
        "ids of another item": wrong["mixed"],
        "ids that the service never gave": len(ridden.untagged - known),
        "'not charged', yet accepted": wrong["free"],
        "files neither whole nor as served": sum(_spoilt(item, seed) for item in ridden.items),
        "files that nobody was told of": _surplus(names, ridden.directory),
        "exceptions outside the tree": sum(len(item.strange) for item in ridden.items),
    }


def _audit_item(item: Item, accepted: list[Submit], untagged: set[str], wrong: Counter[str]) -> None:
    ids = {submit.request_id for submit in accepted}
    known = item.ids | item.heard | untagged
    wrong["twice"] += len(accepted) > 1
    wrong["untold"] += 0 if item.uncertain else len(ids - known)
    wrong["lost"] += sum(submit.told and submit.request_id not in known for submit in accepted)
    # Events are for whoever listens: a caller who still waits is told by the result or by the error itself.
    wrong["lost"] += 0 if item.abandoned or item.uncertain else len(item.heard - item.ids)
    wrong["mixed"] += len((item.ids | item.heard) - ids)
    wrong["free"] += item.free and bool(accepted)


def _spoilt(item: Item, seed: int) -> int:
    """Files that are neither this item's own picture nor, byte for byte, what the server called so."""
    whole = [
        (pictures.draw(item.prompt, PIXELS, PIXELS, seed=seed, request_id=request_id), path.read_bytes())
        for request_id, path in item.files
    ]
    return sum(served != drawn and served not in LIES for drawn, served in whole)


def _surplus(names: list[str], directory: Path) -> int:
    """Files on disk that no download returned, halves among them, and files returned that are not there."""
    found = Counter(path.name for path in directory.iterdir())
    return sum(((found - Counter(names)) + (Counter(names) - found)).values())
