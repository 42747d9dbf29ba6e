"""Where every item of a run stands, told by the client's events. Pure: shows nothing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flux_klein_async.events import Cancelled, Event, Finished, StateChanged, Submitted, Uncertain
from flux_klein_async.models import RequestState

__all__ = ["Board", "Standing"]


@dataclass(slots=True)
class Standing:
    """One item that was submitted: its request and the last that is known of it."""

    request_id: str
    state: RequestState


class Board:
    """The items by index: those under way, and how many have ended how.

    Attributes:
        total: How many items there are.
        done, failed: Items that have ended.
        uncertain: Submits that may or may not have been accepted.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self.uncertain = 0
        self._open: dict[int, Standing] = {}
        self._ended: set[int] = set()
        self._states: Counter[RequestState] = Counter()

    def note(self, event: Event) -> None:
        """Take in an event; the client's `tag` is the item's index."""
        if not isinstance(event.tag, int):
            return
        if isinstance(event, Uncertain):
            self.uncertain += 1
        elif event.request_id is not None and (state := _state_told(event)) is not None:
            self._set(event.tag, event.request_id, state)

    def end(self, index: int, *, failed: bool) -> None:
        """An item has ended, with its files or with its error."""
        self._ended.add(index)
        if failed:
            self.failed += 1
        else:
            self.done += 1
        if (standing := self._open.pop(index, None)) is not None:
            self._states[standing.state] -= 1

    def _set(self, index: int, request_id: str, state: RequestState) -> None:
        if index in self._ended:
            return
        if (standing := self._open.get(index)) is not None:
            self._states[standing.state] -= 1
        self._open[index] = Standing(request_id, state)
        self._states[state] += 1

    @property
    def ended(self) -> int:
        """How many items have ended, well or not."""
        return self.done + self.failed

    @property
    def queued(self) -> int:
        """How many are known to wait in the service's queue."""
        return self._states[RequestState.IN_QUEUE]

    @property
    def running(self) -> int:
        """How many are being generated or, finished, being saved."""
        return len(self._open) - self.queued

    def is_ended(self, index: int) -> bool:
        """Whether this item has ended."""
        return index in self._ended

    def under_way(self) -> Iterator[tuple[int, Standing]]:
        """Items that were submitted and have not ended, in their order."""
        yield from sorted(self._open.items(), key=lambda entry: entry[0])


def _state_told(event: Event) -> RequestState | None:
    if isinstance(event, StateChanged):
        return event.state
    if isinstance(event, Submitted):
        return RequestState.IN_QUEUE
    if isinstance(event, Finished):
        return RequestState.COMPLETED
    if isinstance(event, Cancelled) and event.cancelled is not None:
        return RequestState.CANCELLED if event.cancelled else RequestState.IN_PROGRESS  # too late: it has begun
    return None
