"""Logs from events: one record for each, with its facts as fields.

Needs the standard library alone.
"""

import dataclasses
import logging
import re
from collections.abc import Callable

from flux_klein_async.events import (
    Cancelled,
    Closed,
    Event,
    Failed,
    Held,
    LimiterChanged,
    Polled,
    Retrying,
    StateChanged,
    Uncertain,
)
from flux_klein_async.text import clipped, plain

__all__ = ["LogEvents", "combine"]

Handler = Callable[[Event], None]

log = logging.getLogger("flux_klein_async")

# All others are INFO. An error costs money or a picture; a warning matters only if it is frequent.
_LEVELS: dict[type[Event], int] = {
    Polled: logging.DEBUG,
    StateChanged: logging.DEBUG,
    Held: logging.WARNING,
    LimiterChanged: logging.WARNING,
    Retrying: logging.WARNING,
    Failed: logging.ERROR,
    Uncertain: logging.ERROR,
}


def combine(*handlers: Handler | None) -> Handler:
    """Combine several handlers into one `on_event` that calls them in this order; None is skipped.

    An exception of one handler is logged, and the others are still called.
    """
    called = [handler for handler in handlers if handler is not None]

    def handle(event: Event) -> None:
        for handler in called:
            try:
                handler(event)
            except Exception:
                log.exception("An event handler raised; the others are still called")

    return handle


class LogEvents:
    """An `on_event` handler that logs.

    A record's message is the event's name and its facts in one line of at most 300 characters, an error last. The same
    facts are attributes of the record, as with `extra=`, so that a JSON formatter finds them: `klein_event`,
    `klein_request_id`, `klein_tag`, `klein_at` (seconds on the loop's clock), and `klein_` before each field of the
    event. Fields that are None are left out. Texts are cut at 300 characters and tuples at 10 entries; a tag that is
    neither text nor number is shown as its type.

    Args:
        logger: The logger to use; None is `flux_klein_async.events`.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("flux_klein_async.events")

    def __call__(self, event: Event) -> None:
        """Log one event."""
        level = logging.WARNING if _leaves_running(event) else _LEVELS.get(type(event), logging.INFO)
        if not self._logger.isEnabledFor(level):
            return
        name = re.sub(r"\B[A-Z]", r"_\g<0>", type(event).__name__).lower()
        values = ((field.name, getattr(event, field.name)) for field in dataclasses.fields(event))
        facts = {key: plain(value) for key, value in values if value is not None}
        if "error" in facts:  # last: the line is cut, and numbers are short
            facts["error"] = facts.pop("error")
        if isinstance(event, Closed):
            facts["left_running_count"] = len(event.left_running)  # the list itself is cut
        line = " ".join(f"{key}={_short(value)}" for key, value in facts.items() if key != "at")
        extra = {f"klein_{key}": value for key, value in facts.items()}
        self._logger.log(level, "%s %s", name, clipped(line), extra={"klein_event": name, **extra})


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _leaves_running(event: Event) -> bool:
    """Whether a generation that nobody waits for keeps running, and is charged."""
    if isinstance(event, Cancelled):
        return event.abandoned and not event.cancelled
    return isinstance(event, Closed) and bool(event.left_running)
