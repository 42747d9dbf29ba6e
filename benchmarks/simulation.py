"""Waits in pure numbers: how policies do against simulated services, and against the exact optimum.

No sockets, event loop or clock: durations are drawn, a policy says when to poll, and J = mean excess + PRICE * mean
polls is compared with J*, the optimum for the distribution that the durations were drawn from, given the picture's size
(and, where there is a queue, the time of the start). Waits overlap: a wait teaches the policy when it has ended. The
same seeds give the same figures everywhere.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from heapq import heapify, heappop, heappush
from statistics import NormalDist, fmean
from typing import NamedTuple

from flux_klein_async.models import RequestState
from flux_klein_async.polling.durations import Distribution, Schedule
from flux_klein_async.polling.policies import FixedPolling, Observation, PollPolicy, Progress, Queued

PRICE = 0.010  # seconds a poll
MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"
SQUARE = 1024 * 1024
SIZES = (512 * 512, 768 * 768, 1024 * 768, 832 * 1216, SQUARE, 1344 * 768, 1536 * 1536, 2048 * 2048)
SPREAD = 0.15
NORMAL = NormalDist()
WARM_UP = 200  # requests that are not counted


# --- costs on a known distribution


class Cost(NamedTuple):
    """Mean seconds from the end to the poll that reports it, and mean number of polls."""

    excess: float
    polls: float

    def total(self, price: float) -> float:
        """J, in seconds."""
        return self.excess + price * self.polls


def tabulate(cdf: Callable[[float], float], times: Iterable[float]) -> Distribution:
    """The distribution with this CDF, tabulated at these times."""
    times = list(times)
    return Distribution([0.0, *times], [0.0, *map(cdf, times)])


def area(distribution: Distribution, seconds: float) -> float:
    """The integral of F from 0 to t: the mean time that has passed since the end."""
    times, cdf = distribution.times, distribution.cdf
    if seconds <= 0:
        return 0.0
    if seconds >= times[-1]:
        missing = (1.0 - cdf[-1]) * times[-1] * math.log(seconds / times[-1])
        return distribution.areas[-1] + seconds - times[-1] - missing
    index = bisect_right(times, seconds) - 1
    step = seconds - times[index]
    slope = (cdf[index + 1] - cdf[index]) / (times[index + 1] - times[index])
    return distribution.areas[index] + step * (cdf[index] + slope * step / 2)


def expected_cost(distribution: Distribution, after: Callable[[float], float]) -> Cost:
    """The exact cost of polling at `after(0)`, at `after` of that, and so on."""
    excess = polls = age = 0.0
    for _ in range(100_000):
        ended = distribution.at(age)
        if 1.0 - ended <= 1e-9:
            break
        poll = after(age)
        polls += 1.0 - ended
        excess += area(distribution, poll) - area(distribution, age) - ended * (poll - age)
        age = poll
    return Cost(excess, polls)


def optimum(distribution: Distribution, price: float) -> Cost:
    """The cost of the best schedule. On a fine table, `Schedule` is exact up to the square of the table's step."""
    return expected_cost(distribution, Schedule(distribution, price).after)


def poll_times(policy: PollPolicy) -> Iterator[float]:
    """The ages at which a policy polls a request that does not end."""
    age, interval, polls = 0.0, None, 0
    while True:
        interval = policy.next_poll(progress(polls=polls, age=age, sent=age, last_interval=interval))
        age += interval
        polls += 1
        yield age


def policy_cost(policy: PollPolicy, distribution: Distribution) -> Cost:
    """The cost of a policy that learns nothing; random intervals are averaged over 32 waits."""
    runs = 1 if isinstance(policy, FixedPolling) else 32
    costs = []
    for _ in range(runs):
        ages = poll_times(policy)
        costs.append(expected_cost(distribution, lambda _, ages=ages: next(ages)))  # type: ignore[misc]
    return Cost(fmean(cost.excess for cost in costs), fmean(cost.polls for cost in costs))


def progress(polls: int, age: float, *, round_trip: float = 0.0, **known: object) -> Progress:
    """The state of a running wait."""
    return Progress(
        **{
            "model": MODEL,
            "pixels": SQUARE,
            "polls": polls,
            "age": age,
            "state": RequestState.IN_PROGRESS if polls else None,
            "state_age": age,
            "queue_position": None,
            "last_interval": None,
            "round_trip": round_trip if polls else None,
            "sent": max(age - round_trip, 0.0),
            **known,
        }  # type: ignore[arg-type]
    )


