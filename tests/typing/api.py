"""A user's file: checked by strict type checkers, never run."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import assert_type

from flux_klein_async import (
    Budget,
    CancelOutcome,
    ExponentialPolling,
    FixedPolling,
    FluxKleinClient,
    FluxKleinError,
    GenerationResult,
    HostedFile,
    Limits,
    ModelInfo,
    Observation,
    Outcome,
    PollPolicy,
    Progress,
    RequestHandle,
    RequestStatus,
    RetryPolicy,
    SqliteJournal,
    TextToImageInput,
)
from flux_klein_async.events import Event
from flux_klein_async.integrations.logging import LogEvents, combine
from flux_klein_async.integrations.notebook import Pictures, show


class Impatient:
    """A policy needs no base class."""

    def next_poll(self, progress: Progress) -> float:
        return 0.05 if progress.polls else 0.2

    def observe(self, observation: Observation) -> None:
        pass


def on_event(event: Event) -> None:
    print(event.at, event.request_id, event.tag)


async def rows() -> AsyncIterator[dict[str, str]]:
    yield {"prompt": "a snow leopard at dawn"}


async def main() -> None:
    policies: list[PollPolicy] = [Impatient(), FixedPolling(0.5), ExponentialPolling()]
    async with FluxKleinClient(
        limits=Limits(max_in_flight=128, polls_per_second=50),
        polling=policies[0],
        retry=RetryPolicy(attempts=3),
        on_event=on_event,
        timeout=None,
    ) as client:
        result = await client.generate("a snow leopard at dawn", width=1024, height=768)
        assert_type(result, GenerationResult)
        assert_type(result.image_url, str)
        assert_type(await client.download(result, Path("out")), list[Path])
        assert_type(await client.download_bytes(result), list[bytes])
        handle = await client.submit(TextToImageInput(prompt="a snow leopard at dawn"))
        assert_type(handle, RequestHandle)
        async for status in handle.updates():
            assert_type(status, RequestStatus)
        await client.generate({"image": HostedFile("https://example.com/a.png")}, model="owner/model/variant")
        async with client.generate_many(
            rows(), concurrency=64, to_input=lambda row: row["prompt"], directory="out"
        ) as outcomes:
            async for outcome in outcomes:
                assert_type(outcome.paths, tuple[Path, ...])
                assert_type(outcome, Outcome[dict[str, str]])
                assert_type(outcome.error, FluxKleinError | None)
        assert_type(await client.generate_all(["a", "b"], directory=Path("out")), list[Outcome[str]])
        assert_type(await client.get_model(), ModelInfo)
        assert_type(await client.cancel(handle), CancelOutcome)
        assert_type(await client.aclose(drain=5), tuple[str, ...])


async def resumed() -> None:
    async with (
        SqliteJournal("run.sqlite", retry_failed=True) as journal,
        FluxKleinClient(journal=journal, budget=Budget(25), on_event=combine(LogEvents(), on_event, None)) as client,
        client.generate_many(rows(), to_input=lambda row: row["prompt"], to_id=lambda row: row["id"]) as outcomes,
    ):
        assert_type((await journal.spent()).usd, float)
        async for outcome in outcomes:
            assert_type(outcome.from_journal, bool)
            assert_type(show(outcome, width=256), Pictures)


if __name__ == "__main__":
    asyncio.run(main())
