"""A journal in a database: what it refuses, who waits for whom, and how a run ends that loses its connection."""

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg import errors

from flux_klein_async import FluxKleinClient, PostgresJournal
from flux_klein_async.emulator import Emulator
from flux_klein_async.errors import ConfigurationError, JournalError
from flux_klein_async.journal import postgres
from flux_klein_async.journal.base import Reservation
from flux_klein_async.journal.budget import Budget
from flux_klein_async.journal.postgres import PostgresLocation, PostgresStore
from flux_klein_async.journal.reader import JournalReader
from flux_klein_async.journal.sql import VERSION
from flux_klein_async.journal.states import Action
from tests.databases import Cluster
from tests.tracebacks import shown_by

from .helpers import Run, check, child, entry, journal_at, known, named, set_version, states

PASSWORD = "pa55word"
slow = pytest.mark.slow

# --- addresses and errors, without a server


@pytest.mark.parametrize(
    ("dsn", "text"),
    [
        (f"postgresql://me:{PASSWORD}@db.example:5433/flux", "postgresql://me@db.example:5433/flux"),
        (f"postgres://me@db.example/flux?password={PASSWORD}&sslmode=require", "postgresql://me@db.example/flux"),
        (f"host=/run dbname=flux user=me password={PASSWORD}", "postgresql://me@/flux"),
        ("hostaddr=10.0.0.1 port=5433", "postgresql://10.0.0.1:5433/"),
        ("service=flux", "postgresql:///?service=flux"),
        ("", "postgresql:///"),
    ],
)
def test_an_address_is_shown_without_its_password(dsn: str, text: str) -> None:
    location = PostgresLocation(dsn)
    assert str(location) == text
    assert location.has_password == (PASSWORD in dsn)
    assert repr(PostgresJournal(dsn)) == f"PostgresJournal({text!r})"
    assert str(PostgresLocation(dsn, "other")) == f"{text}, schema other"
    assert PASSWORD not in repr(vars(location))


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:{PASSWORD[:3]}@{PASSWORD}@host/db",  # parts of it would be read as the host
        f"postgresql://me:{PASSWORD[:3]}/{PASSWORD}@host/db",
        f"postgresql://me:%zz{PASSWORD}@host/db",
        f"postgresql://me@host/db?passwort={PASSWORD}",
        f"host=host {PASSWORD}",
        f"mysql://me:{PASSWORD}@host/db",
    ],
)
def test_an_address_that_cannot_be_read_is_not_told(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        PostgresJournal(dsn)
    assert PASSWORD not in str(caught.value)
    assert shown_by(caught.value, PASSWORD) == []


@pytest.mark.parametrize("schema", ["", "a\0b", "x" * 64, "é" * 32])
def test_a_schema_has_a_name(schema: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 63 bytes"):
        PostgresJournal("", schema=schema)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.LockNotAvailable, "is busy"),
        (errors.QueryCanceled, "is busy"),
        (errors.InsufficientPrivilege, "refuses this role: .*GRANT"),
        (errors.ReadOnlySqlTransaction, "is read-only: connect to the primary server"),
        (errors.DiskFull, "make room, then go on with the same journal"),
        (errors.TooManyConnections, "short of memory or connections"),
        (errors.AdminShutdown, "cannot be reached: check the address, the login and the server"),
        (errors.InvalidPassword, "cannot be reached"),
        (psycopg.OperationalError, "cannot be reached"),
        (errors.UndefinedTable, "name another schema"),
        (errors.DataCorrupted, "is damaged"),
        (ValueError, "is damaged"),
        (errors.DivisionByZero, "cannot be used"),
    ],
)
def test_an_error_of_the_server_becomes_advice(error: type[Exception], says: str) -> None:
    with pytest.raises(JournalError, match=f"^The journal postgresql://h/d .*{says}.*: {error.__name__}: odd thing$"):
        raise PostgresLocation("postgresql://h/d").to_error(error("odd\n  thing"))


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    location = PostgresLocation(f"postgresql://me:{PASSWORD}@127.0.0.1:1/db")
    with pytest.raises(JournalError, match="cannot be reached") as caught:
        JournalReader(location)
    assert PASSWORD not in str(caught.value)
    assert shown_by(caught.value, PASSWORD) == []


async def test_a_journal_without_its_server_is_an_error_that_holds_no_password() -> None:
    journal = PostgresJournal(f"postgresql://me:{PASSWORD}@127.0.0.1:1/db")
    with pytest.raises(JournalError, match="cannot be reached") as caught:
        await journal.record(entry("submitting", key="k"))
    assert shown_by(caught.value, PASSWORD) == []
    await journal.aclose()


