"""The `PollPolicy` protocol, what a policy is told, and the two explicit policies.

Pure: a policy never sleeps, reads no clock, and takes its randomness as an argument.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from flux_klein_async.errors import ConfigurationError
from flux_klein_async.misuse import named_arguments
from flux_klein_async.models import RequestState
from flux_klein_async.options import require_at_least

__all__ = ["ExponentialPolling", "FixedPolling", "Observation", "PollPolicy", "Progress", "Queued", "SavedPolicy"]


class Queued(NamedTuple):
    """What polls reported about a request in the queue. Times are those of sent polls, in seconds since acceptance.

    Attributes:
        entered: The first poll that reported it as queued.
        entered_position: The position that this poll reported, or None.
        since: The first poll that reported `position`.
        position: The last reported position, or None.
        until: The last poll that reported it as queued.
    """

    entered: float
    entered_position: int | None
    since: float
    position: int | None
    until: float


class Progress(NamedTuple):  # made for every poll: a frozen dataclass takes three times as long
    """The state of one wait when its next poll is planned.

    Attributes:
        model: The model's id, or None for a request that another process submitted.
        pixels: Width times height, or None where unknown.
        polls: Polls made so far.
        age: Seconds since the request was accepted (or resumed).
        state: The state in the last answered poll, or None before any.
        state_age: Seconds since the client first received this state.
        queue_position: The position in the last answered poll, or None.
        last_interval: The previous interval in seconds; None before the first poll.
        round_trip: Seconds that the last poll took, or None.
        sent: When the last poll was sent, in seconds since acceptance; 0 before the first.
        queued: What polls reported about the queue, also after the request has left it; None if it was never queued.
        price: How many times its usual price a poll costs now; above 1 while the service or a ceiling asks for fewer.
        delay: Seconds that one more poll takes from calls that wait for a connection: it adds to its price.
        fell_to: Seconds from acceptance until at most so many of the client's own earlier generations were left, or
            None while there are more. Where a queue moves in order, this shows the start without a poll.
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
    sent: float
    queued: Queued | None = None
    price: float = 1.0
    delay: float = 0.0
    fell_to: Callable[[int], float | None] | None = None


class Observation(NamedTuple):
    """A finished wait, in seconds since it was accepted.

    `model`, `pixels`, `polls`, `queued` and `fell_to` are as in `Progress`.

    Attributes:
        not_before: When the last poll that reported "not yet" was sent (0 where there was none).
        not_after: When the poll that reported the end was answered.
        running_since: When the request was first reported as running, or None.
        served: The service's own `finished_at - created_at`, or None.
        sent: When the poll that reported the end was sent.
    """

    model: str | None
    pixels: int | None
    not_before: float
    not_after: float
    running_since: float | None
    served: float | None
    polls: int
    sent: float
    queued: Queued | None = None
    fell_to: Callable[[int], float | None] | None = None


class PollPolicy(Protocol):
    """Decides when to poll. One policy serves all waits of a client and is asked before each poll.

    If it has a true attribute `replans`, it is asked again when the poll is due: other ends may have put it off. If it
    has a method `quantile(model, pixels, probability)`, in seconds or None, nothing is paid that would come too late.
    """

    def next_poll(self, progress: Progress) -> float:
        """Seconds from the start of the last poll (from acceptance, before the first) to the next one.

        The round trip is part of the interval: if it took longer, the next poll is sent at once.
        """

    def observe(self, observation: Observation) -> None:
        """Receives each wait that ended in a result, to learn from it or ignore it."""


@runtime_checkable
class SavedPolicy(Protocol):
    """A policy that can save what it learned. The client saves it from time to time and when it closes."""

    def unsaved(self, at_least: int = 1) -> Callable[[], None] | None:
        """Returns a function that saves, to be called in a thread; None if fewer than `at_least` waits are new."""


@named_arguments({})
@dataclass(frozen=True, slots=True)
class FixedPolling:
    """Poll every `interval` seconds.

    Attributes:
        interval: Seconds from poll to poll, at least 1e-6.
        first: Seconds from acceptance to the first poll; None means `interval`.

    Raises:
        ConfigurationError: A number is out of range.
    """

    interval: float
    first: float | None = None

    def __post_init__(self) -> None:
        require_at_least(1e-6, interval=self.interval)
        require_at_least(0, first=0 if self.first is None else self.first)

    def next_poll(self, progress: Progress) -> float:
        """`first` before the first poll, then `interval`."""
        return self.interval if progress.polls or self.first is None else self.first

    def observe(self, observation: Observation) -> None:
        """Learns nothing."""


@named_arguments({})
@dataclass(frozen=True, slots=True)
class ExponentialPolling:
    """Poll after `initial` seconds, then at growing intervals.

    Attributes:
        initial: Seconds from acceptance to the first poll, at least 1e-6.
        multiplier: Growth of the interval from poll to poll; at least 1.
        maximum: The longest interval in seconds, at least 1e-6.
        jitter: Fraction by which each interval varies at random, up and down, so that waits that begin together do not
            keep polling together; below 1.
        spread: Returns random numbers from 0 to 1.

    Raises:
        ConfigurationError: A number is out of range.
    """

    initial: float = 0.1
    multiplier: float = 1.25
    maximum: float = 5.0
    jitter: float = 0.1
    spread: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        require_at_least(1e-6, initial=self.initial, maximum=self.maximum)
        require_at_least(1, multiplier=self.multiplier)
        require_at_least(0, jitter=self.jitter)
        if self.jitter >= 1:
            raise ConfigurationError("jitter must be below 1")

    def next_poll(self, progress: Progress) -> float:
        """`initial * multiplier ** polls`, at most `maximum`, with jitter."""
        growth = math.exp(min(progress.polls * math.log(self.multiplier), 700))  # no power overflows
        return min(self.initial * growth, self.maximum) * (1 + self.jitter * (2 * self.spread() - 1))

    def observe(self, observation: Observation) -> None:
        """Learns nothing."""
