"""Every way that a generation can go, read back from the SDK's in-memory exporters."""

import asyncio
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from flux_klein_async import (
    DownloadError,
    FluxKleinError,
    Limits,
    RetryPolicy,
    SqliteJournal,
    WaitTimeoutError,
    events,
)
from flux_klein_async.emulator import Generation, Hang, InProcessEmulator, Pass, Reply, Reset, error_reply, fault
from flux_klein_async.integrations import opentelemetry
from flux_klein_async.integrations.opentelemetry import Instruments, Telemetry
from flux_klein_async.models import RequestState

PAGE = (Path(__file__).parent.parent.parent / "docs" / "telemetry.md").read_text(encoding="utf-8")
MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"
PROMPT = "a snow leopard that must not be recorded"
DURATION = "gen_ai.client.operation.duration"


def virtual_clock() -> int:
    """The loop's time as the time of day, so that measured times are exact."""
    return round(asyncio.get_running_loop().time() * 1e9)


class Memory:
    """A `Telemetry` handler, and what it has exported."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        providers = {"tracer_provider": self.traces, "meter_provider": MeterProvider([self.reader])}
        self.tell = Telemetry(**providers, **{"clock": virtual_clock, **options})

    def spans(self, name: str = "generate_content") -> list[ReadableSpan]:
        """The ended spans of this name, in the order of their ends. A generation's name continues with its model."""
        return [span for span in self.exporter.get_finished_spans() if name in (span.name, span.name.split()[0])]

    def span(self, name: str = "generate_content") -> ReadableSpan:
        """The one span of this name."""
        [span] = self.spans(name)
        return span

    def points(self) -> dict[str, list[Any]]:
        """By instrument its data points."""
        data = self.reader.get_metrics_data()
        [metrics] = data.resource_metrics[0].scope_metrics if data else [SimpleNamespace(metrics=[])]
        return {metric.name: list(metric.data.data_points) for metric in metrics.metrics}

    def counts(self, name: str, label: str | None = None) -> Any:
        """The value of a counter: by this label, or the only one."""
        points = self.points().get(name, [])
        if label is None:
            return sum(point.value for point in points)
        return {point.attributes[label]: point.value for point in points}

    def outcomes(self) -> dict[str, int]:
        """Generations by outcome."""
        return dict(self.counts("flux_klein.generations", "flux_klein.outcome"))


def seconds(span: ReadableSpan) -> float:
    """How long a span took."""
    return (span.end_time - span.start_time) / 1e9


def happened(span: ReadableSpan) -> list[str]:
    """The names of a span's events."""
    return [event.name.removeprefix("flux_klein.") for event in span.events]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest_asyncio.fixture
async def client(connect: Any, memory: Memory) -> Any:
    return connect(on_event=memory.tell)


