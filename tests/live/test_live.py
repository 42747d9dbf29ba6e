"""The real service, only when asked for: FLUX_KLEIN_LIVE=1 and a token. Spends one picture at most."""

import os
from pathlib import Path

import pytest

from flux_klein_async import KLEIN_4B_TEXT_TO_IMAGE, FluxKleinClient, NotFoundError

TOKEN = os.environ.get("RUNCOMFY_API_TOKEN") or os.environ.get("RUNCOMFY_TOKEN")
pytestmark = pytest.mark.skipif(
    os.environ.get("FLUX_KLEIN_LIVE") != "1" or not TOKEN, reason="FLUX_KLEIN_LIVE=1 and a token are not set"
)


async def test_the_catalogue_knows_the_model() -> None:
    async with FluxKleinClient(TOKEN) as client:
        assert (await client.get_model()).model_id == KLEIN_4B_TEXT_TO_IMAGE


async def test_a_request_that_nobody_made_is_not_found() -> None:
    async with FluxKleinClient(TOKEN) as client:
        with pytest.raises(NotFoundError):
            await client.status("00000000-0000-0000-0000-000000000000")


async def test_one_picture_comes_home(tmp_path: Path) -> None:
    async with FluxKleinClient(TOKEN) as client:
        result = await client.generate("a snow leopard at dawn", width=256, height=256)
        [path] = await client.download(result, tmp_path)
    assert path.stat().st_size > 1000
