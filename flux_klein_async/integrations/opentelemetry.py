"""Traces and metrics from events: one span for each generation, with its submit, its wait and its downloads inside.

Needs the extra `opentelemetry`, which is the API alone: the application chooses an SDK and exporters. Names that begin
with `gen_ai.` are from OpenTelemetry's conventions for generative AI, which are still in development; what these have
no name for (polls, lag, money) begins with `flux_klein.`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode

from flux_klein_async import __version__
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
from flux_klein_async.models import RequestState
from flux_klein_async.text import clipped, plain

__all__ = ["Telemetry"]

Attributes = dict[str, str | bool | int | float]

_OPERATION = "generate_content"  # the conventions' name for generating anything but text alone
_LABELS: Attributes = {"gen_ai.operation.name": _OPERATION, "gen_ai.provider.name": "runcomfy"}
_SECONDS = [0.01 * 2**power for power in range(14)]  # the conventions' bounds for gen_ai.client.operation.duration
_POLLS = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100]
_OUTCOMES = {
    "GenerationFailedError": "failed",
    "GenerationCancelledError": "cancelled",
    "SubmissionUncertainError": "uncertain",
    "WaitTimeoutError": "timeout",
}
_FINAL = {"completed", "failed", "cancelled"}
_RETRIES_KEPT = 16  # of one submit, for its span; the metric counts them all


class Instruments:
    """Every counter and histogram."""

    def __init__(self, meter: metrics.Meter) -> None:
        def histogram(name: str, text: str, unit: str = "s", bounds: Sequence[float] = _SECONDS) -> metrics.Histogram:
            return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=bounds)

        counter = meter.create_counter
        self.generations = counter("flux_klein.generations", "{generation}", "Generations that ended, by outcome.")
        self.duration = histogram("gen_ai.client.operation.duration", "From the call to its end.")
        self.queue = histogram("flux_klein.queue.duration", "From the accepted submit to the poll that saw it running.")
        self.lag = histogram("flux_klein.lag", "At most this long before the last poll did the generation end.")
        self.polls = histogram("flux_klein.polls", "Polls of a generation.", "{poll}", _POLLS)
        self.retries = counter("flux_klein.retries", "{retry}", "Repeated calls, by kind.")
        self.holds = counter("flux_klein.holds", "{hold}", "Pauses that the service asked for, by kind of call.")
        self.cost = counter("flux_klein.cost", "{USD}", "Cost that results report, in US dollars.")
        self.in_flight = meter.create_up_down_counter(
            "flux_klein.in_flight", "{generation}", "Generations accepted and not known to have ended."
        )


@dataclass(slots=True)
class _Open:
    """A generation that has not ended. Instants are seconds on the loop's clock."""

    span: Span
    epoch: int  # nanoseconds from 1970 to the loop's zero, taken once: durations stay exact when the clock is set
    started: float
    submitted: float
    model: Attributes
    wait: Span | None = None
    polls: int = 0
    retries: int = 0
    attributes: Attributes = field(default_factory=dict)

    def instant(self, at: float) -> int:
        return self.epoch + round(at * 1e9)

    def add_event(self, name: str, at: float, attributes: Attributes) -> None:
        (self.wait or self.span).add_event(f"flux_klein.{name}", attributes, self.instant(at))


