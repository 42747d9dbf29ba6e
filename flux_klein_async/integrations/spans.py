"""What is kept of a generation while its span is open, and what spans say of models and repeats.

Needs the extra `opentelemetry`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from opentelemetry.trace import Span

from flux_klein_async.events import Retrying
from flux_klein_async.integrations.handlers import clipped

__all__ = ["Attributes", "Open", "Value", "bounded", "model_facts", "retry_facts"]

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
    looks: int = 0
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
