"""A user's application, checked by strict type checkers and never run."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import assert_type

from flux_klein_async import (
    DEFAULT,
    Budget,
    CancelOutcome,
    DownloadError,
    Entry,
    EntryState,
    ExponentialPolling,
    FileBytes,
    FixedPolling,
    FluxKleinClient,
    FluxKleinError,
    GenerationResult,
    HostedFile,
    Input,
    InsufficientBalanceError,
    Journal,
    Limits,
    ModelInfo,
    Observation,
    Outcome,
    PollPolicy,
    Progress,
    RateLimitError,
    RequestHandle,
    RequestState,
    RequestStatus,
    RetryPolicy,
    SqliteJournal,
    SubmissionUncertainError,
    TextToImage9BInput,
    TextToImageInput,
    WaitTimeoutError,
)
from flux_klein_async.events import Downloaded, Event, Failed, Finished, Held, Polled, StateChanged, Submitted
from flux_klein_async.integrations.logging import LogEvents, combine
from flux_klein_async.integrations.notebook import Pictures, show


@dataclasses.dataclass(frozen=True)
class Product:
    """What the application knows; it makes inputs of it."""

    name: str
    wide: bool = False


def to_input(product: Product) -> Input:
    return TextToImageInput(prompt=f"a photo of {product.name}", width=1536 if product.wide else 1024)


class Halving:
    """A poll policy of the application's own."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def next_poll(self, progress: Progress) -> float:
        if progress.state is RequestState.IN_QUEUE:
            return 1.0
        return max(0.05, 0.8 / 2.0**progress.polls)

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation.not_after)


class Notes:
    """A journal of the application's own: it writes ids down before anyone waits on them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def record(self, entry: Entry) -> None:
        if entry.state is EntryState.SUBMITTED and entry.request_id is not None:
            await asyncio.to_thread(self._append, entry.request_id)

    def _append(self, request_id: str) -> None:
        with self._path.open("a") as file:
            file.write(request_id + "\n")


class Meter:
    """Events, told apart by class."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.lines: list[str] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Submitted(seconds=seconds):
                assert_type(seconds, float)
                self.lines.append(f"{event.request_id} accepted after {seconds:.2f} s")
            case StateChanged(state=state, queue_position=position):
                assert_type(position, int | None)
                self.lines.append(f"{event.request_id} {state.value} {position}")
            case Polled(poll=poll, error=error):
                assert_type(error, str | None)
                self.lines.append(f"poll {poll}: {error or 'seen'}")
            case Held(kind=kind, seconds=seconds):
                self.lines.append(f"no {kind} for {seconds} s")
            case Finished(cost_usd=cost):
                self.spent += cost or 0.0
            case Failed(error_type=kind, error=text):
                self.lines.append(f"{kind}: {text}")
            case Downloaded(paths=paths):
                self.lines.extend(paths)
            case _:
                pass


async def one(client: FluxKleinClient, prompt: str) -> str | None:
    """Each kind of end has its answer."""
    try:
        result = await client.generate(prompt, width=768, height=512, timeout=30, on_abandon="leave", tag=("shop", 7))
    except WaitTimeoutError as error:
        if error.request_id is None:
            return None
        result = await client.handle(error.request_id).wait_for_result(timeout=None)
    except SubmissionUncertainError as error:
        assert_type(error.request_id, str | None)
        return None
    except InsufficientBalanceError:
        raise
    except RateLimitError as error:
        await asyncio.sleep(error.retry_after or 1.0)
        return None
    except FluxKleinError as error:
        return None if error.retryable and error.charged == "no" else str(error)
    assert_type(result, GenerationResult)
    assert_type(result.timings.lag_max, float | None)
    assert_type(result.cost_usd, float | None)
    assert_type(await client.download(result, Path("out")), list[Path])
    assert_type(await client.download_bytes(result), list[FileBytes])
    assert_type(await client.cancel(result.request_id), CancelOutcome)
    assert_type(result.image_url, str)
    return result.image_url


