"""Connections, transactions, calls of the functions of `sql/functions/`, and the named queries of `sql/queries/`.

One `Database` per process; it opens connections when they are first used. The meaning of the queries belongs to
`jobs/`, the choice of the database to `settings.py` and `embedded.py`.
"""

import functools
import json
import math
import os
import re
import select
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import Connection, pq, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_loads

from stats_pipeline.database import embedded
from stats_pipeline.errors import DatabaseUnavailable, NoConnectionFree, one_line
from stats_pipeline.log import Outage
from stats_pipeline.settings import SQL_ROOT, TRANSACTION_POOLER, VERSION, Settings

if TYPE_CHECKING:
    from stats_pipeline.database.budget import Held, Kind, Slots

APPLICATION_NAME = f"stats-pipeline {VERSION}"  # tells migrations which versions are running
CONNECT_TIMEOUT = 10  # seconds
TRANSACTION_POOLER_PORT = "6543"  # Supabase's Supavisor in transaction mode: no LISTEN, no session locks

# A lost peer is noticed within half a minute, not after the fifteen minutes that TCP takes.
_RESILIENCE = {
    "connect_timeout": str(CONNECT_TIMEOUT),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",  # milliseconds
}
_SESSION = {
    # Overrides the defaults of role and database: a statement sees everything committed before it, times are UTC.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "row_security": "on",
    "statement_timeout": "0",  # each stats function has its own
    # The statement of a dead client ends: the server checks each second whether the client is still connected.
    "client_connection_check_interval": "1s",
    "idle_in_transaction_session_timeout": "60s",
    "lock_timeout": "30s",
}
_PIN_SESSION = "select " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SESSION.items())
# Not by a query, after which a transaction could not choose its isolation any more.
_PIN_TRANSACTION = "; ".join(f"set local {name} = '{value}'" for name, value in _SESSION.items())

# What is said to a connection that is one too many. Elsewhere it is for SQLAlchemy's connections.
REFUSED = (
    r"too many clients already|remaining connection slots|too many connections for|"  # PostgreSQL
    r"no more connections allowed|query_wait_timeout|"  # PgBouncer
    r"MaxClientsInSessionMode|max clients reached|Max client connections reached"  # Supavisor
)
_POLL_SECONDS = 0.02  # for a slot that becomes free
_SECOND_SECONDS = 0.1  # for which a process with a connection of its own waits for that one
_KEEP_SECONDS = 1.0
_RETRY_SECONDS = 0.25
_ASK_SECONDS = 1.0
_END_SECONDS = 1.0

_full = Outage("waiting for a free connection", "there are free connections again")
_outage = Outage("the database is out of reach", "the database is back")


