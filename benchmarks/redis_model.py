"""The limiter's script without a server: the Lua itself, on dictionaries and the clock of the running loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import lupa.lua51  # type: ignore[import-untyped]
from redis.exceptions import ConnectionError as RedisConnectionError

from flux_klein_async.transport.redis import RedisLimiter, script

__all__ = ["ModelServer", "ModelledLimiter"]


class ModelServer:
    """One server, for any number of limiters in one loop.

    Attributes:
        error: What every exchange raises, if anything.
        delay: Seconds that an exchange takes.
        exchanges: How many there were.
    """

    def __init__(self, delay: float = 0.0005) -> None:
        self.error: Exception | None = None
        self.delay = delay
        self.exchanges = 0
        self._lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
        self._lua.globals().cjson = self._lua.table(decode=self._decode, encode=self._encode)
        self._lua.globals().redis = self._lua.table(call=self._call)
        self._run: Callable[[Any, Any], str] = self._lua.eval(f"function(KEYS, ARGV) {script()} end")
        self._listeners: set[asyncio.Queue[None]] = set()
        self.forget()

    def forget(self) -> None:
        """Lose all data, as a failover to an empty server does."""
        self.leases: dict[str, float] = {}
        self.parts: dict[str, str] = {}
        self._state: str | None = None

    @property
    def state(self) -> Any:
        """What all processes have in common."""
        return json.loads(self._state or "{}")

    def stop(self) -> None:
        """Answer nothing more."""
        self.error = RedisConnectionError("Connection refused")

    async def exchange(self, report: str) -> str:
        """As `EVALSHA`."""
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        self.exchanges += 1
        return self._run(self._lua.table("leases", "parts", "state"), self._lua.table(report))

    async def news(self) -> AsyncIterator[None]:
        """As a subscription."""
        queue: asyncio.Queue[None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                await queue.get()
                yield
        finally:
            self._listeners.discard(queue)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _decode(self, text: str) -> Any:
        return self._lua.table_from(json.loads(text), recursive=True)

    def _encode(self, table: Any) -> str:
        def plain(value: Any) -> Any:
            return {key: plain(item) for key, item in value.items()} if lupa.lua51.lua_type(value) == "table" else value

        return json.dumps(plain(table))

    def _call(self, command: str, *arguments: Any) -> Any:  # noqa: C901, PLR0912  # a table
        match command, *arguments:
            case ("TIME",):
                now = asyncio.get_running_loop().time() + 1e9
                return self._lua.table(str(int(now)), str(int(now % 1 * 1e6)))
            case "ZRANGEBYSCORE", _, _, most:
                return self._lua.table(*[name for name, end in self.leases.items() if end <= float(most)])
            case "ZADD", _, end, name:
                self.leases[name] = float(end)
            case "ZREM", _, name:
                self.leases.pop(name, None)
            case ("ZSCORE", _, name):
                return str(self.leases[name]) if name in self.leases else False
            case "HGETALL", _:
                return self._lua.table(*[text for pair in self.parts.items() for text in pair])
            case "HSET", _, name, text:
                self.parts[name] = text
            case "HDEL", _, name:
                self.parts.pop(name, None)
            case "GET", _:
                return self._state or False
            case "SET", _, text, "PX", _:
                self._state = text
            case "PUBLISH", _, _:
                for queue in self._listeners:
                    queue.put_nowait(None)
            case "PEXPIRE", _, _:
                pass
            case _:
                msg = f"the model knows no {command}"
                raise NotImplementedError(msg)
        return None


class ModelledLimiter(RedisLimiter):
    """A `RedisLimiter` with a model in place of the server."""

    def __init__(self, server: ModelServer, **options: Any) -> None:
        super().__init__("redis://model", **options)
        self._model = server

    def _server(self) -> Any:
        return getattr(self, "_model", None)