async def follow(client: FluxKleinClient) -> GenerationResult:
    handle = await client.submit(TextToImage9BInput(prompt="a lighthouse", steps=8), timeout=DEFAULT)
    assert_type(handle, RequestHandle)
    async for status in handle.updates(timeout=60):
        assert_type(status, RequestStatus)
        if status.state is RequestState.IN_QUEUE and (status.queue_position or 0) > 100:
            outcome = await handle.cancel()
            assert_type(outcome.cancelled, bool)
    return await handle.result()


async def many(client: FluxKleinClient, products: Iterable[Product]) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    async with client.generate_many(
        products, to_input=to_input, directory=Path("out"), ordered=True, concurrency=32
    ) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, Outcome[Product])
            if isinstance(outcome.error, DownloadError):
                print(outcome.item.name, outcome.error.request_id)
            elif outcome.result is not None:
                found[outcome.item.name] = outcome.paths
    return found


async def resumed(meter: Meter) -> None:
    events = combine(LogEvents(), meter, None)
    async with (
        SqliteJournal("run.sqlite", retry_failed=True) as journal,
        FluxKleinClient(journal=journal, budget=Budget(25), on_event=events, retry=RetryPolicy(attempts=3)) as client,
        client.generate_many([("a", "a cat")], to_input=lambda row: row[1], to_id=lambda row: row[0]) as outcomes,
    ):
        assert_type((await journal.spent()).usd, float)
        async for outcome in outcomes:
            assert_type(outcome.from_journal, bool)
            assert_type(outcome.error, FluxKleinError | None)
            assert_type(outcome.paths, tuple[Path, ...])
            assert_type(show(outcome, width=256), Pictures)


async def streamed(client: FluxKleinClient) -> int:
    async def prompts() -> AsyncIterator[str]:
        for number in range(10):
            yield f"a number {number}"

    outcomes = await client.generate_all(prompts(), timeout=20)
    assert_type(outcomes, list[Outcome[str]])
    inputs: list[Input] = ["a", TextToImageInput(prompt="b"), {"prompt": "c"}]
    mixed = await client.generate_all(inputs)
    return sum(outcome.error is None for outcome in outcomes) + len(mixed)


async def other_model(client: FluxKleinClient) -> Pictures:
    async for model in client.list_models(search="edit", category="image-to-image"):
        assert_type(model, ModelInfo)
        assert_type(model.base_price_usd, float | None)
    info = await client.get_model("owner/model/variant")
    assert_type([field.name for field in info.input_fields if field.file == "image"], list[str])
    assert_type(info, ModelInfo)
    source = HostedFile("https://example.com/a.png")
    result = await client.generate({"prompt": "a cat", "image": source, "mask": Path("mask.png")}, model=info.model_id)
    pictures = show(await client.download(result, "out"), width=512)
    assert_type(pictures, Pictures)
    return show(await client.download_bytes(result))


async def main() -> None:
    policies: list[PollPolicy] = [Halving(), FixedPolling(0.5), ExponentialPolling()]
    journal: Journal = Notes(Path("ids.txt"))
    meter = Meter()
    client = FluxKleinClient(
        "token",
        polling=policies[0],
        journal=journal,
        on_event=meter,
        timeout=None,
        limits=Limits(max_in_flight=8, polls_per_second=50),
        poll_endpoint="result",
    )
    async with client:
        async with asyncio.TaskGroup() as group:
            urls = [group.create_task(one(client, prompt)) for prompt in ("a", "b")]
            files = group.create_task(many(client, [Product("a vase"), Product("a sofa", wide=True)]))
        assert_type(urls[0].result(), str | None)
        print(files.result(), await follow(client), await streamed(client), await other_model(client), meter.spent)
        left = await client.aclose(drain=10)
        assert_type(left, tuple[str, ...])


if __name__ == "__main__":
    asyncio.run(main())
