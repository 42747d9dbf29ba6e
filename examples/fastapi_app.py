"""A picture service on FastAPI: wait for a picture, or watch it being made; a visitor who hangs up costs nothing more.

Serve it:   uvicorn --app-dir examples fastapi_app:app --workers 2
Try it out: python examples/fastapi_app.py      (serves itself on the emulator, asks for two pictures, ends)
"""

import asyncio
import socket
from collections.abc import Callable

import aiohttp
import uvicorn
from fastapi import APIRouter, FastAPI, Request

from flux_klein_async import FluxKleinClient, TextToImageInput
from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.fastapi import EventStream, Klein, answer_errors, klein_lifespan, while_connected

routes = APIRouter()


@routes.post("/pictures")
async def picture(order: TextToImageInput, klein: Klein, request: Request) -> dict[str, str]:
    """Wait for one picture."""
    result = await while_connected(request, klein.generate(order))
    return {"request_id": result.request_id, "url": result.image_url}


@routes.post("/pictures/events")
async def watched_picture(order: TextToImageInput, klein: Klein) -> EventStream:
    """Watch one picture being made."""
    return EventStream(lambda tell: klein.generate(order, on_status=tell))


@routes.get("/requests/{request_id}/events")
async def events(request_id: str, klein: Klein) -> EventStream:
    """Watch a request that was submitted before. A browser's EventSource may reconnect here: that pays for nothing."""
    return EventStream(lambda tell: klein.wait_for_result(request_id, on_status=tell))


@routes.delete("/requests/{request_id}")
async def cancel(request_id: str, klein: Klein) -> dict[str, bool]:
    """Cancel a request that is still queued."""
    return {"cancelled": (await klein.cancel(request_id)).cancelled}


def create_app(make: Callable[[], FluxKleinClient] = FluxKleinClient) -> FastAPI:
    """The app, whose client `make` makes when the server starts."""
    app = FastAPI(lifespan=klein_lifespan(make, drain=20))
    answer_errors(app)
    app.include_router(routes)
    return app


app = create_app()


async def visit(url: str) -> None:
    """Ask for two pictures, as a visitor would."""
    order = {"prompt": "a snow leopard at dawn", "width": 512, "height": 512}
    async with aiohttp.ClientSession(url) as visitor:
        async with visitor.post("/pictures", json=order) as answer:
            print(answer.status, await answer.json())
        async with visitor.post("/pictures/events", json=order) as answer:
            print(await answer.text())


async def main() -> None:
    """Serve on a free port, next to the emulator, for as long as the visit lasts."""
    async with Emulator() as service:
        shown = create_app(lambda: FluxKleinClient(service.api_key, base_url=service.base_url))
        server = uvicorn.Server(uvicorn.Config(shown, log_level="warning"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            try:
                await visit(f"http://127.0.0.1:{listener.getsockname()[1]}")
            finally:
                server.should_exit = True
                await serving


if __name__ == "__main__":
    asyncio.run(main())
