"""A server that writes anything at any time: what callers are told of their submits is what the server did.

Real sockets, so that the kernel holds what the loop has not read. The one thing that the server does not do is to write
a stranger's answer once a whole request has arrived: nothing can tell that one from the right answer.
"""

import asyncio
import json
import select
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flux_klein_async import (
    FluxKleinClient,
    RequestHandle,
    RequestState,
    ResultNotReadyError,
    RetryPolicy,
    SubmissionUncertainError,
)
from flux_klein_async.errors import FluxKleinError
from tests.cells import cells
from tests.fakes import outcome, settle, strays
from tests.loops import chosen_loop

pytestmark = pytest.mark.skipif(not hasattr(select, "poll"), reason="without poll() only the loop knows of bytes")

QUICK = RetryPolicy(initial=0.0005, maximum=0.001)


def http(status: int, body: object, *headers: str) -> bytes:
    text = json.dumps(body).encode()
    return b"".join(
        [
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n".encode(),
            *(f"{header}\r\n".encode() for header in headers),
            b"\r\n",
            text,
        ]
    )


CAT = http(200, {"request_id": "of-a-cat"})
ENDED = {"request_id": "of-a-cat", "status": "completed", "output": {"image": "https://x.runcomfy.net/cat.png"}}
STALE: Mapping[str, bytes] = {
    "a stranger's id": CAT,
    "a stranger's result": http(200, ENDED),
    "too many": http(429, {"detail": "slow down"}),
    "come back": http(503, {"detail": "later"}, "Retry-After: 0"),
    "refused": http(422, {"error_code": 422001, "detail": "no"}),
    "no balance": http(402, {"error_code": 400002}),
    "token": http(401, {"error_code": 401001}),
    "idle for too long": http(408, {}, "Connection: close"),
    "no body": b"HTTP/1.1 204 X\r\n\r\n",
    "two of them": CAT + CAT,
    "without an end": b"HTTP/1.1 422 X\r\nContent-Length: 100\r\n\r\n{",
    "until it closes": b"HTTP/1.1 422 X\r\n\r\n{",
    "chunks": b"HTTP/1.1 422 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "a head that takes in the next": b"HTTP/1.1 422 X\r\nContent-Length: 2\r\nX-Next: ",
    "half a line": b"HTTP/1.1 42",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "an empty line": b"\r\n",
    "no HTTP": b"\x16\x03\x01 what is this",
}


@dataclass(frozen=True)
class Step:
    """What a connection does about one request: its answer, what it says unasked and how many turns of the loop later.

    `behind` tells whether it is in one piece with the answer.
    """

    answer: str = "accepted"
    unasked: str | None = None
    turns: int = 0
    behind: bool = False


@dataclass
class Service:
    """The service: what it does, connection by connection, and what it accepted."""

    connections: list[tuple[str | None, list[Step]]]
    accepted: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def protocol(self) -> asyncio.Protocol:
        greeting, steps = self.connections.pop(0) if self.connections else (None, [])
        return Connection(self, greeting, list(steps))

    def accept(self, prompt: str) -> bytes:
        made = f"r-{sum(map(len, self.accepted.values()))}"
        self.accepted[prompt].append(made)
        return http(200, {"request_id": made})


class Connection(asyncio.Protocol):
    def __init__(self, service: Service, greeting: str | None, steps: list[Step]) -> None:
        self.service, self.greeting, self.steps = service, greeting, steps
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.greeting is not None:
            transport.write(STALE[self.greeting])

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if not end or len(body) < length:
            return
        self.received = b""
        if head.startswith(b"GET"):
            asked = head.split(b"/")[3].decode()
            self.transport.write(http(200, {"request_id": asked, "status": "in_progress"}))
            return
        step = self.steps.pop(0) if self.steps else Step()
        self.answer(step, json.loads(body)["prompt"])

    def answer(self, step: Step, prompt: str) -> None:
        if step.answer == "refused":
            said = STALE["refused"]
        elif step.answer == "too many":
            said = STALE["too many"]
        else:
            said = self.service.accept(prompt)
        if step.answer == "cut":
            self.transport.abort()
            return
        self.transport.write(said + (STALE[step.unasked] if step.unasked and step.behind else b""))
        if step.unasked and not step.behind:
            self.later(step.unasked, step.turns)

    def later(self, unasked: str, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self.later, unasked, turns - 1)
        elif not self.transport.is_closing() and not self.received and not self.asked():
            self.transport.write(STALE[unasked])

    def asked(self) -> bool:
        """Whether a request has arrived that the loop has not read."""
        return bool(select.select([self.transport.get_extra_info("socket").fileno()], [], [], 0)[0])


