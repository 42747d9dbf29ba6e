"""Edit a local picture with two references. It needs no token, because the emulator replaces the service.

Usage: python examples/edit.py [IN.png REFERENCE.png REFERENCE.png]
"""

import asyncio
import sys
from pathlib import Path

from PIL import Image

from flux_klein_async import FluxKleinClient, InvalidInputError
from flux_klein_async.emulator import Emulator

EDIT = "blackforestlabs/flux-2/dev/edit"


def drawn() -> list[Path]:
    """A picture and two references, for a run without arguments."""
    paths = []
    for name, colour in (("room", "wheat"), ("lamp", "orange"), ("carpet", "navy")):
        path = Path(f"{name}.png")
        Image.new("RGB", (256, 256), colour).save(path)
        paths.append(path)
    return paths


async def main(paths: list[Path]) -> None:
    """Send the pictures with the prompt, and save the edited one."""
    # With your own token: FluxKleinClient(), and no emulator.
    async with Emulator() as service, FluxKleinClient(service.api_key, base_url=service.base_url) as client:
        edit = {"prompt": "put the lamp on the carpet, in the room", "image_urls": paths, "seed": 3}
        try:
            result = await client.generate(edit, model=EDIT)
        except InvalidInputError as error:  # a file that is missing, too large or no picture; nothing was sent
            sys.exit(str(error))
        [saved] = await client.download(result, "out", names=["edited.png"])
        print(f"Sent {len(paths)} pictures, saved {saved}")


if __name__ == "__main__":
    asyncio.run(main([Path(name) for name in sys.argv[1:]] or drawn()))