def test_the_page_lists_every_instrument_with_its_unit():
    instruments = vars(Instruments(MeterProvider().get_meter("test"))).values()
    listed = re.findall(r"^\| `([\w.]+)` \| [\w -]+ \| `([\w{}]+)` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted((instrument.name, instrument.unit) for instrument in instruments)


def test_the_page_names_every_attribute_and_event():
    source = inspect.getsource(opentelemetry)
    names = set(re.findall(r'"((?:flux_klein|gen_ai|error)\.[\w.]+)"', source))
    names |= {f"flux_klein.{name}" for name in re.findall(r'add_event\("(\w+)"', source)}
    assert len(names) > 25
    assert names - set(re.findall(r"[\w.]+", PAGE)) == set()


async def test_the_page_names_the_labels_of_every_instrument(memory):
    for event in (
        events.Submitted(at=1.0, request_id="a", seconds=0.1, model=MODEL, call=1),
        events.StateChanged(at=2.0, request_id="a", state=RequestState.IN_PROGRESS, queue_position=None),
        events.Retrying(at=2.0, request_id="a", kind="read", attempt=1, seconds=0.1, error="reset"),
        events.Held(at=2.0, kind="read", seconds=1.0),
        events.Finished(at=3.0, request_id="a", seconds=2.0, polls=2, lag_max=0.1, cost_usd=0.014),
        events.Submitted(at=4.0, request_id="b", seconds=0.1, model=MODEL, call=2),
        events.Failed(at=5.0, request_id="b", seconds=1.0, error="failed", error_type="GenerationFailedError"),
    ):
        memory.tell(event)
    recorded = {name: {key for point in points for key in point.attributes} for name, points in memory.points().items()}
    rows = re.findall(r"^\| `([\w.]+)` \| [\w -]+ \| `[\w{}]+` \| (.*) \|$", PAGE, re.MULTILINE)
    listed = {name: set(re.findall(r"`([\w.]+\.[\w.]+)`", labels)) for name, labels in rows}
    assert listed == recorded
    assert all(re.fullmatch(r"`[\w.]+`(, `[\w.]+`)*", labels.partition(":")[0]) for _, labels in rows)


async def test_a_generation_is_one_span_with_submit_and_wait_inside(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=2.0, delay=0.5))
    with memory.traces.get_tracer("the application").start_as_current_span("caller") as caller:
        result = await client.generate(PROMPT, tag="row 7")
    span, submit, wait = memory.span(), memory.span("flux_klein.submit"), memory.span("flux_klein.wait")
    assert (span.name, span.kind) == (f"generate_content {MODEL}", SpanKind.CLIENT)
    assert span.parent.span_id == caller.get_span_context().span_id
    assert [child.parent.span_id for child in (submit, wait)] == 2 * [span.context.span_id]
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "runcomfy",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.id": result.request_id,
        "flux_klein.tag": "row 7",
        "flux_klein.outcome": "completed",
        "flux_klein.polls": result.timings.polls,
        "flux_klein.retries": 0,
        "flux_klein.queue.duration": pytest.approx(result.timings.queued),
        "flux_klein.lag": result.timings.lag_max,
        "flux_klein.cost": result.cost_usd,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert seconds(submit) == pytest.approx(result.timings.submit) == 0.5
    assert seconds(span) == pytest.approx(seconds(submit) + seconds(wait)) == asyncio.get_running_loop().time()
    assert submit.end_time == wait.start_time
    assert happened(wait) == ["state_changed", "state_changed"]

    points = memory.points()
    assert {name: points[name][0].sum for name in points if hasattr(points[name][0], "sum")} == {
        DURATION: pytest.approx(asyncio.get_running_loop().time()),
        "flux_klein.queue.duration": pytest.approx(result.timings.queued),
        "flux_klein.lag": pytest.approx(result.timings.lag_max),
        "flux_klein.polls": result.timings.polls,
    }
    bounds = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    for name in (DURATION, "flux_klein.queue.duration", "flux_klein.lag"):
        assert points[name][0].explicit_bounds == pytest.approx(bounds)
    assert points["flux_klein.polls"][0].explicit_bounds == (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
    assert memory.outcomes() == {"completed": 1}
    assert memory.counts("flux_klein.cost") == result.cost_usd == klein_emulator.spent_usd


async def test_running_generations_are_in_flight(client, memory, klein_emulator):
    klein_emulator.script("submit", *3 * [Generation(after=60.0)])
    tasks = [asyncio.ensure_future(client.generate(PROMPT)) for _ in range(3)]
    await asyncio.sleep(30)
    assert memory.counts("flux_klein.in_flight") == 3
    await asyncio.gather(*tasks)
    assert memory.counts("flux_klein.in_flight") == 0


# --- downloads


async def test_a_download_is_inside_the_generation(client, memory, tmp_path):
    result = await client.generate(PROMPT)
    await client.download(result, tmp_path)
    span, download = memory.span(), memory.span("flux_klein.download")
    assert (download.parent.span_id, download.context.trace_id) == (span.context.span_id, span.context.trace_id)
    assert dict(download.attributes) == {"gen_ai.response.id": result.request_id, "flux_klein.files": 1}


async def test_a_download_of_a_result_from_elsewhere_is_inside_the_callers_span(
    memory, connect, klein_emulator, tmp_path
):
    result = await connect().generate(PROMPT)
    klein_emulator.script("file", Pass(delay=2.5))
    with memory.traces.get_tracer("the application").start_as_current_span("caller") as caller:
        await connect(on_event=memory.tell).download(result, tmp_path)
    download = memory.span("flux_klein.download")
    assert (download.parent.span_id, seconds(download)) == (caller.get_span_context().span_id, 2.5)


@pytest.mark.parametrize("verb", ["download", "download_bytes"])
async def test_a_failed_download_is_a_span_with_the_error(verb, client, memory, klein_emulator, tmp_path):
    result = await client.generate(PROMPT)
    klein_emulator.script("file", Reply(404, delay=2.0))
    begun = asyncio.get_running_loop().time()
    with pytest.raises(DownloadError) as caught:
        await (client.download_bytes(result) if verb == "download_bytes" else client.download(result, tmp_path))
    span, download = memory.span(), memory.span(f"flux_klein.{verb}")
    assert (download.parent.span_id, download.context.trace_id) == (span.context.span_id, span.context.trace_id)
    assert dict(download.attributes) == {"gen_ai.response.id": result.request_id, "error.type": "DownloadError"}
    assert (download.status.status_code, download.status.description) == (StatusCode.ERROR, str(caught.value))
    assert seconds(download) == pytest.approx(asyncio.get_running_loop().time() - begun) == 2.0
    assert (span.status.status_code, memory.outcomes()) == (StatusCode.UNSET, {"completed": 1})


# --- failures: what the caller does, how the service answers, and what is recorded


async def generated(client: Any, _: InProcessEmulator) -> None:
    await client.generate(PROMPT, timeout=20)


async def submitted(client: Any, _: InProcessEmulator) -> None:
    await client.submit(PROMPT)


async def cancelled_in_the_queue(client: Any, emulator: InProcessEmulator) -> None:
    emulator.service.queue._workers = 0
    await cancelled(client, emulator)


async def cancelled(client: Any, _: InProcessEmulator) -> None:
    task = asyncio.ensure_future(client.generate(PROMPT))
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(5)


ENDS = {
    "fails": (generated, fault("fails"), "failed", "GenerationFailedError"),
    "is cancelled by the service": (generated, fault("is-cancelled"), "cancelled", "GenerationCancelledError"),
    "is charged without a file": (generated, Generation(output={}), "failed", "GenerationFailedError"),
    "is refused": (generated, error_reply(422, 422001), "error", "InputRejectedError"),
    "reply is lost": (generated, Reset(accepted=True), "uncertain", "SubmissionUncertainError"),
    "is refused, bare": (submitted, error_reply(422, 422001), "error", "InputRejectedError"),
    "reply is lost, bare": (submitted, Reset(accepted=True), "uncertain", "SubmissionUncertainError"),
    "deadline while it runs": (generated, Generation(after=60.0), "timeout", "WaitTimeoutError"),
    "deadline in the submit": (generated, Hang(), "uncertain", "SubmissionUncertainError"),
    "cancelled in the queue": (cancelled_in_the_queue, None, "cancelled", None),
    "abandoned while it runs": (cancelled, Generation(after=60.0), "abandoned", None),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_every_end_is_recorded_exactly_once(end, client, memory, klein_emulator):
    act, answer, outcome, error_type = end
    klein_emulator.script("submit", answer)
    try:
        await act(client, klein_emulator)
        assert error_type is None
    except FluxKleinError as error:
        assert type(error).__name__ == error_type  # noqa: PT017  # not all of them raise
    await asyncio.sleep(30)
    await client.aclose()
    span = memory.span()
    assert span.name == f"generate_content {MODEL}"
    assert memory.outcomes() == {outcome: 1}
    assert (span.attributes["flux_klein.outcome"], span.attributes.get("error.type")) == (outcome, error_type)
    never_polled = error_type in ("InputRejectedError", "SubmissionUncertainError")
    assert (span.attributes["flux_klein.polls"] == 0) == never_polled
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    labels = {"gen_ai.request.model": MODEL, **({"error.type": error_type} if error_type else {})}
    [count], [duration] = memory.points()["flux_klein.generations"], memory.points()[DURATION]
    assert count.attributes == {"flux_klein.outcome": outcome, **labels}
    provider = {"gen_ai.operation.name": "generate_content", "gen_ai.provider.name": "runcomfy"}
    assert duration.attributes == {**provider, **labels}
    assert seconds(span) == pytest.approx(duration.sum)
    assert memory.counts("flux_klein.in_flight") == 0
    exported = "".join(span.to_json() for span in memory.exporter.get_finished_spans())
    assert PROMPT not in exported
    assert klein_emulator.api_key not in exported
    if answer == Generation(output={}):
        assert memory.counts("flux_klein.cost") == klein_emulator.spent_usd == 0.01


async def test_repeats_of_a_submit_are_in_its_span(client, memory, klein_emulator):
    klein_emulator.script("submit", error_reply(503, retry_after=3), error_reply(429))
    await client.generate(PROMPT)
    assert happened(memory.span("flux_klein.submit")) == ["retry", "retry"]
    assert memory.span().attributes["flux_klein.retries"] == 2
    assert memory.counts("flux_klein.retries", "flux_klein.call.kind") == {"submit": 2}
    assert memory.counts("flux_klein.holds", "flux_klein.call.kind") == {"submit": 1}


async def test_repeats_of_a_submit_that_failed_are_in_the_generations_span(connect, memory, klein_emulator):
    klein_emulator.fault("submit", error_reply(429), probability=1)
    with pytest.raises(FluxKleinError):
        await connect(on_event=memory.tell, retry=RetryPolicy(refused_submits=3)).generate(PROMPT)
    assert happened(memory.span()) == ["retry", "retry"]
    assert memory.span().attributes["flux_klein.retries"] == 2


async def test_failed_polls_and_later_repeats_are_in_the_wait(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=2.0))
    klein_emulator.script("status", error_reply(503))
    klein_emulator.script("result", error_reply(500))
    await client.generate(PROMPT)
    assert happened(memory.span("flux_klein.wait")) == ["poll_failed", "state_changed", "state_changed", "retry"]


# --- several calls about one request


async def test_a_result_after_a_timeout_is_a_span_with_a_link_to_the_first(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=60.0))
    with pytest.raises(WaitTimeoutError) as caught:
        await client.generate(PROMPT, timeout=20, on_abandon="leave")
    await client.wait_for_result(caught.value.request_id)
    first, second = memory.spans()
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert memory.outcomes() == {"timeout": 1, "completed": 1}
    assert memory.counts("flux_klein.in_flight") == 0


