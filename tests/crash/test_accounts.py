"""The books show what is wrong: each thing that must not be is counted when it is."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_batches import LEFT_OUT, PRICE, SLOW, Accounts, Rules, audit, ends, read_requests, totals
from faulty_client import FALSE_PICTURES, PIXELS, Submit, accepted_submits

from flux_klein_async import Budget, FluxKleinClient, Limits
from flux_klein_async.batch.manifest import Manifest
from flux_klein_async.batch.rows import Row
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop, faults_at, pictures
from flux_klein_async.emulator.faults import UNTOLD
from flux_klein_async.journal.base import Reservation
from flux_klein_async.journal.sqlite import SqliteJournal
from flux_klein_async.models import GenerationOutput, GenerationResult, Outcome, RequestState, SavedFile
from tests.journal.helpers import Run, entry

pytestmark = pytest.mark.slow

CAT, DOG = "a cat", "a dog"
ONE, TWO = Submit(CAT, "id-1", told=True), Submit(CAT, "id-2", told=True)


class Scene:
    """A journal with its pictures and its manifest, made as a run makes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = Run(folder / "journal.sqlite")
        self.manifest = Manifest(folder / "manifest.jsonl")
        self.keys = 0

    def request(self, state: str, request_id: str | None = None, *, price: float = 0.01, **facts: Any) -> "Scene":
        self.keys += 1
        body = b'{"prompt": "%s"}' % CAT.encode()
        reservation = Reservation(usd=price, max_usd=1)
        self.run.write(entry("submitting", key=str(self.keys), body=body, reservation=reservation))
        if state != "submitting":
            self.run.write(entry(state, key=str(self.keys), request_id=request_id, **facts))
        return self

    def picture(self, request_id: str, data: bytes | None = None, *, listed: bool = True) -> "Scene":
        path = self.folder / f"{request_id}.png"
        path.write_bytes(data or pictures.draw(CAT, 64, 64, seed=0, request_id=request_id))
        file = SavedFile(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)
        self.request("downloaded", request_id, files=(file,))
        if listed:
            result = GenerationResult(
                request_id=request_id, state=RequestState.COMPLETED, output=GenerationOutput(), raw={}
            )
            item = Row(1, {"prompt": CAT})
            self.manifest.append(Outcome(index=0, item=item, result=result, files=(file,)))
        return self

    def found(self, submits: list[Submit], again: set[str]) -> set[str]:
        """What the books say is wrong."""
        self.manifest.close()
        self.run.close()
        books = Accounts(self.folder / "journal.sqlite", self.folder, submits, [CAT], seed=0)
        return {
            what
            for what, count in audit(books, Rules(frozenset({"repeated", "refused", "cancelled"} | again))).items()
            if count
        }


def uncertain_then_home(scene: Scene) -> Scene:
    return scene.request("uncertain").picture("id-1")


LOST = "accepted, and the journal knows nothing of it"
AGAINST = "submitted again against the rules"
TWICE = "accepted twice, and the first not called uncertain"
UNFINISHED = "items neither saved nor ended for a known reason"
UNLISTED = "lines that the manifest lacks"
ENDLESS = ONE._replace(endless=True)


