"""What does the learning policy cost, against the poll that it decides about?

    python benchmarks/polling_cpu.py [--requests 3000] [--rounds 3]

CPU (`time.process_time`) of every call of `next_poll` and `observe` of a simulated run, from a cold start, with all
that is worked out on the way, divided by the polls; beside it the CPU of a bare GET with aiohttp on loopback, its
service in another process.
"""

import argparse
import asyncio
import time

import aiohttp
from polling_lab import PROFILES, Profile, simulate
from service import Service

from flux_klein_async.polling.adaptive import AdaptivePolling
from flux_klein_async.polling.policies import Observation, Progress

BAR = 0.03


class Recorded(AdaptivePolling):
    """Keeps what it was asked and told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Progress | Observation] = []

    def next_poll(self, progress: Progress) -> float:
        """Ask, and keep the question."""
        self.calls.append(progress)
        return super().next_poll(progress)

    def observe(self, observation: Observation) -> None:
        """Tell, and keep what was told."""
        self.calls.append(observation)
        super().observe(observation)


def policy_seconds(profile: Profile, requests: int) -> float:
    """CPU a poll."""
    recorded = Recorded()
    simulate(recorded, profile, requests, concurrency=64)
    policy, polls = AdaptivePolling(), 0
    begun = time.process_time()
    for call in recorded.calls:
        if isinstance(call, Progress):
            policy.next_poll(call)
            polls += 1
        else:
            policy.observe(call)
    return (time.process_time() - begun) / polls


async def get_seconds(service: Service, count: int = 3000) -> float:
    """CPU of one bare GET."""
    url, headers = f"{service.base_url}/v1/requests/none/status", {"Authorization": f"Bearer {service.api_key}"}
    begun = 0.0
    async with aiohttp.ClientSession(headers=headers) as session:
        for number in range(-300, count):
            if number == 0:
                begun = time.process_time()
            async with session.get(url) as response:
                await response.read()
    return (time.process_time() - begun) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with Service("klein") as service:
        for _ in range(options.rounds):
            bare = asyncio.run(get_seconds(service))
            print(f"bare GET {bare * 1e6:.0f} us")
            for name in ("klein", "mixed"):
                ours = policy_seconds(PROFILES[name], options.requests)
                print(f"  {name}: {ours * 1e6:.2f} us a poll, {ours / bare:.1%} (bar {BAR:.0%})")


if __name__ == "__main__":
    main()
