"""What handlers of events share: several as one, and values that are fit to be shown anywhere.

Must not know any third party.

One log record for each event, with its facts as fields; nothing but the standard library is needed.
"""

import dataclasses
import logging
from collections.abc import Callable

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

__all__ = ["LogEvents", "combine"]


Handler = Callable[[Event], None]

_LONGEST = 300  # characters of a text: an error's sentence, not a page that a gateway sent
_MOST = 10  # of a tuple
_INT64 = 2**63  # protocols of telemetry hold no larger integer
_CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029], " ")  # what would forge a line of a log
log = logging.getLogger("flux_klein_async")


def combine(*handlers: Handler | None) -> Handler:
    """Make one `on_event` of several, called in this order; None is left out.

    One that raises is logged, and the others are told all the same.
    """
    called = [handler for handler in handlers if handler is not None]

    def tell(event: Event) -> None:
        for handler in called:
            try:
                handler(event)
            except Exception:
                log.exception("A handler of events raised; the others go on")

    return tell


def clipped(text: str) -> str:
    """A text in one line of at most 300 characters, all of which can be encoded."""
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return short.translate(_CONTROL).encode("utf-8", "replace").decode("utf-8")


def plain(value: object) -> str | bool | int | float | tuple[str, ...]:
    """What may be shown of a value: numbers and bounded text, and of anything else only its type's name.

    A tag can be an object that holds whatever its owner likes; its `repr` is not ours to publish.
    """
    if isinstance(value, str):
        return clipped(str(value))
    if isinstance(value, float) or (isinstance(value, int) and -_INT64 <= value < _INT64):
        return value
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return tuple(clipped(item) for item in value[:_MOST])
    return type(value).__name__


# The name in the record, and the level: what happens all the time is for debugging, what a person should see once it
# happens often is a warning, what costs money or a picture is an error.
_KINDS: dict[type[Event], tuple[str, int]] = {
    Submitted: ("submitted", logging.INFO),
    Polled: ("polled", logging.DEBUG),
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
