"""The policy that learns how long generations take, and looks when a look is worth its price.

What is learned is in `outlook` (with `durations` and `pace`), when to look in `schedule`; here the two meet the waits.
A wait's clock runs from its acceptance or, where it was seen queued, from its start. All instants are those at which
looks are sent: a round trip moves every one of them alike.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.models import RequestState, brief_repr
from flux_klein_async.options import finite
from flux_klein_async.polling.durations import Size
from flux_klein_async.polling.outlook import History, Outlook
from flux_klein_async.polling.policies import Observation, Progress
from flux_klein_async.polling.served import ServedTimes
from flux_klein_async.polling.store import ModelSnapshot, SizeSnapshot, Snapshot, Store

if TYPE_CHECKING:
    import os

__all__ = ["AdaptivePolling"]

_logger = logging.getLogger("flux_klein_async")
_MODELS: Final = 64  # histories kept; the oldest goes first
_KEYS: Final = 4096  # pairs of model and pixels whose outlook is found without arithmetic
_FOREVER: Final = 1e9  # seconds that no wait takes
_ODD: Final = 10.0  # seconds by which an account may exceed what was seen


class AdaptivePolling:
    """Learns from each wait; looks so that needless waiting plus the price of looking is least.

    Args:
        look_cost: What a look is worth, in seconds of needless waiting. At 0.010 the average wait for a picture of
            1024 x 1024 is seen 28 ms after its end, with three looks; a smaller price buys speed with looks.
        minimum: Seconds between two looks at least.
        maximum: Seconds between two looks at most.
        store: Path of a file that keeps what was learned between processes; None keeps nothing.

    Raises:
        ConfigurationError: A number is out of range.
    """

    def __init__(
        self,
        *,
        look_cost: float = 0.010,
        minimum: float = 0.020,
        maximum: float = 5.0,
        store: "str | os.PathLike[str] | None" = None,
    ) -> None:
        for name, value in {"look_cost": look_cost, "minimum": minimum, "maximum": maximum}.items():
            if not finite(value) or value < 1e-6:
                raise ConfigurationError(f"AdaptivePolling.{name} must be a number of seconds above 0")
        if maximum < minimum:
            raise ConfigurationError("AdaptivePolling.maximum must not be below its minimum")
        self.look_cost = look_cost
        self.minimum = minimum
        self.maximum = maximum
        self._histories: dict[str | None, History] = {}
        self._outlooks: dict[tuple[str | None, int | None, bool], Outlook] = {}
        self._served = ServedTimes()
        self._told: set[str] = set()
        self._new = 0
        self._store = None if store is None else Store(store)
        if self._store is not None and (snapshot := self._store.load()) is not None:
            self._restore(snapshot)

    def __repr__(self) -> str:
        facts = {"look_cost": self.look_cost, "minimum": self.minimum, "maximum": self.maximum}
        return brief_repr(self, facts | {"models": len(self._histories)})

    def next_look(self, progress: Progress) -> float:
        """Seconds from the start of the last look to the next; between `minimum` and `maximum`."""
        model, pixels, looks, age, state, state_age, _, _, round_trip, sent, queued, price = progress
        if sent is None:
            sent = max(age - (round_trip or 0.0), 0.0) if looks else 0.0
        if queued is None:
            if model is None and not looks:
                return self.minimum  # somebody else's request: it may have ended long ago
            look = self.outlook(model, pixels).schedule(self.look_cost, price).after(sent)
        else:
            outlook = self.outlook(model, pixels, queued=True)
            left = None if state is RequestState.IN_QUEUE else age - state_age - (round_trip or 0.0)
            low, high = outlook.history.pace.window(queued, left)
            look = low + outlook.schedule(self.look_cost, price, high - low).after(max(sent - low, 0.0))
        return min(self.maximum, max(self.minimum, look - sent))

    def observe(self, observation: Observation) -> None:
        """Learn from a wait that has ended."""
        low, high = observation.not_before, observation.not_after if observation.sent is None else observation.sent
        if not _possible(observation, low, high):
            self._tell("A wait is said to have ended between %r and %r s; nothing is learned from that", low, high)
            return
        round_trip = observation.not_after - high
        low, high = self._narrow(low, high, observation.served, round_trip)
        queued = observation.queued
        outlook = self.outlook(observation.model, observation.pixels, queued=queued is not None)
        if queued is not None:
            running = observation.running_since
            left = high if running is None else min(max(running - round_trip, queued.until), high)
            # It started a generation before its end, between the look that saw it queued and the one that did not.
            started = (low + high) / 2 - outlook.distribution().quantile(0.5)
            outlook.history.pace.learn(queued, min(max(started, queued.until), left))
            low, high = max(low - left, 0.0), max(high - queued.until, 0.0)
        outlook.learn(low, high)
        self._new += 1

    def outlook(self, model: str | None, pixels: int | None, *, queued: bool = False) -> Outlook:
        """What is believed of a model and size now; `queued`: counted from the start of one that was seen queued."""
        found = self._outlooks.get((model, pixels, queued))
        if found is None:
            if len(self._outlooks) >= _KEYS:
                self._outlooks.clear()
            found = self._history(model).outlook(Size.of(pixels, queued=queued))
            self._outlooks[model, pixels, queued] = found
        return found

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        """A function that writes the store, for a thread; None without a store, or if fewer waits than that are new."""
        if self._store is None or self._new < at_least:
            return None
        self._new = 0
        return partial(self._store.save, self._snapshot())

    def save(self) -> None:
        """Write the store now, if there is one and something is new. Blocks."""
        write = self.unsaved()
        if write is not None:
            write()

    def _history(self, model: str | None) -> History:
        found = self._histories.get(model)
        if found is None:
            if len(self._histories) >= _MODELS:
                del self._histories[next(iter(self._histories))]
                self._outlooks.clear()
            found = self._histories[model] = History()
        return found

    def _narrow(self, low: float, high: float, served: float | None, round_trip: float) -> tuple[float, float]:
        if served is None:
            return low, high
        if not 0 <= served <= high + _ODD:
            self._tell("The service says that a generation took %r s, which cannot be; what was seen counts", served)
        found = self._served.narrow(low, high, served, round_trip)
        if not self._served.believed:
            self._tell("The service's times (finished_at - created_at) contradict what was seen; they are not used")
        return found

    def _tell(self, sentence: str, *values: object) -> None:
        """Log each kind of oddity once."""
        if sentence not in self._told:
            self._told.add(sentence)
            _logger.warning(sentence, *values)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            models=[
                ModelSnapshot(
                    model=model,
                    seconds=history.pace.seconds,
                    variance=history.pace.variance,
                    count=history.pace.count,
                    sizes=[
                        SizeSnapshot(octave=size.octave, queued=size.queued, bins=bins)
                        for size, bins in history.durations.weights()
                    ],
                )
                for model, history in self._histories.items()
            ]
        )

    def _restore(self, snapshot: Snapshot) -> None:
        for kept in snapshot.models[-_MODELS:]:
            history = self._history(kept.model)
            history.pace.restore(kept.seconds, kept.variance, kept.count)
            for size in kept.sizes:
                history.durations.restore(Size(size.octave, size.queued), size.bins)


def _possible(observation: Observation, low: float, high: float) -> bool:
    """Whether the instants are such as a loop's clock tells, in their order. For NaN no comparison holds."""
    queued, running = observation.queued, observation.running_since
    return (
        0 <= low <= high <= _FOREVER
        and (queued is None or 0 <= queued.entered <= queued.until <= high)
        and (running is None or 0 <= running <= _FOREVER)
    )
