"""Eight pictures on one sheet. It needs no token, because the emulator replaces the service.

Usage: python examples/contact_sheet.py [SHEET.png]
"""

import asyncio
import io
import sys

from PIL import Image

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator

SIDE = 200  # pixels of one picture on the sheet


async def main(path: str) -> None:
    """Generate eight pictures and paste them on the sheet."""
    sheet = Image.new("RGB", (4 * SIDE, 2 * SIDE))
    async with Emulator() as service, FluxKleinClient(service.api_key, base_url=service.base_url) as client:
        for outcome in await client.generate_all(["a snow leopard at dawn"] * 8):
            if outcome.result is None:
                print(outcome.error, file=sys.stderr)
                continue
            [picture] = await client.download_bytes(outcome.result)
            small = Image.open(io.BytesIO(picture)).resize((SIDE, SIDE))
            sheet.paste(small, (outcome.index % 4 * SIDE, outcome.index // 4 * SIDE))
    sheet.save(path)
    print(f"Saved {service.accepted} placeholder pictures to {path}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sheet.png"))
