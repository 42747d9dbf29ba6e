"""What the benchmarks share: the service in another process, a client written by hand, turns, memory.

Run as a script, it serves the emulator until its standard input ends. It answers each line on it with a line of JSON:
`calls` (how often each endpoint was called), `faults` (how many of the recorded calls went wrong), `submits` (those
that were accepted), `memory` (its own), `completions` (when each generation ended).
"""

import asyncio
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import aiohttp
from faulty_client import Submit, accepted_submits

from flux_klein_async.emulator import Emulator

__all__ = ["Comparison", "HandwrittenClient", "Service", "descriptors", "problems", "prompts", "resident", "verdict"]


def prompts(count: int) -> list[str]:
    """So many different prompts."""
    return [f"a snow leopard at dawn, number {number}" for number in range(count)]


def verdict(holds: bool) -> str:
    """Whether a bar is met."""
    return "met" if holds else "MISSED"


# --- the service


class Service:
    """Runs the emulator in another process, so that its CPU and memory are not counted: `with Service("fixed:1"):`.

    Takes the emulator's options, and `faults`, the probability with which each call goes wrong. Only the last record is
    kept unless `max_records` says otherwise.
    """

    def __init__(self, profile: str, *, faults: float = 0.0, **options: Any) -> None:
        options = {"max_records": 1, **options, "profile": profile}
        self._command = [sys.executable, __file__, json.dumps({"faults": faults, "options": options})]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started = self._line()
        self.base_url: str = started["base_url"]
        self.api_key: str = started["api_key"]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()  # closes its standard input, which ends it

    def calls(self) -> Counter[str]:
        """How often each endpoint was called since the start."""
        return Counter(self._ask("calls"))

    def faults(self) -> Counter[str]:
        """How many of the recorded calls of each endpoint went wrong."""
        return Counter(self._ask("faults"))

    def submits(self) -> list[Submit]:
        """The accepted submits among the recorded calls."""
        return [Submit(*submit) for submit in self._ask("submits")]

    def completions(self) -> dict[str, float]:
        """When each generation ended, by request id, on the clock that the loops of all processes share."""
        return dict(self._ask("completions"))

    def memory(self) -> int:
        """Resident bytes of the service's process."""
        return int(self._ask("memory"))

    def _ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def _answer(emulator: Emulator, question: str) -> Any:
    if question == "calls":
        return {endpoint: number for endpoint, number in emulator.calls.items() if endpoint != "connect"}
    if question == "faults":
        return Counter(record.endpoint for record in emulator.records if record.answer is not None)
    if question == "submits":
        return accepted_submits(emulator.records)
    return resident() if question == "memory" else dict(emulator.completions)


async def _serve(faults: float, options: Any) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    emulator = Emulator(**options)
    emulator.storm(faults)
    async with emulator:
        print(json.dumps({"base_url": emulator.base_url, "api_key": emulator.api_key}), flush=True)
        while question := (await reader.readline()).decode().strip():
            print(json.dumps(_answer(emulator, question)), flush=True)


# --- turns


class StrayError(RuntimeError):
    """A run made more or fewer calls than it was to make."""


@dataclass
class Comparison:
    """Client CPU of several variants that take turns, so that noise affects all of them alike.

    Attributes:
        variants: By name, a function that makes `count` generations and returns how many ended well. The first one is
            what the others are compared with.
        calls: How often a generation calls each endpoint.
        stray: The fraction of calls that may be more or fewer, since polls come late on a busy machine.
    """

    service: Service
    variants: Mapping[str, Callable[[], Awaitable[int]]]
    count: int
    calls: dict[str, int]
    stray: float = 0.02
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def once(self, run: Callable[[], Awaitable[int]]) -> float:
        """CPU of one run, in microseconds a generation.

        Raises:
            StrayError: The run did not make the calls that all runs are to make.
        """
        before = self.service.calls()
        gc.collect()
        start = time.process_time()
        done = asyncio.run(_awaited(run))
        used = time.process_time() - start
        made = self.service.calls() - before
        wrong = max(abs(made[endpoint] - calls * self.count) for endpoint, calls in self.calls.items())
        if done != self.count or wrong > self.stray * self.count:
            raise StrayError(f"{done} of {self.count} done with {dict(made)}; is the machine too busy?")
        return used / self.count * 1e6

    def run(self, turns: int) -> None:
        """Warm up, then take so many turns, each in reverse order. A turn with stray calls is taken again."""
        names = list(self.variants)
        left = 2 * turns + 1  # attempts
        while len(self.cpu.get(names[0], ())) <= turns:
            left -= 1
            try:
                turn = {name: self.once(self.variants[name]) for name in names}
            except StrayError as error:
                if left == 0:
                    raise
                print(f"\nA turn is taken again: {error}", file=sys.stderr)
                continue
            for name, cpu in turn.items():
                self.cpu.setdefault(name, []).append(cpu)
            names.reverse()
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for cpus in self.cpu.values():
            del cpus[0]  # the warm-up

    def ratio(self, name: str) -> float:
        """The median over the turns of this variant's CPU over that of the first."""
        first = self.cpu[next(iter(self.variants))]
        return median(own / other for own, other in zip(self.cpu[name], first, strict=True))

    def table(self) -> None:
        """Print the medians."""
        print(f"{'CPU a generation':40}{'median':>11}{'ratio':>8}")
        for name in self.variants:
            print(f"{name:40}{median(self.cpu[name]):8.0f} µs{self.ratio(name):8.3f}")


