"""Fixtures only: a clean environment, clients of the in-process emulator that every test closes, stores of journals."""

import asyncio
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import settings

from flux_klein_async import FluxKleinClient
from flux_klein_async.emulator import Emulator, InProcessEmulator
from flux_klein_async.journal.sql import Location
from flux_klein_async.journal.sqlite import SqliteLocation

from .databases import Cluster, RedisServer, cluster_or_skip, redis_or_skip
from .loops import LOOP_VARIABLE, chosen_loop, on_chosen_loop

NAMES = (
    "RUNCOMFY_API_TOKEN",
    "RUNCOMFY_TOKEN",
    "RUNCOMFY_API_KEY",
    "RUNCOMFY_CONFIG_DIR",
    "RUNCOMFY_MODEL_API_BASE",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "FLUX_KLEIN_STORE",
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "all_proxy", "no_proxy"),
    *(
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGDATABASE",
        "PGSERVICE",
        "PGPASSFILE",
        "PGSERVICEFILE",
        "PGOPTIONS",
    ),
    "NETRC",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)

# A run in a hurry tries 15 examples; CI tries 100 once ("full"), and a hunt 5,000 ("long"). Their speed is not tested.
# Each run tries the same ones, on every machine: only a hunt may find what no commit has to do with.
for name, examples in {"default": 15, "full": 100, "long": 5000}.items():
    settings.register_profile(name, settings.get_profile("ci"), max_examples=examples, derandomize=name != "long")
settings.load_profile(os.environ.get("FLUX_KLEIN_TEST_PROFILE") or "default")

Connect = Callable[..., FluxKleinClient]
MEMORY = Path("/dev/shm")


if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**32:
    # A journal waits for the disk at each entry. The files of tests need not outlive the machine.
    tempfile.tempdir = os.environ["TMPDIR"] = str(MEMORY)


def pytest_configure(config: pytest.Config) -> None:
    """Let Python's own switches turn debug mode on; pytest-asyncio would turn it off in every loop that it makes.

    There, asyncio and aiohttp keep the stack that made each future and response. It is a hundred frames deep under
    pytest, and to collect them takes longer than everything else: the innermost frame is enough.
    """
    if os.environ.get("PYTHONASYNCIODEBUG") or sys.flags.dev_mode:
        config.option.asyncio_debug = True
        sys.tracebacklimit = asyncio.constants.DEBUG_STACK_DEPTH = 1


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """The loop that the environment asks for, where the plugin would not choose virtual time."""
    return None if "klein_emulator" in getattr(item, "fixturenames", ()) else {"chosen": chosen_loop()}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where the environment asks for another loop, leave out the tests that never run on it."""
    if os.environ.get(LOOP_VARIABLE):
        left_out = [item for item in items if not on_chosen_loop(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True, scope="session")
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds the developer's own token, or a proxy, or passwords for other services."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))
        yield


@pytest_asyncio.fixture
async def connect(klein_emulator: InProcessEmulator) -> AsyncIterator[Connect]:
    """Makes clients of the emulator with any options; each is closed after the test."""
    clients = []

    def make(api_key: str | None = None, **options: Any) -> FluxKleinClient:
        options.setdefault("base_url", klein_emulator.base_url)
        if "session" not in options:
            options["session"] = klein_emulator.session()
        client = FluxKleinClient(api_key or klein_emulator.api_key, **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest_asyncio.fixture
async def live_emulator() -> AsyncIterator[Emulator]:
    """The emulator on a loopback port; its generations take no time worth waiting for."""
    async with Emulator(profile="fixed:0.01") as emulator:
        yield emulator


@pytest.fixture(scope="session")
def get_cluster() -> Iterator[Callable[[], Cluster]]:
    """Gives the PostgreSQL server of this run."""
    with cluster_or_skip() as get:
        yield get


@pytest.fixture
def cluster(get_cluster: Callable[[], Cluster]) -> Cluster:
    """The PostgreSQL server of this run."""
    return get_cluster()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis server."""
    with redis_or_skip() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def new_location(
    request: pytest.FixtureRequest, tmp_path: Path, get_cluster: Callable[[], Cluster]
) -> Callable[[], Location]:
    """Gives places where no journal is yet; a test that asks for it runs over both stores."""
    if request.param == "postgres":
        return get_cluster().new_location
    numbers = itertools.count(1)
    return lambda: SqliteLocation(tmp_path / f"run{next(numbers)}.sqlite")
