"""Eight pictures on one sheet, without a token: the emulator stands in for the service.

Usage: python examples/contact_sheet.py [SHEET.png]
"""

import asyncio
import io
import sys

from PIL import Image

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator

PROMPT = "a snow leopard at dawn"
SIDE = 200  # pixels of one picture on the sheet


async def main(path: str) -> None:
    """Generate, read, paste."""
    sheet = Image.new("RGB", (4 * SIDE, 2 * SIDE))
    async with Emulator() as service, FluxKleinClient(service.api_key, base_url=service.base_url) as client:
        for outcome in await client.generate_all([PROMPT] * 8):
            if outcome.result is None:
                print(outcome.error, file=sys.stderr)
                continue
            [picture] = await client.download_bytes(outcome.result)
            small = Image.open(io.BytesIO(picture)).resize((SIDE, SIDE))
            sheet.paste(small, (outcome.index % 4 * SIDE, outcome.index // 4 * SIDE))
    sheet.save(path)
    print(f"{service.accepted} placeholder pictures on {path}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sheet.png"))