class Database:
    """A pool of autocommit connections with dictionary rows to one PostgreSQL, safe to share between threads.

    `max_connections` are opened when they are needed, and kept. Up to `shared` further ones each need a slot of the
    deployment's budget: such a connection is closed, and its slot given up, when nobody in this process wants it next
    or somebody elsewhere waits. A command, which has none of its own, keeps its one for a second.

    Whoever wants a connection waits for a turn as long as that takes, or `turn` seconds. `patience` is for a database
    that does not answer, seconds. `ahead`: one is opened in the background, before the first request.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 4,
        slots: "Slots | None" = None,
        kind: "Kind" = "other",
        shared: int = 0,
        ahead: bool = False,
        application_name: str = APPLICATION_NAME,
        patience: float = CONNECT_TIMEOUT,
        turn: float | None = None,
    ) -> None:
        self.url = url
        self._application_name = application_name
        self._patience = patience
        self._turn = turn
        self._own = max_connections
        self._slots = slots
        self._kind: Kind = kind
        self._shared = shared
        self._ahead = ahead
        self._changed = threading.Condition()
        self._idle: list[_Pooled] = []
        self._own_open = self._shared_open = 0
        self._waiting = 0
        self._is_sought = False
        self._is_open = True
        self._closer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._is_open = True
        if self._ahead:
            threading.Thread(target=self._open_ahead, name="connecting", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Closes what is idle; what is in use is closed when it is given back."""
        with self._changed:
            self._is_open = False
            idle, self._idle = self._idle, []
        for pooled in idle:
            self._drop(pooled)

    @contextmanager
    def connection(self) -> Iterator[Connection[DictRow]]:
        """A pooled autocommit connection. Raises `DatabaseUnavailable` if the database does not answer, or if no
        connection became free in time."""
        pooled = self._take()
        try:
            yield pooled.connection
        finally:
            self._give_back(pooled)

    @contextmanager
    def transaction(self) -> Iterator[Connection[DictRow]]:
        """A pooled connection inside one transaction: committed at the end of the block, rolled back on an error."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def run(self, query: str, **parameters: Any) -> list[DictRow]:
        """Run the named query in its own transaction and return its rows."""
        with self.connection() as connection:
            return run(connection, query, **parameters)

    def call(self, function: str, /, **arguments: Any) -> list[DictRow]:
        """Call the function in its own transaction and return its rows."""
        with self.connection() as connection:
            return call(connection, function, **arguments)

    def dedicated_connection(self) -> Connection[DictRow]:
        """A connection for the caller alone, outside the pool: what it costs of the budget is the caller's to know."""
        return connect(self.url, autocommit=True, application_name=self._application_name)

    @property
    def can_listen(self) -> bool:
        """Whether notifications work on this database's connections."""
        return can_listen(self.url)

    def _take(self) -> "_Pooled":
        until = None if self._turn is None else time.monotonic() + self._turn
        while True:
            with self._changed:
                self._waiting += 1
                try:
                    pooled, held = self._next(until)
                finally:
                    self._waiting -= 1
            if pooled is None:
                return self._open(held, until)
            if pooled.is_alive():
                return pooled
            self._drop(pooled)

    def _next(self, until: float | None) -> "tuple[_Pooled | None, Held | None]":
        """An idle connection, or else the right to open one: an own one, or one for the slot."""
        while True:
            if self._idle:
                return self._idle.pop(0), None
            if self._own_open < self._own:
                self._own_open += 1
                return None, None
            if self._slots is not None and self._shared_open < self._shared and not self._is_sought:
                self._is_sought = True  # by one thread at a time
                try:
                    if held := self._seek(self._slots, until):
                        self._shared_open += 1
                        return None, held
                finally:
                    self._is_sought = False
                    self._changed.notify_all()
            elif not self._changed.wait(None if until is None else max(0.0, until - time.monotonic())):
                raise self._none_became_free()

    def _seek(self, slots: "Slots", until: float | None) -> "Held | None":
        """A slot for one more connection; None as soon as there is an idle connection."""
        began = time.monotonic()
        with ExitStack() as registered:
            is_registered = False
            while not self._idle and self._own_open >= self._own:
                has_some = self._own_open + self._shared_open > 0
                # To open a second one takes longer than most uses of the first one.
                if self._own == 0 or time.monotonic() > began + _SECOND_SECONDS:
                    if held := slots.try_to_take(self._kind, has_some=has_some):
                        return held
                    if not has_some and not is_registered:
                        registered.enter_context(slots.waiting(self._kind))
                        is_registered = True
                if until is not None and time.monotonic() > until:
                    raise self._none_became_free()
                self._changed.wait(_POLL_SECONDS)
        return None

    def _none_became_free(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"no connection to {describe(self.url)} became free in time")

    def _open(self, held: "Held | None", until: float | None) -> "_Pooled":
        """Tries again for as long as the database does not answer, or has no connection free."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                connection = connect(
                    self.url,
                    autocommit=True,
                    application_name=self._application_name,
                    timeout=min(CONNECT_TIMEOUT, max(2, math.ceil(self._patience))),
                )
            except DatabaseUnavailable as error:
                limit = until if isinstance(error, NoConnectionFree) else deadline
                if limit is not None and time.monotonic() >= limit:
                    self._forget(held)
                    raise
                time.sleep(_RETRY_SECONDS)
            except BaseException:
                self._forget(held)
                raise
            else:
                return _Pooled(connection, held)

    def _open_ahead(self) -> None:
        with suppress(DatabaseUnavailable):  # who needs it will be told
            self._give_back(self._take())

    def _give_back(self, pooled: "_Pooled") -> None:
        is_usable = pooled.is_usable()
        with self._changed:
            is_kept = is_usable and self._is_open
            if is_kept and pooled.held is not None:
                is_kept = (self._waiting > 0 or self._keeps_one) and not pooled.held.is_wanted()
            if is_kept:
                pooled.since = time.monotonic()
                # The own ones first: the others can then be given up.
                self._idle.insert(0 if pooled.held is None else len(self._idle), pooled)
                if self._keeps_one and self._closer is None:
                    self._close_later()
                self._changed.notify_all()
        if not is_kept:
            self._drop(pooled)

    @property
    def _keeps_one(self) -> bool:
        return self._own == 0 and self._kind == "other"

    def _close_later(self) -> None:
        self._closer = threading.Timer(_KEEP_SECONDS, self._close_unused)
        self._closer.daemon = True
        self._closer.start()

    def _close_unused(self) -> None:
        with self._changed:
            self._closer = None
            used_since = time.monotonic() - _KEEP_SECONDS
            unused = [each for each in self._idle if each.held and (each.since < used_since or each.held.is_wanted())]
            self._idle = [each for each in self._idle if each not in unused]
            if self._shared_open > len(unused):
                self._close_later()
        for pooled in unused:
            self._drop(pooled)

    def _drop(self, pooled: "_Pooled") -> None:
        pooled.connection.close()
        self._forget(pooled.held)

    def _forget(self, held: "Held | None") -> None:
        with self._changed:
            if held is None:
                self._own_open -= 1
            else:
                self._shared_open -= 1
                held.release()
            self._changed.notify_all()


class _Pooled:
    """A connection of a pool, with its slot if it needs one."""

    def __init__(self, connection: Connection[DictRow], held: "Held | None") -> None:
        self.connection = connection
        self.held = held
        self.since = time.monotonic()  # of the last use

    def is_alive(self) -> bool:
        """Whether the server still knows it: it is asked after a while, or if it has said something by itself."""
        try:
            if time.monotonic() > self.since + _ASK_SECONDS or select.select([self.connection], [], [], 0)[0]:
                self.connection.execute("")
        except psycopg.Error:
            return False
        return True

    def is_usable(self) -> bool:
        """Whether it can be used again; rolls back what was left open."""
        try:
            if self.connection.info.transaction_status != pq.TransactionStatus.IDLE:
                self.connection.rollback()
        except psycopg.Error:
            return False
        return not self.connection.closed and self.connection.info.transaction_status == pq.TransactionStatus.IDLE


class _Connection(Connection[DictRow]):
    """A connection that is not closed before the server has ended the session: until then it would count as one."""

    def close(self) -> None:
        if self.closed:
            return
        file = os.dup(self.fileno())
        try:
            super().close()
            until = time.monotonic() + _END_SECONDS
            with suppress(OSError):
                while select.select([file], [], [], max(0.0, until - time.monotonic()))[0] and os.read(file, 4096):
                    pass
        finally:
            os.close(file)


class _PerTransaction(_Connection):
    """A connection through a transaction pooler, which gives each transaction another session: each of them begins by
    setting what it depends on."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        if self.autocommit and self.info.transaction_status == pq.TransactionStatus.IDLE:
            with self.transaction():
                return super().execute(query, params, **options)
        return super().execute(query, params, **options)

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[Any]:
        is_first = self.info.transaction_status == pq.TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if is_first:
                super().execute(_PIN_TRANSACTION.encode())
            yield transaction


