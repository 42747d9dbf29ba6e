"""Runs each verb with one fault in its way, in virtual time."""

import asyncio
import itertools
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from flux_klein_async import Budget, FluxKleinClient, FluxKleinError, Limits, SubmissionUncertainError, WaitTimeoutError
from flux_klein_async.emulator import InProcessEmulator, fault
from flux_klein_async.emulator.catalogue import MODELS
from flux_klein_async.events import Cancelled
from flux_klein_async.journal.base import Journal
from tests.emulator.helpers import run
from tests.fakes import Events, outcome, strays
from tests.tracebacks import shown_by

from .books import SUBMITTED_AGAIN, Books, Fixed, OnDisk, Written, agree, written

__all__ = ["ABANDONED", "BY_RESULT", "DEADLINE", "OK", "PLACES", "Cell", "abandon", "observe"]

DEADLINE = 30.0
_PROMPT: dict[str, Any] = {"width": 64, "height": 64}
_ITEM: dict[str, Any] = {"prompt": "a snow leopard", **_PROMPT}
_TOKENS = (f"token-of-cell-{number}" for number in itertools.count())  # an account of its own for every cell
_NEVER_THERE = {"never-ends", "result-never", "says-SUCCESS", "says-done"}
OK = "ok"
ABANDONED = "cancel"  # the endpoint that an abandoned generation asks


class Cell(NamedTuple):
    """What a verb ends in.

    `error`: the class, or "ok". `accepted`: submits accepted. `journal`: what the journal says of the request.
    `charged`, `retryable`: the error's, or "" and False. `shown`: where a traceback with local variables has the token.
    """

    error: str
    accepted: int
    journal: str
    charged: str = ""
    retryable: bool = False
    shown: tuple[str, ...] = ()


class _Stage:
    """An emulator with one request, and a client of it."""

    def __init__(self, emulator: InProcessEmulator, client: FluxKleinClient, directory: Path | None) -> None:
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


async def _generate_many(stage: _Stage) -> None:
    [outcome] = await stage.client.generate_all([_ITEM], directory=stage.directory)
    if outcome.error is not None:
        raise outcome.error


async def _list_models(stage: _Stage) -> None:
    assert len([model async for model in stage.client.list_models()]) == len(MODELS)


_Step = Callable[[_Stage], Awaitable[Any]]
# verb: what must happen before, the call, the endpoints at which it may meet a fault
_VERBS: dict[str, tuple[_Step, _Step, tuple[str, ...]]] = {
    "submit": (_nothing, lambda on: on.client.submit("a snow leopard", **_PROMPT), ("connect", "submit")),
    "generate": (
        _nothing,
        lambda on: on.client.generate("a snow leopard", **_PROMPT),
        ("connect", "submit", "status", "result"),
    ),
    "generate_many": (_nothing, _generate_many, ("connect", "model", "submit", "status", "result", "file")),
    "wait_for_result": (
        _Stage.submitted,
        lambda on: on.client.wait_for_result(on.request_id),
        ("connect", "status", "result"),
    ),
    "updates": (_Stage.submitted, _updates, ("status",)),
    "status": (_Stage.submitted, lambda on: on.client.status(on.request_id), ("connect", "status")),
    "result": (_Stage.ended, lambda on: on.client.result(on.request_id), ("connect", "result")),
    "cancel": (_Stage.submitted, lambda on: on.client.cancel(on.request_id), ("connect", "cancel")),
    "model": (_nothing, lambda on: on.client.get_model(), ("connect", "model")),
    "list_models": (_nothing, _list_models, ("connect", "models")),
    "download": (_Stage.ended, lambda on: on.client.download(on.result, on.directory or ""), ("connect", "file")),
    "read": (_Stage.ended, lambda on: on.client.download_bytes(on.result), ("connect", "file")),
}
BY_RESULT = ' with poll_endpoint="result"'
_VERBS |= {
    verb + BY_RESULT: (*_VERBS[verb][:2], ("result",))
    for verb in ("generate", "generate_many", "wait_for_result", "updates")
}
# Elsewhere nothing is saved: files are slow.
_SAVING = {("download", "connect"), ("download", "file"), ("generate_many", "file")}
PLACES = [(verb, endpoint) for verb, (_, _, endpoints) in _VERBS.items() for endpoint in endpoints]


def observe(verb: str, endpoint: str, name: str, books: Books | OnDisk, *, always: bool) -> Cell:
    """Run a verb with this fault at an endpoint, at its first call or at all of them.

    It asserts what holds in every cell: the deadline, the id of a known request, a whole file or none, nothing left
    running, that closing ends in time, that the journal agrees with the service; and for items, what the next run does.
    """
    if (verb, endpoint) not in _SAVING:
        return run(_observe(verb, endpoint, name, books, always, None))
    with tempfile.TemporaryDirectory() as directory:
        return run(_observe(verb, endpoint, name, books, always, Path(directory)))


