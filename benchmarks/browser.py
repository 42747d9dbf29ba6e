"""Drives Chromium without a window, over its DevTools protocol: opens pages, presses keys, takes pictures.

    async with chromium() as page:
        await page.open(Path("out/index.html").as_uri(), width=390, dark=True)
        assert (page.problems, await page.evaluate("document.title")) == ([], "out")

Needs Debian's `chromium`, or another build of it under one of the names in `NAMES`.
"""

import asyncio
import base64
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["MISSING", "Page", "chromium", "find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "Chromium is missing; install it with: apt-get install -y chromium"
_PATIENCE = 30.0  # seconds for anything that the browser is asked
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # it refuses its sandbox to root, which containers are
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """The path of the browser, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.

    Attributes:
        problems: What the page's console says of errors and warnings, and what its scripts raised.
        requests: The addresses of all that was asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_PATIENCE):
            return await answer

    async def open(
        self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, scale: float = 1
    ) -> None:
        """Open an address and wait until the page has loaded."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        for address in ("about:blank", url):  # from one address to itself with another fragment, nothing would load
            self._loaded.clear()
            self.problems.clear()
            self.requests.clear()
            await self.call("Page.navigate", url=address)
            async with asyncio.timeout(_PATIENCE):
                await self._loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        condition = f"new Promise(done => (function again() {{ ({expression}) ? done() : setTimeout(again, 10) }})())"
        await self.evaluate(condition)

    async def press(self, key: str, text: str = "") -> None:
        """Press a key where the focus is; `text` is what it types."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        facts = {"key": key, "code": key, "text": text, "windowsVirtualKeyCode": codes.get(key, ord(key[0]))}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **facts)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **(facts | {"text": ""}))

    async def picture(self, path: Path, *, whole: bool = False) -> None:
        """Save a PNG of what is in view, or of the whole page."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(found["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if (number := event.get("id")) is not None:
                answer = self._answers.pop(number)
                if not answer.done():
                    if "error" in event:
                        answer.set_exception(RuntimeError(str(event["error"])))
                    else:
                        answer.set_result(event["result"])
                continue
            facts = event["params"]
            match event["method"]:
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Network.requestWillBeSent":
                    self.requests.append(facts["request"]["url"])
                case "Runtime.consoleAPICalled" if facts["type"] in ("error", "warning", "assert"):
                    self.problems.append(f"{facts['type']}: {facts['args']}")
                case "Runtime.exceptionThrown":
                    self.problems.append(f"raised: {facts['exceptionDetails']}")
                case "Log.entryAdded" if facts["entry"]["level"] in ("error", "warning"):
                    self.problems.append(
                        f"{facts['entry']['level']}: {facts['entry']['text']} {facts['entry'].get('url')}"
                    )

    def close(self) -> None:
        """Read no more."""
        self._reading.cancel()


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A tab of a new browser with an empty profile.

    Raises:
        RuntimeError: There is no Chromium.
    """
    program = find_chromium()
    if program is None:
        raise RuntimeError(MISSING)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                port = await _port(Path(profile, "DevToolsActivePort"))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = await answer.json()
                address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    try:
                        yield page
                    finally:
                        page.close()
        finally:
            process.terminate()
            await process.wait()


async def _port(file: Path) -> int:
    """The port that the browser chose, once it has written it down."""
    while True:
        with suppress(FileNotFoundError):
            lines = (await asyncio.to_thread(file.read_text)).splitlines()
            if len(lines) > 1:
                return int(lines[0])
        await asyncio.sleep(0.05)
