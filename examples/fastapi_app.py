"""A picture service on FastAPI: wait for a picture or follow its progress. A disconnect cancels the generation.

Serve it:   uvicorn --app-dir examples fastapi_app:app --workers 2
Try it out: python examples/fastapi_app.py      (serves itself on the emulator, requests two pictures, ends)
"""

import asyncio
import socket
from collections.abc import Callable

import aiohttp
import uvicorn
from fastapi import APIRouter, FastAPI, Request

from flux_klein_async import FluxKleinClient, TextToImageInput
from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.fastapi import (
    ClientDep,
    ProgressResponse,
    add_error_handlers,
    client_lifespan,
    run_until_disconnected,
)

routes = APIRouter()


@routes.post("/pictures")
async def create_picture(body: TextToImageInput, client: ClientDep, request: Request) -> dict[str, str]:
    """Wait for one picture."""
    result = await run_until_disconnected(request, client.generate(body))
    return {"request_id": result.request_id, "url": result.image_url}


@routes.post("/pictures/events")
async def stream_picture(body: TextToImageInput, client: ClientDep) -> ProgressResponse:
    """Follow the progress of one picture."""
    return ProgressResponse(lambda on_status: client.generate(body, on_status=on_status))


@routes.get("/requests/{request_id}/events")
async def stream_request(request_id: str, client: ClientDep) -> ProgressResponse:
    """Follow a request submitted earlier. A browser's EventSource can reconnect here without paying again."""
    return ProgressResponse(lambda on_status: client.wait_for_result(request_id, on_status=on_status))


@routes.delete("/requests/{request_id}")
async def cancel(request_id: str, client: ClientDep) -> dict[str, bool]:
    """Cancel a request that is still queued."""
    return {"cancelled": (await client.cancel(request_id)).cancelled}


def create_app(make: Callable[[], FluxKleinClient] = FluxKleinClient) -> FastAPI:
    """The app. `make` makes its client when the server starts."""
    app = FastAPI(lifespan=client_lifespan(make, drain=20))
    add_error_handlers(app)
    app.include_router(routes)
    return app


app = create_app()


async def main() -> None:
    """Serve on a free port, next to the emulator, and request two pictures."""
    async with Emulator() as service:
        emulated = create_app(lambda: FluxKleinClient(service.api_key, base_url=service.base_url))
        server = uvicorn.Server(uvicorn.Config(emulated, log_level="warning"))
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve([listener]))
        body = {"prompt": "a snow leopard at dawn", "width": 512, "height": 512}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.getsockname()[1]}") as session:
            for path in ("/pictures", "/pictures/events"):
                async with session.post(path, json=body) as response:
                    print(response.status, await response.text())
        server.should_exit = True
        await serving


if __name__ == "__main__":
    asyncio.run(main())
