"""`AdaptivePolling`, the default policy: learns how long generations take, and polls when a poll is worth its price.

Four durations are learned, each by its own `Prediction`, and the one that has predicted best decides:

- `whole`, from acceptance to the end;
- `queue`, from the first poll that reported a position in the queue to the end;
- `running`, from the step to running to the end, of requests that were queued;
- `turns`, from the instant at which so many of the client's own generations ahead were left to the end. Where the
  service works through a queue in order, this shows the start of a generation without a poll.

All times are those at which polls are sent, so a round trip shifts them equally and costs no poll. A JSON file may keep
what was learned between processes. If it is damaged or cannot be written, the policy logs one warning and starts cold.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.models import RequestState, brief_repr
from flux_klein_async.paths import user_path
from flux_klein_async.polling.durations import Prediction
from flux_klein_async.polling.policies import Observation, Progress, Queued, require_at_least

__all__ = ["AdaptivePolling"]

_log = logging.getLogger("flux_klein_async")

_Bins = dict[Annotated[int, Field(ge=-1200, le=2000)], Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]]
_Factor = Annotated[float, Field(ge=-20, le=20)]
_Count = Annotated[int, Field(ge=1)]


class ModelSnapshot(BaseModel, extra="forbid", frozen=True):
    """What is kept of one model; how its queue moves is learned anew."""

    model: str | None
    whole: _Bins
    sizes: dict[Annotated[int, Field(ge=0, le=1000)], tuple[_Factor, _Count]]


class Snapshot(BaseModel, extra="forbid", frozen=True):
    """The content of a store."""

    version: Literal[2] = 2
    models: list[ModelSnapshot]


_MAX_BYTES: Final = 1024 * 1024  # a larger file is cut off there, so that it is no valid JSON


def load(path: Path) -> Snapshot | str | None:
    """The content of a file; what is wrong with it; or None if there is none."""
    try:
        with path.open("rb") as file:
            return Snapshot.model_validate_json(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValidationError as error:
        return f"is damaged or from another version ({error.error_count()} errors)"


def save(path: Path, snapshot: Snapshot) -> str | None:
    """Replaces a file in one step; what went wrong, or None. Blocks: on an event loop, call it in a thread."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            new = Path(folder, path.name)
            new.write_text(snapshot.model_dump_json(), encoding="utf-8")
            new.replace(path)
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None


_UNKNOWN_SIZE: Final = 8 * 20  # counts as 1024 x 1024
_LARGEST: Final = 8 * 50  # 2 ** 50 pixels, so that no arithmetic overflows
_FACTOR_SAMPLES: Final = 64  # of one size, over which its factor is averaged
_FACTOR_STEP: Final = 0.5  # of log time, by which one sample counts at most: most stragglers are no larger pictures
_SPEED_GAIN: Final = 0.1
_LEAD_GAIN, _LEAD_STEP = 0.1, 2.0
_ABOUT: Final = 0.02  # seconds around the end, for its probability
_TURNS: Final = (1, 3, 7, 15, 31, 63)  # numbers of generations ahead
_SETTLED: Final = 64  # waits after which only every fourth teaches turns that are not used
_FEW: Final = 8.0  # samples below which a turn is not used
_BETTER: Final = 0.95  # of the cost of the whole
_MISS_GAIN, _MOST_MISSED = 0.05, 0.03


def _octave(pixels: int | None) -> int:
    """log2 of the pixels in eighths, so that nearly equal sizes are one."""
    return min(round(8 * math.log2(pixels)), _LARGEST) if pixels and pixels > 0 else _UNKNOWN_SIZE


def _places(position: int | None) -> int:
    return min(max(position or 0, 0), 10**6) + 1