async def _awaited(run: Callable[[], Awaitable[int]]) -> int:
    return await run()


# --- memory and problems


def resident() -> int:
    """Bytes of this process in memory (Linux only).

    Memory that was freed and that the C library keeps is given back first: after an answer of 8 MiB that is tens of
    megabytes, and says nothing about what is in use.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


@contextmanager
def problems() -> Iterator[list[str]]:
    """Collects what goes wrong on the running loop: unhandled in a task, unraisable in a finalizer, or a warning."""
    found: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(f"unhandled: {context}"))
    hook, sys.unraisablehook = sys.unraisablehook, lambda what: found.append(f"unraisable: {what.exc_value!r}")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield found
            gc.collect()
        found.extend(f"warning: {what.category.__name__}: {what.message}" for what in warned)
    finally:
        sys.unraisablehook = hook
        loop.set_exception_handler(None)


# --- the yardstick

_MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"
_MAX_BYTES = 8 * 1024 * 1024


class HandwrittenClient:
    """What a careful engineer writes in an afternoon with aiohttp alone.

    It makes the same calls as the package (submit, polls at the same times, the result with its cost) with a minimum of
    care: bounded answers, HTTP status and `error_code` checked, one deadline. It repeats and cancels nothing, ignores
    `Retry-After`, and cannot tell an uncertain submit from a refused one.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        interval: float,
        timeout: float,
        connections: int = 100,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self._base = f"{base_url}/v1"
        self._interval = interval
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {api_key}", "Accept": "application/json"}
        self._session = session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(sock_connect=10, sock_read=30),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def generate(self, prompt: str) -> dict[str, Any]:
        """One generation: the result as the service returns it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            submitted = await self._call("POST", f"/models/{_MODEL}", {"prompt": prompt, "width": 1024, "height": 1024})
            request = f"/requests/{submitted['request_id']}"
            polled = loop.time()
            while True:
                await asyncio.sleep(max(polled + self._interval - loop.time(), 0.0))
                polled = loop.time()
                status = await self._call("GET", f"{request}/status")
                if status["status"] in {"completed", "failed", "cancelled"}:
                    break
            if status["status"] != "completed":
                raise RuntimeError(status["status"])
            return await self._call("GET", f"{request}/result?include_cost=true")

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        options: dict[str, Any] = {"json": body, "headers": self._headers, "allow_redirects": False}
        async with self._session.request(method, self._base + path, **options) as answer:
            data = json.loads(await self._read(answer))
            if answer.status != 200 or data.get("error_code") is not None:
                raise RuntimeError(f"HTTP {answer.status}: {data}")
            return dict(data)

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        body = await answer.content.readany()
        while not answer.content.at_eof():
            body += await answer.content.readany()
            if len(body) > _MAX_BYTES:
                raise RuntimeError("too large")
        return body

    async def generate_all(self, prompts: Iterable[str], concurrency: int) -> list[dict[str, Any]]:
        """Many generations, so many at once."""
        return await in_parallel(self.generate, prompts, concurrency)


async def in_parallel(work: Callable[[Any], Awaitable[Any]], items: Iterable[Any], concurrency: int) -> list[Any]:
    """The results of `work` on all items, so many at once."""
    results: list[Any] = []
    left = iter(items)

    async def worker() -> None:
        for item in left:
            results.append(await work(item))  # noqa: PERF401  # other workers append in between

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return results


if __name__ == "__main__":
    asyncio.run(_serve(**json.loads(sys.argv[1])))
