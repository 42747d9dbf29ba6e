"""How near does the learned schedule come to the optimum, and how much CPU does it take?

    python benchmarks/bench_policy.py [--requests 2000] [--seeds 4] [--fresh 200] [--concurrency 1 16] [--no-served]
    python benchmarks/bench_policy.py --table [--requests 2000] [--seeds 4]
    python benchmarks/bench_policy.py --cpu [--requests 3000] [--rounds 3]

In pure numbers (`simulation.py`): every policy on the same seeded waits, J over J*. The figures repeat exactly.

`--cpu`: the CPU (`time.process_time`) of all calls of `next_poll` and `observe` in a simulated run from a cold start,
divided by the polls, over the CPU of a bare GET with aiohttp on loopback, whose service runs in another process.
"""

import argparse
import asyncio
import sys
import time
from statistics import median

import aiohttp
from harness import Service, verdict
from simulation import BASELINES, COLD, PEERS, PROFILES, Profile, Row, simulate, summary

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import Observation, Progress

BAR = 0.03


def report(title: str, rows: list[Row]) -> None:
    excess, polls, ratio = summary(rows)
    print(f"{title:44} excess {excess:7.4f} s   polls {polls:6.2f}   J/J* {ratio:6.3f}", flush=True)


def compare(options: argparse.Namespace) -> None:
    """Print every policy on every profile, and ours from a cold start."""
    kept = {"served": not options.no_served, "round_trip": options.round_trip}
    for concurrency in options.concurrency:
        for name, profile in PROFILES.items():
            for policy, make in {"adaptive, warm": AdaptivePolling, **BASELINES, **PEERS}.items():
                rows: list[Row] = []
                for seed in range(options.seeds):
                    run = simulate(make(), profile, options.requests, seed=seed, concurrency=concurrency, **kept)
                    rows += run[profile.warm :]
                report(f"{name} x{concurrency}: {policy}", rows)
        for name, profile in COLD.items():
            rows = []
            for seed in range(options.fresh):
                rows += simulate(AdaptivePolling(), profile, 20, seed=seed, concurrency=concurrency, **kept)
            report(f"{name} x{concurrency}: adaptive, first 20", rows)


def table(requests: int, seeds: int) -> bool:
    """Print J / J* of ours, of both simple policies and of the peers, sixteen at once; whether the bars are met."""
    policies = {"ours": AdaptivePolling, **BASELINES, **PEERS}
    print(f"{'J / J*':14}" + "".join(f"{name:>20}" for name in policies))
    met = True
    for name, profile in PROFILES.items():
        ratios = {}
        for policy, make in policies.items():
            rows: list[Row] = []
            for seed in range(seeds):
                rows += simulate(make(), profile, requests, seed=seed, concurrency=16)[profile.warm :]
            ratios[policy] = summary(rows)[2]
        bar = min(1.25, *(ratios[baseline] for baseline in BASELINES))
        met = met and ratios["ours"] <= bar
        figures = "".join(f"{ratio:20.3f}" for ratio in ratios.values())
        print(f"{name:14}{figures}   bar {bar:.2f}: {verdict(ratios['ours'] <= bar)}", flush=True)
    return met


class Recorded(AdaptivePolling):
    """Keeps the calls that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Progress | Observation] = []

    def next_poll(self, progress: Progress) -> float:
        """Record and answer."""
        self.calls.append(progress)
        return super().next_poll(progress)

    def observe(self, observation: Observation) -> None:
        """Record and learn."""
        self.calls.append(observation)
        super().observe(observation)


def policy_seconds(profile: Profile, requests: int) -> float:
    """CPU a poll."""
    recorded = Recorded()
    simulate(recorded, profile, requests, concurrency=64)
    policy, polls = AdaptivePolling(), 0
    start = time.process_time()
    for call in recorded.calls:
        if isinstance(call, Progress):
            policy.next_poll(call)
            polls += 1
        else:
            policy.observe(call)
    return (time.process_time() - start) / polls


async def get_seconds(service: Service, count: int = 3000) -> float:
    """CPU of one bare GET."""
    url, headers = f"{service.base_url}/v1/requests/none/status", {"Authorization": f"Bearer {service.api_key}"}
    start = 0.0
    async with aiohttp.ClientSession(headers=headers) as session:
        for number in range(-300, count):
            if number == 0:
                start = time.process_time()
            async with session.get(url) as response:
                await response.read()
    return (time.process_time() - start) / count


def measure_cpu(requests: int, rounds: int) -> bool:
    """Print the CPU of the policy and of a GET, in turn; whether the bar is met."""
    ratios: dict[str, list[float]] = {"klein": [], "mixed": []}
    with Service("klein") as service:
        for _ in range(rounds):
            bare = asyncio.run(get_seconds(service))
            for name, found in ratios.items():
                ours = policy_seconds(PROFILES[name], requests)
                found.append(ours / bare)
                print(f"{name}: {ours * 1e6:.2f} µs a poll, a bare GET {bare * 1e6:.0f} µs, ratio {ours / bare:.1%}")
    met = True
    for name, found in ratios.items():
        met = met and median(found) <= BAR
        print(f"{name}: median {median(found):.1%}, bar {BAR:.0%}: {verdict(median(found) <= BAR)}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--table", action="store_true", help="J / J* of every policy on every profile")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--fresh", type=int, default=200, help="fresh policies for the cold start")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--no-served", action="store_true", help="the service reports no times")
    parser.add_argument("--round-trip", type=float, default=0.0)
    options = parser.parse_args()
    options.requests = options.requests or (3000 if options.cpu else 2000)
    if options.cpu:
        return 0 if measure_cpu(options.requests, options.rounds) else 1
    if options.table:
        return 0 if table(options.requests, options.seeds) else 1
    compare(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
