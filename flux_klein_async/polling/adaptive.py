"""`AdaptivePolling`: learns how long generations take, and polls when a poll is worth its price.

For each model it keeps a history (`durations`), and for each picture size a prediction made from it: the distribution
and the schedules. A prediction is made again only when enough is new: after every sample at first, then after as many
as it was made from. The ranks of new samples in the predicted distribution show when the service has changed.

The clock of a wait runs from acceptance, or from the start of the generation if it was seen queued. All instants are
those at which polls are sent, so a round trip moves them all alike.

`Store` keeps what was learned between processes: one small JSON file, replaced whole. It is a convenience: a file that
is damaged, foreign or cannot be written costs one warning and a cold start, never a call.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.models import RequestState, brief_repr
from flux_klein_async.options import finite
from flux_klein_async.polling.durations import Distribution, Durations, QueuePace, ServedTimes, Size
from flux_klein_async.polling.policies import Observation, Progress
from flux_klein_async.polling.schedule import Schedule

__all__ = ["AdaptivePolling", "History", "ModelSnapshot", "Prediction", "SizeSnapshot", "Snapshot", "Store"]


_NEW_AT_MOST: Final = 192.0  # samples after which an prediction is old, however many it was made from
_BORROWING: Final = 4.0  # samples of its own below which other sizes' samples make an prediction old too
_FORGOTTEN: Final = 0.3  # samples that a history weighs after the service has changed
_SCHEDULES: Final = 256
_DEAREST: Final = 1024.0
_FINEST: Final = 0.01  # seconds; a delay that is known better counts as known


class Drift:
    """Notices that samples no longer come from the distribution: their ranks in it should average a half.

    The average reaches back some seven samples. A service that is suddenly twice as slow takes it past the limit at the
    eighth sample; chance, hardly ever.
    """

    __slots__ = ("_level",)

    def __init__(self) -> None:
        self._level = 0.0

    def push(self, rank: float) -> bool:
        """Take in a rank from 0 to 1; whether the service has changed."""
        self._level += 0.15 * (rank - 0.5 - self._level)
        if abs(self._level) < 0.35:
            return False
        self._level = 0.0
        return True


class History:
    """What is known of one model.

    Attributes:
        durations: How long its generations take, by size.
        pace: How fast its queue moves.
        count: Samples so far.
    """

    def __init__(self) -> None:
        self.durations = Durations()
        self.pace = QueuePace()
        self.count = 0
        self._drift = Drift()
        self._predictions: dict[Size, Prediction] = {}

    def prediction(self, size: Size) -> "Prediction":
        """The prediction for one size, always the same object."""
        found = self._predictions.get(size)
        if found is None:
            found = self._predictions[size] = Prediction(self, size)
        return found

    def notice(self, rank: float) -> None:
        """A sample has come, at this rank of what was believed of its size."""
        self.count += 1
        if self._drift.push(rank):
            self.durations.fade(_FORGOTTEN)
            for prediction in self._predictions.values():
                prediction.expire()


class Prediction:
    """What is believed of one size."""

    __slots__ = ("_distribution", "_left", "_lent_until", "_schedules", "_size", "history")

    def __init__(self, history: History, size: Size) -> None:
        self.history = history
        self._size = size
        self._schedules: dict[tuple[float, int], Schedule] = {}
        self._distribution: Distribution | None = None
        self._left = 0.0
        self._lent_until = 0.0

    def learn(self, low: float, high: float) -> None:
        """Take in a generation that took between `low` and `high` seconds."""
        rank = self.history.durations.add(self._size, low, high, self.distribution())
        self._left -= 1
        if self._left <= 0:
            self.expire()
        self.history.notice(rank)

    def expire(self) -> None:
        """Work everything out again when it is next asked for."""
        self._distribution = None

    def distribution(self) -> Distribution:
        """Of the seconds that a generation takes."""
        history = self.history
        if self._distribution is None or history.count >= self._lent_until:
            self._distribution = history.durations.distribution(self._size)
            self._schedules.clear()
            own = history.durations.weight(self._size)
            self._left = min(max(1.0, own), _NEW_AT_MOST)
            lent = math.inf if own >= _BORROWING else max(2.0, history.count)
            self._lent_until = history.count + lent
        return self._distribution

    def schedule(self, price: float, dearer: float = 1.0, width: float = 0.0) -> Schedule:
        """The best polls `price` seconds a poll, `dearer` times; after a start anywhere in `width` seconds.

        Both are rounded to half octaves, so that few schedules are made.
        """
        distribution = self.distribution()
        if dearer != 1.0:
            dearer = 2 ** (round(2 * math.log2(min(dearer, _DEAREST))) / 2) if dearer > 1 else 1.0
        steps = max(round(2 * math.log2(width / _FINEST)), 0) if width > _FINEST else 0
        found = self._schedules.get((price * dearer, steps))
        if found is None:
            if steps:
                distribution = distribution.delayed(_FINEST * 2 ** (steps / 2))
            if len(self._schedules) >= _SCHEDULES:
                self._schedules.clear()
            found = self._schedules[price * dearer, steps] = Schedule(distribution, price * dearer)
        return found


_logger = logging.getLogger("flux_klein_async")

_LARGEST: Final = 1024 * 1024

_Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]

_Place = Annotated[int, Field(ge=-1000, le=2000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SizeSnapshot(_Part):
    """The histogram of one size: weights by bin of log time."""

    octave: Annotated[int, Field(ge=0, le=1000)] | None
    queued: bool
    bins: Annotated[dict[_Place, _Weight], Field(min_length=1)]


class ModelSnapshot(_Part):
    """One model: its sizes, and the pace of its queue (seconds a place, variance, samples)."""

    model: str | None
    seconds: Annotated[float, Field(gt=0, le=1e4)]
    variance: Annotated[float, Field(ge=0, le=10)]
    count: Annotated[int, Field(ge=1)]
    sizes: list[SizeSnapshot]


class Snapshot(_Part):
    """The whole file."""

    version: Literal[1] = 1
    models: list[ModelSnapshot]


class Store:
    """A file of what was learned."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._warned = False

    def load(self) -> Snapshot | None:
        """What the file says; None where there is none, or none that can be read."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            if len(content) <= _LARGEST:
                return Snapshot.model_validate_json(content)
            self._warn("is too large to be one of ours")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror})")
        except ValidationError as error:
            self._warn(f"is damaged or from another version ({error.error_count()} errors)")
        return None

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file. Blocks: in an application on a loop, call it in a thread."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(snapshot.model_dump_json())
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning("The store of learned poll times %s %s; it is not used", self.path, what)


_MODELS: Final = 64  # histories kept; the oldest goes first
_KEYS: Final = 4096  # pairs of model and pixels whose prediction is found without arithmetic
_FOREVER: Final = 1e9  # seconds that no wait takes
_ODD: Final = 10.0  # seconds by which an account may exceed what was seen


class AdaptivePolling:
    """Learns from each wait; polls so that needless waiting plus the price of polling is least.

    Args:
        poll_cost: What a poll is worth, in seconds of needless waiting. At 0.010 the average wait for a picture of
            1024 x 1024 is seen 28 ms after its end, with three polls; a smaller price buys speed with polls.
        minimum: Seconds between two polls least.
        maximum: Seconds between two polls most.
        store: Path of a file that keeps what was learned between processes; None keeps nothing.

    Raises:
        ConfigurationError: A number is out of range.
    """

    def __init__(
        self,
        *,
        poll_cost: float = 0.010,
        minimum: float = 0.020,
        maximum: float = 5.0,
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in {"poll_cost": poll_cost, "minimum": minimum, "maximum": maximum}.items():
            if not finite(value) or value < 1e-6:
                raise ConfigurationError(f"AdaptivePolling.{name} must be a number of seconds above 0")
        if maximum < minimum:
            raise ConfigurationError("AdaptivePolling.maximum must not be below its minimum")
        self.poll_cost = poll_cost
        self.minimum = minimum
        self.maximum = maximum
        self._histories: dict[str | None, History] = {}
        self._predictions: dict[tuple[str | None, int | None, bool], Prediction] = {}
        self._served = ServedTimes()
        self._told: set[str] = set()
        self._new = 0
        self._store = None if store is None else Store(store)
        if self._store is not None and (snapshot := self._store.load()) is not None:
            self._restore(snapshot)

    def __repr__(self) -> str:
        facts = {"poll_cost": self.poll_cost, "minimum": self.minimum, "maximum": self.maximum}
        return brief_repr(self, facts | {"models": len(self._histories)})

    def next_poll(self, progress: Progress) -> float:
        """Seconds from the start of the last poll to the next; between `minimum` and `maximum`."""
        model, pixels, polls, age, state, state_age, _, _, round_trip, sent, queued, price = progress
        if sent is None:
            sent = max(age - (round_trip or 0.0), 0.0) if polls else 0.0
        if queued is None:
            if model is None and not polls:
                return self.minimum  # somebody else's request: it may have ended long ago
            poll = self.prediction(model, pixels).schedule(self.poll_cost, price).after(sent)
        else:
            prediction = self.prediction(model, pixels, queued=True)
            left = None if state is RequestState.IN_QUEUE else age - state_age - (round_trip or 0.0)
            low, high = prediction.history.pace.window(queued, left)
            poll = low + prediction.schedule(self.poll_cost, price, high - low).after(max(sent - low, 0.0))
        return min(self.maximum, max(self.minimum, poll - sent))

    def observe(self, observation: Observation) -> None:
        """Learn from a wait that has ended."""
        low, high = observation.not_before, observation.not_after if observation.sent is None else observation.sent
        if not _possible(observation, low, high):
            self._tell("A wait is said to have ended between %r and %r s; nothing is learned from that", low, high)
            return
        round_trip = observation.not_after - high
        low, high = self._narrow(low, high, observation.served, round_trip)
        queued = observation.queued
        prediction = self.prediction(observation.model, observation.pixels, queued=queued is not None)
        if queued is not None:
            running = observation.running_since
            left = high if running is None else min(max(running - round_trip, queued.until), high)
            # It started a generation before its end, between the poll that saw it queued and the one that did not.
            started = (low + high) / 2 - prediction.distribution().quantile(0.5)
            prediction.history.pace.learn(queued, min(max(started, queued.until), left))
            low, high = max(low - left, 0.0), max(high - queued.until, 0.0)
        prediction.learn(low, high)
        self._new += 1

    def prediction(self, model: str | None, pixels: int | None, *, queued: bool = False) -> Prediction:
        """What is believed of a model and size now; `queued`: counted from the start of one that was seen queued."""
        found = self._predictions.get((model, pixels, queued))
        if found is None:
            if len(self._predictions) >= _KEYS:
                self._predictions.clear()
            found = self._history(model).prediction(Size.of(pixels, queued=queued))
            self._predictions[model, pixels, queued] = found
        return found

    def median(self, model: str | None, pixels: int | None) -> float | None:
        """Half of the generations of this model and size take at most so many seconds; None before any is known."""
        prediction = self.prediction(model, pixels)
        durations, size = prediction.history.durations, Size.of(pixels)
        known = durations.weight(size) + durations.lent(size) > 0
        return prediction.distribution().quantile(0.5) if known else None

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
                self._predictions.clear()
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
