"""Each verb with one fault in its way, in virtual time: what came of it."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from flux_klein_async import FluxKleinClient, FluxKleinError, Limits, WaitTimeoutError
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop, fault
from flux_klein_async.events import Cancelled
from tests.fakes import Events, outcome, strays

__all__ = ["ABANDONED", "DEADLINE", "OK", "PLACES", "Cell", "abandon", "observe"]

DEADLINE = 30.0
_PROMPT: dict[str, Any] = {"width": 64, "height": 64}
OK = "ok"
ABANDONED = "cancel"  # the endpoint that an abandoned generation asks


class Cell(NamedTuple):
    """What a verb ends in.

    `error`: the class, or "ok". `accepted`: submits accepted. `charged`, `retryable`: what the error says; "" and
    False where there is none.
    """

    error: str
    accepted: int
    charged: str = ""
    retryable: bool = False


class _Stage:
    """An emulator with one request on it, and a client in front."""

    def __init__(self, emulator: InProcessEmulator, client: FluxKleinClient, directory: Path) -> None:
        self.emulator = emulator
        self.client = client
        self.directory = directory
        self.request_id = ""
        self.result: Any = None

    async def submitted(self) -> None:
        self.request_id = (await self.client.submit("a snow leopard", **_PROMPT)).request_id

    async def ended(self) -> None:
        await self.submitted()
        self.result = await self.client.wait_for_result(self.request_id)


async def _nothing(_: _Stage) -> None:
    pass


async def _updates(stage: _Stage) -> None:
    async for _status in stage.client.updates(stage.request_id):
        pass


_Step = Callable[[_Stage], Awaitable[Any]]
# verb: what must have happened before, the call, the endpoints that it may meet a fault at
_VERBS: dict[str, tuple[_Step, _Step, tuple[str, ...]]] = {
    "submit": (_nothing, lambda on: on.client.submit("a snow leopard", **_PROMPT), ("connect", "submit")),
    "generate": (
        _nothing,
        lambda on: on.client.generate("a snow leopard", **_PROMPT),
        ("connect", "submit", "status", "result"),
    ),
    "wait_for_result": (
        _Stage.submitted,
        lambda on: on.client.wait_for_result(on.request_id),
        ("connect", "status", "result"),
    ),
    "updates": (_Stage.submitted, _updates, ("status",)),
    "status": (_Stage.submitted, lambda on: on.client.status(on.request_id), ("connect", "status")),
    "result": (_Stage.ended, lambda on: on.client.result(on.request_id), ("connect", "result")),
    "cancel": (_Stage.submitted, lambda on: on.client.cancel(on.request_id), ("connect", "cancel")),
    "model": (_nothing, lambda on: on.client.model(), ("connect", "model")),
    "download": (_Stage.ended, lambda on: on.client.download(on.result, on.directory), ("connect", "file")),
    "read": (_Stage.ended, lambda on: on.client.read(on.result), ("connect", "file")),
}
PLACES = [(verb, endpoint) for verb, (_, _, endpoints) in _VERBS.items() for endpoint in endpoints]


def observe(verb: str, endpoint: str, name: str, *, always: bool) -> Cell:
    """Run a verb with this fault at an endpoint, at its first call or at all of them.

    What holds in every cell is asserted here: the deadline, the id of a request that is known, a whole file or none,
    nothing left running, and that closing ends in time.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, tempfile.TemporaryDirectory() as directory:
        return runner.run(_observe(verb, endpoint, name, always, Path(directory)))


async def _observe(verb: str, endpoint: str, name: str, always: bool, directory: Path) -> Cell:
    before, call, _ = _VERBS[verb]
    loop = asyncio.get_running_loop()
    async with InProcessEmulator(profile="fixed:0.5", workers=0 if verb == "cancel" else None) as emulator:
        limits = Limits(max_file_bytes=200_000)
        client = FluxKleinClient(
            emulator.api_key, base_url=emulator.base_url, session=emulator.session(), timeout=DEADLINE, limits=limits
        )
        stage = _Stage(emulator, client, directory)
        await before(stage)
        if endpoint == "connect":  # what is open already would be used again
            await client.aclose()
            client = stage.client = FluxKleinClient(
                emulator.api_key, base_url=emulator.base_url, session=emulator.session(), timeout=DEADLINE
            )
        if always:
            emulator.fault(endpoint, fault(name), probability=1)
        else:
            emulator.script(endpoint, fault(name))
        begun, error = loop.time(), None
        try:
            await call(stage)
        except FluxKleinError as caught:
            error = caught
        assert loop.time() - begun <= DEADLINE
        assert error is None or stage.request_id in ("", error.request_id)
        begun = loop.time()
        await client.aclose()
        assert loop.time() - begun <= 5
        files = [Path(name).suffix for name in os.listdir(directory)]  # noqa: PTH208  # a look, not work for the loop
        assert files == ([".png"] if verb == "download" and error is None else [])
        assert strays() == []
        if error is None:
            return Cell(OK, emulator.accepted)
        return Cell(type(error).__name__, emulator.accepted, error.charged, error.retryable)


def abandon(name: str) -> None:
    """Let a queued generation reach its deadline while every cancel meets this fault.

    The caller hears of it at the deadline, closing ends in time, and where the service never confirms the cancel, the
    event and `aclose` say that the request may run on.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(_abandon(name))


async def _abandon(name: str) -> None:
    events = Events()
    loop = asyncio.get_running_loop()
    async with InProcessEmulator(workers=0) as emulator:
        emulator.fault("cancel", fault(name), probability=1)
        client = FluxKleinClient(
            emulator.api_key, base_url=emulator.base_url, session=emulator.session(), on_event=events
        )
        error = await outcome(client.generate("a snow leopard", timeout=3, **_PROMPT))
        assert (type(error), loop.time(), emulator.accepted) == (WaitTimeoutError, 3.0, 1)
        left = await client.aclose()
        assert loop.time() <= 3 + 5
        [told] = events.of(Cancelled)
        assert left == (() if told.cancelled else (error.request_id,))
        assert told.request_id == error.request_id
        assert strays() == []
