"""The instruments have the names and units that the page gives them.

What is kept of a generation, and for how long.

Everything a generation can come to, read back from the SDK's in-memory exporters.
"""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

from flux_klein_async import (
    DownloadError,
    FluxKleinError,
    Limits,
    RetryPolicy,
    SqliteJournal,
    SubmissionUncertainError,
    WaitTimeoutError,
)
from flux_klein_async.emulator import Generation, Hang, InProcessEmulator, Reply, Reset, error_reply, fault
from flux_klein_async.events import (
    Cancelled,
    Closed,
    Downloaded,
    Failed,
    Finished,
    Polled,
    Retrying,
    StateChanged,
    Submitted,
    Uncertain,
)
from flux_klein_async.integrations.opentelemetry import Instruments, Open, bounded, model_facts, retry_facts
from flux_klein_async.models import RequestState

from .traces import Memory, happened, seconds

PAGE = Path(__file__).parent.parent.parent / "docs" / "telemetry.md"


def test_the_page_lists_every_instrument_with_its_unit():
    instruments = vars(Instruments(MeterProvider().get_meter("test"))).values()
    listed = re.findall(r"^\| `([\w.]+)` \| [\w -]+ \| `([\w{}]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted((instrument.name, instrument.unit) for instrument in instruments)


def test_the_buckets_are_those_of_the_conventions_and_of_polls():
    reader = InMemoryMetricReader()
    measured = Instruments(MeterProvider([reader]).get_meter("test"))
    for histogram in (measured.duration, measured.queue, measured.lag, measured.polls):
        histogram.record(1)
    [metrics] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    bounds = {metric.name: metric.data.data_points[0].explicit_bounds for metric in metrics.metrics}
    seconds = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    assert bounds == {
        "gen_ai.client.operation.duration": seconds,
        "flux_klein.queue.duration": seconds,
        "flux_klein.lag": seconds,
        "flux_klein.polls": (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100),
    }


def test_what_happens_is_noted_in_the_wait_once_there_is_one():
    tracer = TracerProvider().get_tracer("test")
    generation, wait = tracer.start_span("generation"), tracer.start_span("wait")
    record = Open(generation, 1_000_000_000, 0.0, 0.0, None)
    record.note("before", 1.0, {})
    record.wait = wait
    record.note("during", 2.0, {"poll": 3})
    assert (happened(generation), happened(wait)) == (["before"], ["during"])
    assert (wait.events[0].timestamp, wait.events[0].attributes) == (3_000_000_000, {"poll": 3})


def test_the_oldest_go_first():
    mapping = dict.fromkeys("abc")
    bounded(mapping, 2)
    assert list(mapping) == ["b", "c"]


def test_a_model_that_is_not_known_is_not_told():
    assert (model_facts(None), model_facts("m")) == ({}, {"gen_ai.request.model": "m"})


def test_a_repeat_is_told_in_one_line():
    assert retry_facts(Retrying(at=0.0, attempt=2, seconds=0.5, error="a\nb")) == {
        "flux_klein.attempt": 2,
        "flux_klein.delay": 0.5,
        "error.message": "a b",
    }


MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"
PROMPT = "a snow leopard that nobody may hear of"


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest_asyncio.fixture
async def client(connect: Any, memory: Memory) -> Any:
    return connect(on_event=memory.tell)


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


async def test_everything_is_measured(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=2.0))
    result = await client.generate(PROMPT)
    points = memory.points()
    measured = {name: points[name][0].sum for name in points if hasattr(points[name][0], "sum")}
    assert measured == {
        "gen_ai.client.operation.duration": pytest.approx(asyncio.get_running_loop().time()),
        "flux_klein.queue.duration": pytest.approx(result.timings.queued),
        "flux_klein.lag": pytest.approx(result.timings.lag_max),
        "flux_klein.polls": result.timings.polls,
    }
    assert points["gen_ai.client.operation.duration"][0].explicit_bounds[:2] == (0.01, 0.02)
    assert memory.outcomes() == {"completed": 1}
    assert memory.counts("flux_klein.cost") == result.cost_usd == klein_emulator.spent_usd
    assert memory.counts("flux_klein.in_flight") == 0


