"""How well does the client wait? Every policy on the same seeded work, against the exact optimum.

    python benchmarks/bench_polling.py               # virtual time on the in-process emulator: exact, and repeats
    python benchmarks/bench_polling.py --loopback    # real sockets, the service in a process of its own
    python benchmarks/bench_polling.py --crowd       # 5,000 waiting at once under a ceiling of polls

The excess is the time from the emulator's own completion instant to the result in hand; J is its mean plus 0.010 s for
each poll; J* is what the best schedule costs that knows the distribution from which the work was drawn, given the size.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers import PEERS
from polling_lab import COLD, PRICE, PROFILES, Profile
from service import Service

from flux_klein_async import AdaptivePolling, FluxKleinClient, Limits
from flux_klein_async.emulator import InProcessEmulator, VirtualTimeLoop
from flux_klein_async.events import Event, Polled, Submitted
from flux_klein_async.polling.policies import PollPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WARM_AFTER = 200
SHIFT_JUDGED_AFTER = 50


class Drawn:
    """The emulator's latency profile that plays a lab profile's work: the n-th submit takes what the n-th draw says."""

    name = "drawn"

    def __init__(self, work: Profile, count: int, seed: int) -> None:
        chance = random.Random(seed)
        self.draws = [work.draw(chance, number) for number in range(count)]
        self.workers = work.workers
        self._submits = iter(self.draws)

    def duration(self, _rng: random.Random, width: int, height: int) -> float:
        """Seconds of the next submit, which must be the one that was drawn."""
        pixels, seconds = next(self._submits)
        if pixels != width * height:
            raise AssertionError("submits came in another order than they were drawn in")
        return seconds


@dataclass
class Sample:
    """What was measured of some waits, in the order of their submits."""

    excess: list[float] = field(default_factory=list)
    polls: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)

    def extend(self, other: "Sample", start: int = 0) -> None:
        """Add another sample's waits from `start` on."""
        for name in ("excess", "polls", "best"):
            getattr(self, name).extend(getattr(other, name)[start:])

    @property
    def cost(self) -> float:
        """J, in seconds."""
        return statistics.fmean(self.excess) + PRICE * statistics.fmean(self.polls)

    @property
    def ratio(self) -> float:
        """J over J*."""
        return self.cost / statistics.fmean(self.best)

    def row(self, name: str) -> str:
        """One line of the table."""
        cuts = statistics.quantiles(self.excess, n=100)
        tail = "".join(f"{cuts[at - 1]:8.3f}" for at in (50, 95, 99))
        mean, polls = statistics.fmean(self.excess), statistics.fmean(self.polls)
        return f"{name:28}{mean:8.4f}{tail}{polls:8.2f}{self.ratio:8.3f}"


HEADING = f"{'':28}{'mean':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'polls':>8}{'J/J*':>8}"


