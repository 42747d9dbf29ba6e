import sys

import pytest

from flux_klein_async.cli.service import MissingExtraError, build_client, emulated, require_pillow
from flux_klein_async.errors import ConfigurationError


async def test_builds_a_client_of_the_address_given() -> None:
    client = build_client(("http://127.0.0.1:1", "a-token-for-this"), timeout=None, concurrency=1000)
    assert "127.0.0.1:1" in repr(client)
    await client.aclose()


def test_without_a_token_there_is_no_client() -> None:
    with pytest.raises(ConfigurationError, match="RUNCOMFY_API_TOKEN"):
        build_client((None, None))


async def test_the_emulator_of_a_run_gives_ids_of_its_own() -> None:
    ids = set()
    for _ in range(2):
        async with emulated() as address, build_client(address) as client:
            ids.add((await client.submit("a leopard")).request_id)
    assert len(ids) == 2


async def test_a_missing_pillow_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flux_klein_async\[emulator\]'"):
        require_pillow()
    with pytest.raises(MissingExtraError):
        async with emulated():
            pass
