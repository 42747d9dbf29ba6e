"""One verb of a client against an emulator that does whatever was drawn, in virtual time; and what must hold."""

import asyncio
import logging
import pickle
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import BaseModel

from flux_klein_async import FluxKleinClient, GenerationResult, Limits, errors
from flux_klein_async.emulator import Answer, InProcessEmulator, VirtualTimeLoop
from flux_klein_async.errors import FluxKleinError, GenerationCancelledError
from flux_klein_async.events import Submitted
from tests.fakes import Events, strays

DOCUMENTED = {getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)}
CLOSING = 5.0  # seconds that `aclose()` may take
SMALL = {"width": 64, "height": 64}


@dataclass(frozen=True)
class Case:
    """One call, and what the service does: `scripts` to the first calls of an endpoint, `faults` to all later ones."""

    token: str
    timeout: float
    on_abandon: Any
    scripts: Mapping[str, Sequence[Answer | None]]
    faults: Mapping[str, Answer | None]
    output: Any = None


@dataclass
class Played:
    """What happened, on the loop's clock."""

    outcome: Any
    deadline: float
    ended: float
    closed: float
    request_id: str | None
    accepted: int
    events: Events
    submitted: list[Submitted]
    told: list[str]
    left_over: list[str]


Verb = Callable[[FluxKleinClient, GenerationResult, Case, Path], Awaitable[Any]]


async def _updates(client: FluxKleinClient, result: GenerationResult, case: Case, _: Path) -> Any:
    return [status async for status in client.updates(result.request_id, timeout=case.timeout)]


# By name: its endpoints, whether it is about an earlier request, and the call.
VERBS: dict[str, tuple[tuple[str, ...], bool, Verb]] = {
    "submit": (("submit", "cancel"), False, lambda client, _, case, __: client.submit("x", **SMALL)),
    "generate": (
        ("submit", "status", "result", "cancel"),
        False,
        lambda client, _, case, __: client.generate("x", **SMALL, on_abandon=case.on_abandon),
    ),
    "status": (("status",), True, lambda client, result, *_: client.status(result.request_id)),
    "result": (("result",), True, lambda client, result, *_: client.result(result.request_id)),
    "cancel": (("cancel",), True, lambda client, result, *_: client.cancel(result.request_id)),
    "wait_for_result": (
        ("status", "result", "cancel"),
        True,
        lambda client, result, case, _: client.wait_for_result(result.request_id, on_abandon=case.on_abandon),
    ),
    "updates": (("status",), True, _updates),
    "model": (("model",), False, lambda client, *_: client.get_model()),
    "read": (("file",), True, lambda client, result, *_: client.download_bytes(result)),
    "download": (("file",), True, lambda client, result, _, folder: client.download(result, folder / "out")),
}


async def _play(name: str, case: Case, folder: Path) -> Played:
    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(f"to the loop: {context}"))
    events = Events()
    _, known, verb = VERBS[name]
    async with InProcessEmulator(api_key=case.token, profile="fixed:1", round_trip=0.02) as emulator:
        client = FluxKleinClient(
            case.token,
            base_url=emulator.base_url,
            session=emulator.session(cookie_jar=aiohttp.DummyCookieJar()),
            timeout=case.timeout,
            limits=Limits(max_json_bytes=2**17, max_file_bytes=2**17),
            on_event=events,
        )
        with _listening(told):
            # About an earlier request: a generation that ended before the faults begin, with files where the case says.
            result = await client.generate("x", **SMALL, timeout=None) if known else GenerationResult.model_construct()
            result = result.model_copy(update={"output": case.output}) if case.output is not None else result
            before, begun = emulator.accepted, loop.time()
            events.clear()
            for endpoint, answers in case.scripts.items():
                emulator.script(endpoint, *answers)
            for endpoint, answer in case.faults.items():
                if answer is not None:
                    emulator.fault(endpoint, answer, probability=1.0)
            try:
                outcome = await verb(client, result, case, folder)
            except Exception as error:
                outcome = error
            ended, submitted = loop.time(), events.of(Submitted)
            await client.aclose()
            closed = loop.time()
            accepted = emulator.accepted - before
    return Played(
        outcome=outcome,
        deadline=begun + case.timeout,
        ended=ended,
        closed=closed,
        request_id=result.request_id if known else None,
        accepted=accepted,
        events=events,
        submitted=submitted,
        told=told,
        left_over=strays(),
    )


@contextmanager
def _listening(told: list[str]) -> Iterator[None]:
    """Keep what the package logs, tracebacks included."""
    handler = logging.Handler()
    handler.emit = lambda record: told.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    logging.getLogger("flux_klein_async").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("flux_klein_async").removeHandler(handler)


def play(name: str, case: Case, folder: Path) -> Played:
    """Run one case in virtual time, where a call that would wait forever raises."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_play(name, case, folder))


# --- what must hold


def texts(value: Any) -> Iterator[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel):
        yield from texts(dict(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from texts([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Mapping):
        yield from texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from texts(item)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def assert_untold(token: str, *values: Any) -> None:
    """No value holds the token."""
    assert [text for text in texts(values) if token in text] == []


def assert_documented(error: Exception, token: str) -> None:
    """An error of the tree that survives pickling and, like its causes, holds no secret."""
    assert type(error) in DOCUMENTED, "".join(traceback.format_exception(error))
    same = pickle.loads(pickle.dumps(error))
    assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))
    for one in chain(error):
        assert_untold(token, str(one), repr(one), one.args, vars(one))
    assert_untold(token, *traceback.format_exception(error))


def assert_promises(name: str, case: Case, played: Played) -> None:
    """What every verb promises, whatever the service does."""
    outcome = played.outcome
    assert played.ended <= played.deadline, "later than the deadline"
    assert played.closed <= played.ended + CLOSING, "closing took too long"
    assert played.accepted <= 1, "paid twice"
    assert played.left_over == []
    assert [line for line in played.told if line.startswith("to the loop")] == []
    assert_untold(case.token, played.told, list(played.events))
    if not isinstance(outcome, Exception):
        if name != "read":  # a file may hold anything
            assert_untold(case.token, outcome, repr(outcome))
        return
    assert_documented(outcome, case.token)
    assert isinstance(outcome, FluxKleinError)
    known = played.request_id or next((event.request_id for event in played.submitted), None)
    assert known is None or outcome.request_id == known, "the request id was lost"
    if (played.accepted or known) and not isinstance(outcome, GenerationCancelledError):
        assert outcome.charged != "no", "it was accepted, and may be charged"
    if played.accepted or played.submitted:
        assert not outcome.retryable, "the same call would pay again"
