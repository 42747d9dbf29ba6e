"""How near does the learned schedule come to the optimum, in a world of nothing but numbers?

    python benchmarks/polling_lab.py [--requests 2000] [--seeds 4] [--fresh 200] [--concurrency 1 16] [--no-served]

No sockets, no loop, no clock: durations are drawn, each policy says when to poll, and J = mean excess + price * mean
polls is compared with J*, the optimum for the distribution that the durations were drawn from, given the size (and,
where there is a queue, the instant of the start). Waits overlap: what one teaches is known when it has ended. The same
seeds give the same figures everywhere.
"""

import argparse
import math
import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from heapq import heapify, heappop, heappush
from statistics import NormalDist, mean
from typing import NamedTuple

from peers import PEERS

from flux_klein_async.models import RequestState
from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.durations import Distribution
from flux_klein_async.polling.policies import Observation, PollPolicy, Progress, Queued
from flux_klein_async.polling.schedule import Schedule

PRICE = 0.010  # seconds a poll
MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"
SQUARE = 1024 * 1024
SIZES = [512 * 512, 768 * 768, 1024 * 768, 832 * 1216, SQUARE, 1344 * 768, 1536 * 1536, 2048 * 2048]
SPREAD = 0.15
BELL = NormalDist()


@dataclass(frozen=True)
class Profile:
    """A service: `slow` times the published time, from request number `after` on `then` times that."""

    sizes: tuple[int, ...] = (SQUARE,)
    slow: float = 1.0
    stragglers: float = 0.0  # the part of requests that take five times as long
    after: int | None = None
    then: float = 2.0
    workers: int | None = None

    def median(self, number: int, pixels: int) -> float:
        """Seconds of request `number` in the middle of its distribution."""
        shifted = self.after is not None and number >= self.after
        return (0.063 + 0.483 * pixels / 1e6) * self.slow * (self.then if shifted else 1.0)

    def draw(self, chance: random.Random, number: int) -> tuple[int, float]:
        """A request's pixels, and how long it runs."""
        pixels = chance.choice(self.sizes)
        seconds = self.median(number, pixels) * chance.lognormvariate(0, SPREAD)
        return pixels, seconds * (5 if chance.random() < self.stragglers else 1)

    def optimum(self, number: int, pixels: int) -> float:
        """J* for its size."""
        return optimum(self.median(number, pixels), self.stragglers)

    def distribution(self, number: int, pixels: int) -> Distribution:
        """Of the seconds that a request of this size takes."""
        return distribution(self.median(number, pixels), self.stragglers)


@cache
def distribution(median: float, stragglers: float) -> Distribution:
    """Log-normal, a part of it five times slower, on a table of 4,000 entries."""

    def cdf(seconds: float) -> float:
        log = math.log(seconds / median)
        straggling = stragglers * BELL.cdf((log - math.log(5)) / SPREAD) if stragglers else 0.0
        return (1 - stragglers) * BELL.cdf(log / SPREAD) + straggling

    low, high = -6 * SPREAD, 7 * SPREAD + (math.log(5) if stragglers else 0.0)
    return Distribution.of(cdf, [median * math.exp(low + (high - low) * entry / 4000) for entry in range(4001)])


@cache
def optimum(median: float, stragglers: float) -> float:
    """J*."""
    return Schedule(distribution(median, stragglers), PRICE).cost


PROFILES = {
    "klein": Profile(),
    "mixed": Profile(tuple(SIZES)),
    "heavy": Profile(stragglers=0.03),
    "shift": Profile(after=400),
    "queue": Profile(workers=4),
}
COLD = {
    "klein": Profile(),
    "mixed": Profile(tuple(SIZES)),
    "twice as slow": Profile(slow=2.0),
    "twice as fast": Profile(slow=0.5),
    "consumer card": Profile(slow=2.1),
}


class Row(NamedTuple):
    """One wait: seconds of needless waiting, polls, J* for its size."""

    excess: float
    polls: int
    best: float