# --- other clients


@dataclass(frozen=True, slots=True)
class GrowingPolling:
    """Polls after `first`, then after `initial`, each interval `factor` times longer, at most `maximum`; in seconds.

    With `rng`, each interval is drawn between 0 and that, the first one from `initial`; `first` is not used.
    """

    first: float
    initial: float
    factor: float
    maximum: float
    rng: random.Random | None = None

    def next_poll(self, progress: Progress) -> float:
        """The interval for this many polls."""
        if progress.polls == 0 and self.rng is None:
            return self.first
        growths = min(progress.polls - (self.rng is None), 60)  # so that no power overflows
        interval = min(self.initial * self.factor**growths, self.maximum)
        return interval if self.rng is None else interval * self.rng.random()

    def observe(self, observation: Observation) -> None:
        """Learns nothing."""


# The intervals of docs/waiting.md, "How others wait", from the clients' own sources.
PEERS: dict[str, Callable[[], PollPolicy]] = {
    "vendor CLI": lambda: FixedPolling(2.0, first=0),
    "vendor plugin": lambda: FixedPolling(5.0, first=0),
    "vendor httpx client": lambda: FixedPolling(3.0, first=0),
    "fal-client": lambda: FixedPolling(0.1, first=0),
    "replicate": lambda: FixedPolling(0.5),
    "comfy-sdk": lambda: GrowingPolling(0.0, 0.5, 1.5, 5.0),
    "runware-sdk": lambda: GrowingPolling(1.0, 0.5, 1.5, 10.0),
    "random exponential": lambda: GrowingPolling(0.0, 0.1, 2.0, 2.0, random.Random(0)),
}


# --- two policies that are as simple as can be


@dataclass
class RunningMean:
    """Polls at nine tenths of the mean of the last waits, and every 50 ms from then on."""

    mean: float = 0.57
    first: float = 0.9

    def next_poll(self, progress: Progress) -> float:
        """The interval."""
        return 0.05 if progress.polls else self.first * self.mean

    def observe(self, observation: Observation) -> None:
        """Learns the mean."""
        took = (observation.not_before + (observation.sent or observation.not_after)) / 2
        self.mean += 0.1 * (took - self.mean)


@dataclass
class LearnedFactor:
    """Learns one factor on the published time: polls at 0.9 of it, then every 0.06 of its square root.

    Its constants know the emulator's spread of 15 %. Stragglers are polled every sqrt(0.02 * age).
    """

    factor: float = 0.0  # a logarithm

    def _expected(self, pixels: int | None) -> float:
        return (0.063 + 0.483 * (pixels or SQUARE) / 1e6) * math.exp(self.factor)

    def next_poll(self, progress: Progress) -> float:
        """The interval."""
        expected = self._expected(progress.pixels)
        if not progress.polls:
            return 0.9 * expected
        return 0.06 * math.sqrt(expected) if progress.age < 1.5 * expected else math.sqrt(0.02 * progress.age)

    def observe(self, observation: Observation) -> None:
        """Learns the factor."""
        took = (observation.not_before + (observation.sent or observation.not_after)) / 2
        self.factor += 0.1 * min(max(math.log(took / self._expected(observation.pixels)), -0.5), 0.5)


BASELINES: dict[str, Callable[[], PollPolicy]] = {
    "a learned factor": LearnedFactor,
    "a running mean": RunningMean,
}


# --- services