class Telemetry:
    """An `on_event` handler for one client that makes spans and metrics.

    The parent of a generation's span is the span that is current where the generation was called. A generation without
    a known end (submitted and never waited for, or abandoned with "leave") ends as "abandoned" when the client closes,
    when it is `max_age` seconds old, or when more than `max_open` are open.

    Args:
        tracer_provider: None is the global one.
        meter_provider: None is the global one.
        max_open: How many open generations are remembered, and how many that ended.
        max_age: Seconds after which no end is expected.
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
        self._instruments = Instruments(metrics.get_meter("flux_klein_async", __version__, meter_provider))
        self._max_open = max_open
        self._max_age = max_age
        self._clock = clock
        self._open: dict[str, _Open] = {}  # by request id
        self._ended: dict[str | int, tuple[SpanContext, str]] = {}  # by request id and by call: span and outcome
        self._retries: dict[int, list[Retrying]] = {}  # by call, of submits without an id yet

    def __call__(self, event: Event) -> None:
        """Handle one event."""
        match event:
            case Submitted():
                self._submitted(event)
            case Polled() | StateChanged():
                self._polled(event)
            case Retrying():
                self._retrying(event)
            case Held():
                self._instruments.holds.add(1, {"flux_klein.call.kind": event.kind})
            case Finished():
                self._finished(event)
            case Downloaded() | Failed(verb="download" | "download_bytes"):
                self._downloaded(event)
            case Failed() | Uncertain():
                self._failed(event)
            case Cancelled():
                self._cancelled(event)
            case Closed():
                self._abandon(event.at, keep=0)
                self._retries.clear()

    def _submitted(self, event: Submitted) -> None:
        record = self._start(event, event.seconds, event.model)
        parent = trace.set_span_in_context(record.span)
        submit = self._tracer.start_span("flux_klein.submit", parent, start_time=record.instant(record.started))
        for retry in self._retries.pop(event.call or 0, []):
            record.retries += 1
            submit.add_event("flux_klein.retry", _retry_attributes(retry), record.instant(retry.at))
        submit.end(record.instant(event.at))
        record.wait = self._tracer.start_span("flux_klein.wait", parent, start_time=record.instant(event.at))
        self._instruments.in_flight.add(1, record.model)
        self._open[event.request_id or ""] = record
        self._abandon(event.at, keep=self._max_open)

    def _start(self, event: Event, seconds: float | None, model: str | None) -> _Open:
        """Start a generation's span at the time of its call, which is before the event."""
        started = event.at - (seconds or 0.0)
        epoch = self._clock() - round(event.at * 1e9)
        known: Attributes = {} if model is None else {"gen_ai.request.model": model}
        attributes = {**_LABELS, **known}
        if event.request_id is not None:
            attributes["gen_ai.response.id"] = event.request_id
        if event.tag is not None:
            attributes["flux_klein.tag"] = plain(event.tag)  # type: ignore[assignment]  # a tuple is valid as well
        span = self._tracer.start_span(
            f"{_OPERATION} {model}" if model else _OPERATION,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=[Link(context) for context, _ in self._earlier(event)],
            start_time=epoch + round(started * 1e9),
        )
        return _Open(span, epoch, started, event.at, known)

    def _polled(self, event: Polled | StateChanged) -> None:
        record = self._open.get(event.request_id or "")
        if record is None:
            return
        if isinstance(event, Polled):
            record.polls = event.poll
            if event.error is not None:
                record.add_event("poll_failed", event.at, {"error.message": clipped(event.error)})
            return
        attributes: Attributes = {"flux_klein.state": event.state.value}
        if event.queue_position is not None:
            attributes["flux_klein.queue.position"] = event.queue_position
        record.add_event("state_changed", event.at, attributes)
        if event.state is RequestState.IN_PROGRESS and "flux_klein.queue.duration" not in record.attributes:
            queued = record.attributes["flux_klein.queue.duration"] = event.at - record.submitted
            self._instruments.queue.record(queued, record.model)

    def _retrying(self, event: Retrying) -> None:
        self._instruments.retries.add(1, {"flux_klein.call.kind": event.kind or "unknown"})
        if (record := self._open.get(event.request_id or "")) is not None:
            record.retries += 1
            record.add_event("retry", event.at, _retry_attributes(event))
        elif event.request_id is None and event.call is not None:
            retries = self._retries.setdefault(event.call, [])
            retries.append(event)
            del retries[:-_RETRIES_KEPT]
            _drop_oldest(self._retries, self._max_open)

    def _finished(self, event: Finished) -> None:
        record = self._ending(event, event.seconds, event.model)
        if record is None:
            return
        record.polls = event.polls
        self._instruments.polls.record(event.polls, record.model)
        if event.lag_max is not None:
            record.attributes["flux_klein.lag"] = event.lag_max
            self._instruments.lag.record(event.lag_max, record.model)
        self._add_cost(record, event.cost_usd)
        self._end(record, event, "completed")

    def _failed(self, event: Failed | Uncertain) -> None:
        record = self._ending(event, event.seconds, event.model)
        if record is None:
            return
        for retry in self._retries.pop(event.call or 0, []):
            record.retries += 1
            record.add_event("retry", retry.at, _retry_attributes(retry))
        error_type = event.error_type if isinstance(event, Failed) else "SubmissionUncertainError"
        self._add_cost(record, event.cost_usd if isinstance(event, Failed) else None)
        self._end(record, event, _OUTCOMES.get(error_type, "error"), error_type, event.error)

    def _add_cost(self, record: _Open, usd: float | None) -> None:
        if usd is not None:
            record.attributes["flux_klein.cost"] = usd
            self._instruments.cost.add(max(0.0, usd), record.model)

    def _cancelled(self, event: Cancelled) -> None:
        if event.cancelled or event.abandoned:
            if (record := self._close(event.request_id)) is not None:
                self._end(record, event, "cancelled" if event.cancelled else "abandoned")
        elif (record := self._open.get(event.request_id or "")) is not None:
            record.add_event("cancel_refused", event.at, {})  # it goes on, and somebody may wait for it

    def _ending(self, event: Finished | Failed | Uncertain, seconds: float | None, model: str | None) -> _Open | None:
        """The generation that this event ends; None if its end is known already.

        A generation without a `Submitted` event (submitted elsewhere, or never accepted) gets its span only now.
        """
        if (record := self._close(event.request_id)) is not None:
            return record
        unaccepted = event.request_id is None
        if any(unaccepted or outcome in _FINAL for _, outcome in self._earlier(event)):
            return None
        return self._start(event, seconds, model)

    def _close(self, request_id: str | None) -> _Open | None:
        record = self._open.pop(request_id or "", None)
        if record is not None:
            self._instruments.in_flight.add(-1, record.model)
        return record

    def _end(self, record: _Open, event: Event, outcome: str, error_type: str | None = None, error: str = "") -> None:
        span, end = record.span, record.instant(event.at)
        failure: Attributes = {}
        if error_type is not None:
            failure = {"error.type": error_type}
            span.set_status(StatusCode.ERROR, clipped(error))
        counts = {"flux_klein.polls": record.polls, "flux_klein.retries": record.retries}
        span.set_attributes({"flux_klein.outcome": outcome, **counts, **record.attributes, **failure})
        if record.wait is not None:
            record.wait.end(end)
        span.end(end)
        self._instruments.generations.add(1, {"flux_klein.outcome": outcome, **record.model, **failure})
        self._instruments.duration.record(event.at - record.started, {**_LABELS, **record.model, **failure})
        for key in _keys(event):
            self._ended.pop(key, None)  # so that the key moves to the end
            self._ended[key] = (span.get_span_context(), outcome)
        _drop_oldest(self._ended, 2 * self._max_open)

    def _earlier(self, event: Event) -> list[tuple[SpanContext, str]]:
        """Spans of the same generation that ended before."""
        return [self._ended[key] for key in _keys(event) if key in self._ended]

    def _downloaded(self, event: Downloaded | Failed) -> None:
        """A span for a download: a child of the generation's span if that is known, else of the current span."""
        name, attributes = "download", Attributes({"gen_ai.response.id": event.request_id or ""})
        if isinstance(event, Failed):
            name, attributes["error.type"] = event.verb or name, event.error_type
        else:
            attributes["flux_klein.files"] = len(event.paths)
        ended = self._ended.get(event.request_id or "")
        parent = trace.set_span_in_context(NonRecordingSpan(ended[0])) if ended else None
        now = self._clock()
        start = now - round((event.seconds or 0.0) * 1e9)
        span = self._tracer.start_span(f"flux_klein.{name}", parent, attributes=attributes, start_time=start)
        if isinstance(event, Failed):
            span.set_status(StatusCode.ERROR, clipped(event.error))
        span.end(now)

    def _abandon(self, at: float, *, keep: int) -> None:
        """End the oldest open generations: those beyond `keep`, and those that are too old."""
        while self._open:
            request_id, record = next(iter(self._open.items()))
            if len(self._open) <= keep and at - record.submitted <= self._max_age:
                return
            self._close(request_id)
            self._end(record, Event(at=at, request_id=request_id), "abandoned")


def _keys(event: Event) -> list[str | int]:
    """The request id, and the number of the call that had no id yet."""
    call = event.call if isinstance(event, Submitted | Failed | Uncertain) else None
    return [key for key in (event.request_id, call) if key is not None]


def _retry_attributes(event: Retrying) -> Attributes:
    counts = {"flux_klein.attempt": event.attempt, "flux_klein.delay": event.seconds}
    return {**counts, "error.message": clipped(event.error)}


def _drop_oldest(mapping: dict[Any, Any], limit: int) -> None:
    while len(mapping) > limit:
        del mapping[next(iter(mapping))]
