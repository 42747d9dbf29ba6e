"""What the tests of the flows share: a schedule, a journal with a budget, and callers that give up."""

import asyncio
from typing import Any

import pytest

from flux_klein_async import FixedPolling
from flux_klein_async.journal.base import Entry

EVERY_SECOND = FixedPolling(1.0)


class Book:
    """A journal and a budget that keep what they are told; the journal may break at one state, or be slow there."""

    def __init__(self, *, breaks: str = "", **seconds: float) -> None:
        self.breaks = breaks
        self.seconds = seconds
        self.lines: list[Any] = []
        self.entries: list[Entry] = []
        self.facts: list[tuple[str, ...]] = []  # what the budget was told

    async def record(self, entry: Entry) -> None:
        await asyncio.sleep(self.seconds.get(entry.state.value, 0))
        if entry.state.value == self.breaks:
            raise OSError("the disk is full")
        self.lines.append(entry.state.value)
        self.entries.append(entry)

    async def reserve(self, key: str, model: str, price: Any) -> None:
        assert (await price(model)).base_price_usd is not None
        self.lines.append("reserve")
        self.facts.append((key, model))

    def release(self, key: str) -> None:
        self.lines.append("release")
        self.facts.append((key,))

    def accepted(self, key: str, request_id: str) -> None:
        self.lines.append("accepted")
        self.facts.append((key, request_id))

    def settle(self, request_id: str, cost_usd: float | None) -> None:
        self.lines.append(("settle", cost_usd))
        self.facts.append((request_id,))


async def give_up(task: "asyncio.Task[Any]") -> None:
    """Cancel a call, and see it end so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def abandoned(client: Any, *, at: float = 1.0, verb: str = "generate", **options: Any) -> None:
    """A call that is cancelled after so many seconds."""
    task = asyncio.ensure_future(getattr(client, verb)("a cat", **options))
    await asyncio.sleep(at)
    await give_up(task)


def sent(emulator: Any, endpoint: str) -> list[float]:
    """When the calls of an endpoint came."""
    return [record.at for record in emulator.records if record.endpoint == endpoint]


async def asked(client: Any, endpoint: str) -> Any:
    """One of the single calls."""
    return await (client.get_model() if endpoint == "model" else getattr(client, endpoint)("some-id"))


def block(until: float) -> None:
    """Let the loop be blocked from the next callback on until an instant."""
    loop: Any = asyncio.get_running_loop()
    loop._jump(until)
