"""How well does the client wait? Every policy on the same seeded work, against the exact optimum.

    python benchmarks/bench_polling.py               # in virtual time on the in-process emulator: exact, repeatable
    python benchmarks/bench_polling.py --loopback    # real sockets, the service in another process
    python benchmarks/bench_polling.py --ceiling     # 5,000 waiting at once under a ceiling of polls, in virtual time
    python benchmarks/bench_polling.py --burst       # 10,000 submits at once over 100 connections, in virtual time

The excess is the time from the end of the generation, by the emulator's clock, to the result. J is the mean excess plus
0.010 s for each poll. J* is the cost of the best schedule for the distribution that the work was drawn from, given the
size. `--burst` compares polls that take connections before submits with first come, first served.
"""

import argparse
import asyncio
import random
import statistics
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness import Service, prompts
from simulation import BASELINES, COLD, PEERS, PRICE, PROFILES, WARM_UP, Profile

from flux_klein_async import AdaptivePolling, FluxKleinClient, Limits
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop
from flux_klein_async.events import Event, Polled, Submitted
from flux_klein_async.polling.policies import PollPolicy
from flux_klein_async.transport.throttle import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENCY = 16
ROUND_TRIP = 0.040
HEADING = f"{'':28}{'mean':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'polls':>8}{'J/J*':>8}"

Check = tuple[str, float, float]  # what, measured, at most


@dataclass
class Sample:
    """Some waits, in the order of their submits."""

    excess: list[float] = field(default_factory=list)
    polls: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)

    def __getitem__(self, part: slice) -> "Sample":
        return Sample(self.excess[part], self.polls[part], self.best[part])

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.excess + other.excess, self.polls + other.polls, self.best + other.best)

    @property
    def mean(self) -> float:
        """The mean excess."""
        return statistics.fmean(self.excess)

    @property
    def cost(self) -> float:
        """J, in seconds."""
        return self.mean + PRICE * statistics.fmean(self.polls)

    @property
    def ratio(self) -> float:
        """J over J*."""
        return self.cost / statistics.fmean(self.best)

    def row(self, name: str) -> str:
        """One line of the table."""
        cuts = statistics.quantiles(self.excess, n=100)
        tail = "".join(f"{cuts[at - 1]:8.3f}" for at in (50, 95, 99))
        return f"{name:28}{self.mean:8.4f}{tail}{statistics.fmean(self.polls):8.2f}{self.ratio:8.3f}"


# --- virtual time


class Drawn:
    """A latency profile of the emulator that follows a simulated one: each submit takes what was drawn for it."""

    name = "drawn"

    def __init__(self, profile: Profile, count: int, seed: int) -> None:
        rng = random.Random(seed)
        self.draws = [profile.draw(rng, number) for number in range(count)]
        self.workers = profile.workers
        self._submits = iter(self.draws)

    def duration(self, _rng: random.Random, width: int, height: int) -> float:
        """Seconds of the next submit, which must be the one that was drawn."""
        pixels, seconds = next(self._submits)
        if pixels != width * height:
            raise AssertionError("submits came in another order than they were drawn in")
        return seconds