async def test_two_waits_for_one_result_count_its_cost_once(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=2.0))
    handle = await client.submit(PROMPT)
    await asyncio.gather(handle.wait_for_result(), client.wait_for_result(handle.request_id))
    assert memory.outcomes() == {"completed": 1}
    assert memory.counts("flux_klein.cost") == klein_emulator.spent_usd


async def test_a_request_from_elsewhere_has_a_span_as_long_as_its_wait(connect, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=10.0))
    handle = await connect().submit(PROMPT)
    await asyncio.sleep(4)
    start = asyncio.get_running_loop().time()
    await connect(on_event=memory.tell).wait_for_result(handle.request_id)
    assert seconds(memory.span()) == pytest.approx(asyncio.get_running_loop().time() - start)
    assert memory.span().attributes["gen_ai.response.id"] == handle.request_id


async def test_an_item_from_a_journal_has_a_span_for_its_wait_or_else_for_its_download(
    connect, memory, klein_emulator, tmp_path
):
    klein_emulator.script("submit", Generation(after=10.0))

    async def run(on_event=None, directory=None):
        async with SqliteJournal(tmp_path / "run.sqlite") as journal:
            client = connect(journal=journal, on_event=on_event)
            async with client, asyncio.timeout(4 if on_event is None else None):
                return await client.generate_all([PROMPT], on_abandon="leave", directory=directory)

    with pytest.raises(TimeoutError):
        await run()
    for directory in (None, tmp_path / "out", tmp_path / "out"):
        [outcome] = await run(memory.tell, directory)
        assert outcome.from_journal
    assert (len(memory.spans()), len(memory.spans("flux_klein.download"))) == (1, 1)
    assert memory.counts("flux_klein.cost") == klein_emulator.spent_usd == 0.01


