"""What several of these tests need."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from flux_klein_async.emulator import Engine, VirtualTimeLoop

KLEIN_4B = "blackforestlabs/flux-2-klein/4b/text-to-image"
KLEIN_9B = "blackforestlabs/flux-2-klein/9b/text-to-image"
SUBMIT = f"/v1/models/{KLEIN_4B}"
BEARER = {"authorization": "Bearer emulator-token"}


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in virtual time; asyncio cleans up what it leaves behind."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def ask(engine: Engine, target: str, now: float = 0.0, *, method: str = "GET", body: Any = None) -> Any:
    """Call the engine with its token; bodies that are not bytes are sent as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return engine.handle(method, target, BEARER, data, now)


def submit(engine: Engine, now: float = 0.0, *, model: str = KLEIN_4B, **given: Any) -> str:
    """Submit a generation and return its request id."""
    reply = ask(engine, f"/v1/models/{model}", now, method="POST", body={"prompt": "a snow leopard", **given})
    assert reply.status == 200
    return str(reply.body["request_id"])
