"""What does it cost to be observed, and what to be observable and not observed?

    python benchmarks/bench_telemetry.py [--generations 256] [--turns 15]

CPU of the client (`time.process_time`) for generations of five calls each (submit, three polls 0.8 s apart, result),
all at once, with each handler of events; the emulated service runs in another process. The variants take turns in one
process, in an order that is turned round each time, and the median of the ratios to the client without a handler
counts. "unused, again" is that same client once more: how far it is from 1 says what the other ratios are worth.
OpenTelemetry is imported all along, so that "unused" is what an application pays that has it installed.

What is too little to be seen so is timed by itself: each handler over the events of one run, and the client's making
of an event that nobody hears, a hundred thousand times.
"""

import argparse
import asyncio
import gc
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from bench_overhead import drive
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider
from service import Service

from flux_klein_async import Event, FixedPolling, FluxKleinClient, Limits
from flux_klein_async.events import Polled
from flux_klein_async.integrations.logging import LogEvents
from flux_klein_async.integrations.opentelemetry import Telemetry
from flux_klein_async.models import RequestState

UNUSED = "unused"
AGAIN = "unused, again"
BAR = 0.005  # share of a generation's CPU that events may take which nobody hears
EMITS = 100_000
INTERVAL = 0.8  # seconds between polls
PROFILE = "fixed:2.0"  # ends between the second poll and the third, with 0.4 s to spare on either side
POLLS = 3
STRAY = 0.02  # of the polls, that may be too many or too few: where a loaded machine was late

Handler = Callable[[Event], None]


def client(service: Service, handler: Handler | None) -> FluxKleinClient:
    return FluxKleinClient(
        service.api_key,
        base_url=service.base_url,
        timeout=60,
        limits=Limits(max_in_flight=100_000),
        polling=FixedPolling(INTERVAL),
        on_event=handler,
    )


def silent() -> Handler:
    logger = logging.getLogger("pictures")
    logger.setLevel(logging.CRITICAL)
    return LogEvents(logger)


def logged() -> Handler:
    logger = logging.getLogger("pictures.shown")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [logging.NullHandler()]
    return LogEvents(logger)


def dropped() -> Handler:
    """The SDK at work: a span has no exporter to go to, a measurement its place in memory."""
    return Telemetry(tracer_provider=TracerProvider(), meter_provider=MeterProvider([InMemoryMetricReader()]))


VARIANTS: dict[str, Callable[[], Handler | None]] = {
    UNUSED: lambda: None,
    AGAIN: lambda: None,
    "a function that does nothing": lambda: lambda _: None,
    "LogEvents, level disabled": silent,
    "LogEvents, INFO to a null handler": logged,
    "Telemetry, no-op providers": lambda: Telemetry(
        tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider()
    ),
    "Telemetry, the SDK without exporter": dropped,
}


@dataclass
class Run:
    """CPU microseconds a generation of each variant, turn by turn."""

    service: Service
    prompts: list[str]
    cpu: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in VARIANTS})

    def once(self, handler: Handler | None) -> float:
        """All generations once; the CPU microseconds of each.

        Raises:
            RuntimeError: It did not make the calls that all are to make.
        """
        before = self.service.calls()
        gc.collect()
        begun = time.process_time()
        done = asyncio.run(self._run(handler))
        used = time.process_time() - begun
        made, count = self.service.calls() - before, len(self.prompts)
        stray = abs(made["status"] - POLLS * count)
        if not done == made["submit"] == made["result"] == count or stray > STRAY * POLLS * count:
            raise RuntimeError(f"{done} of {count} done with {dict(made)}; is the machine too busy?")
        return used / count * 1e6

    async def _run(self, handler: Handler | None) -> int:
        async with client(self.service, handler) as flux:
            return await drive(flux, self.prompts, len(self.prompts))

    def turn(self, number: int) -> None:
        """Every variant once."""
        names = list(VARIANTS)
        for name in names if number % 2 else reversed(names):
            self.cpu[name].append(self.once(VARIANTS[name]()))
        print(".", end="", file=sys.stderr, flush=True)

    def ratio(self, name: str) -> float:
        """Median over the turns of this variant against the unused one of the same turn."""
        return median(own / unused for own, unused in zip(self.cpu[name], self.cpu[UNUSED], strict=True))

    def events(self) -> list[Event]:
        """What one run tells."""
        told: list[Event] = []
        self.once(told.append)
        return told

    def alone(self, name: str, told: list[Event]) -> float:
        """Microseconds a generation that the handler takes by itself, the making of the events left out."""
        rounds = []
        for _ in range(5):
            handler = VARIANTS[name]()
            gc.collect()
            begun = time.process_time()
            for event in told if handler is not None else ():
                handler(event)  # type: ignore[misc]  # None has no round
            rounds.append(time.process_time() - begun)
        return min(rounds) / len(self.prompts) * 1e6


async def unheard(service: Service) -> float:
    """Microseconds that an event takes which nobody hears, made as the client makes it."""
    async with client(service, None) as flux:
        core = flux._context  # noqa: SLF001  # the one place where events are made
        core.bind()
        clock, state = time.perf_counter, RequestState.IN_PROGRESS
        rounds = []
        for _ in range(5):
            begun = clock()
            for poll in range(EMITS):
                core.emit(lambda at, poll=poll: Polled(at=at, poll=poll, state=state))  # type: ignore[misc]
            rounds.append(clock() - begun)
        return min(rounds) / EMITS * 1e6


def imported() -> set[str]:
    """The third parties of telemetry that are imported with the package itself."""
    program = "import sys, flux_klein_async; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name for name in ran.stdout.split() if name.split(".")[0] == "opentelemetry"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=256)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    prompts = [f"a snow leopard at dawn, number {number}" for number in range(options.generations)]
    with Service(PROFILE) as service:
        run = Run(service, prompts)
        told = run.events()  # and a warm-up
        for number in range(1, options.turns + 1):
            run.turn(number)
        one = asyncio.run(unheard(service))
    print(f"\n{'CPU a generation':36} {'median':>10} {'ratio':>7} {'handler alone':>15}")
    for name, values in run.cpu.items():
        print(f"{name:36} {median(values):7.0f} µs {run.ratio(name):7.3f} {run.alone(name, told):12.1f} µs")
    events = len(told) / len(prompts)
    share = events * one / median(run.cpu[UNUSED])
    met = share <= BAR and not imported()
    print(f"{events:.1f} events a generation; unheard, one takes {one:.3f} µs, all of them {share:.2%} (bar {BAR:.2%})")
    print(f"imported with the package: {', '.join(sorted(imported())) or 'nothing of OpenTelemetry'}")
    print("bar met" if met else "bar missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