async def test_a_refused_cancel_ends_nothing(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=30.0))
    task = asyncio.ensure_future(client.generate(PROMPT))
    await asyncio.sleep(5)
    assert not (await client.cancel(klein_emulator.records[-1].request_id)).cancelled
    await task
    assert "cancel_refused" in happened(memory.span("flux_klein.wait"))
    assert memory.outcomes() == {"completed": 1}


async def test_each_item_of_a_fan_out_has_a_span_with_its_index(connect, memory):
    client = connect(on_event=memory.tell, limits=Limits(max_in_flight=2))
    with memory.traces.get_tracer("the application").start_as_current_span("batch") as batch:
        await client.generate_all(["a", "b", "c", "d"])
    assert sorted(span.attributes["flux_klein.tag"] for span in memory.spans()) == [0, 1, 2, 3]
    assert {span.parent.span_id for span in memory.spans()} == {batch.get_span_context().span_id}


async def test_closing_ends_what_nobody_waits_for(client, memory):
    await client.submit(PROMPT)
    assert (memory.spans(), memory.counts("flux_klein.in_flight")) == ([], 1)
    await client.aclose()
    assert memory.outcomes() == {"abandoned": 1}
    assert memory.counts("flux_klein.in_flight") == 0
    assert len(memory.spans("flux_klein.wait")) == 1