@pytest.mark.parametrize(
    ("scene_of", "submits", "again", "wrong"),
    [
        (lambda scene: scene.picture("id-1"), [ONE], set(), set()),
        (lambda scene: scene.request("failed", "id-1"), [ONE], set(), set()),
        (lambda scene: scene.request("uncertain"), [ONE], set(), set()),
        (lambda scene: scene.request("uncertain"), [], set(), set()),
        (lambda scene: scene.request("submitted", "id-1"), [ENDLESS], set(), set()),
        (uncertain_then_home, [ONE, TWO], {"uncertain"}, set()),
        (lambda scene: scene.request("cancelled", "id-2").picture("id-1"), [ONE, TWO], set(), set()),
        (uncertain_then_home, [ONE, TWO], set(), {AGAINST, TWICE}),
        (lambda scene: scene.picture("id-2").picture("id-1"), [ONE, TWO], set(), {AGAINST, TWICE, UNLISTED}),
        (lambda scene: scene.picture("id-1"), [ONE, TWO], set(), {LOST, TWICE}),
        (lambda scene: None, [ONE], set(), {LOST, UNFINISHED}),
        (lambda scene: scene.request("refused"), [ONE], set(), {LOST, UNFINISHED}),
        (lambda scene: None, [], set(), {UNFINISHED}),
        (lambda scene: scene.request("refused"), [], set(), {UNFINISHED}),
        (lambda scene: scene.request("submitting"), [], set(), {UNFINISHED}),
        (lambda scene: scene.request("submitted", "id-1"), [ONE], set(), {UNFINISHED}),
        (lambda scene: scene.request("completed", "id-1"), [ONE], set(), {UNFINISHED}),
        (lambda scene: scene.picture("id-1"), [], set(), {"ids that the service never gave"}),
        (
            lambda scene: scene.picture("id-1"),
            [ONE, Submit(DOG, "id-3", told=True)],
            set(),
            {LOST, "prompts of nobody", UNFINISHED},
        ),
        (lambda scene: scene.picture("id-1", b"half"), [ONE], set(), {"pictures that are not the service's own"}),
        (
            lambda scene: (scene.picture("id-1").folder / "id-1.png").unlink(),
            [ONE],
            set(),
            {"pictures that are not the service's own"},
        ),
        (
            lambda scene: (scene.picture("id-1").folder / "id-9.png").touch(),
            [ONE],
            set(),
            {"files that no request names"},
        ),
        (lambda scene: scene.picture("id-1", listed=False), [ONE], set(), {UNLISTED}),
        (
            lambda scene: scene.request("failed", "id-1", cost_usd=0.0),
            [ONE],
            set(),
            {"requests charged with another price"},
        ),
        (lambda scene: scene.request("uncertain", price=0.0), [ONE], set(), {"requests charged with another price"}),
        (
            lambda scene: scene.picture("id-1").run.store.execute("UPDATE accounts SET held = held + 1"),
            [ONE],
            set(),
            {"billionths that the totals are off"},
        ),
    ],
)
def test_the_books_show_what_is_wrong(
    tmp_path: Path,
    scene_of: Callable[[Scene], object],
    submits: list[Submit],
    again: set[str],
    wrong: set[str],
) -> None:
    scene = Scene(tmp_path)
    scene_of(scene)
    assert scene.found(submits, again) == wrong


def test_the_books_say_how_items_ended_and_what_they_cost(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    uncertain_then_home(scene)
    scene.found([], set())
    assert ends(read_requests(tmp_path / "journal.sqlite")) == {"downloaded": 1}
    assert totals(tmp_path / "journal.sqlite") == (0, 2 * PRICE)


async def run(emulator: InProcessEmulator, folder: Path, rows: list[Row]) -> None:
    """One run over the rows, with journal, budget and manifest."""
    loop, limits = asyncio.get_running_loop(), Limits(max_in_flight=8, halt_after=None)
    with Manifest(folder / "manifest.jsonl") as manifest:
        async with (
            emulator.session() as session,
            SqliteJournal(folder / "journal.sqlite", clock=loop.time) as journal,
            FluxKleinClient(
                emulator.api_key,
                base_url=emulator.base_url,
                session=session,
                journal=journal,
                budget=Budget(10),
                limits=limits,
            ) as client,
        ):
            for outcome in await client.generate_all(rows, to_input=lambda row: row.fields, directory=folder):
                manifest.append(outcome)


def test_no_fault_of_a_storm_contradicts_the_books(tmp_path: Path) -> None:
    """Each happens once: which of them a storm meets is chance."""
    faults = {at: faults_at(at, {*LEFT_OUT, *SLOW, *UNTOLD}) for at in ("submit", "status", "result", "file")}
    prompts = [f"a snow leopard, number {number}" for number in range(max(map(len, faults.values())) + 20)]
    rows = [
        Row(n + 1, {"prompt": prompt, "width": PIXELS, "height": PIXELS}, number=n) for n, prompt in enumerate(prompts)
    ]

    async def rage() -> None:
        async with InProcessEmulator(profile="fixed:0.05") as emulator:
            for endpoint, answers in faults.items():
                emulator.script(endpoint, *answers)
            for rules in (Rules(finished=False), Rules()):
                await run(emulator, tmp_path, rows)
                submits = accepted_submits(emulator.records)
                books = Accounts(tmp_path / "journal.sqlite", tmp_path, submits, prompts, emulator.seed, FALSE_PICTURES)
                assert {what: count for what, count in audit(books, rules).items() if count} == {}
            assert all(emulator.calls[endpoint] > len(answers) for endpoint, answers in faults.items())
            assert len(submits) > len(prompts) / 2

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(rage())
