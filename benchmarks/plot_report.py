"""Takes the picture of a report page that the README shows.

    python benchmarks/plot_report.py [--output docs/images/report.png] [--dark]

A batch of eleven prompts against the emulator, which fails one of them and leaves one uncertain, as `flux-klein batch`
ends it; then its page in Chromium. The times differ a little from run to run. Needs Chromium.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

from browser import chromium
from PIL import Image

from flux_klein_async.emulator import Emulator, Generation, Reset

OUTPUT = Path(__file__).parent.parent / "docs" / "images" / "report.png"
WIDTH, HEIGHT, SCALE = 1180, 1020, 1.25
PROMPTS = [
    ("leopard", "a snow leopard at dawn, resting on a granite ledge, soft rim light, 85 mm", 1024, 1024),
    ("lighthouse", "a lighthouse in fog", 1024, 768),
    ("tram", "a tram in the rain, reflections on wet cobblestones, dusk", 1024, 1024),
    ("harbour", "a quiet harbour at first light, long exposure", 1024, 1024),
    ("fern", "a fern leaf in backlight, macro, dew", 768, 1024),
    ("kettle", "an enamel kettle on a camp stove, morning frost", 1024, 1024),
    ("observatory", "an observatory under the Milky Way", 1024, 768),
    ("poster", "a travel poster for the moons of Jupiter, flat colours", 768, 1024),
    ("otter", "an otter floating on its back among kelp", 1024, 1024),
    ("bakery", "a bakery window at night, warm light on snow", 1024, 1024),
    ("dunes", "dunes seen from above, long shadows", 1024, 768),
]


async def run_batch(folder: Path) -> None:
    """Run the command on the prompts."""
    rows = [dict(zip(("id", "prompt", "width", "height"), row, strict=True)) for row in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with Emulator(profile="klein", seed=11) as emulator:
        failing = Generation(ends="failed", error="out of memory on the worker")
        emulator.script("submit", *[None] * 6, Reset(accepted=True), None, failing)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flux_klein_async", "batch", "prompts.jsonl", "--concurrency", "3", "--quiet"),
            *("--output-dir", "pictures"),
            cwd=folder,
            env={**os.environ, "RUNCOMFY_MODEL_API_BASE": emulator.base_url, "RUNCOMFY_API_TOKEN": emulator.api_key},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await process.wait()


async def photograph(page_file: Path, output: Path, *, dark: bool) -> None:
    """Open the page and save what is in view."""
    async with chromium() as page:
        await page.open(page_file.as_uri(), width=WIDTH, height=HEIGHT, scale=SCALE, dark=dark)
        await page.until("document.body.dataset.shown && [...document.images].every(image => image.complete)")
        await page.picture(output)


def main() -> None:
    """Generate, open, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run_batch(Path(name)))
        asyncio.run(photograph(Path(name, "pictures", "index.html"), options.output, dark=options.dark))
    with Image.open(options.output) as picture:
        smaller = picture.convert("RGB")
    smaller.save(options.output, optimize=True)
    print(f"{options.output}: {options.output.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