@pytest.mark.parametrize("module", ["psycopg", "psycopg.conninfo"])
def test_without_psycopg_the_advice_is_to_install_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flux_klein_async.journal.postgres")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(vars(sys.modules["flux_klein_async"]), "PostgresJournal", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'flux_klein_async\[postgres\]'"):
        from flux_klein_async import PostgresJournal as _
    with pytest.raises(AttributeError, match="Nonsense"):
        import flux_klein_async

        _ = flux_klein_async.Nonsense  # type: ignore[attr-defined]


# --- what is refused when it is opened


@pytest.fixture
def location(cluster: Cluster) -> PostgresLocation:
    return cluster.new_location()


def opened(location: PostgresLocation) -> str:
    """Why it is refused, to a run and to a reader; "" if it is not."""
    texts = set()
    for use in (Run, JournalReader):
        try:
            use(location).store.close() if use is Run else use(location).__exit__()
        except Exception as error:
            texts.add(str(location.to_error(error)) if not isinstance(error, JournalError) else str(error))
        else:
            texts.add("")
    [text] = texts
    return text


def with_options(location: PostgresLocation, **options: str) -> PostgresLocation:
    settings = " ".join(f"-c {name}={value}" for name, value in options.items())
    return PostgresLocation(f"{location._conninfo.text} options='{settings}'", location.schema)


@slow
def test_what_cannot_keep_a_journal_is_refused_with_advice(
    cluster: Cluster, location: PostgresLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "synchronous_commit is off: turn it on" in opened(with_options(location, synchronous_commit="off"))
    assert not location.exists(), "nothing is made"
    Run(location).close()
    assert opened(with_options(location, synchronous_commit="local")) == ""
    with monkeypatch.context() as patched:  # the server of these tests keeps it on
        patched.setattr(postgres, "_SESSION", postgres._SESSION.replace("current_setting('fsync')", "'off'"))
        assert "fsync is off: turn it on" in opened(location)
    latin = cluster.new_database("ENCODING 'LATIN1' TEMPLATE template0")
    assert "the database is in LATIN1: make one in UTF8" in opened(PostgresLocation(latin))
    with monkeypatch.context() as patched:
        patched.setattr(postgres, "OLDEST", 990_000)
        assert "needs PostgreSQL 99 or newer, not 1" in opened(location)
    with monkeypatch.context() as patched:
        patched.setattr(postgres, "_SESSION", postgres._SESSION.replace("pg_is_in_recovery()", "true"))
        assert "is read-only: connect to the primary server" in opened(location)
    set_version(location, VERSION + 1)
    known = f"its format is {VERSION + 1}, known here is {VERSION}"
    assert f"newer version of this package ({known}): update the package" in opened(location)


@slow
@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE {0}.settings (name TEXT, value BYTEA)",
        "CREATE TABLE {0}.settings (name TEXT, value BYTEA); INSERT INTO {0}.settings VALUES ('version', 'x')",
        "CREATE TABLE {0}.settings (theirs TEXT)",
    ],
)
def test_a_schema_of_another_program_is_left_as_it_is(
    cluster: Cluster, location: PostgresLocation, tables: str
) -> None:
    cluster.sql(f"CREATE SCHEMA {location.schema}")
    cluster.sql(tables.format(location.schema))
    assert "is not a journal of this package and was left as it is: name another schema" in opened(location)
    found = cluster.sql("SELECT count(*) FROM pg_tables WHERE schemaname = %s", location.schema)
    assert found == [(1,)]


@slow
def test_a_schema_with_a_table_of_the_same_name_is_left_as_it_is(cluster: Cluster, location: PostgresLocation) -> None:
    cluster.sql(f"CREATE SCHEMA {location.schema}")
    cluster.sql(f"CREATE TABLE {location.schema}.accounts (theirs TEXT)")
    with pytest.raises(errors.DuplicateTable):
        Run(location)
    assert not location.exists()


