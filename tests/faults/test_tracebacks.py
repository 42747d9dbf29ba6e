"""Crash reporters collect the variables of every frame: none of the package's and of aiohttp's holds the token.

The matrix asserts the same of every fault (`verbs.observe`).
"""

import asyncio
import json
import sqlite3
import traceback
from collections.abc import Awaitable, Callable
from contextlib import closing, nullcontext
from typing import Any

import pytest

from flux_klein_async import (
    Budget,
    BudgetExceededError,
    ConfigurationError,
    FixedPolling,
    FluxKleinClient,
    FluxKleinError,
    JournalError,
    SqliteJournal,
)
from flux_klein_async.emulator import Hang, InProcessEmulator, VirtualTimeLoop
from tests.cells import cells
from tests.fakes import outcome
from tests.tracebacks import shown_by

TOKEN = "very-secret-token-0123456789"
SIZE: dict[str, Any] = {"width": 64, "height": 64}


class Interrupted(VirtualTimeLoop):
    """Interrupts once, after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps
        self.interrupt: Callable[[], object] | None = None

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        if self.interrupt is not None:
            self.left -= 1
            if self.left == 0:
                self.interrupt()


async def _passing(request: Any, handler: Any) -> Any:
    return await handler(request)


SESSIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "trusting": {"trust_env": True},
    "middlewares": {"trust_env": True, "middlewares": (_passing,)},
}
VERBS: dict[str, Callable[[FluxKleinClient], Awaitable[Any]]] = {
    "generate": lambda client: client.generate("a cat", **SIZE),
    "get_model": lambda client: client.get_model(),
    "generate_all": lambda client: client.generate_all(["a cat", "a dog"], **SIZE),
}


async def _download(client: FluxKleinClient) -> None:
    await client.download_bytes(await client.generate("a cat", **SIZE))


VERBS["download_bytes"] = _download


def connected(emulator: InProcessEmulator, **options: Any) -> FluxKleinClient:
    session = emulator.session(**options.pop("session", {}))
    return FluxKleinClient(TOKEN, base_url=emulator.base_url, session=session, **options)


async def _interrupted(verb: str, session: str) -> BaseException | None:
    loop: Any = asyncio.get_running_loop()
    async with InProcessEmulator(profile="fixed:0.2", api_key=TOKEN) as emulator:
        async with connected(emulator, session=SESSIONS[session], polling=FixedPolling(0.1)) as client:
            call = asyncio.ensure_future(VERBS[verb](client))
            loop.interrupt = call.cancel
            await asyncio.wait({call})
            loop.interrupt = None
        return None if not call.cancelled() and call.exception() is None else await _raised(call)


async def _raised(call: "asyncio.Future[Any]") -> BaseException:
    try:
        await call
    except (asyncio.CancelledError, Exception) as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("verb", "session"),
    cells(VERBS, SESSIONS, fast=[("generate", "middlewares"), ("get_model", "plain"), ("download_bytes", "trusting")]),
)
def test_no_variable_of_a_cancelled_verb_holds_the_token_at_whatever_step(verb, session):
    steps, shown, frames = 0, set(), set()
    while True:
        steps += 1
        loop = Interrupted(steps)
        with asyncio.Runner(loop_factory=lambda loop=loop: loop) as runner:
            error = runner.run(_interrupted(verb, session))
        if loop.left > 0:
            break
        if error is not None:
            assert isinstance(error, asyncio.CancelledError)
            frames.update(frame.f_code.co_qualname for frame, _ in traceback.walk_tb(error.__traceback__))
            shown.update(shown_by(error, TOKEN))
    assert shown == set()
    assert steps > 5
    sending = {"AiohttpTransport.send", "AiohttpTransport._mapping"}
    assert verb == "generate_all" or frames & sending  # some were cancelled in the middle of a request


WAYS: dict[str, Callable[[Awaitable[Any]], Awaitable[Any]]] = {}


async def _with_timeout(call: Awaitable[Any]) -> Any:
    async with asyncio.timeout(1):
        return await call


WAYS["timeout"] = _with_timeout
WAYS["wait_for"] = lambda call: asyncio.wait_for(call, 1)  # type: ignore[arg-type]
WAYS["gather"] = lambda call: asyncio.wait_for(asyncio.gather(call), 1)


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("endpoint", ["submit", "status", "result", "model", "file", "connect"])
@pytest.mark.parametrize("way", WAYS)
async def test_no_variable_of_a_limit_around_a_verb_holds_the_token(klein_emulator, way, endpoint, session):
    emulator = InProcessEmulator(api_key=TOKEN)
    emulator.script(endpoint, Hang())
    verb = "get_model" if endpoint == "model" else "download_bytes"
    async with emulator, connected(emulator, session=SESSIONS[session], polling=FixedPolling(0.1)) as client:
        error = await outcome(WAYS[way](VERBS[verb](client)))
    assert isinstance(error, TimeoutError)
    assert not isinstance(error, FluxKleinError)
    assert shown_by(error, TOKEN) == []


def test_a_cancellation_keeps_what_its_caller_was_handling():
    """Only what it interrupted inside of the verb is cut off."""

    async def main() -> BaseException | None:
        async with InProcessEmulator(api_key=TOKEN) as emulator, connected(emulator) as client:
            emulator.script("model", Hang())

            async def body() -> None:
                try:
                    raise LookupError("the caller's own")
                except LookupError:
                    await client.get_model()

            call = asyncio.ensure_future(body())
            await asyncio.sleep(1)
            call.cancel()
            return (await _raised(call)).__context__

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert isinstance(runner.run(main()), LookupError)


class Unheard(BaseException):
    """What only the user's code knows."""


