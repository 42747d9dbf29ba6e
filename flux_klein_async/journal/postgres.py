"""A journal in a PostgreSQL database, which several machines may share.

Each run has one connection. Its session holds an advisory lock named by the run, which shows that the run is alive; the
server lets go of it when the session ends. All entries go through this same session, so that a run that is dead to
others cannot write an intent, and therefore submits nothing.

Every transaction first locks the accounts that it uses, where SQLite locks the file: the entries of an account have one
order. Work on all accounts locks the whole journal.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from flux_klein_async.api.credentials import Secret
from flux_klein_async.errors import ConfigurationError, JournalError
from flux_klein_async.journal.sql import ODD_VALUE, VERSION, JournalStore, Location
from flux_klein_async.journal.writer import FORKED, StoredJournal
from flux_klein_async.misuse import named_arguments

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.errors import InFailedSqlTransaction
except ImportError as error:  # it is not installed, or has no libpq
    raise ImportError(f"PostgresJournal needs pip install 'flux_klein_async[postgres]': {error}") from error

__all__ = ["PostgresJournal", "PostgresLocation", "PostgresStore"]

OLDEST: Final = 140_000  # the first with client_connection_check_interval
# Seconds. Server and client give a silent connection up after 5 + 3 * 2.
_PARAMETERS: Final[Mapping[str, Any]] = {
    "client_encoding": "UTF8",
    "connect_timeout": 10,
    "fallback_application_name": "flux_klein_async",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 11_000,  # milliseconds
}
_SETTINGS: Final[Mapping[str, str]] = {
    "lock_timeout": "5s",  # as long as for an SQLite file
    "statement_timeout": "20s",
    "idle_in_transaction_session_timeout": "10s",  # a process that is stopped in a transaction holds up nobody for ever
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "11s",
    "client_connection_check_interval": "2s",
}
# A URI whose password has an "@" or "/" that is not percent-encoded: parts of it would be read as host and database.
_READABLE: Final = re.compile(r"postgres(ql)?://([^@/?#\s]*@)?[^@?#\s]*(\?[^@\s]*)?")
_RIGHTS: Final = """
    SELECT string_agg(privilege || ' on ' || name, ', ') FROM
        unnest(ARRAY['settings', 'accounts', 'runs', 'requests', 'highest_costs', 'items']) AS name,
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
    WHERE NOT has_table_privilege(name, privilege)
"""
_SESSION: Final = """
    SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('synchronous_commit'), current_setting('fsync'),
        current_setting('server_encoding'),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""

_UNREACHABLE: Final = "cannot be reached: check the address, the login and the server, then go on with the same journal"
_BUSY: Final = "is busy: another program has been writing to it for too long, or the server is too slow"
_FORBIDDEN: Final = (
    "refuses this role: let it make the schema (GRANT CREATE ON DATABASE), or use it and its tables (GRANT USAGE ON "
    "SCHEMA; SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA; TEMPORARY ON DATABASE)"
)
_FOREIGN: Final = "is not a journal of this package and was left as it is: name another schema"
_POOLED: Final = (
    "is behind a pooler that gives each transaction another session, such as PgBouncer with pool_mode=transaction: "
    "connect to the server itself, or through a pool with pool_mode=session"
)
_DAMAGED: Final = "is damaged: stop writing to it, keep a copy, and go on with a backup"
# By SQLSTATE, whole or its class (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_STATES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("08", "28", "3D", "57"), _UNREACHABLE),
    **dict.fromkeys(("55P03", "57014"), _BUSY),
    **dict.fromkeys(("42P01", "42703", "42P07", "3F000"), _FOREIGN),
    **dict.fromkeys(("XX001", "XX002"), _DAMAGED),
    "42501": _FORBIDDEN,
    "25006": "is read-only: connect to the primary server, as a role that may write",
    "53100": "cannot grow: the server's disk is full; make room, then go on with the same journal",
    "53": "cannot be used: the server is short of memory or connections; raise its limits, or use fewer processes",
}


class _RefusedError(Exception):
    """The server or the session cannot keep a journal, at least for now; the text says why."""


def _error_text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


_connections: Final["weakref.WeakSet[psycopg.Connection[Any]]"] = weakref.WeakSet()


