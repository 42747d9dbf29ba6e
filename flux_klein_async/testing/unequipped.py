"""What stands in for the fixtures where pytest-asyncio is not installed: a word on what is missing."""

from typing import NoReturn

import pytest

__all__ = ["klein_client", "klein_emulator"]


@pytest.fixture
def klein_emulator() -> NoReturn:
    """Not to be had here."""
    pytest.fail("klein_emulator and klein_client need: pip install 'flux_klein_async[testing]'", pytrace=False)


@pytest.fixture
def klein_client(klein_emulator: None) -> None:
    """Not to be had here."""