def connect(
    url: str,
    *,
    autocommit: bool = False,
    application_name: str = APPLICATION_NAME,
    timeout: int = CONNECT_TIMEOUT,
) -> Connection[DictRow]:
    """One configured connection. Raises `DatabaseUnavailable` naming the host, never the password, and its subclass
    `NoConnectionFree` if only the number of connections is at fault."""
    kind = _Connection if can_listen(url) else _PerTransaction
    try:
        connection = kind.connect(
            url,
            autocommit=autocommit,
            row_factory=dict_row,
            prepare_threshold=None,  # prepared statements do not survive a transaction pooler
            application_name=application_name,
            **_RESILIENCE | {"connect_timeout": str(timeout)},  # type: ignore[arg-type]
        )
        _configure(connection)
    except psycopg.OperationalError as error:
        reason = one_line(error).partition(" Is the server running")[0].removeprefix("connection failed: ")
        reason = reason.replace(str(conninfo_to_dict(url).get("password") or "\0"), "***")
        if is_full(reason):
            _full.begins(f"{describe(url)}: {reason}")
            raise NoConnectionFree(
                f"STATS_DATABASE_URL: {describe(url)} has no connection free: {reason.rstrip('.?! ')}"
            ) from None
        _outage.begins(reason)
        raise DatabaseUnavailable(
            f"STATS_DATABASE_URL: cannot connect to {describe(url)}: {reason.rstrip('.?! ')}; "
            "check host, port, user, password and sslmode"
        ) from None
    _full.is_over()
    _outage.is_over()
    return connection


def is_full(reason: str) -> bool:
    """Whether a refused connection was one too many: for PostgreSQL, PgBouncer or Supavisor."""
    return re.search(REFUSED, reason) is not None


