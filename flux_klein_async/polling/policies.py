"""When to poll: the `PollPolicy` protocol and the two explicit policies.

Pure: a policy is told how a wait stands and answers with a plain number. It never sleeps, reads no clock, and takes
its randomness as an argument.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.models import RequestState
from flux_klein_async.options import finite

__all__ = [
    "ExponentialPolling",
    "FixedPolling",
    "Observation",
    "PollPolicy",
    "Progress",
    "Queued",
    "SavedPolicy",
    "checked_interval",
]


class Queued(NamedTuple):
    """What polls saw of a request in the queue; instants in seconds since acceptance, when the poll was sent.

    Attributes:
        entered: The first poll that saw it queued.
        entered_position: The position that this poll saw, or None.
        since: The first poll that saw it at `position`.
        position: The last position seen, or None.
        until: The last poll that saw it queued.
    """

    entered: float
    entered_position: int | None
    since: float
    position: int | None
    until: float


class Progress(NamedTuple):
    """How one wait stands when the next poll is to be planned.

    A tuple, since it is made for every poll and a frozen dataclass takes three times as long to make.

    Attributes:
        model: The model's id, or None for a request that another process submitted.
        pixels: Width times height, or None where unknown.
        polls: Polls made so far; 0 before the first.
        age: Seconds since the request was accepted (or taken up).
        state: What the last answered poll saw, or None before any.
        state_age: Seconds since the state last changed, as seen from here.
        queue_position: What the last answered poll saw.
        last_interval: The interval chosen before, in seconds; None before the first poll.
        round_trip: Seconds that the last poll took, or None.
        sent: When the last poll was sent, in seconds since acceptance (0 before the first); None where untold: then it
            is taken from `age` and `round_trip`.
        queued: What the polls saw of the queue, also when it has left it; None if none saw it queued.
        price: How many times its usual price a poll costs now; above 1 while the service or a ceiling asks for fewer.
    """

    model: str | None
    pixels: int | None
    polls: int
    age: float
    state: RequestState | None
    state_age: float
    queue_position: int | None
    last_interval: float | None
    round_trip: float | None
    sent: float | None = None
    queued: Queued | None = None
    price: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one finished wait taught, all in seconds since the request was accepted.

    Attributes:
        model: The model's id, or None for a request that another process submitted.
        pixels: Width times height, or None where unknown.
        not_before: When the last poll that said "not yet" was sent (0 where there was none).
        not_after: When the poll that saw the end was answered.
        running_since: When it was first seen running, or None.
        served: The service's own `finished_at - created_at`, or None.
        polls: Polls in all.
        sent: When the poll that saw the end was sent, or None.
        queued: What the polls saw of the queue, or None if none saw it queued.
    """

    model: str | None
    pixels: int | None
    not_before: float
    not_after: float
    running_since: float | None
    served: float | None
    polls: int
    sent: float | None = None
    queued: Queued | None = None


class PollPolicy(Protocol):
    """Decides when to poll. One policy serves all waits of a client; each wait asks it before each poll."""

    def next_poll(self, progress: Progress) -> float:
        """Seconds from the start of the last poll (from acceptance, before the first) to the next one.

        The round trip is part of the interval: where it took longer, the next poll goes out at once.
        """
        ...

    def observe(self, observation: Observation) -> None:
        """A wait has ended; learn from it, or do nothing."""
        ...


@runtime_checkable
class SavedPolicy(Protocol):
    """What a policy that keeps what it learned offers besides: the client has it saved now and then, and at its end."""

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        """A function that saves, to be called in a thread; None if fewer waits than that are new."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPolling:
    """Poll every `interval` seconds.

    Attributes:
        interval: Seconds from poll to poll, above 0.
        first: Seconds from acceptance to the first poll; None: `interval` too.

    Raises:
        ConfigurationError: A number is out of range.
    """

    interval: float
    first: float | None = None

    def __post_init__(self) -> None:
        _require_seconds(interval=self.interval, first=0.0 if self.first is None else self.first)
        if self.interval == 0:
            raise ConfigurationError("FixedPolling.interval must be above 0")

    def next_poll(self, progress: Progress) -> float:
        """The same interval, always."""
        return self.first if progress.polls == 0 and self.first is not None else self.interval

    def observe(self, observation: Observation) -> None:
        """Nothing to learn."""


@dataclass(frozen=True, slots=True)
class ExponentialPolling:
    """Poll after `initial` seconds, then at ever longer intervals.

    Attributes:
        initial: Seconds from acceptance to the first poll, above 0.
        multiplier: How many times longer each interval is than the one before; at least 1.
        maximum: Seconds of the longest interval, above 0.
        jitter: The fraction by which each interval is spread evenly, up and down, so that waits which began together
            do not poll together for ever; below 1.
        spread: Returns numbers from 0 to 1.

    Raises:
        ConfigurationError: A number is out of range.
    """

    initial: float = 0.1
    multiplier: float = 1.25
    maximum: float = 5.0
    jitter: float = 0.1
    spread: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        _require_seconds(initial=self.initial, multiplier=self.multiplier, maximum=self.maximum)
        _require_seconds(jitter=self.jitter)
        if not (self.initial > 0 and self.maximum > 0 and self.multiplier >= 1 and self.jitter < 1):
            raise ConfigurationError(
                "ExponentialPolling needs initial and maximum above 0, multiplier of at least 1, jitter below 1"
            )

    def next_poll(self, progress: Progress) -> float:
        """The interval for this many polls, jittered."""
        try:
            grown = self.initial * self.multiplier**progress.polls
        except OverflowError:
            grown = self.maximum
        return min(grown, self.maximum) * (1 + self.jitter * (2 * self.spread() - 1))

    def observe(self, observation: Observation) -> None:
        """Nothing to learn."""


def _require_seconds(**values: float) -> None:
    for name, value in values.items():
        if not finite(value):
            raise ConfigurationError(f"{name} must be a finite number, 0 or more")


def checked_interval(interval: float) -> float:
    """What a policy answered, if it is a number of seconds.

    Raises:
        ConfigurationError: It is negative, infinite or no number: the wait would never poll again, or hammer.
    """
    if finite(interval):
        return interval
    raise ConfigurationError(f"The poll policy answered {interval!r}, which is no number of seconds")
