"""The SDK's in-memory exporters for spans and metrics, and what a test reads from them."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from flux_klein_async.integrations.opentelemetry import Telemetry

__all__ = ["Memory"]


def virtual_clock() -> int:
    """The loop's time as the time of day, so that measured times are exact."""
    return round(asyncio.get_running_loop().time() * 1e9)


@dataclass
class Memory:
    """A `Telemetry` handler, and what it has exported."""

    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.tell = Telemetry(
            tracer_provider=self.traces,
            meter_provider=MeterProvider([self.reader]),
            **{"clock": virtual_clock, **self.options},
        )

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
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

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
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def happened(span: ReadableSpan) -> list[str]:
    """The names of a span's events."""
    return [event.name.removeprefix("flux_klein.") for event in span.events]