def _configure(connection: Connection[Any]) -> None:
    set_json_loads(_read_json, connection)
    # Set at each `begin` as well: a transaction pooler does not keep a session's settings.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    if isinstance(connection, _PerTransaction):
        return
    connection.execute(_PIN_SESSION.encode())
    if not connection.autocommit:
        connection.commit()


def _read_json(data: bytes | str) -> Any:
    """Parsed JSON; the text itself if PostgreSQL accepts it but Python does not, such as a number of 5 000 digits."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode() if isinstance(data, bytes) else data


def can_listen(url: str) -> bool:
    """Whether notifications work, and what is set for a session lasts: not behind a transaction pooler."""
    parts = conninfo_to_dict(url)
    is_said = parts.get("fallback_application_name") == TRANSACTION_POOLER
    return not is_said and str(parts.get("port", "")) != TRANSACTION_POOLER_PORT


def describe(url: str) -> str:
    """The database as text for people: host, port and name, without the user's password."""
    parts = conninfo_to_dict(url)
    host = str(parts.get("host", "localhost"))
    if host.startswith("/"):
        return f"the socket in {host}"
    return f"{host}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def running_url(settings: Settings) -> str:
    """The URL of the database: the one given, or the embedded one that is running. Raises `DatabaseUnavailable`."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return embedded.running_url(settings.home)


def dagster_url(settings: Settings, url: str, *, schema: str) -> str:
    """The URL of Dagster's tables for SQLAlchemy: in the database of the settings for it, or else in that of `url`."""
    own = settings.dagster_database_url
    return sqlalchemy_url(own.get_secret_value() if own else url, schema=schema)


def sqlalchemy_url(url: str, *, schema: str) -> str:
    """The same database for SQLAlchemy with psycopg2, working in the given schema only.

    Dagster's event watching needs psycopg2: with SQLAlchemy 2.1 a bare `postgresql://` means psycopg 3. The session's
    settings are in the URL, so that they apply from the first statement on: Dagster writes times without a zone, and
    would otherwise create its tables under the role's own `lock_timeout`. Poolers refuse them there:
    `runtime/storage.py` takes them out, and sets them by statements.
    """
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    parts = _RESILIENCE | parts | ({} if can_listen(url) else {"fallback_application_name": TRANSACTION_POOLER})
    session = _SESSION | {"search_path": schema}
    pinned = (f"-c{name}={value}".replace(" ", r"\ ") for name, value in session.items())
    parts["options"] = " ".join([parts.get("options", ""), *pinned]).strip()
    user, password, name = (parts.pop(key, "") for key in ("user", "password", "dbname"))
    address = f"{quote(user, safe='')}:{quote(password, safe='')}@/{quote(name, safe='')}"
    return f"postgresql+psycopg2://{address}?{urlencode(parts, quote_via=quote)}"


@functools.cache
def named_query(name: str) -> str:
    """The text of `sql/queries/<name>.sql`."""
    return (SQL_ROOT / "queries" / f"{name}.sql").read_text()


def run(connection: Connection[Any], query: str, **parameters: Any) -> list[Any]:
    """Run the named query on the caller's connection, inside the caller's transaction, and return its rows."""
    cursor = connection.execute(named_query(query).encode(), parameters)
    return cursor.fetchall() if cursor.description else []


def run_one(connection: Connection[Any], query: str, **parameters: Any) -> Any:
    """The one row of a query that has exactly one."""
    (row,) = run(connection, query, **parameters)
    return row


def call(connection: Connection[Any], function: str, /, **arguments: Any) -> list[Any]:
    """Call a function of schema `stats_pipeline`, or of the schema in its name, by named arguments; its rows.

    In the caller's transaction.
    """
    return connection.execute(_calling(function, tuple(arguments)), arguments).fetchall()


@functools.cache
def _calling(function: str, arguments: tuple[str, ...]) -> bytes:
    schema, _, name = function.rpartition(".")
    statement = sql.SQL("select * from {}({})").format(
        sql.Identifier(schema or "stats_pipeline", name),
        sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(argument), sql.Placeholder(argument)) for argument in arguments
        ),
    )
    return statement.as_bytes()


def call_one(connection: Connection[Any], function: str, /, **arguments: Any) -> Any:
    """The one value of a function that returns exactly one; None for one that returns nothing."""
    (row,) = call(connection, function, **arguments)
    (value,) = row.values()
    return value