def dimensions(pixels: int) -> dict[str, int]:
    """A width and a height that the service accepts, for so many pixels."""
    width = next(width for width in range(64, 2049, 8) if pixels % width == 0 and pixels // width <= width)
    return {"width": width, "height": pixels // width}


async def _virtual(
    profile: Profile, policy: PollPolicy, count: int, seed: int, round_trip: float, poll_endpoint: Any
) -> Sample:
    drawn: Any = Drawn(profile, count, seed)  # it has what the emulator needs of a profile
    emulator = InProcessEmulator(profile=drawn, round_trip=round_trip, max_records=1)
    loop = asyncio.get_running_loop()
    async with (
        emulator,
        FluxKleinClient(
            emulator.api_key,
            base_url=emulator.base_url,
            session=emulator.session(),
            polling=policy,
            poll_endpoint=poll_endpoint,
            timeout=None,
        ) as client,
    ):
        items = [{"prompt": "a cat", **dimensions(pixels)} for pixels, _ in drawn.draws]
        found: dict[int, tuple[float, int]] = {}
        async with client.generate_many(items, concurrency=CONCURRENCY) as outcomes:
            async for outcome in outcomes:
                if outcome.result is None:
                    raise outcome.error or AssertionError
                end = emulator.completions[outcome.result.request_id]
                found[outcome.index] = loop.time() - end, outcome.result.timings.polls
    excess, polls = zip(*(found[number] for number in range(count)), strict=True)
    best = [profile.optimum(number, pixels) for number, (pixels, _) in enumerate(drawn.draws)]
    return Sample(list(excess), list(polls), best)


def virtual(
    profile: Profile,
    policy: PollPolicy,
    count: int,
    seed: int = 1,
    *,
    round_trip: float = 0.0,
    poll_endpoint: str = "status",
) -> Sample:
    """So many generations through one client, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_virtual(profile, policy, count, seed, round_trip, poll_endpoint))


def in_virtual_time(count: int, fresh: int, *, others: bool = True) -> list[Check]:
    """Every profile: ours warm, also with poll_endpoint="result", and the other clients; then ours cold."""
    checks: list[Check] = []
    for name, profile in PROFILES.items():
        if profile.burst is not None:  # in pure numbers alone (bench_policy.py)
            continue
        print(f"\n{name}, {count} generations, {CONCURRENCY} at once\n{HEADING}", flush=True)
        ours = virtual(profile, AdaptivePolling(), count)[profile.warm :]
        print(ours.row("ours, warm"), flush=True)
        direct = virtual(profile, AdaptivePolling(), count, poll_endpoint="result")[profile.warm :]
        print(direct.row("ours, poll_endpoint result"), flush=True)
        checks.append((f"{name}: J/J*, warm", ours.ratio, 1.25 if profile.workers else 1.15))
        costs = []
        for peer, make in ({**BASELINES, **PEERS} if others else {}).items():
            theirs = virtual(profile, make(), count)[profile.warm :]
            print(theirs.row(peer), flush=True)
            costs.append(theirs.cost)
        if costs:
            checks.append((f"{name}: J over the best other's J", ours.cost / min(costs), 1.0))
    print(f"\nthe first 20 of {fresh} fresh clients, {CONCURRENCY} at once\n{HEADING}", flush=True)
    for name, profile in COLD.items():
        cold = sum((virtual(profile, AdaptivePolling(), 20, seed) for seed in range(fresh)), Sample())
        print(cold.row(name), flush=True)
        if name in {"klein", "mixed", "twice as slow"}:
            checks.append((f"{name}: J/J*, cold", cold.ratio, 2.2 if name == "twice as slow" else 1.6))
    oracle = 2 * ROUND_TRIP  # a poll exactly at the end, then the result
    print(f"\nklein, round trip {ROUND_TRIP * 1000:.0f} ms; an oracle's excess is {oracle:.3f} s\n{HEADING}")
    for poll_endpoint, bar in (("status", 1.3), ("result", 0.85)):
        ours = virtual(PROFILES["klein"], AdaptivePolling(), count, round_trip=ROUND_TRIP, poll_endpoint=poll_endpoint)[
            WARM_UP:
        ]
        print(ours.row(f"ours, poll_endpoint {poll_endpoint}"), flush=True)
        checks.append((f"40 ms, poll_endpoint {poll_endpoint}: excess over an oracle's", ours.mean / oracle, bar))
    return checks


# --- real sockets


async def _loopback(
    service: Service, policy: PollPolicy, count: int, poll_endpoint: Any
) -> tuple[dict[str, float], list[int]]:
    loop = asyncio.get_running_loop()
    ended, polls = {}, []
    async with (
        FluxKleinClient(
            service.api_key, base_url=service.base_url, polling=policy, poll_endpoint=poll_endpoint, timeout=None
        ) as client,
        client.generate_many(["a cat"] * count, concurrency=CONCURRENCY) as outcomes,
    ):
        async for outcome in outcomes:
            now = loop.time()
            if outcome.result is None:
                raise outcome.error or AssertionError
            if outcome.index >= WARM_UP:
                ended[outcome.result.request_id] = now
                polls.append(outcome.result.timings.polls)
    return ended, polls


def over_sockets(count: int) -> list[Check]:
    """The bars on real sockets, and whether virtual time agrees with them."""
    runs: dict[str, tuple[Callable[[], PollPolicy], float, str]] = {
        "ours": (AdaptivePolling, 0.0, "status"),
        "fal-client": (PEERS["fal-client"], 0.0, "status"),
        "vendor CLI": (PEERS["vendor CLI"], 0.0, "status"),
        "ours, 40 ms": (AdaptivePolling, ROUND_TRIP, "status"),
        "ours, 40 ms, poll_endpoint result": (AdaptivePolling, ROUND_TRIP, "result"),
    }
    print(f"\nloopback, klein, {count} generations, {CONCURRENCY} at once{'mean excess':>20}{'polls':>8}")
    excess, polls = {}, {}
    for name, (make, round_trip, poll_endpoint) in runs.items():
        with Service("klein", seed=1, round_trip=round_trip) as service:
            ended, polled = asyncio.run(_loopback(service, make(), count, poll_endpoint))
            completions = service.completions()
        excess[name] = statistics.fmean(at - completions[request_id] for request_id, at in ended.items())
        polls[name] = statistics.fmean(polled)
        print(f"{name:50}{excess[name]:16.4f}{polls[name]:8.2f}", flush=True)
    exact = virtual(PROFILES["klein"], AdaptivePolling(), count)[WARM_UP:]
    return [
        ("excess over fal-client's", excess["ours"] / excess["fal-client"], 0.7),
        ("polls over fal-client's", polls["ours"] / polls["fal-client"], 0.65),
        ("excess over the vendor CLI's", excess["ours"] / excess["vendor CLI"], 1 / 20),
        ("40 ms: excess over an oracle's", excess["ours, 40 ms"] / (2 * ROUND_TRIP), 1.3),
        ("40 ms, poll_endpoint result: the same", excess["ours, 40 ms, poll_endpoint result"] / (2 * ROUND_TRIP), 0.85),
        ("excess over that in virtual time", excess["ours"] / exact.mean, 1.5),
    ]


# --- many at once


async def _under_a_ceiling(waiting: int, ceiling: float) -> list[tuple[float, float]]:
    polls: dict[object, list[float]] = {}

    def note(event: Event) -> None:
        if isinstance(event, Submitted | Polled):
            polls.setdefault(event.request_id, []).append(event.at)

    async with InProcessEmulator(profile="fixed:60", max_records=1) as emulator:
        options: dict[str, Any] = {"session": emulator.session(), "base_url": emulator.base_url, "timeout": None}
        limits = Limits(max_in_flight=waiting, polls_per_second=ceiling)
        async with FluxKleinClient(emulator.api_key, limits=limits, on_event=note, **options) as client:
            outcomes = await client.generate_all(["a cat"] * waiting, concurrency=waiting)
    if any(outcome.result is None for outcome in outcomes):
        raise AssertionError("not all ended")
    return [(later, later - earlier) for times in polls.values() for earlier, later in pairwise(times)]


def under_a_ceiling(waiting: int, ceiling: float) -> list[Check]:
    """All end, and no gap between polls is over three times the median gap at the same time (in windows of 5 s)."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        gaps = runner.run(_under_a_ceiling(waiting, ceiling))
    windows: dict[int, list[float]] = {}
    for at, gap in gaps:
        windows.setdefault(int(at // 5), []).append(gap)
    longest = max(max(window) / statistics.median(window) for window in windows.values())
    last = max(at for at, _ in gaps)
    print(f"\n{waiting} waiting under {ceiling:g} polls a second: {len(gaps)} polls, the last at {last:.1f} s")
    return [
        ("longest gap over the median at its time", longest, 3.0),
        ("polls a second over the ceiling", len(gaps) / last / ceiling, 1.0),
    ]


async def _burst(count: int, connections: int, *, priority: bool) -> list[float]:
    async with InProcessEmulator(profile="klein", seed=1, round_trip=ROUND_TRIP, max_records=10) as emulator:
        options: dict[str, Any] = {
            "session": emulator.session(connector=emulator.connector(limit=connections)),
            "base_url": emulator.base_url,
            "limits": Limits(max_in_flight=count, max_connections=connections),
        }
        loop = asyncio.get_running_loop()
        excess = []
        async with FluxKleinClient(emulator.api_key, timeout=None, **options) as client:
            if not priority:
                client._context.lanes = Lanes(count)  # noqa: SLF001  # all calls wait in aiohttp's pool, in their order
            async with client.generate_many(prompts(count), concurrency=count) as outcomes:
                async for outcome in outcomes:
                    if outcome.result is None:
                        raise outcome.error or AssertionError
                    excess.append(loop.time() - emulator.completions[outcome.result.request_id])
        return excess


def burst(count: int, connections: int) -> list[Check]:
    """How long finished generations wait, with and without priority for polls."""
    tails = []
    print(f"\n{count} submits at once over {connections} connections, round trip {ROUND_TRIP * 1000:.0f} ms")
    for name, priority in {"polls before submits": True, "first come, first served": False}.items():
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            excess = runner.run(_burst(count, connections, priority=priority))
        cuts = statistics.quantiles(excess, n=100)
        tails.append(cuts[94])
        tail = "  ".join(f"p{at} {cuts[at - 1]:7.3f}" for at in (50, 95, 99))
        print(f"{name:26} mean {statistics.fmean(excess):7.3f} s  {tail}", flush=True)
    return [("p95 with priority over p95 without", tails[0] / tails[1], 0.25)]


def main() -> None:
    """Run what was chosen; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--loopback", action="store_true")
    where.add_argument("--ceiling", action="store_true")
    where.add_argument("--burst", action="store_true")
    parser.add_argument("--count", type=int, help="generations of each run")
    parser.add_argument("--fresh", type=int, default=200, help="fresh clients of the cold starts")
    parser.add_argument("--ours", action="store_true", help="leave out the other clients")
    options = parser.parse_args()
    if options.ceiling:
        checks = under_a_ceiling(options.count or 5000, 200.0)
    elif options.burst:
        checks = burst(options.count or 10_000, 100)
    elif options.loopback:
        checks = over_sockets(options.count or 1000)
    else:
        checks = in_virtual_time(options.count or 2000, options.fresh, others=not options.ours)
    print(f"\n{'bar':56}{'measured':>10}{'at most':>10}")
    for what, measured, bar in checks:
        print(f"{what:56}{measured:10.3f}{bar:10.3f}{'' if measured <= bar else '   MISSED'}")
    sys.exit(any(measured > bar for _, measured, bar in checks))


if __name__ == "__main__":
    main()
