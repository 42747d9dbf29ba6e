"""The instruments of the metrics: their names, units and buckets.

`gen_ai.*` are names of OpenTelemetry's semantic conventions for generative AI, which are not stable yet; the
conventions have no name for polls, lag or money, so that those stand under `flux_klein.`.

What is kept of a generation while its span is open, and what spans say of models and repeats.

Needs the extra `opentelemetry`.

Traces and metrics from events: one span a generation, with its submit, its wait and its downloads inside.

Needs the extra `opentelemetry` (the API alone; which SDK exports, if any, is the application's affair). Must not know
anything but the public events.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from opentelemetry import metrics, trace
from opentelemetry.metrics import Meter
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode

from flux_klein_async._version import __version__
from flux_klein_async.events import (
    Cancelled,
    Closed,
    Downloaded,
    Event,
    Failed,
    Finished,
    Held,
    Polled,
    Retrying,
    StateChanged,
    Submitted,
    Uncertain,
)
from flux_klein_async.integrations.logging import clipped, plain
from flux_klein_async.models import RequestState

__all__ = ["Telemetry"]


# Bounds of the buckets, in seconds, that the conventions give for gen_ai.client.operation.duration.
_SECONDS = [0.01 * 2**power for power in range(14)]
_POLLS = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100]


class Instruments:
    """Everything that is counted and measured."""

    def __init__(self, meter: Meter) -> None:
        self.generations = meter.create_counter(
            "flux_klein.generations", "{generation}", "Calls for a generation that ended, by outcome."
        )
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "From the call to its end: slot, submit, waiting and result.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.queue = meter.create_histogram(
            "flux_klein.queue.duration",
            "s",
            "From the accepted submit to the poll that found it running.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.lag = meter.create_histogram(
            "flux_klein.lag",
            "s",
            "At most so long had it been over when a poll saw the end.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.polls = meter.create_histogram(
            "flux_klein.polls",
            "{poll}",
            "Polls that a generation took.",
            explicit_bucket_boundaries_advisory=_POLLS,
        )
        self.retries = meter.create_counter("flux_klein.retries", "{retry}", "Calls made again, by kind.")
        self.holds = meter.create_counter("flux_klein.holds", "{hold}", "Times that the service asked for patience.")
        self.cost = meter.create_counter("flux_klein.cost", "{USD}", "What results said they cost, in US dollars.")
        self.in_flight = meter.create_up_down_counter(
            "flux_klein.in_flight", "{generation}", "Accepted, and no end seen yet."
        )


K = TypeVar("K")
V = TypeVar("V")
Value = str | bool | int | float
Attributes = dict[str, Value]


@dataclass(slots=True)
class Open:
    """A generation whose end has not been seen. Instants are seconds on the loop's clock."""

    span: Span
    epoch: int  # nanoseconds from 1970 to the loop's zero, taken once: durations stay exact when the clock is set
    started: float
    submitted: float
    model: str | None
    wait: Span | None = None
    polls: int = 0
    retries: int = 0
    facts: Attributes = field(default_factory=dict)

    def instant(self, at: float) -> int:
        """An instant of the loop's clock as the API wants it."""
        return self.epoch + round(at * 1e9)

    def note(self, name: str, at: float, attributes: Mapping[str, Value]) -> None:
        """Something that happened while it was waited for."""
        (self.wait or self.span).add_event(f"flux_klein.{name}", attributes, self.instant(at))


def model_facts(model: str | None) -> Attributes:
    """The model's id, where known."""
    return {} if model is None else {"gen_ai.request.model": model}


def retry_facts(event: Retrying) -> Attributes:
    """What is told of a repeat."""
    return {
        "flux_klein.attempt": event.attempt,
        "flux_klein.delay": event.seconds,
        "error.message": clipped(event.error),
    }


def bounded(mapping: dict[K, V], most: int) -> None:
    """Forget the oldest."""
    while len(mapping) > most:
        del mapping[next(iter(mapping))]


_OPERATION = "generate_content"  # the conventions' word for the making of anything but text alone
_PROVIDER = "runcomfy"
_OUTCOMES = {
    "GenerationFailedError": "failed",
    "GenerationCancelledError": "cancelled",
    "SubmissionUncertainError": "uncertain",
    "WaitTimeoutError": "timeout",
}
# After these nothing new can be said of a request.
_SETTLED = {"completed", "failed", "cancelled"}
_TRIES_KEPT = 16  # repeats of one submit that its span tells of; they are all counted


