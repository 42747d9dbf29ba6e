"""Eight pictures on one sheet. It needs no token, because the emulator replaces the service.

Usage: python examples/contact_sheet.py [SHEET.png]
"""

import asyncio
import sys

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator
from flux_klein_async.integrations.pillow import contact_sheet


async def main(path: str) -> None:
    """Generate eight pictures and put them on the sheet."""
    pictures: list[bytes] = []
    async with Emulator() as service, FluxKleinClient(service.api_key, base_url=service.base_url) as client:
        for outcome in await client.generate_all(["a snow leopard at dawn"] * 8):
            if outcome.result is None:
                print(outcome.error, file=sys.stderr)
                continue
            pictures += await client.download_bytes(outcome.result)
    contact_sheet(pictures, path, columns=4)
    print(f"Saved {len(pictures)} placeholder pictures to {path}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sheet.png"))