@slow
def test_a_role_needs_its_rights_and_no_more(cluster: Cluster, location: PostgresLocation) -> None:
    cluster.sql("CREATE ROLE poor LOGIN")
    poor = PostgresLocation(cluster.dsn(user="poor"), location.schema)
    with pytest.raises(errors.InsufficientPrivilege):  # it may not make the schema
        Run(poor)
    Run(location).close()
    assert "refuses this role: let it make the schema" in opened(poor)
    cluster.sql(f"GRANT USAGE ON SCHEMA {location.schema} TO poor")
    cluster.sql(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {location.schema} TO poor")
    with pytest.raises(Exception, match=r"it lacks .*DELETE on accounts"):
        Run(poor)
    cluster.sql(f"GRANT DELETE ON ALL TABLES IN SCHEMA {location.schema} TO poor")
    run = Run(poor)
    run.submit()
    run.close()
    own = PostgresLocation(cluster.dsn(user="poor"), "their Own")
    cluster.sql('CREATE SCHEMA "their Own" AUTHORIZATION poor')
    Run(own).close()
    cluster.sql("REVOKE TEMPORARY ON DATABASE postgres FROM public")
    try:
        with pytest.raises(errors.InsufficientPrivilege):
            Run(own)
    finally:
        cluster.sql("GRANT TEMPORARY ON DATABASE postgres TO public")


@slow
def test_runs_that_make_the_tables_at_once_share_them(location: PostgresLocation) -> None:
    with ThreadPoolExecutor(6) as threads:
        for _ in range(2):
            runs = list(threads.map(lambda _: Run(location), range(6)))
            assert len({run.store.run for run in runs}) == 6
            for run in runs:
                run.close()
            set_version(location, 1, "DROP TABLE highest_costs")


# --- poolers


@slow
def test_a_pool_of_sessions_is_fine_and_one_of_transactions_is_refused(
    cluster: Cluster, location: PostgresLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.pooler("session") as port:
        first, second = (Run(PostgresLocation(cluster.dsn(port=port), location.schema)) for _ in "ab")
        first.submit()
        assert second.claim().action is Action.CLAIMED
        first.close()
        while second.preview() is Action.CLAIMED:  # until the pooler has reset the session
            time.sleep(0.01)
        assert second.claim().action is Action.RESUME
        second.close()
    with cluster.pooler("transaction") as port:
        pooled = PostgresLocation(cluster.dsn(port=port), location.schema)
        assert "pool_mode=transaction: connect to the server itself" in opened(pooled)
        # Where that is not seen, a run whose transaction comes to another session is dead, and writes nothing.
        monkeypatch.setattr(PostgresStore, "_is_shared", lambda _: False)
        run = Run(pooled)
        with psycopg.connect(pooled._conninfo.text) as other:
            other.execute("SELECT 1")  # has its session
            with pytest.raises(Exception, match="another session"):
                run.claim()
            assert run.store.is_lost()
        run.close()
        assert "pool_mode=transaction" in opened(pooled), "a session that holds the lock of a run"
    assert states(location) == ["submitted"]


# --- who waits for whom


@slow
def test_accounts_do_not_wait_for_each_other(location: PostgresLocation) -> None:
    one, other = Run(location), Run(location)
    other.store.execute("SET lock_timeout = '50ms'")
    with one.store.writing(["a", "b"]):
        with other.store.writing(["c"]):
            other.store.record("c", entry("submitting", key="k"))
        for tokens in (["a"], ["c", "b"], None):
            with pytest.raises(errors.LockNotAvailable), other.store.writing(tokens):
                raise AssertionError
    with other.store.writing(["b", "a"]):
        pass
    for run in (one, other):
        run.close()


@slow
def test_runs_that_lock_several_accounts_never_block_each_other_for_good(location: PostgresLocation) -> None:
    async def entries(journal: PostgresJournal, name: str) -> None:
        for number in range(30):
            tokens = "abc" if number % 2 else "cba"
            await asyncio.gather(
                *(journal.for_account(token).record(entry("submitting", key=f"{name}{number}")) for token in tokens)
            )

    async def sums(journal: PostgresJournal) -> None:
        for _ in range(30):
            await journal.spent()  # locks all accounts

    async def body() -> None:
        async with journal_at(location) as one, journal_at(location) as two, journal_at(location) as three:
            await asyncio.gather(entries(one, "1"), entries(two, "2"), entries(three, "3"), sums(one))

    asyncio.run(body())
    assert len(states(location)) == 3 * 30 * 3
    check(location)


@slow
def test_a_transaction_that_the_server_undid_is_no_commit(location: PostgresLocation) -> None:
    run = Run(location)
    with pytest.raises(errors.InFailedSqlTransaction), run.store.writing():
        run.store.record("", entry("submitting", key="k"))
        with suppress(psycopg.Error):
            run.store.execute("NONSENSE")
    assert states(location) == []
    run.close()


# --- a run that loses its connection


def session_of(journal: PostgresJournal) -> int:
    store: Any = journal._writer._store
    return int(store.db.info.backend_pid)


@pytest_asyncio.fixture
async def journal(location: PostgresLocation) -> AsyncIterator[PostgresJournal]:
    async with journal_at(location, clock=lambda: 1000.0) as journal:
        assert isinstance(journal, PostgresJournal)
        yield journal


ENDED: dict[str, tuple[Action, str]] = {
    "claimed": (Action.SUBMIT, "submitted"),
    "submitting": (Action.UNCERTAIN, "submitted"),
    "submitted": (Action.RESUME, "submitted"),
    "uncertain": (Action.UNCERTAIN, "submitted"),
    "repeated": (Action.SUBMIT, "submitted"),
    "refused": (Action.SUBMIT, "submitted"),
    "cancelled": (Action.SUBMIT, "cancelled"),
    "failed": (Action.FAILED, "failed"),
    "completed": (Action.RECALL, "completed"),
    "downloaded": (Action.RECALL, "downloaded"),
}


UNDER_WAY = {"claimed", "submitting", "repeated", "submitted"}


@slow
@pytest.mark.parametrize("reached", ENDED)
async def test_a_run_whose_session_ends_submits_nothing_more_and_what_it_hears_late_counts(
    cluster: Cluster, location: PostgresLocation, journal: PostgresJournal, reached: str
) -> None:
    action, last = ENDED[reached]
    other = Run(location)
    items = journal.items()
    claimed = await items.claim("a/b", b"{}", None)
    if reached != "claimed":
        await journal.record(entry("submitting", key="k", item=claimed.item))
    if reached not in {"claimed", "submitting"}:
        await journal.record(
            entry(reached, key="k", request_id=None if reached in {"uncertain", "repeated", "refused"} else "r")
        )
    assert other.preview() is (Action.CLAIMED if reached in UNDER_WAY else action)
    mark = await journal.run_mark()
    cluster.end_session(session_of(journal))
    assert other.claim().action is action
    before = states(location)
    with pytest.raises(JournalError, match="cannot be reached"):
        await journal.record(entry("submitting", key="l", item=claimed.item))
    for use in (
        lambda: journal.record(entry("submitting", key="l", item=claimed.item)),
        lambda: items.claim("a/b", b"2", None),
        lambda: items.preview("a/b", b"2", None),
    ):
        with pytest.raises(JournalError, match=r"has not claimed|was lost: begin again"):
            await use()
    items.release(claimed)
    assert states(location) == before, "nothing was written"
    await journal.record(entry("submitted", key="k", request_id="r"))
    assert (states(location)[0], len(states(location))) == (last, max(1, len(before)))
    assert await journal.run_mark() != mark
    assert await journal.ended_runs([mark, await journal.run_mark()]) == {mark}
    async with journal_at(location) as third:
        assert (await third.items().claim("a/b", b"3", None)).action is Action.SUBMIT
    other.close()


@slow
async def test_what_arrives_while_the_connection_is_lost_is_written_by_the_next_run(
    cluster: Cluster, location: PostgresLocation, journal: PostgresJournal
) -> None:
    await journal.record(entry("submitting", key="k"))
    cluster.end_session(session_of(journal))
    with pytest.raises(JournalError, match="cannot be reached"):
        await journal.record(entry("submitted", key="k", request_id="r"))
    await journal.open()
    assert known(location) == [("submitted", "r")]


@slow
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_intent_whose_commit_is_not_confirmed_is_taken_back(
    location: PostgresLocation, journal: PostgresJournal, moment: str
) -> None:
    """Nothing was sent for it, whether it was written or not."""
    await journal.open()
    store: Any = journal._writer._store
    execute = store.execute

    def cut(sql: str, values: Any = ()) -> Any:
        if sql == "COMMIT":
            if moment == "after":
                execute(sql)
            store.db.close()
        return execute(sql, values)

    store.execute = cut
    with pytest.raises(JournalError, match="cannot be reached"):
        await journal.record(entry("submitting", key="k", reservation=Reservation(usd=0.01, max_usd=0.01)))
    assert states(location) == (["submitting"] if moment == "after" else [])
    await journal.record(entry("submitting", key="l", reservation=Reservation(usd=0.01, max_usd=0.01)))
    assert states(location) == (["refused", "submitting"] if moment == "after" else ["submitting"])


@slow
@pytest.mark.parametrize("restart", [False, True])
async def test_the_items_of_a_client_that_lost_its_connection_are_resumed(
    cluster: Cluster, location: PostgresLocation, tmp_path: Path, restart: bool
) -> None:
    """In the same process, and by another machine, which fetches the files again."""
    async with Emulator(profile="fixed:0.3") as emulator, journal_at(location) as journal:
        texts = [f"picture {number}" for number in range(12)]
        options: dict[str, Any] = {"base_url": emulator.base_url, "timeout": 20}
        ended: list[Any] = []
        async with FluxKleinClient(emulator.api_key, journal=journal, budget=Budget(0.2), **options) as client:
            for attempt in range(3):
                with suppress(JournalError):
                    async with client.generate_many(texts, concurrency=3, width=64, height=64) as outcomes:
                        async for outcome in outcomes:
                            ended.append(outcome)
                            if len(ended) == 2 and attempt == 0 and restart:
                                await asyncio.to_thread(cluster.stop)
                                await asyncio.to_thread(cluster.start)
                            elif len(ended) == 2 and attempt == 0:
                                cluster.end_session(session_of(journal))  # type: ignore[arg-type]
            last = ended[-len(texts) :]
        assert [type(outcome.error) for outcome in last if outcome.result is None] == []
        assert emulator.accepted == len(texts)
        async with journal_at(location) as other:
            async with FluxKleinClient(emulator.api_key, journal=other, **options) as client:
                again = await client.generate_all(texts, width=64, height=64, directory=tmp_path)
            assert all(outcome.from_journal and outcome.paths[0].exists() for outcome in again)
        assert emulator.accepted == len(texts)


HOLD = """
import asyncio
from flux_klein_async.journal import postgres
from tests.journal.helpers import entry, journal_named
postgres._SETTINGS.update({"idle_in_transaction_session_timeout": "1s", "tcp_keepalives_idle": "1",
    "tcp_keepalives_interval": "1", "tcp_keepalives_count": "1", "tcp_user_timeout": "1s"})
store = journal_named(sys.argv[1]).location.open(time.time)
with store.writing():
    claimed = store.claim("", 1, "a/b", b"{}", None, frozenset())
    store.record("", entry("submitting", key="k", item=claimed.item))
with store.writing():
    store.claim("", 1, "a/b", b"2", None, frozenset())
if "inside" in sys.argv:
    store.writing([""]).__enter__()
"""


@slow
def test_a_killed_process_is_dead_at_once(location: PostgresLocation) -> None:
    run = Run(location)
    with child(HOLD, named(location)) as process:
        assert [run.claim(body).action for body in (b"{}", b"2")] == [Action.CLAIMED] * 2
        process.kill()
        process.wait()
        end = time.monotonic() + 5
        while run.preview(b"2") is Action.CLAIMED:
            assert time.monotonic() < end
    assert [run.claim(body).action for body in (b"{}", b"2")] == [Action.UNCERTAIN, Action.SUBMIT]
    run.close()


@slow
def test_a_stopped_process_keeps_its_items_and_holds_up_nobody(cluster: Cluster, location: PostgresLocation) -> None:
    """Its system answers the keepalives; within a transaction the server ends it, and it is dead."""
    far = PostgresLocation(cluster.dsn(port=cluster.port), location.schema)
    run = Run(location)
    with child(HOLD, named(far)) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        assert [run.claim(body).action for body in (b"{}", b"2")] == [Action.CLAIMED] * 2
    run.close()
    run = Run(cluster.new_location())
    with child(HOLD, named(run.location), "inside") as process:
        process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        assert run.claim(b"3").action is Action.SUBMIT
        assert time.monotonic() - begun < 4
    run.close()


def hear_nothing(connection: "psycopg.Connection[Any]") -> None:
    """Have the system drop every packet that arrives on it, as if the cable were pulled: none is acknowledged."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # a filter of one instruction: keep 0 bytes
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(drop)))  # SO_ATTACH_FILTER


@slow
@pytest.mark.parametrize("idle", [True, False])
async def test_a_run_whose_line_falls_silent_is_dead_to_both_sides(
    cluster: Cluster, location: PostgresLocation, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    settings, parameters = postgres._SETTINGS, postgres._PARAMETERS
    names = ("idle", "interval", "count")
    # As shipped, 5 + 3 * 2 seconds, on both sides; a test need not wait so long.
    assert [settings[f"tcp_keepalives_{name}"] for name in names] == ["5", "2", "3"]
    assert [parameters[f"keepalives_{name}"] for name in names] == [5, 2, 3]
    assert (settings["tcp_user_timeout"], parameters["tcp_user_timeout"]) == ("11s", 11_000)
    quick = {f"tcp_keepalives_{name}": "1" for name in names} | {"tcp_user_timeout": "2s"}
    monkeypatch.setattr(postgres, "_SETTINGS", {**settings, **quick})
    quick_client = {f"keepalives_{name}": 1 for name in names} | {"tcp_user_timeout": 2000}
    monkeypatch.setattr(postgres, "_PARAMETERS", {**parameters, **quick_client})

    other = Run(location)
    async with journal_at(PostgresLocation(cluster.dsn(port=cluster.port), location.schema)) as journal:
        claimed = await journal.items().claim("a/b", b"{}", None)
        await journal.record(entry("submitting", key="k", item=claimed.item))
        assert other.preview() is Action.CLAIMED
        hear_nothing(journal._writer._store.db)  # type: ignore[union-attr]
        begun = time.monotonic()
        if not idle:
            with pytest.raises(JournalError, match="cannot be reached"):
                await journal.record(entry("submitting", key="l"))
        while other.preview() is Action.CLAIMED:
            assert time.monotonic() - begun < 30
            await asyncio.sleep(0.1)
        assert other.claim().action is Action.UNCERTAIN
        if idle:
            with pytest.raises(JournalError, match="cannot be reached"):
                await journal.record(entry("submitting", key="l"))
        await journal.record(entry("submitted", key="k", request_id="r"))
    assert known(location) == [("submitted", "r")]
    other.close()


FORK = (
    HOLD
    + """
import os
if os.fork() == 0:
    print(os.getpid(), file=open(sys.argv[2], "w"), flush=True)
    try:
        store.execute("SELECT 1")
    except Exception as error:
        print(error, file=open(sys.argv[2] + ".error", "w"), flush=True)
    store.close()
    sys.stdin.read()
    os._exit(0)
while not os.path.exists(sys.argv[2] + ".error"):
    time.sleep(0.01)
store.execute("SELECT 1")
"""
)


@slow
def test_another_process_neither_uses_nor_ends_a_session(
    location: PostgresLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(location)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        with pytest.raises(JournalError, match="before this process was forked"):
            run.claim()
        run.store.close()
    assert run.claim().action is Action.SUBMIT
    run.close()


@slow
def test_a_forked_process_cannot_use_the_connection_and_does_not_keep_it_open(
    location: PostgresLocation, tmp_path: Path
) -> None:
    run, where = Run(location), tmp_path / "orphan"
    with child(FORK, named(location), where) as process:
        assert "before this process was forked" in Path(f"{where}.error").read_text()
        assert run.preview(b"2") is Action.CLAIMED
        process.kill()
        process.wait()
        os.kill(int(where.read_text()), 0)  # the orphan is there
        end = time.monotonic() + 5
        while run.preview(b"2") is Action.CLAIMED:
            assert time.monotonic() < end
    run.close()


@slow
async def test_a_server_that_restarts_under_load_loses_nothing(cluster: Cluster, location: PostgresLocation) -> None:
    """Two runs go on with other sessions; each id that was given is known in the end, and no intent is left open."""
    given: set[str] = set()

    async def caller(journal: Any, name: str, over: asyncio.Event) -> None:
        number = 0
        while not over.is_set():
            key = f"{name}-{number}"
            number += 1
            try:
                await journal.record(entry("submitting", key=key))
            except JournalError:
                await asyncio.sleep(0.05)
                continue
            given.add(key)  # sent, and accepted
            with suppress(JournalError):
                await journal.record(entry("submitted", key=key, request_id=f"r-{key}"))

    over = asyncio.Event()
    async with journal_at(location) as one, journal_at(location) as two:
        callers = [
            asyncio.ensure_future(caller(run, f"{name}{n}", over))
            for run, name in ((one, "a"), (two, "b"))
            for n in range(8)
        ]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(cluster.stop)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(cluster.start)
        await asyncio.sleep(1.5)
        over.set()
        await asyncio.gather(*callers)
    found = known(location)
    assert {identifier for _, identifier in found if identifier} == {f"r-{key}" for key in given}
    assert {state for state, identifier in found if identifier is None} <= {"refused"}
    assert len(given) > 50
    check(location)
