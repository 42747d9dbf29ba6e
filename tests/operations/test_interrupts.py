"""A KeyboardInterrupt raised inside the running loop never makes a later run pay for an item again."""

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import InProcessEmulator, Pass, Reset, VirtualTimeLoop
from flux_klein_async.emulator.inprocess import Pipe
from flux_klein_async.journal.base import Claim, Entry
from flux_klein_async.journal.states import STATES, Action, supersedes
from tests.cells import cells

MOST = 400  # steps; a run has fewer


class Memory:
    """A journal in memory that knows items by their content and outlives its runs."""

    def __init__(self) -> None:
        self.requests: dict[str | None, Entry] = {}

    def items(self) -> "Memory":
        return self

    async def record(self, entry: Entry) -> None:
        await asyncio.sleep(0)
        key = next((key for key, known in self.requests.items() if key == entry.key), None)
        if key is None:
            ids = {known.request_id: key for key, known in self.requests.items()}
            key = ids.get(entry.request_id, entry.key) if entry.request_id is not None else entry.key
        if key not in self.requests or supersedes(entry.state, self.requests[key].state):
            self.requests[key] = entry
        await asyncio.sleep(0)

    async def claim(self, _model: str, _body: bytes, _item_id: str | None) -> Claim:
        newest = next(reversed(self.requests.values()), None)
        if newest is None:
            return Claim(item="1", action=Action.SUBMIT)
        return Claim(
            item="1", action=STATES[newest.state].action, request_id=newest.request_id, answer=newest.answer, error="e"
        )

    def release(self, claim: Claim) -> None:
        """Hold nothing."""


class Interrupted(VirtualTimeLoop):
    """A loop in which Ctrl-C is pressed after one of its callbacks, or where one of its tasks awaits."""

    def __init__(self, *, callback: int = 0, step: int = 0) -> None:
        self._callback = callback
        self._step = step
        super().__init__(grace=0.01)
        self.set_task_factory(lambda loop, coro, **options: asyncio.Task(Stepped(coro, self), loop=loop, **options))

    def call_soon(self, callback: Any, *args: Any, **options: Any) -> Any:
        return super().call_soon(self._counted, callback, args, **options)

    def _counted(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        callback(*args)
        self._callback -= 1
        if self._callback == 0:
            raise KeyboardInterrupt

    def step_is_due(self) -> bool:
        self._step -= 1
        return self._step == 0


class Stepped(Coroutine[Any, Any, Any]):
    """A task's coroutine, which may be interrupted where it awaits."""

    def __init__(self, coroutine: Any, loop: Interrupted) -> None:
        self._coroutine = coroutine
        self._loop = loop

    def send(self, value: Any) -> Any:
        if self._loop.step_is_due():
            return self._coroutine.throw(KeyboardInterrupt())
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()


def end_as_runner(loop: asyncio.AbstractEventLoop, _client: FluxKleinClient | None) -> None:
    """As `asyncio.run` does."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()

    async def ended() -> None:
        if tasks:
            await asyncio.wait(tasks, timeout=30.0)

    loop.run_until_complete(ended())


def end_as_notebook(loop: asyncio.AbstractEventLoop, client: FluxKleinClient | None) -> None:
    """The loop goes on, and the client is closed some time later."""
    loop.run_until_complete(asyncio.sleep(1.0))
    if client is not None:
        loop.run_until_complete(client.aclose())


def end_as_process(_loop: asyncio.AbstractEventLoop, _client: FluxKleinClient | None) -> None:
    """Nothing runs any more."""


def interrupted_run(
    emulator: InProcessEmulator, journal: Memory, loop: VirtualTimeLoop, end: Callable[..., None]
) -> bool:
    """One run of one item; whether it was interrupted."""
    clients: list[FluxKleinClient] = []

    async def main() -> None:
        session = emulator.session()
        async with FluxKleinClient("t", base_url=emulator.base_url, session=session, journal=journal) as client:
            clients.append(client)
            await client.generate_all(["a cat"], timeout=20.0)
        await emulator.aclose()

    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(main())
    interrupted = False
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        interrupted = True
        for _ in range(3):  # a task that was interrupted may raise it once more where it is awaited
            with suppress(KeyboardInterrupt, RuntimeError, asyncio.CancelledError):
                end(loop, clients[0] if clients else None)
    loop._ready.clear()  # type: ignore[attr-defined]
    loop.close()
    return interrupted


ANSWERS = {"answered": Pass(), "lost": Reset(accepted=True), "not accepted": Reset()}
WHERE = ("after a callback", "in a task", "in a write")
ENDS = (end_as_runner, end_as_notebook, end_as_process)
CASES = cells(ANSWERS, WHERE, ENDS, fast=list(zip(ANSWERS, WHERE, ENDS, strict=True)))  # each of the nine once


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("answer", "where", "end"), CASES)
def test_a_keyboard_interrupt_anywhere_never_pays_for_an_item_twice(
    monkeypatch: pytest.MonkeyPatch, answer: str, where: str, end: Callable[..., None]
) -> None:
    """In a notebook the loop goes on after it, with one callback cut short."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # for coroutines that nobody will run again
    write, left, posts = Pipe.write, 0, 0

    def cut_short(pipe: Pipe, data: Any) -> None:
        nonlocal left, posts
        write(pipe, data)
        posts += bytes(data).startswith(b"POST /v1/models/")
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pipe, "write", cut_short)
    for number in range(1, MOST):
        emulator, journal, posts = InProcessEmulator(profile="fixed:0.5", api_key="t"), Memory(), 0
        emulator.script("submit", ANSWERS[answer])
        left = number if where == "in a write" else 0
        loop = Interrupted(
            callback=number if where == "after a callback" else 0, step=number if where == "in a task" else 0
        )
        interrupted = interrupted_run(emulator, journal, loop, end)
        left = 0
        interrupted_run(emulator, journal, Interrupted(), end)
        assert posts <= 1, f"step {number}"
        assert emulator.accepted <= 1, f"step {number}"
        if not interrupted:
            break
    gc.collect()
    assert 1 < number < MOST - 1


def test_a_wait_that_is_collected_after_its_loop_stopped_starts_nothing() -> None:
    """Another loop of the thread, such as a notebook's, is not asked to cancel."""
    loop, other = VirtualTimeLoop(), asyncio.new_event_loop()

    async def generating() -> tuple[InProcessEmulator, FluxKleinClient, asyncio.Task[Any]]:
        emulator = InProcessEmulator(workers=0, api_key="t")
        client = FluxKleinClient("t", base_url=emulator.base_url, session=emulator.session())
        task = asyncio.ensure_future(client.generate("a cat"))
        await asyncio.sleep(5.0)
        return emulator, client, task

    asyncio.set_event_loop(other)
    try:
        emulator, client, task = loop.run_until_complete(generating())
        assert emulator.accepted == 1
        task.get_coro().close()  # type: ignore[union-attr]  # as the garbage collector does
        assert asyncio.all_tasks(other) == set()
        task.cancel()
        loop.run_until_complete(asyncio.wait({task}))
        loop.run_until_complete(client.aclose())
        loop.run_until_complete(emulator.aclose())
    finally:
        asyncio.set_event_loop(None)
        other.close()
        loop.close()
