"""What does it cost to observe a client, and to leave it unobserved?

    python benchmarks/bench_events.py [--generations 256] [--turns 15]

CPU of the client for generations of five calls (submit, three polls, result), all at once, with each event handler in
turn; the emulated service runs in another process. "unused, again" is the client without a handler once more: its
distance from 1 is the noise. OpenTelemetry is imported all along, as in an application that has it installed.

Smaller costs are timed alone: each handler over the events of one run, and making an event that nobody receives.
"""

import argparse
import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

from harness import Comparison, Service, in_parallel, prompts, verdict
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider

from flux_klein_async import Event, FixedPolling, FluxKleinClient, Limits
from flux_klein_async.events import Polled
from flux_klein_async.integrations.logging import LogEvents
from flux_klein_async.integrations.opentelemetry import Telemetry
from flux_klein_async.models import RequestState

UNUSED = "unused"
BAR = 0.005  # of a generation's CPU, for all events that nobody receives
EVENTS = 100_000
CALLS = {"submit": 1, "status": 3, "result": 1}
INTERVAL = 0.8  # seconds between polls
PROFILE = "fixed:2.0"  # ends between the second poll and the third, 0.4 s from either

Handler = Callable[[Event], None]


def log_events(level: int) -> Handler:
    logger = logging.getLogger("pictures")
    logger.setLevel(level)
    logger.propagate = False
    logger.handlers[:] = [logging.NullHandler()]
    return LogEvents(logger)


HANDLERS: dict[str, Callable[[], Handler | None]] = {
    UNUSED: lambda: None,
    "unused, again": lambda: None,
    "a function that does nothing": lambda: lambda _: None,
    "LogEvents, level disabled": lambda: log_events(logging.CRITICAL),
    "LogEvents, INFO to a null handler": lambda: log_events(logging.INFO),
    "Telemetry, no-op providers": lambda: Telemetry(
        tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider()
    ),
    "Telemetry, the SDK without exporter": lambda: Telemetry(
        tracer_provider=TracerProvider(), meter_provider=MeterProvider([InMemoryMetricReader()])
    ),
}


def client(service: Service, handler: Handler | None) -> FluxKleinClient:
    return FluxKleinClient(
        service.api_key,
        base_url=service.base_url,
        timeout=60,
        limits=Limits(max_in_flight=100_000),
        polling=FixedPolling(INTERVAL),
        on_event=handler,
    )


def handler_cost(name: str, events: list[Event]) -> float:
    """Microseconds for all of these events, without making them."""
    rounds = []
    for _ in range(5):
        handler = HANDLERS[name]()
        start = time.process_time()
        if handler is not None:
            for event in events:
                handler(event)
        rounds.append(time.process_time() - start)
    return min(rounds) * 1e6


async def unused_cost(service: Service) -> float:
    """Microseconds for an event that nobody receives, made as the client makes it."""
    async with client(service, None) as flux:
        context = flux._context  # noqa: SLF001  # the one place where events are made
        context.bind()
        rounds = []
        for _ in range(5):
            start = time.perf_counter()
            for poll in range(EVENTS):
                context.emit(Polled, poll=poll, state=RequestState.IN_PROGRESS)
            rounds.append(time.perf_counter() - start)
        return min(rounds) / EVENTS * 1e6


def imported() -> set[str]:
    """What the package itself imports of OpenTelemetry."""
    program = "import sys, flux_klein_async; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name for name in ran.stdout.split() if name.split(".")[0] == "opentelemetry"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=256)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    texts = prompts(options.generations)
    with Service(PROFILE) as service:

        def generate(make: Callable[[], Handler | None]) -> Callable[[], Awaitable[int]]:
            async def run() -> int:
                async with client(service, make()) as flux:
                    return len(await in_parallel(flux.generate, texts, len(texts)))

            return run

        variants = {name: generate(make) for name, make in HANDLERS.items()}
        comparison = Comparison(service, variants, options.generations, CALLS, stray=0.06)
        events: list[Event] = []
        comparison.once(generate(lambda: events.append))
        comparison.run(options.turns)
        one = asyncio.run(unused_cost(service))
    comparison.table()
    count = len(events) / len(texts)
    share = count * one / median(comparison.cpu[UNUSED])
    found = imported()
    print("\nthe handler alone, a generation")
    for name in HANDLERS:
        print(f"{name:40}{handler_cost(name, events) / len(texts):8.1f} µs")
    print(f"\n{count:.1f} events a generation; unused, one takes {one:.3f} µs and all take {share:.2%}")
    print(f"imported with the package: {', '.join(sorted(found)) or 'nothing of OpenTelemetry'}")
    met = share <= BAR and not found
    print(f"bar {BAR:.2%}: {verdict(met)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
