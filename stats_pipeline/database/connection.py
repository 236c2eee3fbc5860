"""One connection: how it is opened and what is set for it, calls of the functions of `sql/functions/`, and the named
queries of `sql/queries/`.

Several of them are in `pool.py`. The meaning of the queries belongs to `jobs/`, the choice of the database to
`settings.py` and `embedded.py`.
"""

import functools
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any
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
_END_SECONDS = 1.0

_full = Outage("waiting for a free connection", "there are free connections again")
_outage = Outage("the database is out of reach", "the database is back")


class _Connection(Connection[DictRow]):
    """A connection that is not closed before the server has ended the session: until then it would count as one."""

    def close(self) -> None:
        if self.closed:
            return
        try:
            file = os.dup(self.fileno())
        except (OSError, psycopg.Error):  # this process has no file left, or the connection is broken
            super().close()
            return
        try:
            super().close()
            until = time.monotonic() + _END_SECONDS
            with suppress(OSError):
                while wait([file], max(0.0, until - time.monotonic())) and os.read(file, 4096):
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