async def test_without_an_sdk_nothing_is_recorded_and_nothing_breaks(connect, caplog):
    await connect(on_event=Telemetry()).generate(PROMPT)
    assert not trace.get_current_span().is_recording()
    assert [record for record in caplog.records if record.exc_info] == []


# --- events made by hand, outside of a loop


def told(*events: Any, **options: Any) -> Memory:
    memory = Memory(**{"clock": lambda: 0, **options})
    for event in events:
        memory.tell(event)
    return memory


def accepted(request_id: str = "r", at: float = 0.0, **fields: Any) -> events.Submitted:
    return events.Submitted(at=at, request_id=request_id, **{"seconds": 0.0, **fields})


def failed(error_type: str = "GenerationFailedError", at: float = 1.0, **fields: Any) -> events.Failed:
    return events.Failed(at=at, error_type=error_type, **{"error": "e", **fields})


def finished(**fields: Any) -> events.Finished:
    defaults = {"at": 2.0, "request_id": "r", "seconds": 2.0, "polls": 2, "lag_max": None, "cost_usd": None}
    return events.Finished(**{**defaults, **fields})


def retrying(**fields: Any) -> events.Retrying:
    return events.Retrying(**{"at": 1.0, "attempt": 2, "seconds": 1.0, "error": "e", **fields})


def changed(state: RequestState, at: float = 1.0, queue_position: int | None = None) -> events.StateChanged:
    return events.StateChanged(at=at, request_id="r", state=state, queue_position=queue_position)


UNCERTAIN = events.Uncertain(at=1.0, call=7, error="no answer", seconds=1.0)
LOST = failed("SubmissionUncertainError", call=7, seconds=1.0)


@pytest.mark.parametrize(
    ("events", "outcomes"),
    [
        ([UNCERTAIN, LOST], {"uncertain": 1}),
        ([LOST, UNCERTAIN], {"uncertain": 1}),
        ([finished(), finished()], {"completed": 1}),
        (2 * [failed(request_id="r")], {"failed": 1}),
        (2 * [failed("GenerationCancelledError", request_id="r")], {"cancelled": 1}),
        ([accepted(), events.Cancelled(at=1.0, request_id="r", cancelled=True)], {"cancelled": 1}),
        ([accepted(), events.Cancelled(at=1.0, request_id="r", cancelled=False, abandoned=True)], {"abandoned": 1}),
        ([accepted(), events.Cancelled(at=1.0, request_id="r", cancelled=None, abandoned=True)], {"abandoned": 1}),
        ([finished(), events.Cancelled(at=2.0, request_id="another", cancelled=True)], {"completed": 1}),
        ([events.Event(at=1.0, request_id="r")], {}),
        (
            [
                events.Polled(at=1.0, request_id="r", poll=1, state=None, error="e"),
                changed(RequestState.IN_QUEUE),
                retrying(request_id="r"),
                events.Cancelled(at=2.0, request_id="r", cancelled=False),
            ],
            {},
        ),
    ],
)
def test_an_end_is_counted_once_and_an_unknown_request_not_at_all(events, outcomes):
    assert told(*events).outcomes() == outcomes


@pytest.mark.parametrize(
    ("events", "options"),
    [
        ([LOST, accepted(at=2.0, call=7), events.Closed(at=3.0, left_running=("r",))], {}),
        ([accepted("r"), accepted("s"), finished()], {"max_open": 1}),
    ],
    ids=["accepted after all", "abandoned and finished after all"],
)
def test_what_becomes_known_later_is_a_span_with_a_link_to_the_first(events, options):
    first, second = told(*events, **options).spans()
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