class ModelEstimate:
    """What was learned about one model.

    Attributes:
        sizes: By octave, how far (in log time) a size is from what the published times say, and its samples.
        place: Seconds from one place in the queue to the next, and samples; the first guess is four workers at 0.57 s.
        lead: By how much (in log likelihood) the position in the queue predicted the ends better than the whole did.
        turn: The number of the client's generations ahead from which on the end is best predicted; None: from none.
    """

    def __init__(self, saved: ModelSnapshot | None = None) -> None:
        self.whole = Prediction(None if saved is None else saved.whole)
        self.queue, self.running = Prediction(), Prediction()
        self.turns = {count: Prediction() for count in _TURNS}
        self.turn: int | None = None
        self.sizes = {} if saved is None else dict(saved.sizes)
        self.place = (0.15, 1)
        self.lead = 1.0
        self._missed = dict.fromkeys(_TURNS, 0.0)  # the fraction that ended before their turn
        self._waits = 0
        self._expected: dict[int | None, float] = {}  # by pixels, for speed

    def expected(self, pixels: int | None) -> float:
        """Seconds that a picture of this size takes, as published (docs/wire.md) and corrected by what was learned."""
        found = self._expected.get(pixels)
        if found is None:
            octave = _octave(pixels)
            if len(self._expected) >= _LOOKUPS:
                self._expected.clear()
            # Of a single size there is nothing to correct: its distribution says it all.
            factor = self.sizes.get(octave, (0.0, 1))[0] if len(self.sizes) > 1 else 0.0
            found = self._expected[pixels] = (0.063 + 0.483 * 2 ** (octave / 8) / 1e6) * math.exp(factor)
        return found

    def _in_queue(self, position: int | None, pixels: int | None) -> float:
        """Seconds expected from a place in the queue to the end."""
        return _places(position) * self.place[0] + self.expected(pixels)

    def after(self, progress: Progress, sent: float, price: float) -> float:
        """When to poll next, in seconds since acceptance."""
        queued, pixels, fell_to = progress.queued, progress.pixels, progress.fell_to
        expected = self.expected(pixels)
        if self.turn is not None and fell_to is not None:
            prediction, start = self.turns[self.turn], fell_to(self.turn)
            if start is None or not math.isfinite(start):  # it comes now at the earliest
                return progress.age + prediction.after(0.0, expected, price)
            return start + prediction.after(max(sent - start, 0.0), expected, price)
        if queued is not None:
            if progress.state is RequestState.IN_QUEUE:
                start, prediction, rest = queued.since, self.queue, self._in_queue(queued.position, pixels)
            else:
                start = _start(queued, progress.age - progress.state_age - (progress.round_trip or 0.0))
                prediction, rest = self.running if self.running.total else self.whole, expected
            if self.lead > 0:
                return start + prediction.after(max(sent - start, 0.0), rest, price)
        return self.whole.after(sent, expected, price)

    def add(self, observation: Observation, low: float, high: float, price: float) -> None:
        """Learns from a wait that ended between `low` and `high`."""
        pixels, queued, expected = observation.pixels, observation.queued, self.expected(observation.pixels)
        if queued is not None:
            self._add_queued(observation, queued, low, high)
        self._waits += 1
        if observation.fell_to is not None and (
            self.turn is not None or self._waits < _SETTLED or self._waits % 4 == 0
        ):
            self._add_turns(observation.fell_to, low, high, expected, price)
        # Those that were seen in the queue do not show a change: the last of a burst wait longest.
        self.whole.add(low / expected, high / expected, charted=queued is None)
        octave = _octave(pixels)
        factor, samples = self.sizes.get(octave, (0.0, 0))
        if len(self.sizes) > 1:
            rest = math.log(max((low + high) / 2, 1e-6) / expected / self.whole.distribution().quantile(0.5))
            factor += min(max(rest, -_FACTOR_STEP), _FACTOR_STEP) / (samples + 2)
        self.sizes[octave] = factor, min(samples + 1, _FACTOR_SAMPLES)
        self._expected.clear()

    def _add_turns(
        self, fell_to: Callable[[int], float | None], low: float, high: float, expected: float, price: float
    ) -> None:
        for count, prediction in self.turns.items():
            start = fell_to(count)
            missed = start is None or not -_MAX_SECONDS <= start <= low  # neither is what is no number
            self._missed[count] += _MISS_GAIN * (missed - self._missed[count])
            if start is not None and not missed:
                prediction.add((low - start) / expected, (high - start) / expected)
        if self._waits % 8 == 0:
            costs = {  # of turns that cost the same, such as those that nobody had to wait for, the last
                self.turns[count].cost(expected, price): count
                for count in _TURNS
                if self._missed[count] <= _MOST_MISSED and self.turns[count].total >= _FEW
            }
            least = min(costs, default=math.inf)
            self.turn = costs[least] if least < _BETTER * self.whole.cost(expected, price) else None

    def _add_queued(self, observation: Observation, queued: Queued, low: float, high: float) -> None:
        pixels, expected = observation.pixels, self.expected(observation.pixels)
        about = max((_ABOUT - (high - low)) / 2, 0.0)
        near, far, rest = low - about, high + about, self._in_queue(queued.position, pixels)
        ages = ((near - queued.since) / rest, (far - queued.since) / rest, (queued.until - queued.since) / rest)
        gain = self.queue.log_likelihood(*ages) - self.whole.log_likelihood(
            near / expected, far / expected, queued.until / expected
        )
        self.lead += _LEAD_GAIN * (min(max(gain, -_LEAD_STEP), _LEAD_STEP) - self.lead)
        for at, position in {queued.entered: queued.entered_position, queued.since: queued.position}.items():
            rest = self._in_queue(position, pixels)
            self.queue.add((low - at) / rest, (high - at) / rest)
        if observation.running_since is not None:
            trip = 0.0 if observation.sent is None else observation.not_after - observation.sent
            start = min(_start(queued, observation.running_since - trip), low)
            self.running.add((low - start) / expected, (high - start) / expected)
        if queued.entered_position is not None:
            waited = (low + high) / 2 - queued.entered - self.running.distribution().quantile(0.5) * expected
            taken = min(max(waited / _places(queued.entered_position), 1e-3), 1e3)
            seconds, samples = self.place
            self.place = seconds * (taken / seconds) ** max(1 / (samples + 1), _SPEED_GAIN), samples + 1


