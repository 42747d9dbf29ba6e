"""What handlers of events share: several as one, and values that are fit to be shown anywhere.

Must not know any third party.
"""

import logging
from collections.abc import Callable

from flux_klein_async.events import Event

__all__ = ["Handler", "clipped", "combine", "plain"]

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