async def test_a_download_is_inside_the_generation(client, memory, tmp_path):
    result = await client.generate(PROMPT)
    await client.download(result, tmp_path)
    span, download = memory.span(), memory.span("flux_klein.download")
    assert (download.parent.span_id, download.context.trace_id) == (span.context.span_id, span.context.trace_id)
    assert dict(download.attributes) == {"gen_ai.response.id": result.request_id, "flux_klein.files": 1}


async def test_a_download_of_a_result_from_elsewhere_is_the_callers(memory, connect, tmp_path):
    result = await connect().generate(PROMPT)
    with memory.traces.get_tracer("the application").start_as_current_span("caller") as caller:
        await connect(on_event=memory.tell).download(result, tmp_path)
    assert memory.span("flux_klein.download").parent.span_id == caller.get_span_context().span_id


@pytest.mark.parametrize("verb", ["download", "download_bytes"])
async def test_files_that_cannot_be_had_are_a_span_that_ends_in_the_error(
    verb, client, memory, klein_emulator, tmp_path
):
    result = await client.generate(PROMPT)
    klein_emulator.script("file", Reply(404, delay=2.0))
    begun = asyncio.get_running_loop().time()
    with pytest.raises(DownloadError) as caught:
        await (client.download_bytes(result) if verb == "download_bytes" else client.download(result, tmp_path))
    span, files = memory.span(), memory.span(f"flux_klein.{verb}")
    assert (files.parent.span_id, files.context.trace_id) == (span.context.span_id, span.context.trace_id)
    assert dict(files.attributes) == {"gen_ai.response.id": result.request_id, "error.type": "DownloadError"}
    assert (files.status.status_code, files.status.description) == (StatusCode.ERROR, str(caught.value))
    assert seconds(files) == pytest.approx(asyncio.get_running_loop().time() - begun) == 2.0
    assert (span.status.status_code, memory.outcomes()) == (StatusCode.UNSET, {"completed": 1})


async def test_what_is_under_way_is_in_flight(client, memory, klein_emulator):
    klein_emulator.script("submit", *3 * [Generation(after=60.0)])
    tasks = [asyncio.ensure_future(client.generate(PROMPT)) for _ in range(3)]
    await asyncio.sleep(30)
    assert memory.counts("flux_klein.in_flight") == 3
    await asyncio.gather(*tasks)
    assert memory.counts("flux_klein.in_flight") == 0


# --- what goes wrong: what is done to the service, what the caller does, and what is told of it


async def generated(client: Any, _: InProcessEmulator) -> None:
    await client.generate(PROMPT, timeout=20)


async def cancelled_in_the_queue(client: Any, emulator: InProcessEmulator) -> None:
    emulator.service.queue._workers = 0
    task = asyncio.ensure_future(client.generate(PROMPT))
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(5)


async def cancelled_while_running(client: Any, emulator: InProcessEmulator) -> None:
    emulator.script("submit", Generation(after=60.0))
    task = asyncio.ensure_future(client.generate(PROMPT))
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(5)


async def lost_by_a_bare_submit(client: Any, emulator: InProcessEmulator) -> None:
    emulator.script("submit", Reset(accepted=True))
    with pytest.raises(SubmissionUncertainError):
        await client.submit(PROMPT)


async def refused_at_a_bare_submit(client: Any, emulator: InProcessEmulator) -> None:
    emulator.script("submit", error_reply(422, 422001))
    await client.submit(PROMPT)