def side(pixels: int) -> tuple[int, int]:
    """A width and a height that the service takes, for so many pixels."""
    width = next(width for width in range(64, 2049, 8) if pixels % width == 0 and pixels // width <= width)
    return width, pixels // width


async def _virtual(work: Profile, policy: PollPolicy, count: int, seed: int, options: dict[str, Any]) -> Sample:
    concurrency, round_trip = options["concurrency"], options.get("round_trip", 0.0)
    drawn = Drawn(work, count, seed)
    profile: Any = drawn  # it has what the emulator asks of a profile
    emulator = InProcessEmulator(profile=profile, round_trip=round_trip, max_records=1)
    loop = asyncio.get_running_loop()
    sample = Sample()
    async with (
        emulator,
        FluxKleinClient(
            emulator.api_key,
            base_url=emulator.base_url,
            session=emulator.session(),
            polling=policy,
            poll_endpoint=options.get("poll_endpoint", "status"),
            timeout=None,
        ) as client,
    ):
        sizes = [side(pixels) for pixels, _ in drawn.draws]
        items = [{"prompt": "a cat", "width": width, "height": height} for width, height in sizes]
        found: dict[int, tuple[float, int]] = {}
        async with client.generate_many(items, concurrency=concurrency) as outcomes:
            async for outcome in outcomes:
                if outcome.result is None:
                    raise outcome.error or AssertionError
                end = emulator.completions[outcome.result.request_id]
                found[outcome.index] = loop.time() - end, outcome.result.timings.polls
    for number, (pixels, _) in enumerate(drawn.draws):
        sample.excess.append(found[number][0])
        sample.polls.append(found[number][1])
        sample.best.append(work.optimum(number, pixels))
    return sample


def virtual(work: Profile, policy: PollPolicy, count: int, seed: int, **options: Any) -> Sample:
    """So many generations through one client, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(_virtual(work, policy, count, seed, options))


def judged(work: Profile, sample: Sample) -> Sample:
    """The waits that count: after the warm-up or, where the service shifts, from the 50th after."""
    kept = Sample()
    kept.extend(sample, WARM_AFTER if work.after is None else work.after + SHIFT_JUDGED_AFTER)
    return kept


Check = tuple[str, float, float]  # what, measured, at most


def in_virtual_time(count: int, fresh: int, concurrency: int, points: dict[str, Any]) -> list[Check]:
    """Every profile: ours warm, with poll_endpoint="result", and the peers; then the cold starts."""
    checks: list[Check] = []
    for name, work in PROFILES.items():
        print(f"\n{name}, {count} generations, {concurrency} at once\n{HEADING}", flush=True)
        ours = judged(work, virtual(work, AdaptivePolling(), count, 1, concurrency=concurrency))
        direct = judged(
            work, virtual(work, AdaptivePolling(), count, 1, concurrency=concurrency, poll_endpoint="result")
        )
        print(ours.row("ours, warm"), direct.row("ours, poll_endpoint result"), sep="\n", flush=True)
        if name != "queue":
            checks.append((f"{name}: J/J*, warm", ours.ratio, 1.15))
        cheapest = float("inf")
        for peer, make in PEERS.items():
            theirs = judged(work, virtual(work, make(), count, 1, concurrency=concurrency))
            cheapest = min(cheapest, theirs.cost)
            print(theirs.row(peer), flush=True)
            points[f"{name}/{peer}"] = (statistics.fmean(theirs.polls), statistics.fmean(theirs.excess))
        points[f"{name}/ours"] = (statistics.fmean(ours.polls), statistics.fmean(ours.excess))
        checks.append((f"{name}: J over the best peer's J", ours.cost / cheapest, 1.0))
    print(f"\nthe first 20 of {fresh} fresh clients, {concurrency} at once\n{HEADING}", flush=True)
    for name, work in COLD.items():
        cold = Sample()
        for seed in range(fresh):
            cold.extend(virtual(work, AdaptivePolling(), 20, seed, concurrency=concurrency))
        print(cold.row(name), flush=True)
        if name in {"klein", "mixed", "twice as slow"}:
            checks.append((f"{name}: J/J*, cold", cold.ratio, 2.2 if name == "twice as slow" else 1.6))
    return checks + over_a_distance(count, concurrency)


def over_a_distance(count: int, concurrency: int) -> list[Check]:
    """A round trip of 40 ms: against an oracle that polls exactly at completion and then fetches, two round trips."""
    round_trip, work = 0.040, PROFILES["klein"]
    oracle = 2 * round_trip
    print(f"\nklein, round trip {round_trip * 1000:.0f} ms; the oracle's excess is {oracle:.3f} s\n{HEADING}")
    checks: list[Check] = []
    for poll_endpoint, bar in (("status", 1.3), ("result", 0.85)):
        policy = AdaptivePolling()
        ran = virtual(
            work, policy, count, 1, concurrency=concurrency, round_trip=round_trip, poll_endpoint=poll_endpoint
        )
        ours = judged(work, ran)
        print(ours.row(f"ours, poll_endpoint {poll_endpoint}"), flush=True)
        checks.append(
            (
                f"40 ms, poll_endpoint {poll_endpoint}: excess over the oracle's",
                statistics.fmean(ours.excess) / oracle,
                bar,
            )
        )
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
        client.generate_many(["a cat"] * count, concurrency=16) as outcomes,
    ):
        async for outcome in outcomes:
            if outcome.result is None:
                raise outcome.error or AssertionError
            ended[outcome.result.request_id] = loop.time()
            if outcome.index >= WARM_AFTER:
                polls.append(outcome.result.timings.polls)
            else:
                del ended[outcome.result.request_id]
    return ended, polls


def loopback(policy: PollPolicy, count: int, round_trip: float, poll_endpoint: str = "status") -> tuple[float, float]:
    """Mean excess and mean polls after the warm-up, over real sockets."""
    with Service("klein", seed=1, round_trip=round_trip) as service:
        ended, polls = asyncio.run(_loopback(service, policy, count, poll_endpoint))
        completions = service.completions()
    excess = [at - completions[request_id] for request_id, at in ended.items()]
    return statistics.fmean(excess), statistics.fmean(polls)


def over_sockets(count: int) -> list[Check]:
    """The bars on real sockets, and that virtual time agrees with them."""
    checks: list[Check] = []
    fal, cli = PEERS["fal-client"], PEERS["vendor CLI"]
    runs: dict[str, tuple[Callable[[], PollPolicy], float, str]] = {
        "ours": (AdaptivePolling, 0.0, "status"),
        "fal-client": (fal, 0.0, "status"),
        "vendor CLI": (cli, 0.0, "status"),
        "ours, 40 ms": (AdaptivePolling, 0.040, "status"),
        "ours, 40 ms, poll_endpoint result": (AdaptivePolling, 0.040, "result"),
    }
    print(f"\nloopback, klein, {count} generations, 16 at once{'mean excess':>20}{'polls':>8}")
    found = {}
    for name, (make, round_trip, poll_endpoint) in runs.items():
        found[name] = loopback(make(), count, round_trip, poll_endpoint)
        print(f"{name:50}{found[name][0]:16.4f}{found[name][1]:8.2f}", flush=True)
    exact = judged(PROFILES["klein"], virtual(PROFILES["klein"], AdaptivePolling(), count, 1, concurrency=16))
    checks += [
        ("excess over fal-client's", found["ours"][0] / found["fal-client"][0], 0.7),
        ("polls over fal-client's", found["ours"][1] / found["fal-client"][1], 0.65),
        ("excess over the vendor CLI's", found["ours"][0] / found["vendor CLI"][0], 1 / 20),
        ("40 ms: excess over the oracle's", found["ours, 40 ms"][0] / 0.080, 1.3),
        ("40 ms, poll_endpoint result: the same", found["ours, 40 ms, poll_endpoint result"][0] / 0.080, 0.85),
        ("excess over that in virtual time", found["ours"][0] / statistics.fmean(exact.excess), 1.5),
    ]
    return checks


# --- a crowd under a ceiling


async def _crowd(waiting: int, ceiling: float) -> list[tuple[float, float]]:
    """For each poll: the age at which it was made, and the gap since the poll before it (or since acceptance)."""
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
    return [(later, later - earlier) for instants in polls.values() for earlier, later in pairwise(instants)]


def crowd(waiting: int, ceiling: float) -> list[Check]:
    """All end, and nobody's gap is more than three times the median gap at the same age (in windows of 5 s)."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        gaps = runner.run(_crowd(waiting, ceiling))
    windows: dict[int, list[float]] = {}
    for age, gap in gaps:
        windows.setdefault(int(age // 5), []).append(gap)
    worst = max(max(window) / statistics.median(window) for window in windows.values())
    last = max(age for age, _ in gaps)
    print(f"\n{waiting} waiting under {ceiling:g} polls a second: {len(gaps)} polls, the last at {last:.1f} s")
    rate = len(gaps) / last
    return [
        ("longest gap over the median at its age", worst, 3.0),
        ("polls a second over the ceiling", rate / ceiling, 1.0),
    ]


def main() -> None:
    """Run what was asked for; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loopback", action="store_true")
    parser.add_argument("--crowd", action="store_true")
    parser.add_argument("--count", type=int, default=2000, help="generations of each run")
    parser.add_argument("--fresh", type=int, default=200, help="fresh clients of the cold starts")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--points", type=Path, help="write (polls, excess) of every policy here, as JSON")
    given = parser.parse_args()
    points: dict[str, Any] = {}
    checks: Sequence[Check]
    if given.crowd:
        checks = crowd(5000, 200.0)
    elif given.loopback:
        checks = over_sockets(min(given.count, 1000))
    else:
        checks = in_virtual_time(given.count, given.fresh, given.concurrency, points)
    print(f"\n{'bar':56}{'measured':>10}{'at most':>10}")
    for what, measured, bar in checks:
        print(f"{what:56}{measured:10.3f}{bar:10.3f}{'' if measured <= bar else '   MISSED'}")
    if given.points:
        given.points.write_text(json.dumps(points, indent=1))
    sys.exit(any(measured > bar for _, measured, bar in checks))


if __name__ == "__main__":
    main()
