"""The example apps with a crowd of visitors, a third of whom hang up: under their real servers, on sockets."""

import asyncio
import importlib.util
import os
import re
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from flux_klein_async.emulator import Emulator

from .serving import AiohttpWeb, Asgi, accepted, client_of, nothing_left_behind, release, states

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PATHS = ("/pictures", "/pictures/events")


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_fastapi(emulator):
    return Asgi(example("fastapi_app").create_app(client_of(emulator)))


def on_aiohttp(emulator):
    return AiohttpWeb(example("aiohttp_app").create_app(make=client_of(emulator)))


APPS = pytest.mark.parametrize("serve", [on_fastapi, on_aiohttp])


async def visit(url, number):
    """One visitor with a connection of their own; the FastAPI app reads JSON, the other one text."""
    async with aiohttp.ClientSession(url) as session:
        order = {"prompt": f"picture {number}"}
        async with session.post(PATHS[number % 2], json=order) as answer:
            return answer.status, await answer.text()


def came_home(visits):
    answers = [visit.result() for visit in visits]
    return [text for status, text in answers if status == 200 and ".png" in text and "event: error" not in text]


async def crowd(url, emulator, count, so_far=0):
    """Let `count` visitors come, and a third of them hang up once all are in the queue; the rest of them wait on."""
    visits = [asyncio.create_task(visit(url, number)) for number in range(count)]
    await accepted(emulator, so_far + count)
    leaving = visits[::3]
    for leaver in leaving:
        leaver.cancel()
    await asyncio.wait(leaving)
    return [visit for visit in visits if visit not in leaving], len(leaving)


@APPS
async def test_a_crowd_a_third_of_which_hangs_up(serve):
    async with nothing_left_behind(), Emulator(workers=0, profile="fixed:0.01") as emulator:
        async with serve(emulator) as server:
            staying, left = await crowd(server.url, emulator, 60)
            await accepted(emulator, left, "cancel")
            release(emulator)
            await asyncio.wait(staying)
            assert len(came_home(staying)) == len(staying) == 40
        assert sorted(states(emulator)) == ["cancelled"] * 20 + ["completed"] * 40


@APPS
async def test_a_shutdown_while_busy_sees_everybody_through_and_the_app_can_start_again(serve):
    async with nothing_left_behind(), Emulator(workers=0, profile="fixed:0.01") as emulator:
        for done in (0, 30):
            emulator.service.queue._workers = 0
            async with serve(emulator) as server:
                visits = [asyncio.create_task(visit(server.url, number)) for number in range(30)]
                await accepted(emulator, done + 30)
                stopping = asyncio.create_task(server.stop())
                await server.closing.wait()
                assert not any(visit.done() for visit in visits)
                release(emulator)
                await stopping
                await asyncio.wait(visits)
                assert len(came_home(visits)) == 30
        assert states(emulator) == ["completed"] * 60


class Workers:
    """An example as it is deployed: two processes of its own behind one port."""

    ready: str  # what each process says once it serves
    command: tuple[str, ...]

    def __init__(self, emulator):
        self._environment = {
            **os.environ,
            "RUNCOMFY_API_TOKEN": emulator.api_key,
            "RUNCOMFY_MODEL_API_BASE": emulator.base_url,
            # What the app might leave open; uvicorn's own listening socket is none of it.
            "PYTHONWARNINGS": ",".join(
                f"always:Unclosed {what}:ResourceWarning" for what in ("<FluxKleinClient", "client", "connector")
            ),
        }

    async def start(self):
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *self.command),
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self.said = ""
        await self._until(lambda: self.said.count(self.ready) == 2)
        self.url = re.search(r"http://[\d.]+:\d+", self.said)[0]
        return self

    async def _until(self, happened):
        while not happened():
            line = await self._process.stderr.readline()
            assert line, self.said
            self.said += line.decode()

    def signal(self):
        self._process.send_signal(signal.SIGTERM)

    async def closing(self):
        """Until both processes have begun to close."""
        raise NotImplementedError

    async def end(self):
        self.said += (await self._process.stderr.read()).decode()
        return await self._process.wait()


class Uvicorn(Workers):
    """The FastAPI example."""

    ready = "Application startup complete"
    command = (
        *("uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app"),
        *("--workers", "2", "--port", "0", "--no-access-log"),
    )

    async def closing(self):
        await self._until(lambda: self.said.count("Shutting down") == 2)


class Gunicorn(Workers):
    """The aiohttp.web example. gunicorn says nothing when a worker serves, so that its configuration does."""

    ready = "worker is ready"
    command = (
        *("gunicorn", "--chdir", str(EXAMPLES), "aiohttp_app:create_app()"),
        *("--worker-class", "aiohttp.GunicornWebWorker", "--workers", "2", "--bind", "127.0.0.1:0"),
        *("--config", str(Path(__file__).with_name("gunicorn_says.py"))),
    )

    async def closing(self):
        """The port is closed once both have closed it; the first to do so is gunicorn itself."""
        address = URL(self.url)
        async with asyncio.timeout(60):
            while await listens(address.host, address.port):
                pass


async def listens(host, port):
    with socket.socket() as visitor:
        visitor.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(visitor, (host, port))
        except ConnectionError:
            return False
        return True


def complaints(said):
    """What an app that left something behind, or broke, would have said; uvicorn's own "unclosed socket" is none."""
    return re.findall(r".*(?:ERROR|Traceback|Unclosed|destroyed|never (?:awaited|retrieved)).*", said)


def number_of(job):
    return int(re.search(r"\d+", job.input["prompt"])[0])  # one app takes the whole body for the prompt


@pytest.mark.parametrize("serve", [Uvicorn, Gunicorn])
async def test_two_workers_and_two_hundred_visitors(serve):
    """Each worker has a client of its own, which runs 64 generations at a time: the others wait for a slot there."""
    async with Emulator(workers=0, profile="fixed:0.01") as emulator:
        server = await serve(emulator).start()
        visits = [asyncio.create_task(visit(server.url, number)) for number in range(200)]
        await accepted(emulator, 64)
        leaving, staying = visits[::3], [visit for n, visit in enumerate(visits) if n % 3]
        for leaver in leaving:
            leaver.cancel()
        await asyncio.wait(leaving)
        orphans = [job for job in emulator.service.queue.jobs.values() if number_of(job) % 3 == 0]
        await accepted(emulator, len(orphans), "cancel")
        release(emulator)
        await asyncio.wait(staying)
        assert len(came_home(staying)) == len(staying) == 133
        server.signal()
        assert (await server.end(), complaints(server.said)) == (0, [])
        assert set(states(emulator)) <= {"completed", "cancelled"}
        assert states(emulator).count("cancelled") >= len(orphans) > 0

        again = await serve(emulator).start()
        emulator.service.queue._workers = 0
        count = emulator.calls["submit"]
        visits = [asyncio.create_task(visit(again.url, number)) for number in range(40)]
        await accepted(emulator, count + 40)
        again.signal()
        await again.closing()
        assert not any(visit.done() for visit in visits)
        release(emulator)
        await asyncio.wait(visits)
        assert len(came_home(visits)) == 40
        assert (await again.end(), complaints(again.said)) == (0, [])
        assert set(states(emulator)) == {"completed", "cancelled"}
