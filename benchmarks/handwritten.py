"""What a careful engineer writes in an afternoon with aiohttp alone: the yardstick of the benchmarks.

It makes the same calls as the package (submit, polls the same schedule, result with its cost) and keeps the same
minimum: bounded answers, HTTP status and `error_code` checked, one deadline. It repeats nothing, cancels nothing,
knows no `Retry-After`, and does not tell an uncertain submit from a refused one.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any, Self

import aiohttp

__all__ = ["Loop"]

MODEL = "blackforestlabs/flux-2-klein/4b/text-to-image"
MOST_BYTES = 8 * 1024 * 1024
DONE = {"completed", "failed", "cancelled"}


class Loop:
    """Submit, poll every `interval` seconds, fetch."""

    def __init__(self, base_url: str, api_key: str, *, interval: float, timeout: float, connections: int = 100) -> None:
        self._base = f"{base_url}/v1"
        self._interval = interval
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {api_key}", "Accept": "application/json"},
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(sock_connect=10, sock_read=30),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def generate(self, prompt: str) -> dict[str, Any]:
        """One generation: the result as the service gives it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            body = {"prompt": prompt, "width": 1024, "height": 1024}
            submitted = await self._call("POST", f"/models/{MODEL}", body)
            poll_endpoint = loop.time()
            request = f"/requests/{submitted['request_id']}"
            while True:
                poll_endpoint = max(poll_endpoint + self._interval, loop.time())
                await asyncio.sleep(poll_endpoint - loop.time())
                poll_endpoint = loop.time()
                status = await self._call("GET", f"{request}/status")
                if status["status"] in DONE:
                    break
            if status["status"] != "completed":
                raise RuntimeError(status["status"])
            return await self._call("GET", f"{request}/result?include_cost=true")

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async with self._session.request(method, self._base + path, json=body, allow_redirects=False) as answer:
            data = json.loads(await self._read(answer))
            if answer.status != 200 or data.get("error_code") is not None:
                raise RuntimeError(f"HTTP {answer.status}: {data}")
            return dict(data)

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        body = await answer.content.readany()
        while not answer.content.at_eof():
            body += await answer.content.readany()
            if len(body) > MOST_BYTES:
                raise RuntimeError("too large")
        return body

    async def generate_all(self, prompts: Iterable[str], concurrency: int) -> list[dict[str, Any]]:
        """Many generations with so many at once."""
        results: list[dict[str, Any]] = []
        left = iter(prompts)
        await asyncio.gather(*(self._work(left, results) for _ in range(concurrency)))
        return results

    async def _work(self, left: Iterator[str], results: list[dict[str, Any]]) -> None:
        for prompt in left:
            results.append(await self.generate(prompt))  # noqa: PERF401  # others append in between
