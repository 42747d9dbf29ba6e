"""`AdaptivePolling`, the default policy: decides when to poll next, and lets its predictions learn from each wait.

The rest of a wait is predicted (by `durations`) from several instants, and the prediction under which the ends so far
were likeliest decides (the mean gain in log likelihood over the whole):

- `whole`, from acceptance;
- `queue`, from the first poll that reported the position in the queue; then `running`, from the step to running;
- `turns`, from the instant at which so many of the client's own generations ahead were left.

All times are those at which polls are sent, so a round trip shifts them equally and costs no poll.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.misuse import named_arguments
from flux_klein_async.models import RequestState, brief_repr
from flux_klein_async.options import require_at_least
from flux_klein_async.paths import replacing, user_path
from flux_klein_async.polling.durations import Prediction
from flux_klein_async.polling.policies import Observation, Progress, Queued

__all__ = ["AdaptivePolling"]

_log = logging.getLogger("flux_klein_async")
_Bins = dict[Annotated[int, Field(ge=-1200, le=2000)], Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]]
_Factor = tuple[Annotated[float, Field(ge=-20, le=20)], Annotated[int, Field(ge=1)]]


class ModelSnapshot(BaseModel, extra="forbid", frozen=True):
    """What is kept of one model; how its queue moves is learned anew."""

    model: str | None
    whole: _Bins
    sizes: dict[Annotated[int, Field(ge=0, le=1000)], _Factor]


class Snapshot(BaseModel, extra="forbid", frozen=True):
    """The content of a store."""

    version: Literal[2] = 2
    models: list[ModelSnapshot] = []


_MAX_BYTES: Final = 1024 * 1024  # a larger file is cut off there, so that it is no valid JSON
_UNKNOWN, _LARGEST = 8 * 20, 8 * 50  # octaves: 1024 x 1024, and 2 ** 50 pixels, so that no arithmetic overflows
_FACTOR_SAMPLES: Final = 64  # of one size, over which its factor is averaged
_FACTOR_STEP: Final = 0.5  # of log time, by which one sample counts at most: most stragglers are no larger pictures
_PLACE_GAIN: Final = 0.1
_TURNS: Final = (1, 3, 7, 15, 31, 63)  # numbers of generations ahead
_SETTLED: Final = 64  # waits after which only every fourth teaches turns that are not used
_LEAST_LEAD: Final = 0.1  # chance gives less
_MODELS: Final = 64  # kept; the oldest is dropped first
_MAX_SECONDS: Final = 1e9  # of a wait
_TOLERANCE: Final = 0.003  # seconds: the service reports whole milliseconds
_MAX_PRICE: Final = 1024.0
_NEVER: Final = Queued(0.0, None, 0.0, None, 0.0)


def _places(position: int | None) -> int:
    return min(max(position or 0, 0), 10**6) + 1


@lru_cache(4096)
def _size(pixels: int | None) -> tuple[int, float]:
    """log2 of the pixels in eighths, so that nearly equal sizes are one; and its published seconds (docs/wire.md)."""
    octave = min(round(8 * math.log2(pixels)), _LARGEST) if pixels and pixels > 0 else _UNKNOWN
    return octave, 0.063 + 0.483 * 2 ** (octave / 8) / 1e6


def _start(queued: Queued, running: float) -> float:
    """The middle between the last poll that reported it as queued and the first that reported it as running."""
    return (queued.until + max(running, queued.until)) / 2


class ModelEstimate:
    """What was learned about one model."""

    def __init__(self, saved: ModelSnapshot | None = None) -> None:
        self.whole = Prediction(None if saved is None else saved.whole)
        self.queue, self.running = Prediction(lead=1.0), Prediction()
        self.turns = {count: Prediction(lead=-0.5) for count in _TURNS}
        self.turn: int | None = None  # the one that decides
        # By octave: how far (in log time) a size is from what the published times say, and its samples.
        self.sizes = {} if saved is None else dict(saved.sizes)
        self.place = 0.15  # seconds from one place in the queue to the next; the first guess is four workers at 0.57 s
        self._waits = 0

    def expected(self, pixels: int | None) -> float:
        """Seconds that a picture of this size takes, as published and corrected by what was learned."""
        octave, published = _size(pixels)
        return published * math.exp(self.sizes[octave][0]) if octave in self.sizes else published

    def after(self, progress: Progress, price: float) -> float:
        """When to poll next, in seconds since acceptance."""
        queued, expected = progress.queued, self.expected(progress.pixels)
        prediction, start = self.whole, 0.0
        if self.turn is not None and progress.fell_to is not None:
            fell = progress.fell_to(self.turn)
            # If it has yet to come, it comes now at the earliest.
            prediction, start = self.turns[self.turn], progress.age if fell is None or not math.isfinite(fell) else fell
        elif queued is not None and self.queue.lead > _LEAST_LEAD:
            if progress.state is RequestState.IN_QUEUE:
                prediction, start = self.queue, queued.since
                expected += self.place * _places(queued.position)
            else:
                prediction = self.running if self.running.total else self.whole
                start = _start(queued, progress.age - progress.state_age - (progress.round_trip or 0.0))
        return start + prediction.after(max(progress.sent - start, 0.0), expected, price)

    def add(self, observation: Observation, low: float, high: float) -> None:
        """Learns from a wait that ended between `low` and `high`."""
        queued, fell_to, expected = observation.queued, observation.fell_to, self.expected(observation.pixels)
        # Those that were seen in the queue do not show a change: the last of a burst wait longest.
        whole = self.whole.add(low, high, expected, charted=queued is None)

        def teach(prediction: Prediction, start: float, rest: float) -> None:
            prediction.score(prediction.add(max(low - start, 0.0), high - start, rest) - whole)

        if queued is not None:
            teach(self.queue, queued.since, _places(queued.position) * self.place + expected)
            if observation.running_since is not None:
                running = observation.running_since - (observation.not_after - observation.sent)
                teach(self.running, min(_start(queued, running), high), expected)
            if queued.entered_position is not None:
                waited = (low + high) / 2 - queued.entered - self.running.median(expected)
                taken = min(max(waited / _places(queued.entered_position), 1e-3), 1e3)
                self.place *= (taken / self.place) ** _PLACE_GAIN
        self._waits += 1
        if fell_to is not None and (self.turn is not None or self._waits < _SETTLED or self._waits % 4 == 0):
            for count, turn in self.turns.items():
                start = fell_to(count)
                if start is None or not -_MAX_SECONDS <= start <= high:  # neither is what is no number
                    turn.score(-math.inf)  # it ended before its turn
                else:
                    teach(turn, start, expected)
            best = max(_TURNS, key=lambda count: self.turns[count].lead)
            self.turn = best if self.turns[best].lead > _LEAST_LEAD else None
        octave, _ = _size(observation.pixels)
        factor, samples = self.sizes.get(octave, (0.0, 0))
        if len(self.sizes) > 1:  # of a single size there is nothing to correct: its distribution says it all
            rest = math.log(max((low + high) / 2, 1e-6) / self.whole.median(expected))
            factor += min(max(rest, -_FACTOR_STEP), _FACTOR_STEP) / (samples + 2)
        self.sizes[octave] = factor, min(samples + 1, _FACTOR_SAMPLES)


@named_arguments({})
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
        self._new, self._logged = 0, set[str]()
        self._store = None if store is None else user_path(store)
        if self._store is not None:
            with self._warned("read"), suppress(FileNotFoundError), self._store.open("rb") as file:
                read = Snapshot.model_validate_json(file.read(_MAX_BYTES)).models
                self._models = {saved.model: ModelEstimate(saved) for saved in read[-_MODELS:]}

    def __repr__(self) -> str:
        settings = {"poll_cost": self.poll_cost, "minimum": self.minimum, "maximum": self.maximum}
        return brief_repr(self, settings | {"models": len(getattr(self, "_models", ()))})

    @property
    def replans(self) -> bool:
        """Whether to ask again when a poll is due: the end of another generation may have changed the answer."""
        return any(estimate.turn is not None for estimate in self._models.values())

    def next_poll(self, progress: Progress) -> float:
        """Seconds from the start of the last poll to the next; between `minimum` and `maximum`."""
        if progress.model is None and not progress.polls:
            return self.minimum  # submitted by another process: it may have ended long ago
        price = self.poll_cost * max(1.0, min(progress.price, _MAX_PRICE)) + progress.delay
        interval = self.estimate(progress.model).after(progress, price) - progress.sent
        return min(self.maximum, max(self.minimum, interval))

    def observe(self, observation: Observation) -> None:
        """Learns from a finished wait."""
        low, high = observation.not_before, observation.sent
        queued, running = observation.queued or _NEVER, observation.running_since or 0.0
        # Comparisons with NaN are false.
        if not (
            0 <= low <= high <= observation.not_after <= _MAX_SECONDS
            and 0 <= queued.entered <= queued.since <= queued.until <= high
            and 0 <= running <= _MAX_SECONDS
        ):
            self._warn("A wait cannot have ended between %r and %r s; it is ignored", low, high)
            return
        served = math.nan if observation.served is None else observation.served - (observation.not_after - high)
        # Both ends of it are on the service's clock. Where the polls contradict it, they are right.
        if low - _TOLERANCE <= served <= high + _TOLERANCE:
            low = high = min(max(served, low), high)
        self.estimate(observation.model).add(observation, low, high)
        self._new += 1

    def estimate(self, model: str | None) -> ModelEstimate:
        """What was learned about a model."""
        if model not in self._models:
            if len(self._models) >= _MODELS:
                del self._models[next(iter(self._models))]
            self._models[model] = ModelEstimate()
        return self._models[model]

    def quantile(self, model: str | None, pixels: int | None, probability: float = 0.5) -> float | None:
        """The seconds in which such a part of the generations of this model and size end; None before any sample."""
        of = self.estimate(model)
        return of.whole.distribution().quantile(probability) * of.expected(pixels) if of.whole.total > 0 else None

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        """Returns a function that writes the store, for a thread; None without a store or enough new waits."""
        if self._store is None or self._new < at_least:
            return None
        self._new = 0
        models = [ModelSnapshot(model=model, whole=of.whole.bins, sizes=of.sizes) for model, of in self._models.items()]
        store, text = self._store, Snapshot(models=models).model_dump_json()

        def write() -> None:
            with self._warned("written"):
                store.parent.mkdir(parents=True, exist_ok=True)
                with replacing(store) as new:
                    new.write_text(text, encoding="utf-8")

        return write

    @contextmanager
    def _warned(self, done: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValidationError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is damaged or from another version"
            self._warn("The store of learned poll times %s cannot be %s (%s); it is not used", self._store, done, why)

    def _warn(self, message: str, *values: object) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.warning(message, *values)