def test_what_is_remembered_is_bounded():
    memory = told(max_open=10)
    for number in range(100):
        memory.tell(accepted(f"r{number}", call=number))
        memory.tell(retrying(call=1_000 + number))
    assert memory.counts("flux_klein.in_flight") == len(memory.tell._open) == len(memory.tell._retries) == 10
    assert memory.outcomes() == {"abandoned": 90}
    for number in range(100, 200):
        memory.tell(failed(call=number, request_id=f"r{number}"))
    assert len(memory.tell._ended) == 20
    memory.tell(events.Closed(at=1.0, left_running=()))
    assert (memory.tell._open, memory.tell._retries) == ({}, {})
    memory = told(*(failed("WaitTimeoutError", request_id=name) for name in "abac"), max_open=1)
    assert list(memory.tell._ended) == ["a", "c"]  # the oldest is forgotten first
    defaults = Telemetry.__init__.__kwdefaults__
    assert (defaults["max_open"], defaults["max_age"]) == (20_000, 3600.0)


def test_a_generation_that_is_too_old_ends_at_the_next_submit():
    memory = told(accepted("old"), accepted("young", 50.0), max_age=60.0)
    assert memory.outcomes() == {}
    memory.tell(accepted("new", 61.0))
    assert [span.attributes["gen_ai.response.id"] for span in memory.spans()] == ["old"]


def test_spans_have_the_time_of_the_wall_clock_and_the_name_of_the_package():
    memory = told(accepted(at=20.0, seconds=5.0), failed(at=30.0, request_id="r"), clock=lambda: 500_000_000_000)
    span, submit, wait = memory.span(), memory.span("flux_klein.submit"), memory.span("flux_klein.wait")
    instants = [(part.start_time, part.end_time) for part in (span, submit, wait)]
    assert instants == [(495 * 10**9, 510 * 10**9), (495 * 10**9, 500 * 10**9), (500 * 10**9, 510 * 10**9)]
    [scope] = memory.reader.get_metrics_data().resource_metrics[0].scope_metrics
    assert (span.instrumentation_scope.name, scope.scope.name) == ("flux_klein_async", "flux_klein_async")
    assert span.name == "generate_content"  # the model is not known


def test_queue_positions_are_recorded_and_unknown_values_are_not():
    memory = told(
        accepted(tag=SimpleNamespace(secret="s")),
        changed(RequestState.IN_QUEUE, queue_position=3),
        changed(RequestState.COMPLETED, 2.0),
        finished(),
    )
    event = memory.span("flux_klein.wait").events[0]
    assert event.attributes == {"flux_klein.state": "in_queue", "flux_klein.queue.position": 3}
    assert not {"flux_klein.cost", "flux_klein.lag", "flux_klein.queue.duration"} & set(memory.points())
    assert memory.span().attributes["flux_klein.tag"] == "SimpleNamespace"


def test_a_state_that_flaps_leaves_the_queue_once():
    states = [RequestState.IN_PROGRESS, RequestState.IN_QUEUE, RequestState.IN_PROGRESS]
    memory = told(accepted(), *(changed(state, float(at)) for at, state in enumerate(states, 1)))
    [queued] = memory.points()["flux_klein.queue.duration"]
    assert (queued.count, queued.sum) == (1, 1.0)


def test_repeats_are_counted_with_their_request_and_the_last_sixteen_of_a_submit_are_shown():
    memory = told(
        *(retrying(attempt=n, error="a\nb", call=7) for n in range(30)),
        accepted(call=7),
        retrying(kind="read", request_id="r", call=1),
        retrying(kind="file", request_id="another", call=2),
        events.Polled(at=2.0, request_id="r", poll=3, state=None, error="it broke"),
        failed("WaitTimeoutError", 3.0, request_id="r", error="x\n" * 10_000),
    )
    retries = [event.attributes for event in memory.span("flux_klein.submit").events]
    assert [attributes["flux_klein.attempt"] for attributes in retries] == [*range(14, 30)]
    assert (retries[0]["flux_klein.delay"], retries[0]["error.message"]) == (1.0, r"a\nb")
    assert memory.tell._retries == {}
    span = memory.span()
    assert (span.attributes["flux_klein.retries"], span.attributes["flux_klein.polls"]) == (17, 3)
    assert memory.counts("flux_klein.retries", "flux_klein.call.kind") == {"unknown": 30, "read": 1, "file": 1}
    assert memory.span("flux_klein.wait").events[-1].attributes == {"error.message": "it broke"}
    assert len(span.status.description) == 300


def test_a_negative_cost_is_not_counted(caplog):
    memory = told(finished(polls=4, cost_usd=-1.0))
    assert (memory.counts("flux_klein.cost"), memory.span().attributes["flux_klein.polls"]) == (0, 4)
    assert caplog.records == []  # the SDK would complain
