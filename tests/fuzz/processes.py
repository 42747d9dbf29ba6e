"""Processes that share a journal and a service, on one loop in virtual time; each can be killed at any instant."""

import asyncio
import contextvars
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flux_klein_async import Budget, FluxKleinClient, FluxKleinError, Outcome
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop
from flux_klein_async.journal.sqlite import SqliteLocation, _held
from flux_klein_async.transport.base import Transport
from tests.databases import Cluster
from tests.journal.helpers import journal_at

if TYPE_CHECKING:
    from flux_klein_async.journal.sql import JournalStore, Location

__all__ = ["SMALL", "Process", "World"]

SMALL = {"width": 64, "height": 64}
_SERVER = ("HttpServer", "RequestHandler", "Server.")  # the emulator's own tasks: they outlive a client
_OWNER: ContextVar["Process | None"] = ContextVar("owner", default=None)


class _KilledError(Exception):
    """Ends the work of a killed process."""


class World:
    """The service, the disk and the clock, which survive every process; with a server, the journal is there."""

    def __init__(self, cluster: Cluster | None, **options: Any) -> None:
        self.cluster = cluster
        self.loop = VirtualTimeLoop()
        self.loop.set_task_factory(_owned)
        self.loop.set_default_executor(_AtOnce())
        self.loop.set_exception_handler(self._hear)
        self.emulator = InProcessEmulator(profile="fixed:1", round_trip=0.05, **options)
        memory = Path("/dev/shm")  # faster than a disk
        self._folder = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
        path = Path(self._folder.name) / "run.sqlite"
        self.journal: Location = SqliteLocation(path) if cluster is None else cluster.new_location()
        self._reader: JournalStore | None = None
        self.pictures = Path(self._folder.name) / "pictures"
        self.deleted: set[Path] = set()
        self.heard: list[Any] = []
        self.outcomes: list[Outcome[str]] = []
        self.open: list[Any] = []  # databases of killed processes

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(call)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What is in the journal, which may not be made yet."""
        if self._reader is None:
            if not self.journal.exists():
                return []
            self._reader = self.journal.read()
        return list(self._reader.execute(query).fetchall())

    def delete_pictures(self) -> None:
        for path in list(self.pictures.glob("*.png")):
            path.unlink()
            self.deleted.add(path)

    def close(self) -> None:
        self.run(self.emulator.aclose())
        for connection in [*self.open, *([self._reader] if self._reader else [])]:
            connection.close()
        self.loop.close()
        self._folder.cleanup()

    def _hear(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), _KilledError):
            self.heard.append(context)


class Process:
    """A client with a journal of its own on the shared file.

    Attributes:
        fuse: The number of journal writes after which it is killed; None: never.
        after: Whether the last of these writes reaches the disk.
    """

    def __init__(self, world: World, budget: float | None, **options: Any) -> None:
        self.world = world
        self.alive = True
        self.fuse: int | None = None
        self.after = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self._begun: set[asyncio.Task[Any]] = set()
        self._fan_outs: list[Any] = []
        self._journal = journal_at(world.journal, clock=world.loop.time, **options)
        self._journal._writer._thread = _Writer(self)
        self._session = world.run(_made(world.emulator.session))
        self.client = FluxKleinClient(
            world.emulator.api_key,
            base_url=world.emulator.base_url,
            session=self._session,
            timeout=20.0,
            journal=self._journal,
            budget=None if budget is None else Budget(budget),
        )
        self.client._context.threads = _AtOnce()

    # --- what it does

    def start(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> "asyncio.Task[Any]":
        """Start a task of this process."""
        token = _OWNER.set(self)
        try:
            task = self.world.loop.create_task(call())
        finally:
            _OWNER.reset(token)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return task

    def attempt(self, call: Callable[[FluxKleinClient], Coroutine[Any, Any, Any]]) -> None:
        """Start a call, and ignore its error."""

        async def attempt() -> None:
            with suppress(FluxKleinError):
                await call(self.client)

        self.start(attempt)

    async def batch(self, items: Sequence[str], **options: Any) -> list[Outcome[str]]:
        """Generate these items into the shared directory."""
        ended: list[Outcome[str]] = []
        fan_out = self.client.generate_many(
            items,
            to_input=lambda prompt: {"prompt": prompt, **SMALL},
            directory=self.world.pictures,
            concurrency=3,
            **options,
        )
        self._fan_outs.append(fan_out)
        with suppress(FluxKleinError):  # also the outcome of an item
            async with fan_out as outcomes:
                async for outcome in outcomes:
                    assert all(path.exists() or path in self.world.deleted for path in outcome.paths)
                    ended.append(outcome)
                    self.world.outcomes.append(outcome)
        return ended

    async def stop(self) -> None:
        async def stop() -> None:
            for fan_out in self._fan_outs:
                fan_out.stop()

        await self._done(stop)

    # --- its end

    async def leave(self) -> None:
        """End as a program does on SIGTERM, unless it is killed meanwhile."""
        for task in self._begun:
            task.cancel()
        await self._done(self._close)
        self.alive = False

    async def _done(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        task = self.start(call)
        await asyncio.wait({task})
        if self.alive:
            task.result()

    async def _close(self) -> None:
        await self.client.aclose()
        await self._journal.aclose()

    def die(self) -> None:
        """As SIGKILL: no file and no call any more; the system drops its lock and connections."""
        if not self.alive:
            return
        self.alive = False
        core, writer = self.client._context, self._journal._writer
        core.closing = True
        connections = core.transport
        core.transport = core.journal = _Nothing()  # type: ignore[assignment]
        writer._waiting.clear()
        if writer._timer is not None:
            writer._timer.cancel()
        writer._closing = self.world.loop.create_future()  # type: ignore[assignment]
        if writer._store is not None:
            self._cut(writer._store)
        context = contextvars.Context()  # not a task of the process
        self._hanging_up = self.world.loop.create_task(self._hang_up(connections), context=context)
        self.world.loop.call_soon(self._bury, 100)

    def _cut(self, store: Any) -> None:
        self.world.open.append(store.db)
        if self.world.cluster is not None:
            with socket.socket(fileno=os.dup(store.db.fileno())) as connection:
                connection.shutdown(socket.SHUT_RDWR)
            self.world.cluster.wait_for(store.db.info.backend_pid)
            return
        os.close(store._lease._handle)
        _held.discard(store._lease._handle)
        store._lease._handle = None

    async def _hang_up(self, connections: Transport) -> None:
        await connections.aclose()
        await self._session.close()

    def _bury(self, turns: int) -> None:
        """End its tasks; some wait for others first."""
        assert turns, self.tasks
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            self.world.loop.call_soon(self._bury, turns - 1)


class _Writer(ThreadPoolExecutor):
    """Replaces the journal's thread, so that every run takes the same turns; counts down the fuse of its process."""

    def __init__(self, process: Process) -> None:
        super().__init__(1)
        self._process = process

    def submit(self, job: Callable[..., Any], /, *arguments: Any, **_: Any) -> "Future[Any]":
        process, done = self._process, Future[Any]()
        if process.fuse is not None:
            process.fuse -= 1
            if process.fuse == 0:
                if process.after:
                    job(*arguments)
                process.die()
        if not process.alive:
            done.set_exception(_KilledError())
            return done
        return _ended(done, job, *arguments)


class _AtOnce(ThreadPoolExecutor):
    """Replaces the loop's threads."""

    def submit(self, job: Callable[..., Any], /, *arguments: Any, **_: Any) -> "Future[Any]":
        return _ended(Future(), job, *arguments)


class _Nothing:
    """The transport and journal of a killed process."""

    async def send(self, *_: object) -> None:
        raise asyncio.CancelledError

    record = aclose = send

    @asynccontextmanager
    async def stream(self, *_: object) -> AsyncIterator[None]:
        await self.send()
        yield


def _ended(done: "Future[Any]", job: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    try:
        done.set_result(job(*arguments))
    except BaseException as error:
        done.set_exception(error)
    return done


def _owned(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, Any], **options: Any) -> "asyncio.Task[Any]":
    """A task factory that records the process of each task."""
    task = asyncio.Task(call, loop=loop, **options)
    owner = _OWNER.get()
    if owner is not None and not any(mark in repr(call) for mark in _SERVER):
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
    return task


async def _made(make: Callable[[], Any]) -> Any:
    return make()
