"""The example apps as they are deployed: in two worker processes, with 200 calls, a third of which disconnect."""

import asyncio
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from flux_klein_async.emulator import Emulator

from .serving import accepted, release, states

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PATHS = ("/pictures", "/pictures/events")


async def call(url, number):
    """One call on a connection of its own. The FastAPI app reads JSON; the other one takes the body as the prompt."""
    body = {"prompt": f"picture {number}"}
    async with aiohttp.ClientSession(url) as session, session.post(PATHS[number % 2], json=body) as response:
        return response.status, await response.text()


def all_have_a_picture(calls):
    answers = [call.result() for call in calls]
    return all(status == 200 and ".png" in text and "event: error" not in text for status, text in answers)


class Workers:
    """An example in two processes behind one port."""

    ready: str  # what each process logs once it serves
    command: tuple[str, ...]

    def __init__(self, emulator):
        self._environment = {
            **os.environ,
            "RUNCOMFY_API_TOKEN": emulator.api_key,
            "RUNCOMFY_MODEL_API_BASE": emulator.base_url,
            # What the app might leave open; uvicorn leaves its own listening socket open.
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
        self.log = ""
        await self._until(lambda: self.log.count(self.ready) == 2)
        self.url = re.search(r"http://[\d.]+:\d+", self.log)[0]
        return self

    async def _until(self, happened):
        while not happened():
            line = await self._process.stderr.readline()
            assert line, self.log
            self.log += line.decode()

    def terminate(self):
        self._process.send_signal(signal.SIGTERM)

    async def closing(self):
        """Wait until both processes have begun to close."""
        raise NotImplementedError

    async def ended(self):
        """The exit code, and what an app that broke or left something open would have logged."""
        self.log += (await self._process.stderr.read()).decode()
        complaints = re.findall(r".*(?:ERROR|Traceback|Unclosed|destroyed|never (?:awaited|retrieved)).*", self.log)
        return await self._process.wait(), complaints


class Uvicorn(Workers):
    """The FastAPI example."""

    ready = "Application startup complete"
    command = (
        *("uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app"),
        *("--workers", "2", "--port", "0", "--no-access-log"),
    )

    async def closing(self):
        await self._until(lambda: self.log.count("Shutting down") == 2)


class Gunicorn(Workers):
    """The aiohttp.web example. gunicorn does not log when a worker serves, so its configuration does."""

    ready = "worker is ready"
    command = (
        *("gunicorn", "--chdir", str(EXAMPLES), "aiohttp_app:create_app()"),
        *("--worker-class", "aiohttp.GunicornWebWorker", "--workers", "2", "--bind", "127.0.0.1:0"),
        *("--config", str(Path(__file__).with_name("gunicorn_config.py"))),
    )

    async def closing(self):
        """The port is closed once both have closed it; the first to do so is gunicorn itself."""
        address = URL(self.url)
        async with asyncio.timeout(60):
            with suppress(ConnectionError):
                while True:
                    _, writer = await asyncio.open_connection(address.host, address.port)
                    writer.close()


def number_of(job):
    return int(re.search(r"\d+", job.input["prompt"])[0])


@pytest.mark.parametrize("serve", [Uvicorn, Gunicorn])
async def test_disconnects_cancel_and_a_shutdown_lets_every_handler_respond(serve):
    """Each worker has a client of its own, which runs 64 generations at a time: the others wait for a slot there."""
    async with Emulator(workers=0, profile="fixed:0.01") as emulator:
        app = await serve(emulator).start()
        calls = [asyncio.create_task(call(app.url, number)) for number in range(200)]
        await accepted(emulator, 64)
        leaving, staying = calls[::3], [each for number, each in enumerate(calls) if number % 3]
        for each in leaving:
            each.cancel()
        await asyncio.wait(leaving)
        orphans = [job for job in emulator.service.queue.jobs.values() if number_of(job) % 3 == 0]
        await accepted(emulator, len(orphans), "cancel")
        release(emulator)
        await asyncio.wait(staying)
        assert all_have_a_picture(staying)
        app.terminate()
        assert await app.ended() == (0, [])
        assert set(states(emulator)) <= {"completed", "cancelled"}
        assert states(emulator).count("cancelled") >= len(orphans) > 0

        app = await serve(emulator).start()
        emulator.service.queue._workers = 0
        count = emulator.calls["submit"]
        calls = [asyncio.create_task(call(app.url, number)) for number in range(40)]
        await accepted(emulator, count + 40)
        app.terminate()
        await app.closing()
        assert not any(each.done() for each in calls)
        release(emulator)
        await asyncio.wait(calls)
        assert all_have_a_picture(calls)
        assert await app.ended() == (0, [])
        assert set(states(emulator)) == {"completed", "cancelled"}
