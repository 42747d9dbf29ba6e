"""The emulated service in a process of its own, so that its CPU is not counted as the client's.

Run as a script it serves until its standard input ends, and answers each line on it with one line of JSON: how often
each endpoint was called.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from types import TracebackType
from typing import Any, Self

from flux_klein_async.emulator import Emulator

__all__ = ["Service"]


class Service:
    """Starts the emulator in another process: `with Service("fixed:1") as service:`."""

    def __init__(self, profile: str) -> None:
        self._command = [sys.executable, __file__, profile]

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
        """How often each endpoint was called since the start."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Counter(self._line())

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


async def serve(profile: str) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Emulator(profile=profile, max_records=1) as emulator:
        print(json.dumps({"base_url": emulator.base_url, "api_key": emulator.api_key}), flush=True)
        while await reader.readline():
            print(json.dumps(emulator.calls), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
