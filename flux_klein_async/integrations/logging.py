"""One log record for each event, with its facts as fields; nothing but the standard library is needed."""

import dataclasses
import logging

from flux_klein_async.events import (
    Cancelled,
    Closed,
    Downloaded,
    Event,
    Failed,
    Finished,
    Held,
    Looked,
    Retrying,
    StateChanged,
    Submitted,
    Uncertain,
)
from flux_klein_async.integrations.handlers import clipped, plain

__all__ = ["LogEvents"]

# The name in the record, and the level: what happens all the time is for debugging, what a person should see once it
# happens often is a warning, what costs money or a picture is an error.
_KINDS: dict[type[Event], tuple[str, int]] = {
    Submitted: ("submitted", logging.INFO),
    Looked: ("looked", logging.DEBUG),
    StateChanged: ("state_changed", logging.DEBUG),
    Held: ("held", logging.WARNING),
    Retrying: ("retrying", logging.WARNING),
    Finished: ("finished", logging.INFO),
    Failed: ("failed", logging.ERROR),
    Cancelled: ("cancelled", logging.INFO),
    Uncertain: ("uncertain", logging.ERROR),
    Downloaded: ("downloaded", logging.INFO),
    Closed: ("closed", logging.INFO),
}


class LogEvents:
    """An `on_event` handler that logs.

    A record's message is the event's name and facts in one line. The same facts are attributes of the record, as
    `extra=` makes them, so that a formatter for JSON finds them: `klein_event`, `klein_request_id`, `klein_tag`,
    `klein_at` (seconds on the loop's clock), and `klein_` before each field of the event. A fact that is None is left
    out. Texts are cut at 300 characters, tuples at 10; a tag that is no text and no number is shown by its type.

    Args:
        logger: Where to; None is the logger `flux_klein_async.events`.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("flux_klein_async.events")

    def __call__(self, event: Event) -> None:
        """Log one event."""
        name, level = _KINDS.get(type(event), (type(event).__name__.lower(), logging.INFO))
        if _leaves_running(event):
            level = logging.WARNING
        if not self._logger.isEnabledFor(level):
            return
        facts = {
            field.name: plain(value)
            for field in dataclasses.fields(event)
            if (value := getattr(event, field.name)) is not None
        }
        if isinstance(event, Closed):
            facts["left_running_count"] = len(event.left_running)  # the ids themselves are cut
        shown = " ".join(f"{key}={_short(value)}" for key, value in facts.items() if key != "at")
        extra = {f"klein_{key}": value for key, value in facts.items()}
        self._logger.log(level, "%s %s", name, clipped(shown), extra={"klein_event": name, **extra})


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _leaves_running(event: Event) -> bool:
    """Whether it says that something runs on, and is charged, that nobody waits for."""
    if isinstance(event, Cancelled):
        return event.abandoned and not event.cancelled
    return isinstance(event, Closed) and bool(event.left_running)