@dataclass(frozen=True)
class Profile:
    """A service that takes `slow` times the published time, and `then` times that from request number `after` on.

    Attributes:
        spread: Standard deviation of log time.
        stragglers: The fraction of requests that take five times as long.
        fast: The fraction that takes a third.
        drift: The number of requests over which it becomes twice as slow.
        workers: How many requests run at a time; the others wait in a queue.
        burst: How many requests come at once, and the seconds from burst to burst; None: each when another ends.
    """

    sizes: tuple[int, ...] = (SQUARE,)
    slow: float = 1.0
    spread: float = SPREAD
    stragglers: float = 0.0
    fast: float = 0.0
    after: int | None = None
    then: float = 2.0
    drift: int | None = None
    workers: int | None = None
    burst: tuple[int, float] | None = None

    def median(self, number: int, pixels: int) -> float:
        """The median of request `number`, in seconds."""
        shifted = self.after is not None and number >= self.after
        drifted = 2 ** (number // 50 * 50 / self.drift) if self.drift else 1.0
        return (0.063 + 0.483 * pixels / 1e6) * self.slow * (self.then if shifted else 1.0) * drifted

    @property
    def parts(self) -> tuple[tuple[float, float], ...]:
        """Fractions of the requests, and how many times the median they take."""
        return ((1 - self.stragglers - self.fast, 1.0), (self.stragglers, 5.0), (self.fast, 1 / 3))

    def draw(self, rng: random.Random, number: int) -> tuple[int, float]:
        """A request's pixels and duration."""
        pixels = rng.choice(self.sizes)
        seconds = self.median(number, pixels) * rng.lognormvariate(0, self.spread)
        fractions, factors = zip(*self.parts, strict=True)
        return pixels, seconds * rng.choices(factors, fractions)[0]

    def distribution(self, number: int, pixels: int) -> Distribution:
        """The distribution of that duration."""
        return _distribution(self.median(number, pixels), self.spread, self.parts)

    def optimum(self, number: int, pixels: int) -> float:
        """J* for it."""
        return _optimum(self.median(number, pixels), self.spread, self.parts)

    @property
    def warm(self) -> int:
        """The first request that counts: after the warm-up or, if the service shifts, the 50th after that."""
        return WARM_UP if self.after is None else self.after + 50


@cache
def _distribution(median: float, spread: float, parts: tuple[tuple[float, float], ...]) -> Distribution:
    """Log-normal, in parts, in a table of 4,000 entries."""

    def cdf(seconds: float) -> float:
        return sum(
            fraction * NORMAL.cdf(math.log(seconds / median / factor) / spread)
            for fraction, factor in parts
            if fraction
        )

    used = [math.log(factor) for fraction, factor in parts if fraction]
    low, high = min(used) - 6 * spread, max(used) + 7 * spread
    return tabulate(cdf, (median * math.exp(low + (high - low) * entry / 4000) for entry in range(4001)))


@cache
def _optimum(median: float, spread: float, parts: tuple[tuple[float, float], ...]) -> float:
    return Schedule(_distribution(median, spread, parts), PRICE).cost


PROFILES = {
    "klein": Profile(),
    "mixed": Profile(SIZES),
    "heavy": Profile(stragglers=0.03),
    "shift": Profile(after=400),
    "queue": Profile(workers=4),
    # Nothing was tuned on these.
    "spread 5 %": Profile(spread=0.05),
    "spread 50 %": Profile(spread=0.5),
    "two modes": Profile(fast=0.5),
    "drift": Profile(drift=2000),
    "bursts": Profile(workers=4, burst=(64, 15.0)),
    "9B": Profile(slow=14.0),
}
COLD = {
    "klein": Profile(),
    "mixed": Profile(SIZES),
    "twice as slow": Profile(slow=2.0),
    "twice as fast": Profile(slow=0.5),
    "consumer card": Profile(slow=2.1),
}


# --- simulated waits


class Row(NamedTuple):
    """One wait: seconds from the end to the poll that reports it, polls, and J* for its size."""

    excess: float
    polls: int
    best: float


@dataclass
class Wait:
    """One wait, in seconds since acceptance. The first poll sent at `end` or later reports the end."""

    pixels: int
    end: float
    start: float
    position: Callable[[float], int]
    round_trip: float
    fell_to_at: Callable[[float], Callable[[int], float | None]]
    polls: int = 0
    sent: float = 0.0
    not_before: float = 0.0
    running: float | None = None
    state: RequestState | None = None
    changed: float = 0.0
    queued: Queued | None = None

    def run(self, policy: PollPolicy) -> float:
        """Poll until the end is reported; the excess."""
        interval = None
        while True:
            age = self.sent + (self.round_trip if self.polls else 0.0)
            interval = self._interval(policy, age, interval)
            while getattr(policy, "replans", False) and self.sent + interval > age:
                age = self.sent + interval
                interval = self._interval(policy, age, interval)
            self.sent = max(self.sent + interval, age)
            self.polls += 1
            if self.sent >= self.end:
                return self.sent - self.end
            self.not_before = self.sent
            self._poll()

    def _interval(self, policy: PollPolicy, age: float, interval: float | None) -> float:
        position = self.queued.position if self.queued and self.state is RequestState.IN_QUEUE else None
        return policy.next_poll(
            progress(
                polls=self.polls,
                age=age,
                round_trip=self.round_trip,
                pixels=self.pixels,
                state=self.state,
                state_age=age - self.changed,
                queue_position=position,
                last_interval=interval,
                sent=self.sent,
                queued=self.queued,
                fell_to=self.fell_to_at(age),
            )
        )

    def _poll(self) -> None:
        sent, answered = self.sent, self.sent + self.round_trip
        state = RequestState.IN_QUEUE if sent < self.start else RequestState.IN_PROGRESS
        if state is not self.state:
            self.state, self.changed = state, answered
        if state is RequestState.IN_PROGRESS:
            self.running = answered if self.running is None else self.running
            return
        position = self.position(sent)
        if self.queued is None:
            self.queued = Queued(sent, position, sent, position, sent)
        else:
            since = self.queued.since if position == self.queued.position else sent
            self.queued = self.queued._replace(since=since, position=position, until=sent)

    def observation(self, served: float | None) -> Observation:
        """What this wait teaches."""
        return Observation(
            model=MODEL,
            pixels=self.pixels,
            not_before=self.not_before,
            not_after=self.sent + self.round_trip,
            running_since=self.running,
            served=served,
            polls=self.polls,
            sent=self.sent,
            queued=self.queued,
            fell_to=self.fell_to_at(self.sent + self.round_trip),
        )


def fell_to_of(accepted: float, noticed: list[float]) -> Callable[[float], Callable[[int], float | None]]:
    """What a client knows of its generations before one, from the instants at which their ends were noticed.

    Of an age, a function of a number: seconds from acceptance until at most so many were left.
    """
    ends = sorted(end for end in noticed if end > accepted)

    def at(age: float) -> Callable[[int], float | None]:
        def fell_to(count: int) -> float | None:
            if len(ends) <= count:
                return 0.0
            seconds = ends[len(ends) - count - 1] - accepted
            return seconds if seconds <= age else None

        return fell_to

    return at


def simulate(
    policy: PollPolicy,
    profile: Profile,
    count: int,
    *,
    seed: int = 0,
    concurrency: int = 1,
    served: bool = True,
    round_trip: float = 0.0,
) -> list[Row]:
    """So many requests, `concurrency` at once, served in their order by the profile's workers."""
    rng = random.Random(seed)
    if profile.burst is not None:
        concurrency = count
    slots = (
        [0.0] * concurrency
        if profile.burst is None
        else [n // profile.burst[0] * profile.burst[1] for n in range(count)]
    )
    workers = [0.0] * (profile.workers or concurrency)
    heapify(slots)
    heapify(workers)
    starts: list[float] = []
    noticed: list[float] = []
    ended: list[tuple[float, int, Observation]] = []
    rows = []
    for number in range(count):
        now = heappop(slots)
        while ended and ended[0][0] <= now:
            policy.observe(heappop(ended)[2])
        pixels, seconds = profile.draw(rng, number)
        start = max(now, heappop(workers)) if profile.workers else now
        heappush(workers, start + seconds)
        starts.append(start)

        def position(sent: float, now: float = now, ahead: int = number) -> int:
            return ahead - bisect_right(starts, now + sent + round_trip, 0, ahead)

        end = start + seconds - now
        ahead = fell_to_of(now, noticed[-1024:])
        wait = Wait(pixels, max(end - round_trip, 0.0), start - now - round_trip, position, round_trip, ahead)
        rows.append(Row(wait.run(policy), wait.polls, profile.optimum(number, pixels)))
        if profile.burst is None:
            heappush(slots, now + wait.sent + round_trip)
        noticed.append(now + wait.sent + round_trip)
        reported = math.floor(end * 1000) / 1000 if served else None  # the service's times are whole milliseconds
        heappush(ended, (now + wait.sent + round_trip, number, wait.observation(reported)))
    return rows


def summary(rows: list[Row]) -> tuple[float, float, float]:
    """Mean excess, mean polls, and J over J*."""
    cost = Cost(fmean(row.excess for row in rows), fmean(row.polls for row in rows))
    return *cost, cost.total(PRICE) / fmean(row.best for row in rows)
