"""The report page in a real browser: hostile prompts, a phone, the dark, the keyboard, and many rows.

`FLUX_KLEIN_TEST_REQUIRE=1` fails these tests where the browser is missing, instead of skipping them.
"""

import os
import threading
import wave
from pathlib import Path
from typing import Any

import pytest
from browser import MISSING, Page, chromium, find_chromium
from PIL import Image

from flux_klein_async.cli.page import write_report
from tests.batch.test_report import failed, record, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None and not os.environ.get("FLUX_KLEIN_TEST_REQUIRE"), reason=MISSING),
]

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "');window.hacked = 1;// \u2028window.hacked = 1\u2029",
    '"><svg onload=window.hacked=1>',
    "W" * 3000,
    "\u202ereversed \u05e9\u05dc\u05d5\u05dd and \u732b",
    "many\n" * 400,
    "",
]
# What is wider than the view, without what is clipped or hidden on purpose.
TOO_WIDE = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1 &&
    !e.closest(".unseen, .skip, svg") && getComputedStyle(e.parentElement).overflow === "visible"
    ).map(e => e.outerHTML.slice(0, 90))"""

# Reasons and advice that end in the middle of a line.
CUT = """[...document.querySelectorAll(".remark, .remark .why")].filter(e => e.matches(".why")
    ? e.clientHeight % parseFloat(getComputedStyle(e).lineHeight) > 1
    : e.scrollHeight > e.clientHeight + 1).map(e => e.outerHTML.slice(0, 90))"""

LINES = "command => [command.textContent, command.getClientRects().length]"


def item(index: int, prompt: str, *paths: str) -> dict[str, Any]:
    fields = {"prompt": prompt, "width": 96, "height": 64}
    return record(index, input=fields, files=[{"path": path} for path in paths])


def a_report(folder: Path) -> str:
    """A report with every kind of row; its address."""
    paths = []
    for number in range(len(HOSTILE)):
        paths.append(f"{number} <b>'\".png")
        Image.new("RGB", (96, 64), (20 * number, 90, 160)).save(folder / paths[-1])
    with wave.open(str(folder / "tone.wav"), "wb") as tone:
        tone.setparams((1, 2, 8000, 0, "NONE", ""))
        tone.writeframes(bytes(16000))
    rows = [item(number, prompt, paths[number]) for number, prompt in enumerate(HOSTILE)]
    rows[0]["files"].append({"path": "tone.wav"})
    rows += [item(20, "a sound", "tone.wav"), item(21, "gone", "gone.png"), item(22, "outside", "/etc/passwd.png")]
    rows += [
        failed(kind, 30 + n, "unknown", f"{n} {HOSTILE[n]}{' why' * 90}")
        for n, kind in enumerate(("DownloadError", "SubmissionUncertainError"))
    ]
    rows += [failed("<img src=x onerror=window.hacked=1>", 40), record(41, id="i" * 500, request_id="r" * 128)]
    rows += [failed("GenerationFailedError", 42, "no"), failed("InvalidInputError", 43, "no") | {"input": {}}]
    write(folder, *rows, "{torn")
    write_report(folder, stop=threading.Event())
    return (folder / "index.html").as_uri()


async def shown(page: Page, address: str, **how: Any) -> None:
    await page.open(address, **how)
    await page.until("document.body.dataset.shown")


async def test_the_page_is_quiet_keeps_to_its_folder_and_fits(tmp_path: Path) -> None:
    address = a_report(tmp_path)
    async with chromium() as page:
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            await shown(page, address, width=width, dark=dark)
            await page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
            await page.until("[...document.images].every(i => i.complete)")
            assert await page.evaluate("document.querySelector('details.failures').open = true")
            assert page.problems == []
            folder = address.removesuffix("index.html")
            assert [url for url in page.requests if not url.startswith((folder, "data:"))] == []
            assert await page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
            assert await page.evaluate(f"[...{TOO_WIDE}, ...{CUT}]") == []
            assert (
                await page.evaluate("[...document.images].map(i => [i.naturalWidth, Boolean(i.alt)])")
                == [[96, True]] * 9
            )
            prompts = await page.evaluate("[...document.querySelectorAll('.prompt')].map(p => p.textContent)")
            assert prompts[: len(HOSTILE)] == HOSTILE
            assert await page.evaluate("[...document.querySelectorAll('audio')].every(a => a.controls)")
            assert await page.evaluate("document.querySelectorAll('.card svg title').length") == 13
            body = await page.evaluate("document.body.innerText")
            assert "Look for it on the site under Library, Generations" in body
            told = await page.evaluate(f"[...document.querySelectorAll('.todo code')].map({LINES})")
            assert ["--retry-failed", 1] in told
            assert {lines for _, lines in told} == {1}, "no command is broken at its hyphen"
            assert "Line 19 could not be read." in body
            light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (light == "rgb(250, 250, 249)") is not dark
            assert await page.evaluate("window.hacked") is None


async def test_everything_is_reached_by_keyboard(tmp_path: Path) -> None:
    async with chromium() as page:
        await shown(page, a_report(tmp_path))
        await page.press("Tab")
        assert await page.evaluate("document.activeElement.className") == "skip"
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await page.press("Enter", "\r")
        assert await page.evaluate("document.activeElement.id") == "items"
        await page.press("/", "/")
        assert await page.evaluate("document.activeElement.id") == "text"
        for letter in "reversed":
            await page.press(letter, letter)
        await page.until("document.querySelectorAll('.card').length === 1")
        assert await page.evaluate("document.getElementById('status').textContent") == "1 found"
        await page.evaluate("location.hash = ''; void 0")
        await page.until("document.querySelectorAll('.card').length > 1")
        await page.evaluate("document.querySelector('button.tile').focus()")
        await page.press("Enter", "\r")
        await page.until("document.getElementById('viewer').open")
        assert await page.evaluate("document.querySelector('#viewer .whole').textContent") == HOSTILE[0]
        assert await page.evaluate("document.querySelectorAll('#viewer audio[controls]').length") == 1
        await page.press("ArrowRight")
        assert await page.evaluate("document.querySelector('#viewer .whole').textContent") == HOSTILE[1]
        await page.press("Escape")
        await page.until("!document.getElementById('viewer').open")
        await page.evaluate("document.querySelector('.failures button').click()")
        await page.until("document.querySelectorAll('.card').length === 1")
        assert await page.evaluate("document.querySelector('.card .state').textContent") in {"failed", "uncertain"}
        assert (page.problems, await page.evaluate("window.hacked")) == ([], None)


async def test_many_rows_come_in_pages_of_200_and_a_filter_reads_them_all(tmp_path: Path) -> None:
    rows = [failed("ServerError", n) if n % 5 == 0 else item(n, f"number {n}.") for n in range(2500)]
    write(tmp_path, *rows)
    write_report(tmp_path, stop=threading.Event())
    count, status = "document.querySelectorAll('.card').length", "document.getElementById('status').textContent"
    async with chromium() as page:
        address = (tmp_path / "index.html").as_uri()
        await shown(page, address)
        assert (await page.evaluate(count), await page.evaluate(status)) == (200, "1\u2013200 of 2,500")
        assert sum("rows-" in url for url in page.requests) == 1, "only what the page shows is read"
        await page.evaluate(
            "[...document.querySelectorAll('.pager button')].find(b => b.textContent === 'Next').click()"
        )
        await page.until(f"{status} === '201\u2013400 of 2,500'")
        await page.evaluate("document.querySelector('#states input[value=failed]').click()")
        await page.until(f"{status} === '1\u2013200 of 500'")
        await page.evaluate("document.querySelector('#states input[value=\"\"]').click()")
        await page.evaluate("location.hash = 'text=NUMBER+2499.'; void 0")
        await page.until(f"{count} === 1")
        await shown(page, f"{address}#state=done&page=10")
        assert (await page.evaluate(count), await page.evaluate(status)) == (200, "1,801\u20132,000 of 2,000")
        assert page.problems == []


async def test_a_page_without_its_folder_says_so(tmp_path: Path) -> None:
    write(tmp_path, record(0))
    write_report(tmp_path, stop=threading.Event())
    for rows in list((tmp_path / "index_files").glob("rows-*")):
        rows.unlink()
    async with chromium() as page:
        await page.open((tmp_path / "index.html").as_uri())
        await page.until("document.querySelector('.empty')")
        assert "keep index_files beside it" in await page.evaluate("document.getElementById('items').innerText")
