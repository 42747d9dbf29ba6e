"""A journal's file, and runs that use it; each is closed after the test."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from flux_klein_async.journal.sqlite import SqliteJournal

from .helpers import Run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture
def start(path: Path) -> Iterator[Callable[[], Run]]:
    """Begins a run; several share the file as processes do."""
    runs = []

    def begin() -> Run:
        runs.append(Run(path))
        return runs[-1]

    yield begin
    for run in runs:
        run.close()


@pytest.fixture
def run(start: Callable[[], Run]) -> Run:
    return start()


@pytest_asyncio.fixture
async def journal(path: Path) -> AsyncIterator[SqliteJournal]:
    async with SqliteJournal(path, clock=lambda: 1000.0) as journal:
        yield journal