async def play(service: Service, rounds: Sequence[int], *, borrowed: bool, pause: int) -> list[tuple[str, Any]]:
    """Submit in rounds, so many at once; the prompt and outcome of each."""
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(service.protocol, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    found: list[tuple[str, Any]] = []
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession()) if borrowed else None
        client = await stack.enter_async_context(
            FluxKleinClient("a-token-of-tests", base_url=address, retry=QUICK, session=session, timeout=20)
        )
        for number, width in enumerate(rounds):
            prompts = [f"{number}-{column}" for column in range(width)]
            found += zip(
                prompts, await asyncio.gather(*(outcome(client.submit(text)) for text in prompts)), strict=True
            )
            for _ in range(pause):
                await asyncio.sleep(0)
    listener.close()
    await settle()
    assert strays() == []
    return found


def check(service: Service, found: Sequence[tuple[str, Any]]) -> None:
    for prompt, told in found:
        accepted = service.accepted[prompt]
        if isinstance(told, RequestHandle):
            assert accepted == [told.request_id], prompt
        elif isinstance(told, SubmissionUncertainError):
            assert len(accepted) <= 1, prompt
        else:
            assert isinstance(told, FluxKleinError), told
            assert (told.charged, accepted) == ("no", []), (prompt, told)


def run(connections: Any, rounds: Sequence[int], *, borrowed: bool, pause: int) -> list[tuple[str, Any]]:
    service = Service([(greeting, list(steps)) for greeting, steps in connections])
    with asyncio.Runner(loop_factory=chosen_loop()) as runner:
        found = runner.run(play(service, rounds, borrowed=borrowed, pause=pause))
    check(service, found)
    return found


unasked = st.none() | st.sampled_from(sorted(STALE))
steps = st.builds(
    Step,
    answer=st.sampled_from(["accepted", "accepted", "accepted", "refused", "too many", "cut"]),
    unasked=unasked,
    turns=st.integers(0, 12),
    behind=st.booleans(),
)
connections = st.lists(st.tuples(st.none() | unasked, st.lists(steps, max_size=4)), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    connections=connections,
    rounds=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    borrowed=st.booleans(),
    pause=st.integers(0, 12),
)
@example(connections=[(None, [Step(unasked="too many", turns=3)])], rounds=[1, 1], borrowed=True, pause=0)
def test_what_callers_are_told_is_what_the_server_did(connections, rounds, borrowed, pause):
    run(connections, rounds, borrowed=borrowed, pause=pause)


@pytest.mark.parametrize(
    ("unasked", "behind", "borrowed"),
    cells(
        STALE,
        [False, True],
        [False, True],
        fast=[(unasked, number % 2 > 0, number % 4 > 1) for number, unasked in enumerate(STALE)],
    ),
)
def test_each_kind_of_unsolicited_answer_costs_a_connection_and_no_submit(unasked, behind, borrowed):
    """Whether the loop has read it, is about to, or only the kernel knows of it."""
    for turns, pause in ((0, 0), (0, 20), *((turn, 0) for turn in range(1, 7))):
        script = [(None, [Step(unasked=unasked, behind=behind, turns=turns)])]
        found = run(script, [1, 1], borrowed=borrowed, pause=pause)
        first, second = (type(told) for _, told in found)
        # aiohttp reads an answer and what is no HTTP behind it, in one piece, as no HTTP at all.
        assert first is RequestHandle or (unasked == "no HTTP" and first is SubmissionUncertainError)
        assert second is RequestHandle, (turns, pause, found)


@pytest.mark.parametrize("unasked", STALE)
def test_a_server_that_speaks_first_is_not_sent_the_submit(unasked):
    found = run([(unasked, [])], [1], borrowed=False, pause=0)
    assert isinstance(found[0][1], RequestHandle)


async def read_after(unasked: str, *, borrowed: bool, pause: int) -> list[Any]:
    """The status and the result of a request, each asked for after something came on the idle connection."""
    service = Service([(None, [Step(unasked=unasked, turns=3), Step(unasked=unasked, turns=3)])])
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(service.protocol, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    found: list[Any] = []
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession()) if borrowed else None
        client = await stack.enter_async_context(
            FluxKleinClient("a-token-of-tests", base_url=address, retry=QUICK, session=session, timeout=20)
        )
        for read in (client.status, client.result):
            handle = await client.submit("a cat")
            for _ in range(pause):
                await asyncio.sleep(0)
            found.append(await outcome(read(handle.request_id)))
    listener.close()
    await settle()
    return found


@pytest.mark.parametrize("borrowed", [False, True], ids=["own session", "borrowed session"])
@pytest.mark.parametrize("unasked", STALE)
def test_no_read_takes_an_unsolicited_answer_for_what_it_asked_for(unasked, borrowed):
    for pause in (0, 3, 9):
        with asyncio.Runner(loop_factory=chosen_loop()) as runner:
            status, result = runner.run(read_after(unasked, borrowed=borrowed, pause=pause))
        assert status.state is RequestState.IN_PROGRESS
        assert isinstance(result, ResultNotReadyError)
