"""`AdaptivePolling`, the default policy: learns how long generations take, and polls when a poll is worth its price.

The clock of a wait starts at acceptance, or at the step to running if the request was queued. All times are those at
which polls are sent, so a round trip shifts them equally and costs no poll. `Store` keeps what was learned between
processes, in one JSON file. If the file is damaged or cannot be written, the policy logs one warning and starts cold.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.models import RequestState, brief_repr
from flux_klein_async.paths import user_path
from flux_klein_async.polling.durations import Histogram, ModelEstimate, QueueSpeed, ServiceClock, Size, size_of
from flux_klein_async.polling.policies import Observation, Progress, require_at_least
from flux_klein_async.polling.schedule import Prediction

__all__ = ["AdaptivePolling"]

_log = logging.getLogger("flux_klein_async")

_Seconds = Annotated[float, Field(ge=9e-5, le=2e4)]
_Variance = Annotated[float, Field(ge=0, le=10)]
_Octave = Annotated[int, Field(ge=0, le=1000)] | None
_Bin = Annotated[int, Field(ge=-1000, le=2000)]
_Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class ModelSnapshot(BaseModel, extra="forbid", frozen=True):
    """What was learned about one model: the arguments of its `QueueSpeed`, of each `Size`, and of its `Histogram`."""

    model: str | None
    queue: tuple[_Seconds, _Variance, Annotated[int, Field(ge=1)]]
    sizes: list[tuple[_Octave, bool, Annotated[dict[_Bin, _Weight], Field(min_length=1)]]]


class Snapshot(BaseModel, extra="forbid", frozen=True):
    """The content of a store."""

    version: Literal[1] = 1
    models: list[ModelSnapshot]


_MAX_BYTES: Final = 1024 * 1024  # a larger file is cut off there, so that it is no valid JSON


class Store:
    """A file with a `Snapshot`. A file that cannot be read or written is ignored; the first failure is logged."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self._warned = False

    def load(self) -> Snapshot | None:
        """The file's content; None if there is no file or it is unusable."""
        try:
            with self.path.open("rb") as file:
                return Snapshot.model_validate_json(file.read(_MAX_BYTES))
        except FileNotFoundError:
            pass
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror})")
        except ValidationError as error:
            self._warn(f"is damaged or from another version ({error.error_count()} errors)")
        return None

    def save(self, snapshot: Snapshot) -> None:
        """Replaces the file in one step. Blocks: on an event loop, call it in a thread."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{self.path.name}.", dir=self.path.parent) as folder:
                new = Path(folder, self.path.name)
                new.write_text(snapshot.model_dump_json(), encoding="utf-8")
                new.replace(self.path)
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror})")

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("The store of learned poll times %s %s; it is not used", self.path, problem)


_MODELS, _LOOKUPS = 64, 4096  # kept; the oldest model is dropped first
_MAX_SECONDS: Final = 1e9  # of a wait
_MAX_EXCESS: Final = 10.0  # seconds by which the service's duration may exceed the observed one


class AdaptivePolling:
    """Learns from each wait, and minimises the delay plus the price of polls.

    Args:
        poll_cost: What a poll is worth, in seconds of delay. At 0.010 the end of a picture of 1024 x 1024 is noticed
            after 28 ms on average, with three polls. A lower price means less delay and more polls.
        minimum: The shortest interval between two polls, in seconds.
        maximum: The longest interval between two polls, in seconds.
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
        self.poll_cost, self.minimum, self.maximum = poll_cost, minimum, maximum
        self._models: dict[str | None, ModelEstimate] = {}
        require_at_least(1e-6, poll_cost=poll_cost, minimum=minimum, maximum=maximum)
        if maximum < minimum:
            raise ConfigurationError("maximum must not be below minimum")
        self._predictions: dict[tuple[str | None, Size], Prediction] = {}
        self._lookups: dict[tuple[str | None, int | None, bool], Prediction] = {}  # without arithmetic, for speed
        self._clock = ServiceClock()
        self._logged: set[str] = set()
        self._new = 0
        self._store = None if store is None else Store(store)
        if self._store is not None and (snapshot := self._store.load()) is not None:
            self._restore(snapshot)

    def __repr__(self) -> str:
        settings = {"poll_cost": self.poll_cost, "minimum": self.minimum, "maximum": self.maximum}
        return brief_repr(self, settings | {"models": len(self._models)})

    def next_poll(self, progress: Progress) -> float:
        """Seconds from the start of the last poll to the next; between `minimum` and `maximum`."""
        model, pixels, polls, age, state, state_age, _, _, round_trip, sent, queued, price = progress
        if sent is None:
            sent = max(age - (round_trip or 0.0), 0.0) if polls else 0.0
        if queued is None:
            if model is None and not polls:
                return self.minimum  # submitted by another process: it may have ended long ago
            poll = self.prediction(model, pixels).schedule(self.poll_cost, price).after(sent)
        else:
            prediction = self.prediction(model, pixels, queued=True)
            left = None if state is RequestState.IN_QUEUE else age - state_age - (round_trip or 0.0)
            low, high = prediction.estimate.queue.start(queued, left)
            poll = low + prediction.schedule(self.poll_cost, price, high - low).after(max(sent - low, 0.0))
        return min(self.maximum, max(self.minimum, poll - sent))

    def observe(self, observation: Observation) -> None:
        """Learns from a finished wait."""
        low, high = observation.not_before, observation.not_after if observation.sent is None else observation.sent
        if not _plausible(observation, low, high):
            self._warn("A wait cannot have ended between %r and %r s; it is ignored", low, high)
            return
        round_trip, served, queued = observation.not_after - high, observation.served, observation.queued
        if served is not None:
            if not 0 <= served <= high + _MAX_EXCESS:
                self._warn("The service reports an impossible duration of %r s; such reports are ignored", served)
            low, high = self._clock.narrow(low, high, served, round_trip)
            if not self._clock.trusted:
                self._warn("The service's durations (finished_at - created_at) contradict the polls; they are not used")
        prediction = self.prediction(observation.model, observation.pixels, queued=queued is not None)
        if queued is not None:
            running = observation.running_since
            left = high if running is None else min(max(running - round_trip, queued.until), high)
            # It started one generation before its end, between the last poll that reported it as queued and the next.
            started = (low + high) / 2 - prediction.distribution().quantile(0.5)
            prediction.estimate.queue.add(queued, min(max(started, queued.until), left))
            low, high = max(low - left, 0.0), max(high - queued.until, 0.0)
        prediction.add(low, high)
        self._new += 1

    def prediction(self, model: str | None, pixels: int | None, *, queued: bool = False) -> Prediction:
        """The current prediction; `queued`: for the time from the step to running of a queued request."""
        found = self._lookups.get((model, pixels, queued))
        if found is None:
            if len(self._lookups) >= _LOOKUPS:
                self._lookups.clear()
            if model not in self._models and len(self._models) >= _MODELS:
                oldest = next(iter(self._models))
                del self._models[oldest]
                self._predictions = {key: kept for key, kept in self._predictions.items() if key[0] != oldest}
                self._lookups.clear()
            size, estimate = size_of(pixels, queued), self._models.setdefault(model, ModelEstimate())
            found = self._predictions.setdefault((model, size), Prediction(estimate, size))
            self._lookups[model, pixels, queued] = found
        return found

    def median(self, model: str | None, pixels: int | None) -> float | None:
        """The median duration in seconds for this model and size; None before any sample."""
        prediction = self.prediction(model, pixels)
        known = any(histogram.total > 0 for histogram in prediction.estimate.histograms.values())
        return prediction.distribution().quantile(0.5) if known else None

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        """Returns a function that writes the store, for a thread; None without a store or enough new waits."""
        if self._store is None or self._new < at_least:
            return None
        self._new = 0
        return partial(self._store.save, self._snapshot())

    def save(self) -> None:
        """Writes the store now if there is one and something is new. Blocks."""
        if (write := self.unsaved()) is not None:
            write()

    def _warn(self, message: str, *values: object) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.warning(message, *values)

    def _snapshot(self) -> Snapshot:
        models = []
        for model, estimate in self._models.items():
            sizes = [(*size, histogram.bins) for size, histogram in estimate.histograms.items() if histogram.bins]
            models.append(ModelSnapshot(model=model, queue=astuple(estimate.queue), sizes=sizes))
        return Snapshot(models=models)

    def _restore(self, snapshot: Snapshot) -> None:
        for saved in snapshot.models[-_MODELS:]:
            self._models[saved.model] = estimate = ModelEstimate()
            estimate.queue = QueueSpeed(*saved.queue)
            for octave, queued, bins in saved.sizes:
                estimate.histograms[Size(octave, queued)] = Histogram(bins)


def _plausible(observation: Observation, low: float, high: float) -> bool:
    """Whether the times are such as a loop's clock gives, in their order. Comparisons with NaN are false."""
    queued, running = observation.queued, observation.running_since
    return (
        0 <= low <= high <= observation.not_after <= _MAX_SECONDS
        and (queued is None or 0 <= queued.entered <= queued.until <= high)
        and (running is None or 0 <= running <= _MAX_SECONDS)
    )