class Telemetry:
    """An `on_event` handler for one client that makes spans and metrics.

    Spans have for their parent the span that is current where the generation was asked for. A generation whose end
    is never seen (submitted and never waited for, or abandoned with "leave") ends as "abandoned" when the client
    closes, when it is `max_age` seconds old, or when more than `max_open` are open.

    Args:
        tracer_provider: None is the global one.
        meter_provider: None is the global one.
        max_open: How many generations are remembered, of those under way and of those that ended each.
        max_age: Seconds after which an end is no longer expected.
        clock: Nanoseconds since 1970.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        max_open: int = 20_000,
        max_age: float = 3600.0,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = trace.get_tracer("flux_klein_async", __version__, tracer_provider)
        self._measured = Instruments(metrics.get_meter("flux_klein_async", __version__, meter_provider))
        self._max_open = max_open
        self._max_age = max_age
        self._clock = clock
        self._open: dict[str, Open] = {}
        # By request id and by call: the span that told of it, and how it ended.
        self._ended: dict[str | int, tuple[SpanContext, str]] = {}
        self._tries: dict[int, list[Retrying]] = {}

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case Submitted():
                self._submitted(event)
            case Polled() | StateChanged():
                self._seen(event)
            case Retrying():
                self._retrying(event)
            case Held():
                self._measured.holds.add(1, {"flux_klein.call.kind": event.kind})
            case Finished():
                self._finished(event)
            case Downloaded() | Failed(verb="download" | "download_bytes"):
                self._files(event)
            case Failed() | Uncertain():
                self._failed(event)
            case Cancelled():
                self._cancelled(event)
            case Closed():
                self._abandon_all(event.at)

    # --- beginnings

    def _submitted(self, event: Submitted) -> None:
        record = self._begin(event, event.seconds, event.model)
        inside = trace.set_span_in_context(record.span)
        submit = self._tracer.start_span("flux_klein.submit", inside, start_time=record.instant(record.started))
        for retry in self._tries.pop(event.call or 0, []):
            record.retries += 1
            submit.add_event("flux_klein.retry", retry_facts(retry), record.instant(retry.at))
        submit.end(record.instant(event.at))
        record.wait = self._tracer.start_span("flux_klein.wait", inside, start_time=record.instant(event.at))
        self._measured.in_flight.add(1, model_facts(record.model))
        self._open[event.request_id or ""] = record
        self._forget(event.at)

    def _begin(self, event: Event, seconds: float | None, model: str | None) -> Open:
        """Start a generation's span where its call began: it is told of later than it began."""
        began = event.at - (seconds or 0.0)
        epoch = self._clock() - round(event.at * 1e9)
        attributes = {"gen_ai.operation.name": _OPERATION, "gen_ai.provider.name": _PROVIDER, **model_facts(model)}
        if event.request_id is not None:
            attributes["gen_ai.response.id"] = event.request_id
        if event.tag is not None:
            attributes["flux_klein.tag"] = plain(event.tag)  # type: ignore[assignment]  # a tuple is as good
        before = [self._ended[key] for key in _keys(event) if key in self._ended]
        span = self._tracer.start_span(
            f"{_OPERATION} {model}" if model else _OPERATION,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=[Link(context) for context, _ in before],
            start_time=epoch + round(began * 1e9),
        )
        return Open(span, epoch, began, event.at, model)

    # --- between

    def _seen(self, event: Polled | StateChanged) -> None:
        record = self._open.get(event.request_id or "")
        if record is None:
            return
        if isinstance(event, Polled):
            record.polls = event.poll
            if event.error is not None:
                record.note("poll_failed", event.at, {"error.message": clipped(event.error)})
            return
        facts: Attributes = {"flux_klein.state": event.state.value}
        if event.queue_position is not None:
            facts["flux_klein.queue.position"] = event.queue_position
        record.note("state_changed", event.at, facts)
        if event.state is RequestState.IN_PROGRESS and "flux_klein.queue.duration" not in record.facts:
            queued = record.facts["flux_klein.queue.duration"] = event.at - record.submitted
            self._measured.queue.record(queued, model_facts(record.model))

    def _retrying(self, event: Retrying) -> None:
        self._measured.retries.add(1, {"flux_klein.call.kind": event.kind or "unknown"})
        if (record := self._open.get(event.request_id or "")) is not None:
            record.retries += 1
            record.note("retry", event.at, retry_facts(event))
        elif event.request_id is None and event.call is not None:
            tries = self._tries.setdefault(event.call, [])
            tries.append(event)
            del tries[:-_TRIES_KEPT]
            bounded(self._tries, self._max_open)

    # --- ends

    def _finished(self, event: Finished) -> None:
        record = self._ending(event, event.seconds, event.model)
        if record is None:
            return
        record.polls = event.polls
        model = model_facts(record.model)
        self._measured.polls.record(event.polls, model)
        if event.lag_max is not None:
            record.facts["flux_klein.lag"] = event.lag_max
            self._measured.lag.record(event.lag_max, model)
        if event.cost_usd is not None:
            record.facts["flux_klein.cost"] = event.cost_usd
            self._measured.cost.add(max(0.0, event.cost_usd), model)
        self._end(record, event, "completed")

    def _failed(self, event: Failed | Uncertain) -> None:
        record = self._ending(event, event.seconds, event.model)
        if record is None:
            return
        tries = self._tries.pop(event.call or 0, [])
        record.retries += len(tries)
        for retry in tries:
            record.note("retry", retry.at, retry_facts(retry))
        error_type = event.error_type if isinstance(event, Failed) else "SubmissionUncertainError"
        self._end(record, event, _OUTCOMES.get(error_type, "error"), error_type, event.error)

    def _cancelled(self, event: Cancelled) -> None:
        record = self._open.get(event.request_id or "")
        if record is None:
            return
        if not (event.cancelled or event.abandoned):
            record.note("cancel_refused", event.at, {})  # somebody may well wait on
            return
        del self._open[event.request_id or ""]
        self._leave(record)
        self._end(record, event, "cancelled" if event.cancelled else "abandoned")

    def _ending(self, event: Finished | Failed | Uncertain, seconds: float | None, model: str | None) -> Open | None:
        """The generation that this ends, or None where its end has been told already.

        One that was submitted elsewhere, or never accepted, gets its span only now.
        """
        record = self._open.pop(event.request_id or "", None)
        if record is not None:
            self._leave(record)
            return record
        told = [self._ended[key] for key in _keys(event) if key in self._ended]
        unaccepted = event.request_id is None
        if any(unaccepted or outcome in _SETTLED for _, outcome in told):
            return None
        return self._begin(event, seconds, model)

    def _leave(self, record: Open) -> None:
        self._measured.in_flight.add(-1, model_facts(record.model))

    def _end(self, record: Open, event: Event, outcome: str, error_type: str | None = None, error: str = "") -> None:
        at, span = event.at, record.span
        failure: Attributes = {"error.type": error_type} if error_type is not None else {}
        if error_type is not None:
            span.set_status(StatusCode.ERROR, clipped(error))
        span.set_attributes(
            {
                "flux_klein.outcome": outcome,
                "flux_klein.polls": record.polls,
                "flux_klein.retries": record.retries,
                **record.facts,
                **failure,
            }
        )
        if record.wait is not None:
            record.wait.end(record.instant(at))
        span.end(record.instant(at))
        model = model_facts(record.model)
        self._measured.generations.add(1, {"flux_klein.outcome": outcome, **model, **failure})
        labels: Attributes = {"gen_ai.operation.name": _OPERATION, "gen_ai.provider.name": _PROVIDER}
        self._measured.duration.record(at - record.started, {**labels, **model, **failure})
        for key in _keys(event):
            self._ended.pop(key, None)  # the last is the youngest
            self._ended[key] = (span.get_span_context(), outcome)
        bounded(self._ended, 2 * self._max_open)

    def _files(self, event: Downloaded | Failed) -> None:
        """A span for files that came or did not: inside the generation's where that is known, else the caller's."""
        verb, facts = "download", Attributes()
        if isinstance(event, Failed):
            verb, facts["error.type"] = event.verb or verb, event.error_type
        else:
            facts["flux_klein.files"] = len(event.paths)
        ended = self._ended.get(event.request_id or "")
        inside = trace.set_span_in_context(NonRecordingSpan(ended[0])) if ended else None
        now = self._clock()
        span = self._tracer.start_span(
            f"flux_klein.{verb}",
            inside,
            attributes={"gen_ai.response.id": event.request_id or "", **facts},
            start_time=now - round((event.seconds or 0.0) * 1e9),
        )
        if isinstance(event, Failed):
            span.set_status(StatusCode.ERROR, clipped(event.error))
        span.end(now)

    # --- what never ends

    def _forget(self, at: float) -> None:
        """End what is too old, or one too many: its end is not going to be seen."""
        while self._open:
            request_id, record = next(iter(self._open.items()))
            if len(self._open) <= self._max_open and at - record.submitted <= self._max_age:
                return
            self._abandon(request_id, at)

    def _abandon_all(self, at: float) -> None:
        for request_id in list(self._open):
            self._abandon(request_id, at)
        self._tries.clear()

    def _abandon(self, request_id: str, at: float) -> None:
        record = self._open.pop(request_id)
        self._leave(record)
        self._end(record, Event(at=at, request_id=request_id), "abandoned")


def _keys(event: Event) -> list[str | int]:
    """What a generation is known by: its request id, and the call that asked for it while it had none."""
    call = event.call if isinstance(event, Submitted | Failed | Uncertain) else None
    return [key for key in (event.request_id, call) if key is not None]