ENDS = {
    "fails": (generated, [fault("fails")], "failed", "GenerationFailedError"),
    "is cancelled by the service": (generated, [fault("is-cancelled")], "cancelled", "GenerationCancelledError"),
    "is refused": (generated, [error_reply(422, 422001)], "error", "InputRejectedError"),
    "reply is lost": (generated, [Reset(accepted=True)], "uncertain", "SubmissionUncertainError"),
    "is refused, bare": (refused_at_a_bare_submit, [], "error", "InputRejectedError"),
    "reply is lost, bare": (lost_by_a_bare_submit, [], "uncertain", "SubmissionUncertainError"),
    "deadline while it runs": (generated, [Generation(after=60.0)], "timeout", "WaitTimeoutError"),
    "deadline in the submit": (generated, [Hang()], "uncertain", "SubmissionUncertainError"),
    "cancelled in the queue": (cancelled_in_the_queue, [], "cancelled", None),
    "abandoned while it runs": (cancelled_while_running, [], "abandoned", None),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_every_end_is_told_exactly_once(end, client, memory, klein_emulator):
    act, answers, outcome, error_type = end
    klein_emulator.script("submit", *answers)
    try:
        await act(client, klein_emulator)
    except FluxKleinError as error:
        assert type(error).__name__ == error_type  # noqa: PT017  # not all of them raise
    await asyncio.sleep(30)
    await client.aclose()
    span = memory.span()
    assert memory.outcomes() == {outcome: 1}
    assert span.attributes["flux_klein.outcome"] == outcome
    assert span.attributes.get("error.type") == error_type
    assert (span.attributes["flux_klein.polls"] == 0) == (
        error_type in ("InputRejectedError", "SubmissionUncertainError")
    )
    assert span.name == f"generate_content {MODEL}"
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    assert memory.counts("flux_klein.generations", "gen_ai.request.model") == {MODEL: 1}
    assert memory.counts("flux_klein.in_flight") == 0
    assert seconds(span) == pytest.approx(memory.points()["gen_ai.client.operation.duration"][0].sum)
    assert PROMPT not in "".join(span.to_json() for span in memory.exporter.get_finished_spans())
    assert klein_emulator.api_key not in "".join(span.to_json() for span in memory.exporter.get_finished_spans())


async def test_repeats_before_the_request_has_an_id_are_told_by_its_submit(client, memory, klein_emulator):
    klein_emulator.script("submit", error_reply(503, retry_after=3), error_reply(429))
    await client.generate(PROMPT)
    assert happened(memory.span("flux_klein.submit")) == ["retry", "retry"]
    assert memory.span().attributes["flux_klein.retries"] == 2
    assert memory.counts("flux_klein.retries", "flux_klein.call.kind") == {"submit": 2}
    assert memory.counts("flux_klein.holds", "flux_klein.call.kind") == {"submit": 1}


async def test_repeats_of_a_submit_that_failed_are_told_by_its_span(connect, memory, klein_emulator):
    klein_emulator.fault("submit", error_reply(429), probability=1)
    with pytest.raises(FluxKleinError):
        await connect(on_event=memory.tell, retry=RetryPolicy(refused_submits=3)).generate(PROMPT)
    assert happened(memory.span()) == ["retry", "retry"]
    assert memory.span().attributes["flux_klein.retries"] == 2
    assert memory.tell._tries == {}


async def test_repeats_and_failed_polls_are_told_by_the_wait(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=2.0))
    klein_emulator.script("status", error_reply(503))
    klein_emulator.script("result", error_reply(500))
    await client.generate(PROMPT)
    assert happened(memory.span("flux_klein.wait")) == ["poll_failed", "state_changed", "state_changed", "retry"]


async def test_a_generation_that_timed_out_and_came_later_is_linked_to_its_first_span(client, memory, klein_emulator):
    klein_emulator.script("submit", Generation(after=60.0))
    with pytest.raises(WaitTimeoutError) as caught:
        await client.generate(PROMPT, timeout=20, on_abandon="leave")
    await client.wait_for_result(caught.value.request_id)
    first, second = memory.spans()
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert memory.outcomes() == {"timeout": 1, "completed": 1}
    assert memory.counts("flux_klein.in_flight") == 0


async def test_a_result_that_two_wait_for_is_paid_and_told_once(client, memory, klein_emulator):
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