@pytest.mark.parametrize("chained", [False, True])
async def test_an_exception_of_the_users_own_hook_keeps_the_hooks_frame_alone(klein_emulator, chained):
    async def hook(request: Any, handler: Any) -> Any:
        try:
            await handler(request)
        finally:
            if chained:
                raise Unheard from LookupError("a cause")
            raise Unheard

    emulator = InProcessEmulator(api_key=TOKEN)
    async with emulator, connected(emulator, session={"middlewares": (hook,)}) as client:
        with pytest.raises(Unheard) as caught:
            await client.get_model()
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert names[-1] == "hook"
    assert "_request" not in names
    assert shown_by(caught.value, TOKEN) == []


@pytest.mark.parametrize(
    ("api_key", "options"),
    [
        (TOKEN + " and more", {}),
        (TOKEN + "\u200b", {}),
        (TOKEN, {"base_url": "ftp://h.example"}),
        (TOKEN, {"model": "../x"}),
        (TOKEN, {"timeout": "soon"}),
        (TOKEN, {"poll_endpoint": "x"}),
        (TOKEN, {"retry": 5}),
        (TOKEN, {"budget": 5}),
        (TOKEN, {"session": 5}),
        (None, {"base_url": "ftp://h.example"}),
    ],
)
def test_no_variable_of_a_constructor_that_raised_holds_the_token(monkeypatch, api_key, options):
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", TOKEN)
    with pytest.raises(FluxKleinError) as caught:
        FluxKleinClient(api_key, **options)
    assert shown_by(caught.value, TOKEN) == []


@pytest.mark.parametrize("content", [{"access_token": TOKEN, "expires_at": 1}, {"access_token": [TOKEN]}])
def test_no_variable_holds_the_token_of_the_vendors_file(monkeypatch, tmp_path, content):
    (tmp_path / "token.json").write_text(json.dumps(content))
    monkeypatch.setenv("RUNCOMFY_CONFIG_DIR", str(tmp_path))
    with pytest.raises(FluxKleinError) as caught:
        FluxKleinClient()
    assert shown_by(caught.value, TOKEN) == []


async def test_no_variable_of_an_account_that_is_refused_holds_the_token(tmp_path):
    journal = SqliteJournal(tmp_path)  # a directory
    account = journal.for_account(TOKEN)

    async def elsewhere() -> None:
        journal.for_account(TOKEN, "ftp://h.example")

    errors = [
        await outcome(call)
        for call in (
            elsewhere(),
            account.spent(),
            account.is_stranger(ignored=(TOKEN,)),
            account.take_over(ignored=(TOKEN,)),
        )
    ]
    assert [type(error) for error in errors] == [ConfigurationError] + [JournalError] * 3
    assert [shown_by(error, TOKEN) for error in errors] == [[]] * 4
    await journal.aclose()


@pytest.mark.parametrize("trouble", ["broken", "spent"])
async def test_no_variable_of_an_error_of_journal_or_budget_holds_the_token(klein_emulator, tmp_path, trouble):
    emulator, path = InProcessEmulator(api_key=TOKEN), tmp_path / "run.sqlite"
    journal = SqliteJournal(path)
    async with emulator:
        async with connected(emulator, journal=journal) as client:
            await client.generate("a cat", **SIZE)
        if trouble == "broken":
            with closing(sqlite3.connect(path)) as database, database:
                database.execute("DROP TABLE requests")
        async with connected(emulator, journal=journal, budget=Budget(0.015)) as client:
            [found] = await client.generate_all(["a dog"], **SIZE)
            alone = await outcome(client.submit("a bird"))
        with pytest.raises(JournalError) if trouble == "broken" else nullcontext():
            await journal.aclose()
    for error in (found.error, alone):
        assert isinstance(error, JournalError if trouble == "broken" else BudgetExceededError)
        assert shown_by(error, TOKEN) == []