def _let_go() -> None:  # pragma: no cover  # as a forked process
    """In a forked process: a copy of a socket would keep the session of a dead run open."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for connection in _connections:
        if not connection.closed:
            os.dup2(nothing, connection.fileno())  # psycopg itself never closes a connection of another process
    os.close(nothing)


if hasattr(os, "register_at_fork"):  # pragma: no branch  # not on Windows
    os.register_at_fork(after_in_child=_let_go)


class PostgresLocation(Location):
    """A schema in a database."""

    def __init__(self, dsn: str | Secret, schema: str = "flux_klein") -> None:
        """`dsn`: a URI or keywords, as libpq reads them.

        Raises:
            ConfigurationError: They cannot be read.
        """
        secret, dsn = Secret(dsn) if isinstance(dsn, str) else dsn, ""  # no traceback's variable holds the password
        if not schema or "\0" in schema or len(schema.encode(errors="replace")) > 63:
            raise ConfigurationError(f"A schema has a name of 1 to 63 bytes, not {schema[:70]!r}")
        self.schema = schema
        conninfo = _conninfo(secret)
        if conninfo is None:
            raise ConfigurationError(
                "The address of the journal cannot be read: it is postgresql://USER@HOST:PORT/DATABASE with special "
                "characters percent-encoded, or keywords such as host=HOST dbname=DATABASE"
            )
        self._conninfo = conninfo
        self.has_password = bool(conninfo_to_dict(conninfo.text).get("password"))
        self._name = _name(conninfo) + ("" if schema == "flux_klein" else f", schema {schema}")

    def __str__(self) -> str:
        return self._name

    def exists(self) -> bool:
        """Whether the schema holds a journal."""
        with contextlib.closing(PostgresStore.connect(self, time.time)) as store:
            return store.version() > 0

    def open(self, clock: Callable[[], float]) -> "PostgresStore":
        """Connect, make or update the tables, and begin a run."""
        with contextlib.ExitStack() as stack:
            store = PostgresStore.connect(self, clock)
            stack.callback(store.close)
            store.prepare()
            store.enter()
            stack.pop_all()
        return store

    def read(self) -> "PostgresStore":
        """Connect to read.

        Raises:
            JournalError: There is no journal.
        """
        with contextlib.ExitStack() as stack:
            store = PostgresStore.connect(self, time.time)
            stack.callback(store.close)
            if store.version() == 0:
                raise JournalError(f"There is no journal {self}")
            store.execute("SET default_transaction_read_only = on")
            stack.pop_all()
        return store

    def session(self) -> "psycopg.Connection[Any]":
        """A new session.

        Raises:
            psycopg.Error: There is none.
        """
        try:
            db = psycopg.connect(self._conninfo.text, autocommit=True)
        except psycopg.Error as error:
            failure = type(error)(*error.args)  # psycopg's own holds the password, and so do its frames
        else:
            _connections.add(db)
            return db
        raise failure

    def to_error(self, error: Exception) -> JournalError:
        """The error to raise for an exception while using the database."""
        if isinstance(error, _RefusedError):
            return JournalError(f"The journal {self} {error}")
        state = getattr(error, "sqlstate", None) or ""
        advice = _STATES.get(state) or _STATES.get(state[:2])
        if isinstance(error, ODD_VALUE):
            advice = _DAMAGED
        elif isinstance(error, psycopg.OperationalError) and not state:
            advice = _UNREACHABLE
        return JournalError(f"The journal {self} {advice or 'cannot be used'}", cause=_error_text(error))


def _conninfo(dsn: Secret) -> Secret | None:
    """What to connect with; None if it cannot be read."""
    if "://" in dsn.text and not _READABLE.fullmatch(dsn.text):
        return None
    try:
        return Secret(make_conninfo("", **{**_PARAMETERS, **conninfo_to_dict(dsn.text)}))
    except psycopg.Error:  # its text may hold a part of the password
        return None


def _name(conninfo: Secret) -> str:
    """How messages call the database."""
    known = conninfo_to_dict(conninfo.text)
    user, host, port = known.get("user"), str(known.get("host") or known.get("hostaddr") or ""), known.get("port")
    name = (
        f"postgresql://{f'{user}@' if user else ''}{'' if host.startswith('/') else host}{f':{port}' if port else ''}"
    )
    name += f"/{known.get('dbname') or ''}"
    return f"{name}?service={known['service']}" if known.get("service") else name


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> str:
    return sql.replace("?", "%s")


class PostgresStore(JournalStore):
    """One run's session with the database."""

    row_id = "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"
    blob = "BYTEA"

    def __init__(self, location: PostgresLocation, db: "psycopg.Connection[Any]", clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.location = location
        self.db = db
        self._server_process = 0
        self._moved = False
        self._process = os.getpid()

    @classmethod
    def connect(cls, location: PostgresLocation, clock: Callable[[], float]) -> "PostgresStore":
        """Connect, without a run.

        Raises:
            psycopg.Error: There is no connection.
            _RefusedError: The server or its settings cannot keep a journal.
        """
        store = cls(location, location.session(), clock)
        with contextlib.ExitStack() as stack:
            stack.callback(store.close)
            store._check_session()
            stack.pop_all()
        return store

    # --- opening

    def _check_session(self) -> None:
        """Refuse what cannot keep a journal; set up the session."""
        version = self.db.info.server_version
        if version < OLDEST:
            raise _RefusedError(
                f"needs PostgreSQL {OLDEST // 10_000} or newer, not {version // 10_000}: update the server"
            )
        process, is_standby, commits, syncs, encoding, locks = self.execute(_SESSION).fetchone()
        self._server_process = process
        if is_standby:
            raise _RefusedError(_STATES["25006"])
        if commits == "off" or syncs == "off":
            setting = "synchronous_commit" if commits == "off" else "fsync"
            raise _RefusedError(
                f"could lose what was paid for, because {setting} is off: turn it on for this role or server"
            )
        if encoding not in {"UTF8", "SQL_ASCII"}:
            raise _RefusedError(f"cannot hold every text, because the database is in {encoding}: make one in UTF8")
        # A pooler names a process of its own. A session that others share may hold their locks.
        if locks or (process != self.db.info.backend_pid and self._is_shared()):
            raise _RefusedError(_POOLED)
        for name, value in _SETTINGS.items():
            self.execute("SELECT set_config(?, ?, false)", (name, value))
        self.execute("SELECT set_config('search_path', quote_ident(?), false)", (self.location.schema,))

    def _is_shared(self) -> bool:
        """Whether a pooler gives this session to others between transactions."""
        with contextlib.closing(self.location.session()) as other:
            other.execute("BEGIN")
            return other.execute("SELECT pg_backend_pid()").fetchone() == (self._server_process,)

    def version(self) -> int:
        """The version of the tables; 0 if there are none.

        Raises:
            _RefusedError: They are from a newer version, or not a journal's.
        """
        usable = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = ?"
        if self.execute(usable, (self.location.schema,)).fetchone() == (False,):
            raise _RefusedError(_FORBIDDEN)
        if self.execute("SELECT to_regclass('settings')").fetchone() == (None,):
            return 0
        row = self.execute("SELECT value FROM settings WHERE name = 'version'").fetchone()
        if row is None or not row[0].isdigit():
            raise _RefusedError(_FOREIGN)
        version = int(row[0])
        if version > VERSION:
            raise _RefusedError(
                f"is from a newer version of this package (its format is {version}, known here is {VERSION}): "
                "update the package, or name another schema"
            )
        return version

    def prepare(self) -> None:
        """Make the tables, or bring them up to date; one run at a time."""
        schema = self.location.schema
        key = int.from_bytes(hashlib.blake2b(f"flux_klein {schema}".encode(), digest_size=8).digest(), signed=True)
        with self._transaction([f"pg_advisory_xact_lock({key})"]):
            version = self.version()
            exists = "SELECT 1 FROM pg_namespace WHERE nspname = ?"
            if self.execute(exists, (schema,)).fetchone() is None:
                [quoted] = self.execute("SELECT quote_ident(?)", (schema,)).fetchone()
                self.execute(f"CREATE SCHEMA {quoted}")
            for statement in self.upgrade(version):
                self.execute(statement)
            if version == 0:
                settings = [("salt", secrets.token_bytes(24)), ("version", b"")]
                for setting in settings:
                    self.execute("INSERT INTO settings VALUES (?, ?)", setting)
            if version < VERSION:
                self.execute("UPDATE settings SET value = ? WHERE name = 'version'", (b"%d" % VERSION,))
            [lacking] = self.execute(_RIGHTS).fetchone()
            if lacking is not None:
                raise _RefusedError(f"{_FORBIDDEN}; it lacks {lacking}")

    def enter(self) -> None:
        """Begin a run."""
        run = secrets.token_hex(8)
        self.execute("SELECT pg_advisory_lock(?)", (self._key(f"run {run}"),))
        with self.writing():
            self.begin(run)

    # --- the run

    def place(self) -> str:
        """Where the journal is."""
        place = """
            SELECT (SELECT system_identifier FROM pg_control_system()), oid, 'settings'::regclass::oid
            FROM pg_database WHERE datname = current_database()
        """
        return str(self.execute(place).fetchone())

    def close(self) -> None:
        """End the run."""
        if self._process != os.getpid():
            return
        if self._name and not self.is_lost():
            with contextlib.suppress(psycopg.Error):  # the server does it too, a little after the session has ended
                self.execute("SELECT pg_advisory_unlock(?)", (self._key(f"run {self._name}"),))
        self.db.close()

    def is_lost(self) -> bool:
        """Whether the session has ended, or is another."""
        return self._moved or self.db.closed

    def holds_lease(self, name: str) -> bool:
        """Whether the run of this name is alive: nobody can share the lock that it holds."""
        if name == self._name:
            return True
        [free] = self.execute("SELECT pg_try_advisory_xact_lock_shared(?)", (self._key(f"run {name}"),)).fetchone()
        return not free

    def damage(self) -> list[str]:
        """Nothing: the server checks its storage itself."""
        return []

    # --- statements

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement.

        Raises:
            JournalError: In a forked process.
        """
        if self._process != os.getpid():
            raise JournalError(FORKED)
        return self.db.execute(_translated(sql), values or None)

    def insert(self, sql: str, values: Sequence[Any]) -> int | None:
        """Insert a row and return its id; None if there was a conflict."""
        row = self.execute(f"{sql} RETURNING id", values).fetchone()
        return None if row is None else int(row[0])

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, which may be more than fit in memory."""
        with self.db.transaction(), self.db.cursor(name="rows") as cursor:
            cursor.execute(_translated(sql), values)
            yield from cursor

    @contextlib.contextmanager
    def writing(self, tokens: Collection[str] | None = None) -> Iterator[None]:
        """A transaction: durable at its end, undone by an exception.

        No other run writes to the accounts of these tokens meanwhile, or to any account if it is None.
        """
        journal = self._key("journal")
        locks = [f"pg_advisory_xact_lock({journal})"]
        if tokens is not None:
            accounts = sorted({self._key(f"account {self.account(token)}") for token in tokens})
            locks = [f"pg_advisory_xact_lock_shared({journal})", *(f"pg_advisory_xact_lock({key})" for key in accounts)]
        with self._transaction(locks):
            yield

    @contextlib.contextmanager
    def _transaction(self, locks: list[str]) -> Iterator[None]:
        try:
            # One round trip. The locks come in this order, and what is read after them is what their last holders left.
            cursor = self.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_backend_pid(), {', '.join(locks)}")
            cursor.nextset()
            self._moved = cursor.fetchone()[0] != self._server_process
            if self._moved:
                raise _RefusedError(_POOLED)
            yield
            self._settle()
            if self.execute("COMMIT").statusmessage != "COMMIT":
                raise InFailedSqlTransaction("The server undid the transaction")
        except BaseException:
            self._undone()
            if not self.db.closed:
                self.execute("ROLLBACK")
            raise

    def _key(self, what: str) -> int:
        """The number of a lock: those of other journals and programs in the database are others."""
        return int.from_bytes(self._digest(what.encode(), 8), signed=True)


@named_arguments({})
class PostgresJournal(StoredJournal):
    """A journal in a PostgreSQL database, shared by several machines; otherwise as `SqliteJournal`.

    Use it as `async with PostgresJournal("postgresql://app@db.example/flux") as journal,
    FluxKleinClient(journal=journal) as client`. Needs the extra `postgres` and PostgreSQL 14 or newer.

    Each object holds one connection. A run whose connection is lost counts as dead: for what it had claimed it submits
    nothing more (`JournalError`), a submit under way is uncertain to the others, and they may claim the rest. The next
    use connects again and begins another run, which also writes the ids and results that became known meanwhile.
    Silence ends a connection after 11 s.

    The address is a URI or keywords as libpq reads them, with its defaults: `PGHOST`, `PGPASSWORD`, `PGPASSFILE`,
    `PGSERVICE`. The password is in no message, log or repr. The tables are made at the first use; they contain the
    prompts, but never the token. A pooler must not share a session between transactions.

    Args:
        dsn: The address of the database.
        schema: The schema of the tables; one for each journal.
        retry_failed: Whether to submit items again whose generation failed.
        resubmit_uncertain: Whether to submit items again whose submit may have been accepted: you may pay twice.
        clock: Gives the times that are recorded, in seconds since 1970.

    Raises:
        ConfigurationError: The address cannot be read.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "flux_klein",
        retry_failed: bool = False,
        resubmit_uncertain: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        secret, dsn = Secret(dsn), ""  # no traceback's variable holds the password
        super().__init__(
            PostgresLocation(secret, schema),
            retry_failed=retry_failed,
            resubmit_uncertain=resubmit_uncertain,
            clock=clock,
        )