async def test_an_item_that_a_journal_takes_up_is_told_by_its_wait_and_one_that_it_knows_by_its_download(
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


async def test_a_cancel_that_was_refused_ends_nothing(client, memory, klein_emulator):
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


# --- ends that are never seen


def told(memory: Memory, *events: Any) -> None:
    for event in events:
        memory.tell(event)


def clocked(**options: Any) -> Memory:
    """For events made by hand, outside of a loop."""
    return Memory({"clock": lambda: 0, **options})


async def test_closing_ends_what_nobody_waits_for(client, memory):
    await client.submit(PROMPT)
    assert (memory.spans(), memory.counts("flux_klein.in_flight")) == ([], 1)
    await client.aclose()
    assert memory.outcomes() == {"abandoned": 1}
    assert memory.counts("flux_klein.in_flight") == 0
    assert len(memory.spans("flux_klein.wait")) == 1


def test_no_more_than_so_many_are_remembered():
    memory = clocked(max_open=10)
    for number in range(100):
        told(memory, Submitted(at=1.0, request_id=f"r{number}", seconds=1.0, call=number))
        told(memory, Retrying(at=1.0, attempt=2, seconds=1.0, error="e", call=1_000 + number))
    assert memory.counts("flux_klein.in_flight") == len(memory.tell._open) == 10
    assert memory.outcomes() == {"abandoned": 90}
    assert len(memory.tell._tries) == 10
    for number in range(100, 200):
        told(memory, Failed(at=1.0, error_type="E", error="e", call=number, request_id=f"r{number}"))
    assert len(memory.tell._ended) == 20


def test_one_that_is_too_old_is_forgotten_at_the_next_submit():
    memory = clocked(max_age=60.0)
    told(memory, Submitted(at=0.0, request_id="old", seconds=0.0))
    told(memory, Submitted(at=50.0, request_id="young", seconds=0.0))
    assert memory.outcomes() == {}
    told(memory, Submitted(at=61.0, request_id="new", seconds=0.0))
    assert [span.attributes["gen_ai.response.id"] for span in memory.spans()] == ["old"]


def test_a_submit_that_was_accepted_after_all_is_linked_to_the_span_that_called_it_uncertain():
    memory = clocked()
    lost = {"error_type": "SubmissionUncertainError", "error": "no answer"}
    told(memory, Failed(at=1.0, call=7, seconds=1.0, **lost), Submitted(at=2.0, request_id="r", seconds=2.0, call=7))
    told(memory, Closed(at=3.0, left_running=("r",)))
    first, second = memory.spans()
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


def test_an_uncertain_submit_is_told_once_whoever_tells_it_first():
    uncertain = Uncertain(at=1.0, call=7, error="no answer", seconds=1.0)
    failed = Failed(at=1.0, call=7, error_type="SubmissionUncertainError", error="no answer", seconds=1.0)
    for events in ((uncertain, failed), (failed, uncertain)):
        memory = clocked()
        told(memory, *events)
        assert memory.outcomes() == {"uncertain": 1}


def test_events_of_requests_that_are_not_known_change_nothing():
    memory = clocked()
    told(
        memory,
        Polled(at=1.0, request_id="r", poll=1, state=None, error="e"),
        StateChanged(at=1.0, request_id="r", state=RequestState.IN_QUEUE, queue_position=3),
        Retrying(at=1.0, attempt=2, seconds=1.0, error="e", request_id="r"),
    )
    assert (memory.spans(), set(memory.points())) == ([], {"flux_klein.retries"})


def test_a_place_in_the_queue_is_told_and_a_cost_that_is_not_known_is_none():
    memory = clocked()
    told(
        memory,
        Submitted(at=0.0, request_id="r", seconds=0.0, tag=SimpleNamespace(secret="s")),
        StateChanged(at=1.0, request_id="r", state=RequestState.IN_QUEUE, queue_position=3),
        StateChanged(at=2.0, request_id="r", state=RequestState.COMPLETED, queue_position=None),
        Finished(at=2.0, request_id="r", seconds=2.0, polls=2, lag_max=None, cost_usd=None),
    )
    assert memory.span("flux_klein.wait").events[0].attributes == {
        "flux_klein.state": "in_queue",
        "flux_klein.queue.position": 3,
    }
    assert not {"flux_klein.cost", "flux_klein.lag", "flux_klein.queue.duration"} & set(memory.points())
    assert memory.span().attributes["flux_klein.tag"] == "SimpleNamespace"


def test_an_abandoned_request_ends_with_the_answer_to_its_cancel():
    for answer in (False, None):
        memory = clocked()
        told(memory, Submitted(at=0.0, request_id="r", seconds=0.0))
        told(memory, Cancelled(at=1.0, request_id="r", cancelled=answer, abandoned=True))
        assert memory.outcomes() == {"abandoned": 1}


def test_repeats_of_a_submit_are_told_once_and_the_last_sixteen_of_them():
    memory = clocked()
    told(memory, *(Retrying(at=0.0, attempt=n, seconds=0.0, error="e", call=7) for n in range(30)))
    told(memory, Submitted(at=0.0, request_id="r", seconds=0.0, call=7))
    assert [event.attributes["flux_klein.attempt"] for event in memory.span("flux_klein.submit").events] == [
        *range(14, 30)
    ]
    assert memory.tell._tries == {}
    told(memory, Retrying(at=0.0, attempt=2, seconds=0.0, error="e", call=8), Closed(at=1.0, left_running=()))
    assert memory.tell._tries == {}


def test_a_state_that_flaps_leaves_the_queue_once():
    memory = clocked()
    told(memory, Submitted(at=0.0, request_id="r", seconds=0.0))
    for at, state in enumerate([RequestState.IN_PROGRESS, RequestState.IN_QUEUE, RequestState.IN_PROGRESS], 1):
        told(memory, StateChanged(at=at, request_id="r", state=state, queue_position=None))
    [queued] = memory.points()["flux_klein.queue.duration"]
    assert (queued.count, queued.sum) == (1, 1.0)


def test_a_cost_below_nothing_is_not_counted(caplog):
    memory = clocked()
    told(memory, Finished(at=2.0, request_id="r", seconds=2.0, polls=4, lag_max=None, cost_usd=-1.0))
    assert (memory.counts("flux_klein.cost"), memory.span().attributes["flux_klein.polls"]) == (0, 4)
    assert caplog.records == []  # the SDK complains of it


def test_a_download_is_as_long_as_it_took():
    memory = clocked()
    told(memory, Downloaded(at=9.0, request_id="r", paths=("a",), sha256=("b",), seconds=2.5))
    assert seconds(memory.span("flux_klein.download")) == 2.5


def test_the_polls_one_that_failed_are_told():
    memory = clocked()
    told(memory, Submitted(at=0.0, request_id="r", seconds=0.0))
    told(memory, Polled(at=1.0, request_id="r", poll=3, state=RequestState.FAILED))
    told(memory, Failed(at=1.0, request_id="r", error_type="GenerationFailedError", error="e"))
    assert memory.span().attributes["flux_klein.polls"] == 3


def test_those_that_ended_long_ago_are_forgotten_first():
    memory = clocked(max_open=1)
    for request_id in ("a", "b", "a", "c"):
        told(memory, Failed(at=1.0, request_id=request_id, error_type="WaitTimeoutError", error="e"))
    assert list(memory.tell._ended) == ["a", "c"]


def test_texts_of_others_are_cut():
    memory = clocked()
    told(memory, Failed(at=1.0, error_type="ServerError", error="x\n" * 10_000))
    assert len(memory.span().status.description) == 300


async def test_without_an_sdk_it_does_nothing_and_breaks_nothing(connect, caplog):
    from flux_klein_async.integrations.opentelemetry import Telemetry

    await connect(on_event=Telemetry()).generate(PROMPT)
    assert not trace.get_current_span().is_recording()
    assert [record for record in caplog.records if record.exc_info] == []


def test_spans_are_where_they_were_on_the_wall_clock_and_say_who_made_them():
    memory = clocked(clock=lambda: 500_000_000_000)
    told(memory, Submitted(at=20.0, request_id="r", seconds=5.0))
    told(memory, Failed(at=30.0, request_id="r", error_type="GenerationFailedError", error="e"))
    span, submit, wait = memory.span(), memory.span("flux_klein.submit"), memory.span("flux_klein.wait")
    instants = [(part.start_time, part.end_time) for part in (span, submit, wait)]
    assert instants == [(495 * 10**9, 510 * 10**9), (495 * 10**9, 500 * 10**9), (500 * 10**9, 510 * 10**9)]
    [scope] = memory.reader.get_metrics_data().resource_metrics[0].scope_metrics
    assert (span.instrumentation_scope.name, scope.scope.name) == ("flux_klein_async", "flux_klein_async")


@pytest.mark.parametrize(
    ("error_type", "outcome"), [("GenerationFailedError", "failed"), ("GenerationCancelledError", "cancelled")]
)
def test_an_end_that_two_waited_for_is_told_once(error_type, outcome):
    memory = clocked()
    told(memory, *2 * [Failed(at=1.0, request_id="r", error_type=error_type, error="e", seconds=1.0)])
    assert memory.outcomes() == {outcome: 1}


def test_so_many_are_remembered_for_an_hour_unless_told_otherwise():
    from flux_klein_async.integrations.opentelemetry import Telemetry

    assert Telemetry.__init__.__kwdefaults__["max_open"] == 20_000
    assert Telemetry.__init__.__kwdefaults__["max_age"] == 3600.0


def test_repeats_of_a_request_are_counted_with_it_and_those_of_others_are_not_kept():
    memory = clocked()
    told(
        memory,
        Submitted(at=0.0, request_id="r", seconds=0.0, call=1),
        Retrying(at=1.0, attempt=2, seconds=1.0, error="e", kind="read", request_id="r", call=1),
        Retrying(at=1.0, attempt=2, seconds=1.0, error="e", kind="file", request_id="another", call=2),
        Retrying(at=1.0, attempt=2, seconds=1.0, error="e"),
        Polled(at=2.0, request_id="r", poll=1, state=None, error="it broke"),
        Failed(at=3.0, request_id="r", error_type="WaitTimeoutError", error="e", call=1),
    )
    assert memory.tell._tries == {}
    assert memory.span().attributes["flux_klein.retries"] == 1
    assert memory.counts("flux_klein.retries", "flux_klein.call.kind") == {"read": 1, "file": 1, "unknown": 1}
    assert memory.span("flux_klein.wait").events[-1].attributes == {"error.message": "it broke"}


def test_a_result_that_two_waited_for_and_a_cancel_of_nobodys_change_nothing():
    memory = clocked()
    finished = Finished(at=1.0, request_id="r", seconds=1.0, polls=1, lag_max=None, cost_usd=0.01)
    told(memory, finished, finished, Cancelled(at=2.0, request_id="another", cancelled=True))
    assert (memory.outcomes(), memory.counts("flux_klein.cost")) == ({"completed": 1}, 0.01)
    assert memory.span().name == "generate_content"


def test_a_cancel_that_was_asked_for_ends_the_generation():
    memory = clocked()
    told(memory, Submitted(at=0.0, request_id="r", seconds=0.0), Cancelled(at=1.0, request_id="r", cancelled=True))
    assert memory.outcomes() == {"cancelled": 1}


def test_a_duration_is_labelled_as_the_page_says():
    memory = clocked()
    told(memory, Submitted(at=20.0, request_id="r", seconds=5.0, model="m"))
    told(memory, Failed(at=30.0, request_id="r", error_type="GenerationFailedError", error="e"))
    [point] = memory.points()["gen_ai.client.operation.duration"]
    assert point.sum == 15.0
    common = {"gen_ai.request.model": "m", "error.type": "GenerationFailedError"}
    assert point.attributes == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "runcomfy",
        **common,
    }
    [count] = memory.points()["flux_klein.generations"]
    assert count.attributes == {"flux_klein.outcome": "failed", **common}


def test_what_was_given_up_and_ends_later_is_linked_to_where_that_was_said():
    memory = clocked(max_open=1)
    told(memory, *(Submitted(at=0.0, request_id=name, seconds=0.0) for name in ("r", "s")))
    told(memory, Finished(at=1.0, request_id="r", seconds=1.0, polls=1, lag_max=None, cost_usd=None))
    given_up, finished = memory.spans()
    assert [link.context.span_id for link in finished.links] == [given_up.context.span_id]