@dataclass
class Wait:
    """One wait, in seconds since acceptance; a poll sent at `end` or later sees the end."""

    pixels: int
    end: float
    start: float = 0.0
    position: Callable[[float], int] = lambda _: 0
    round_trip: float = 0.0
    polls: int = 0
    sent: float = 0.0
    not_before: float = 0.0
    running: float | None = None
    state: RequestState | None = None
    changed: float = 0.0
    queued: Queued | None = field(default=None)

    def run(self, policy: PollPolicy) -> float:
        """Poll until the end is seen; the excess."""
        interval = None
        while True:
            age = self.sent + (self.round_trip if self.polls else 0.0)
            place = self.queued.position if self.queued and self.state is RequestState.IN_QUEUE else None
            interval = policy.next_poll(
                Progress(
                    model=MODEL,
                    pixels=self.pixels,
                    polls=self.polls,
                    age=age,
                    state=self.state,
                    state_age=age - self.changed,
                    queue_position=place,
                    last_interval=interval,
                    round_trip=self.round_trip if self.polls else None,
                    sent=self.sent,
                    queued=self.queued,
                )
            )
            self.sent = max(self.sent + interval, age)
            self.polls += 1
            if self.sent >= self.end:
                return self.sent - self.end
            self.not_before = self.sent
            self._see()

    def _see(self) -> None:
        sent, answered = self.sent, self.sent + self.round_trip
        state = RequestState.IN_QUEUE if sent < self.start else RequestState.IN_PROGRESS
        if state is not self.state:
            self.state, self.changed = state, answered
        if state is RequestState.IN_PROGRESS:
            self.running = answered if self.running is None else self.running
            return
        place = self.position(sent)
        if self.queued is None:
            self.queued = Queued(sent, place, sent, place, sent)
        else:
            since = self.queued.since if place == self.queued.position else sent
            self.queued = self.queued._replace(since=since, position=place, until=sent)

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
        )


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
    """So many requests, `concurrency` at once; first come, first served by the profile's workers."""
    chance = random.Random(seed)
    slots = [0.0] * concurrency
    workers = [0.0] * (profile.workers or concurrency)
    heapify(slots)
    heapify(workers)
    starts: list[float] = []
    ended: list[tuple[float, int, Observation]] = []
    rows = []
    for number in range(count):
        now = heappop(slots)
        while ended and ended[0][0] <= now:
            policy.observe(heappop(ended)[2])
        pixels, seconds = profile.draw(chance, number)
        start = max(now, heappop(workers)) if profile.workers else now
        heappush(workers, start + seconds)
        starts.append(start)

        def position(sent: float, now: float = now, ahead: int = number) -> int:
            return ahead - bisect_right(starts, now + sent + round_trip, 0, ahead)

        end = start + seconds - now
        wait = Wait(pixels, max(end - round_trip, 0.0), start - now - round_trip, position, round_trip)
        rows.append(Row(wait.run(policy), wait.polls, profile.optimum(number, pixels)))
        heappush(slots, now + wait.sent + round_trip)
        told = math.floor(end * 1000) / 1000 if served else None
        heappush(ended, (now + wait.sent + round_trip, number, wait.observation(told)))
    return rows


def summary(rows: list[Row]) -> tuple[float, float, float]:
    """Mean excess, mean polls, and J over J*."""
    excess, polls = mean(row.excess for row in rows), mean(row.polls for row in rows)
    return excess, polls, (excess + PRICE * polls) / mean(row.best for row in rows)


def report(title: str, rows: list[Row]) -> None:
    excess, polls, ratio = summary(rows)
    print(f"{title:44} excess {excess:7.4f} s   polls {polls:6.2f}   J/J* {ratio:6.3f}", flush=True)


def judged(name: str, rows: list[Row]) -> list[Row]:
    """Warm: after 200 requests; where the service shifts, from the 50th after."""
    after = PROFILES[name].after
    return rows[200 if after is None else after + 50 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--fresh", type=int, default=200, help="fresh policies for the cold start")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--no-served", action="store_true", help="the service tells no times")
    parser.add_argument("--round-trip", type=float, default=0.0)
    options = parser.parse_args()

    def runs(
        make: Callable[[], PollPolicy], profile: Profile, count: int, seeds: int, concurrency: int
    ) -> list[list[Row]]:
        return [
            simulate(
                make(),
                profile,
                count,
                seed=seed,
                concurrency=concurrency,
                served=not options.no_served,
                round_trip=options.round_trip,
            )
            for seed in range(seeds)
        ]

    for concurrency in options.concurrency:
        for name, profile in PROFILES.items():
            for policy, make in {"adaptive, warm": AdaptivePolling, **PEERS}.items():
                found = runs(make, profile, options.requests, options.seeds, concurrency)
                report(f"{name} x{concurrency}: {policy}", [row for rows in found for row in judged(name, rows)])
        for name, profile in COLD.items():
            found = runs(AdaptivePolling, profile, 20, options.fresh, concurrency)
            report(f"{name} x{concurrency}: adaptive, first 20", [row for rows in found for row in rows])


if __name__ == "__main__":
    main()
