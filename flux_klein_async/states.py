"""Where a request can stand, and the one table of the words that say so. Pure."""

from enum import StrEnum

__all__ = ["RequestState"]


class RequestState(StrEnum):
    """Where a request stands. `UNKNOWN` is a word nobody documented: it is waited out, never an end."""

    IN_QUEUE = "in_queue"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @classmethod
    def read(cls, word: object) -> "RequestState":
        """The state that a word on the wire stands for, in any case."""
        if not isinstance(word, str):
            return cls.UNKNOWN
        return _STATES.get(word) or _STATES.get(word.strip().lower(), cls.UNKNOWN)

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self in _FINAL


# docs/wire.md, "States": the documented words first, then those observed in the vendor's clients.
_STATES = {
    "in_queue": RequestState.IN_QUEUE,
    "in_progress": RequestState.IN_PROGRESS,
    "completed": RequestState.COMPLETED,
    "cancelled": RequestState.CANCELLED,
    "succeeded": RequestState.COMPLETED,
    "failed": RequestState.FAILED,
    "canceled": RequestState.CANCELLED,
    "pending": RequestState.IN_QUEUE,
    "waiting": RequestState.IN_QUEUE,
    "starting": RequestState.IN_PROGRESS,
    "processing": RequestState.IN_PROGRESS,
}
_FINAL = frozenset({RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED})