async def _observe(
    verb: str, endpoint: str, name: str, books: Books | OnDisk, always: bool, directory: Path | None
) -> Cell:
    token = next(_TOKENS)
    workers = 0 if verb == "cancel" else None
    async with InProcessEmulator(profile="fixed:0.5", workers=workers, api_key=token) as emulator:
        async with books.run() as journal:
            stage = _Stage(emulator, _connected(emulator, journal, verb), directory)
            before, call, _ = _VERBS[verb]
            await before(stage)
            if endpoint == "connect":  # an open connection would be used again
                await stage.client.aclose()
                stage.client = _connected(emulator, journal, verb)
            if always:
                emulator.fault(endpoint, fault(name), probability=1)
            else:
                emulator.script(endpoint, fault(name))
            error = await _ended(stage, verb, call)
        accepted, found = emulator.accepted, written(books, token)
        agree(found, emulator, accepted=accepted)
        assert error is None or stage.request_id in ("", error.request_id)
        # The id of an uncertain submit may become known too late for its caller.
        late = isinstance(error, SubmissionUncertainError)
        assert late or error is None or found.request_id in (None, error.request_id)
        if directory is not None:
            files = [Path(file).suffix for file in os.listdir(directory)]  # noqa: PTH208
            assert files == ([".png"] if found.state == "downloaded" else [])
        if verb.startswith("generate_many"):
            await _again(stage, books, found, lasting=name in _NEVER_THERE)
        if error is None:
            return Cell(OK, accepted, found.state)
        shown = tuple(shown_by(error, token))
        return Cell(type(error).__name__, accepted, found.state, error.charged, error.retryable, shown)


def _connected(emulator: InProcessEmulator, journal: Journal, verb: str) -> FluxKleinClient:
    return FluxKleinClient(
        emulator.api_key,
        base_url=emulator.base_url,
        session=emulator.session(),
        timeout=DEADLINE,
        limits=Limits(max_file_bytes=200_000, max_json_bytes=250_000),  # a bomb ends sooner
        journal=journal,
        budget=Budget(1) if verb == "generate_many" else Fixed(),
        poll_endpoint="result" if verb.endswith(BY_RESULT) else "status",
    )


async def _ended(stage: _Stage, verb: str, call: _Step) -> FluxKleinError | None:
    """Make the call and close the client, each in its time; return the error that it ended in."""
    loop = asyncio.get_running_loop()
    begun, error = loop.time(), None
    try:
        await call(stage)
    except FluxKleinError as caught:
        error = caught
    # An item's files have as much time again.
    assert loop.time() - begun <= (2 if verb.startswith("generate_many") else 1) * DEADLINE
    begun = loop.time()
    await stage.client.aclose()
    assert loop.time() - begun <= 5
    assert strays() == []
    return error


async def _again(stage: _Stage, books: Books | OnDisk, before: Written, *, lasting: bool) -> None:
    """Make the next run, without faults; `lasting`: the generation never ends."""
    emulator, accepted = stage.emulator, stage.emulator.accepted
    emulator._scripts.clear()
    emulator.calm()
    async with books.run() as journal:
        stage.client = _connected(emulator, journal, "generate_many")
        await _ended(stage, "generate_many", _generate_many)
    after, submitted = written(books, emulator.api_key), before.state in SUBMITTED_AGAIN
    agree(after, emulator, accepted=accepted or submitted)
    assert emulator.accepted - accepted == submitted
    left_alone = before.state in {"failed", "uncertain"} or (lasting and before.state == "submitted")
    assert after.state == (before.state if left_alone else "completed" if stage.directory is None else "downloaded")


async def abandon(name: str, books: Books) -> None:
    """Let a queued generation reach its deadline while every cancel meets this fault.

    The error comes at the deadline, closing ends in time, and if the service never confirms the cancel, the event,
    `aclose` and the journal say that the request may run on.
    """
    events = Events()
    loop = asyncio.get_running_loop()
    async with InProcessEmulator(workers=0, api_key=next(_TOKENS)) as emulator:
        emulator.fault("cancel", fault(name), probability=1)
        client = FluxKleinClient(
            emulator.api_key,
            base_url=emulator.base_url,
            session=emulator.session(),
            journal=books,
            budget=Fixed(),
            on_event=events,
        )
        error = await outcome(client.generate("a snow leopard", timeout=3, **_PROMPT))
        assert (type(error), loop.time(), emulator.accepted) == (WaitTimeoutError, 3.0, 1)
        left = await client.aclose()
        assert loop.time() <= 3 + 5
        [told] = events.of(Cancelled)
        assert left == (() if told.cancelled else (error.request_id,))
        assert told.request_id == error.request_id
        assert strays() == []
        found = written(books, emulator.api_key)
        agree(found, emulator, accepted=1)
        assert (found.state, found.request_id) == ("cancelled" if told.cancelled else "submitted", error.request_id)
