"""The emulated service in a process of its own, so that its CPU and its memory are not counted as the client's.

Run as a script it serves until its standard input ends, and answers each line on it with one line of JSON: `calls` is
how often each endpoint was called, `faults` how many of the recorded calls went wrong, `submits` those that were
accepted, `cost` its own memory and descriptors, `completions` the instants at which generations ended.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from types import TracebackType
from typing import Any, Self

from measure import descriptors, resident
from storm import Submit, accepted_submits

from flux_klein_async.emulator import Emulator

__all__ = ["Service"]


class Service:
    """Starts the emulator in another process: `with Service("fixed:1") as service:`.

    Takes the emulator's options, of which no more than the last record is kept unless told otherwise, and `storm`: the
    probability with which each call goes wrong.
    """

    def __init__(self, profile: str, *, storm: float = 0.0, **options: Any) -> None:
        options = {"max_records": 1, **options, "profile": profile}
        self._command = [sys.executable, __file__, json.dumps({"storm": storm, "options": options})]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        where = self._line()
        self.base_url: str = where["base_url"]
        self.api_key: str = where["api_key"]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()  # closes its standard input, which ends it

    def calls(self) -> Counter[str]:
        """How often each endpoint was called since the start; connections are no calls."""
        return Counter(self._ask("calls"))

    def faults(self) -> Counter[str]:
        """How many of the recorded calls of each endpoint went wrong."""
        return Counter(self._ask("faults"))

    def submits(self) -> list[Submit]:
        """The accepted submits among the recorded calls."""
        return [Submit(*submit) for submit in self._ask("submits")]

    def completions(self) -> dict[str, float]:
        """By request id the instant of its end, on the clock that the loops of all processes here share."""
        return dict(self._ask("completions"))

    def cost(self) -> dict[str, int]:
        """Resident bytes and open descriptors of the service's process."""
        return dict(self._ask("cost"))

    def _ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def answer(emulator: Emulator, question: str) -> Any:
    if question == "calls":
        return {endpoint: number for endpoint, number in emulator.calls.items() if endpoint != "connect"}
    if question == "faults":
        return Counter(record.endpoint for record in emulator.records if record.answer is not None)
    if question == "submits":
        return accepted_submits(emulator.records)
    if question == "completions":
        return dict(emulator.completions)
    return {"resident": resident(), "descriptors": descriptors()}


async def serve(storm: float, options: Any) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    emulator = Emulator(**options)
    emulator.storm(storm)
    async with emulator:
        print(json.dumps({"base_url": emulator.base_url, "api_key": emulator.api_key}), flush=True)
        while question := (await reader.readline()).decode().strip():
            print(json.dumps(answer(emulator, question)), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(**json.loads(sys.argv[1])))