def _start(queued: Queued, running: float) -> float:
    """The middle between the last poll that reported it as queued and the first that reported it as running."""
    return (queued.until + max(running, queued.until)) / 2


_MODELS, _LOOKUPS = 64, 4096  # kept; the oldest model is dropped first
_MAX_SECONDS: Final = 1e9  # of a wait
_MAX_EXCESS: Final = 10.0  # seconds by which the service's duration may exceed the observed one
_TOLERANCE: Final = 0.003  # seconds: the service reports whole milliseconds
_MAX_PRICE: Final = 1024.0


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
        self._logged: set[str] = set()
        self._new, self._noted = 0, False
        self._store = None if store is None else user_path(store)
        found = None if self._store is None else load(self._store)
        if isinstance(found, Snapshot):
            self._models = {saved.model: ModelEstimate(saved) for saved in found.models[-_MODELS:]}
        self._note(found)

    def __repr__(self) -> str:
        settings = {"poll_cost": self.poll_cost, "minimum": self.minimum, "maximum": self.maximum}
        return brief_repr(self, settings | {"models": len(getattr(self, "_models", ()))})

    @property
    def replans(self) -> bool:
        """Whether to ask again when a poll is due: the end of another generation may have changed the answer."""
        return any(estimate.turn is not None for estimate in self._models.values())

    def next_poll(self, progress: Progress) -> float:
        """Seconds from the start of the last poll to the next; between `minimum` and `maximum`."""
        sent = progress.sent
        if sent is None:
            sent = max(progress.age - (progress.round_trip or 0.0), 0.0) if progress.polls else 0.0
        if progress.model is None and not progress.polls:
            return self.minimum  # submitted by another process: it may have ended long ago
        price = self.poll_cost * (min(progress.price, _MAX_PRICE) if progress.price > 1 else 1.0) + progress.delay
        interval = self.estimate(progress.model).after(progress, sent, price) - sent
        return min(self.maximum, max(self.minimum, interval))

    def observe(self, observation: Observation) -> None:
        """Learns from a finished wait."""
        low, high = observation.not_before, observation.not_after if observation.sent is None else observation.sent
        if not _plausible(observation, low, high):
            self._warn("A wait cannot have ended between %r and %r s; it is ignored", low, high)
            return
        round_trip, served = observation.not_after - high, observation.served
        if served is not None:
            if not 0 <= served <= high + _MAX_EXCESS:
                self._warn("The service reports an impossible duration of %r s; such reports are ignored", served)
            # Both ends of it are on the service's clock. Where the polls contradict it, they are right.
            elif low - _TOLERANCE <= served - round_trip <= high + _TOLERANCE:
                low = high = min(max(served - round_trip, low), high)
        self.estimate(observation.model).add(observation, low, high, self.poll_cost)
        self._new += 1

    def estimate(self, model: str | None) -> ModelEstimate:
        """What was learned about a model."""
        found = self._models.get(model)
        if found is None:
            if len(self._models) >= _MODELS:
                del self._models[next(iter(self._models))]
            found = self._models[model] = ModelEstimate()
        return found

    def median(self, model: str | None, pixels: int | None) -> float | None:
        """The median duration in seconds for this model and size; None before any sample."""
        found = self.estimate(model)
        whole = found.whole
        return whole.distribution().quantile(0.5) * found.expected(pixels) if whole.total > 0 else None

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        """Returns a function that writes the store, for a thread; None without a store or enough new waits."""
        if self._store is None or self._new < at_least:
            return None
        self._new = 0
        models = [ModelSnapshot(model=model, whole=of.whole.bins, sizes=of.sizes) for model, of in self._models.items()]
        store, snapshot = self._store, Snapshot(models=models)
        return lambda: self._note(save(store, snapshot))

    def save(self) -> None:
        """Writes the store now if there is one and something is new. Blocks."""
        if (write := self.unsaved()) is not None:
            write()

    def _note(self, problem: object) -> None:
        if isinstance(problem, str) and not self._noted:
            self._noted = True
            _log.warning("The store of learned poll times %s %s; it is not used", self._store, problem)

    def _warn(self, message: str, *values: object) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.warning(message, *values)


def _plausible(observation: Observation, low: float, high: float) -> bool:
    """Whether the times are such as a loop's clock gives, in their order. Comparisons with NaN are false."""
    queued, running = observation.queued, observation.running_since
    return (
        0 <= low <= high <= observation.not_after <= _MAX_SECONDS
        and (queued is None or 0 <= queued.entered <= queued.since <= queued.until <= high)
        and (running is None or 0 <= running <= _MAX_SECONDS)
    )
