"""Nothing paid is lost and nothing is paid twice, whatever fails, in any order, over any number of runs."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flux_klein_async.emulator import Answer, Generation, fault
from flux_klein_async.errors import GenerationFailedError, SubmissionUncertainError
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.sqlite import SqliteLocation
from tests.databases import Cluster
from tests.fakes import strays

from .processes import SMALL, Process, World
from .strategies import examples

pytestmark = pytest.mark.slow

ITEMS = ("a cat", "a dog", "an owl", "a fox")
BARE = "a bare submit"
PRICE = 0.01  # USD: the emulator's for a picture
SUBMITS = (
    None,
    *map(fault, ("reset+accepted", "hang+accepted", "500+accepted", "no-id", "slow", "drip")),
    *map(fault, ("reset", "500", "422", "429", "503+after")),
    *map(fault, ("is-cancelled", "result-late")),
    *[Generation(after=seconds, ends=end) for seconds in (0.0, 5.0, 15.0) for end in ("completed", "failed")],
)
TROUBLE = {
    "connect": ("refuse", "drop", "no-connection"),
    "model": ("500", "no-price", "hang"),
    "status": ("503", "reset", "hang", "slow", "gone-back", "done-too-soon", "other-id"),
    "result": ("503", "reset", "hang", "json-bare"),
    "cancel": ("reset+accepted", "hang+accepted", "500", "reset", "too-late", "slow"),
    "file": ("503", "cut", "reset", "picture-short"),
}
_troubles = st.one_of([st.tuples(st.just(place), st.sampled_from(names)) for place, names in TROUBLE.items()])
_seconds = st.sampled_from([0.0, 0.01, 0.06, 0.3, 1.1, 3.0, 12.0])
_slots = st.sampled_from([0, 1])


class JournaledRequest(NamedTuple):
    """A line of the journal with its prompt, or None for a request known only by its id."""

    state: str
    request_id: str | None
    prompt: str | None


class ItemJournal(RuleBasedStateMachine):
    """Two processes at most, one journal, one service."""

    def __init__(self, cluster: Cluster | None) -> None:
        super().__init__()
        self.cluster = cluster

    @initialize(
        workers=st.sampled_from([1, 2, None]),
        budget=st.sampled_from([None, 0.02, 0.05, 1.0]),
        again=st.sampled_from([(), (), ("failed",), ("uncertain",)]),
    )
    def begin(self, workers: int | None, budget: float | None, again: tuple[str, ...]) -> None:
        """`again`: what some runs are asked to submit again."""
        self.world = World(self.cluster, workers=workers)
        self.budget = budget
        self.again = again
        self.processes: dict[int, Process] = {}
        self.bare = 0

    # --- what users do

    @rule(
        slot=_slots,
        items=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4, unique=True),
        submits=st.lists(st.sampled_from(SUBMITS), max_size=4),
        timeout=st.sampled_from([0.2, 2.0, 30.0, None]),
        on_abandon=st.sampled_from(["cancel", "leave"]),
        again=st.booleans(),
        seconds=_seconds,
    )
    def batch(
        self, slot: int, items: list[str], submits: list[Answer | None], again: bool, seconds: float, **options: Any
    ) -> None:
        self.world.emulator.script("submit", *submits)
        process = self._process(slot, again=again)
        process.start(lambda: process.batch(items, **options))
        self.world.run(asyncio.sleep(seconds))

    @rule(slot=_slots)
    def submit(self, slot: int) -> None:
        self.bare += 1
        self._process(slot).attempt(lambda client: client.submit(BARE, **SMALL))

    @rule(slot=_slots, number=st.integers(0, 5), wait=st.booleans())
    def ask(self, slot: int, number: int, wait: bool) -> None:
        """Wait for a request by its id, or cancel it."""
        if jobs := list(self._jobs()):
            request_id = jobs[number % len(jobs)]
            self._process(slot).attempt(
                lambda client: client.wait_for_result(request_id, timeout=3) if wait else client.cancel(request_id)
            )

    @rule(slot=_slots)
    def stop(self, slot: int) -> None:
        if process := self._alive(slot):
            self.world.run(process.stop())

    @rule(slot=_slots)
    def leave(self, slot: int) -> None:
        if process := self._alive(slot):
            self.world.run(process.leave())

    # --- what happens

    @rule(seconds=_seconds)
    def time_passes(self, seconds: float) -> None:
        self.world.run(asyncio.sleep(seconds))

    @rule(trouble=_troubles)
    def something_goes_wrong(self, trouble: tuple[str, str]) -> None:
        place, name = trouble
        self.world.emulator.script(place, fault(name))

    @rule(slot=_slots)
    def crash(self, slot: int) -> None:
        if process := self._alive(slot):
            process.die()
            self.world.run(asyncio.sleep(0))

    @rule(slot=_slots, writes=st.integers(1, 8), after=st.booleans())
    def crash_while_writing(self, slot: int, writes: int, after: bool) -> None:
        process = self._process(slot)
        process.fuse, process.after = writes, after

    @rule()
    def files_are_deleted(self) -> None:
        self.world.delete_pictures()

    # --- what holds

    @invariant()
    def the_books_agree(self) -> None:
        emulator = self.world.emulator
        emulator.service.queue.advance(self.world.loop.time())
        jobs, requests = self._jobs(), list(self._requests())
        known = [request.request_id for request in requests if request.request_id is not None]
        assert len(known) == len(set(known)), "one request is in two requests"
        assert set(known) <= set(jobs), "an id that the service never gave"
        for request in requests:
            self._check(request, jobs)
        for prompt in (*ITEMS, BARE):
            self._check_prompt(prompt, [request for request in requests if request.prompt == prompt], set(known))
        self._check_money(requests)
        for outcome in self.world.outcomes:
            if outcome.result is not None:
                job = jobs[outcome.result.request_id]
                assert (job.input["prompt"], job.state) == (outcome.item, "completed")
        assert self.world.heard == []

    def _check(self, request: JournaledRequest, jobs: dict[str, Any]) -> None:
        state = None if request.request_id is None else jobs[request.request_id].state
        if request.state in {"completed", "downloaded"}:
            assert state == "completed"
        elif request.state in {"failed", "cancelled"}:
            assert state == request.state
        elif request.state == "submitted":
            assert state is not None
        else:
            assert state is None

    def _check_prompt(self, prompt: str, requests: list[JournaledRequest], known: set[str]) -> None:
        jobs = {name: job for name, job in self._jobs().items() if job.input["prompt"] == prompt}
        states = Counter(request.state for request in requests)
        unsure = Counter(request.state for request in requests if request.request_id is None)
        hidden = unsure["uncertain"] + unsure["submitting"]
        assert len(set(jobs) - known) <= hidden, "it was accepted, and the journal does not know that it may have been"
        if prompt == BARE:
            assert len(jobs) <= self.bare
            return
        wanted = 1 + sum(states[state] for state in self.again)
        unpaid = states["repeated"] + states["refused"] + states["cancelled"]
        assert states.total() - unpaid <= wanted, "it was submitted again, and nobody asked for that"
        paid = Counter(job.state for job in jobs.values())
        assert paid.total() - paid["cancelled"] <= wanted, "it was paid twice"

    def _check_money(self, requests: list[JournaledRequest]) -> None:
        if self.budget is None:
            return
        paid = PRICE * sum(job.state != "cancelled" for job in self._jobs().values())
        assert paid <= self.budget + 1e-9, "more was spent than the budget allows"
        counted = sum(nano for [nano] in self.world.rows("SELECT settled + held FROM accounts")) / 1e9
        assert paid <= counted + 1e-9, "the journal counts with less than was spent"
        if all(request.prompt is not None for request in requests):  # none is known by its id alone
            assert counted <= self.budget + 1e-9

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._end()
        finally:
            for process in self.processes.values():
                process.die()
            self.world.run(asyncio.sleep(0))
            self.world.close()

    def _end(self) -> None:
        """Without faults, everything ends: the next run resumes, and the one after it redoes what was cancelled."""
        for process in self.processes.values():
            process.fuse = None
            process.die()
        self.world.run(asyncio.sleep(1))  # calls under way at the kill arrive
        engine = self.world.emulator
        engine._scripts.clear()
        self.budget = None if self.budget is None else 100.0
        self._resume()
        self.the_books_agree()
        outcomes = self._resume()
        self.the_books_agree()
        for outcome in outcomes:
            assert outcome.result is not None or isinstance(
                outcome.error, GenerationFailedError | SubmissionUncertainError
            )
        calls = dict(engine.calls)
        assert [_summary(outcome) for outcome in self._resume()] == [_summary(outcome) for outcome in outcomes]
        assert dict(engine.calls) == calls, "a third run called the service"
        assert self.world.run(_left()) == []

    def _resume(self) -> list[Any]:
        process = Process(self.world, self.budget)
        outcomes = self.world.run(_awaited(process.start(lambda: process.batch(ITEMS, timeout=None))))
        self.world.run(process.leave())
        return sorted(outcomes, key=lambda outcome: outcome.index)

    # --- what is there

    def _alive(self, slot: int) -> Process | None:
        process = self.processes.get(slot)
        return process if process is not None and process.alive else None

    def _process(self, slot: int, *, again: bool = False) -> Process:
        """The one there, else another."""
        if self._alive(slot) is None:
            wanted = self.again if again else ()
            self.processes[slot] = Process(
                self.world,
                self.budget,
                retry_failed="failed" in wanted,
                resubmit_uncertain="uncertain" in wanted,
            )
        return self.processes[slot]

    def _jobs(self) -> dict[str, Any]:
        return self.world.emulator.service.queue.jobs

    def _requests(self) -> Iterator[JournaledRequest]:
        for state, request_id, body in self.world.rows("SELECT state, request_id, body FROM requests"):
            yield JournaledRequest(state, request_id, None if body is None else json.loads(body)["prompt"])


def _summary(outcome: Any) -> Any:
    return (outcome.result and outcome.result.request_id, type(outcome.error), outcome.files)


async def _awaited(task: "asyncio.Task[Any]") -> Any:
    return await task


async def _left() -> list[str]:
    return strays()


def test_nothing_paid_is_lost_or_paid_twice(
    new_location: Callable[[], Location], get_cluster: Callable[[], Cluster]
) -> None:
    """On a server with fewer examples: it takes its time."""
    on_disk = isinstance(new_location(), SqliteLocation)
    cluster, count = (None, examples(40).max_examples) if on_disk else (get_cluster(), examples(10).max_examples)
    run_state_machine_as_test(
        lambda: ItemJournal(cluster), settings=settings(max_examples=count, stateful_step_count=30, deadline=None)
    )
