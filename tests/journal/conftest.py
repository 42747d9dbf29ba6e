"""A journal's place, and runs that use it; each is closed after the test."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.writer import StoredJournal

from .helpers import Run, journal_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture
def location(new_location: Callable[[], Location]) -> Location:
    return new_location()


@pytest.fixture
def start(location: Location) -> Iterator[Callable[[], Run]]:
    """Begins a run; several share the journal as processes do."""
    runs = []

    def begin() -> Run:
        runs.append(Run(location))
        return runs[-1]

    yield begin
    for run in runs:
        run.close()


@pytest.fixture
def run(start: Callable[[], Run]) -> Run:
    return start()


@pytest_asyncio.fixture
async def journal(location: Location) -> AsyncIterator[StoredJournal]:
    async with journal_at(location, clock=lambda: 1000.0) as journal:
        yield journal
