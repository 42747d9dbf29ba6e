"""Servers of this run of the tests: PostgreSQL, PgBouncer and Redis."""

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest

from flux_klein_async.journal.postgres import PostgresLocation

from .networks import closed_port

__all__ = ["Cluster", "RedisServer", "cluster_or_skip", "forwarded", "redis_or_skip"]

MISSING = "PostgreSQL or PgBouncer is not installed, and their tests need both: apt-get install postgresql pgbouncer"
MISSING_REDIS = "Redis is not installed, and its tests need it: apt-get install redis-server"
_NOBODY = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses root


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, if PgBouncer is there too."""
    if shutil.which("pgbouncer") is None:
        return None
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if found := shutil.which("initdb"):
        folders.append(Path(found).resolve().parent)
    return folders[-1] if folders else None


class Cluster:
    """A server on a Unix socket and a loopback port, with databases and schemas for each test."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder = folder
        self.port = closed_port()
        self._bin = bin_folder
        self._numbers = itertools.count(1)
        self.process = 0
        folder.chmod(0o777)
        self._run(
            *("initdb", "-A", "trust", "-U", "owner", "--no-sync", "--encoding=UTF8", "--locale=C"),
            *("-D", folder / "data"),
        )

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=on -c max_connections=200"
        self._run("pg_ctl", "start", "-w", "-D", self.folder / "data", "-l", self.folder / "log", "-o", options)
        self.process = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "stop", "-w", "-D", self.folder / "data", "-m", mode)

    def _run(self, program: str, *arguments: object) -> None:
        command = [self._bin / program, *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **_NOBODY)  # type: ignore[call-overload]

    def dsn(self, database: str = "postgres", *, port: int | None = None, user: str = "owner") -> str:
        """The address of a database, on the Unix socket or a loopback port."""
        if port is not None:
            return f"postgresql://{user}@127.0.0.1:{port}/{database}"
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def new_database(self, options: str = "") -> str:
        """The address of a database without tables."""
        name = f"d{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} {options}")
        return self.dsn(name)

    def new_location(self) -> PostgresLocation:
        """A schema that is not there yet."""
        return PostgresLocation(self.dsn(), f"s{next(self._numbers)}")

    def sql(self, statement: str, *values: Any, dsn: str = "") -> list[tuple[Any, ...]]:
        """What a statement gives to a program of its own."""
        with psycopg.connect(dsn or self.dsn(), autocommit=True) as db:
            cursor = db.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def end_session(self, process: int) -> None:
        """As an administrator does, or a server that takes a client for dead."""
        self.sql("SELECT pg_terminate_backend(%s)", process)
        self.wait_for(process)

    def wait_for(self, process: int) -> None:
        """Return once a session has ended."""
        end = time.monotonic() + 30
        while self.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", process):
            assert time.monotonic() < end
            time.sleep(0.01)

    @contextmanager
    def pooler(self, mode: str, size: int = 20) -> Iterator[int]:
        """The port of a PgBouncer before the server."""
        port = closed_port()
        settings = self.folder / f"pgbouncer-{port}.ini"
        settings.write_text(f"""
            [databases]
            * = host={self.folder} port={self.port} user=owner
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {port}
            unix_socket_dir =
            auth_type = any
            pool_mode = {mode}
            default_pool_size = {size}
        """)
        command = [shutil.which("pgbouncer"), "-q", settings]
        with subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL, **_NOBODY) as process:  # type: ignore[call-overload]
            try:
                end = time.monotonic() + 30
                while True:
                    try:
                        self.sql("SELECT 1", dsn=self.dsn(port=port))
                        break
                    except psycopg.OperationalError:
                        assert time.monotonic() < end
                        time.sleep(0.05)
                yield port
            finally:
                process.kill()


def _fail_or_skip(missing: str) -> NoReturn:
    if os.environ.get("FLUX_KLEIN_TEST_REQUIRE"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def cluster_or_skip() -> Iterator[Callable[[], Cluster]]:
    """Gives the server, which starts when it is first asked for; skips the test where it is not installed."""
    made: list[Cluster] = []

    def get() -> Cluster:
        if not made:
            bin_folder = programs()
            if bin_folder is None:
                _fail_or_skip(MISSING)
            made.append(Cluster(Path(tempfile.mkdtemp(prefix="fk-")), bin_folder))
            made[0].start()
        return made[0]

    yield get
    for cluster in made:
        cluster.stop()
        shutil.rmtree(cluster.folder)


class RedisServer:
    """A server on a Unix socket that writes nothing to disk."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis"
        self.url = f"unix://{self.socket}"

    def start(self) -> None:
        options = f"--port 0 --unixsocket {self.socket} --loglevel warning --save".split()
        self.process = subprocess.Popen(
            ["redis-server", *options, ""], stdout=subprocess.DEVNULL, cwd=self.socket.parent
        )
        end = time.monotonic() + 30
        while not self.socket.exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)


@contextmanager
def redis_or_skip() -> Iterator[RedisServer]:
    """Gives a server of its own; skips the test where Redis is not installed."""
    if shutil.which("redis-server") is None:
        _fail_or_skip(MISSING_REDIS)
    with tempfile.TemporaryDirectory(prefix="fk-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


class Link:
    """A port of another machine, behind which is the server."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer), return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        finally:
            writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def forwarded(target: int) -> AsyncIterator[Link]:
    """Another port for a server on this machine."""
    link = Link(target)
    server = await asyncio.start_server(link.serve, "127.0.0.1", 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        link.close()
        await server.wait_closed()
