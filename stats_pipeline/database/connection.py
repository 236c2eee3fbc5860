"""Connections, transactions, calls of the functions of `sql/functions/`, and the named queries of `sql/queries/`.

One `Database` per process; it opens connections when they are first used. The meaning of the queries belongs to
`jobs/`, the choice of the database to `settings.py` and `embedded.py`.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolTimeout

from stats_pipeline.database import embedded
from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.log import Outage
from stats_pipeline.settings import SQL_ROOT, VERSION, Settings

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

_outage = Outage("the database is out of reach", "the database is back")


class Database:
    """A pool of autocommit connections with dictionary rows to one PostgreSQL, safe to share between threads.

    A request for a connection waits at most `patience` seconds. `ahead` connections are opened in the background,
    before the first request.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 4,
        ahead: int = 0,
        application_name: str = APPLICATION_NAME,
        patience: float = CONNECT_TIMEOUT,
    ) -> None:
        self.url = url
        self._application_name = application_name
        self._pool: ConnectionPool[Connection[DictRow]] = ConnectionPool(
            url,
            min_size=ahead,
            max_size=max_connections,
            num_workers=min(max_connections, 6),  # opened at a time
            max_idle=60,
            timeout=patience,
            # Otherwise the pause between two tries would grow to minutes during an outage of some minutes.
            reconnect_timeout=patience,
            open=False,
            kwargs=_arguments(application_name=application_name, autocommit=True),
            configure=_configure,
            check=ConnectionPool.check_connection,
            connection_class=Connection[DictRow],
        )

    def __enter__(self) -> Self:
        self._pool.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection[DictRow]]:
        """A pooled autocommit connection. Raises `DatabaseUnavailable` if none is available."""
        self._pool.open()
        try:
            connection = self._pool.getconn()
        except PoolTimeout:
            raise DatabaseUnavailable(self._why_unreachable()) from None
        _outage.is_over()
        try:
            yield connection
        finally:
            self._pool.putconn(connection)

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
        """A connection for the caller alone, outside the pool: for LISTEN and for session-level locks."""
        return connect(self.url, autocommit=True, application_name=self._application_name)

    @property
    def can_listen(self) -> bool:
        """Whether notifications and session locks work on this database's connections."""
        return can_listen(self.url)

    def _why_unreachable(self) -> str:
        try:
            self.dedicated_connection().close()
        except DatabaseUnavailable as error:
            return str(error)
        return f"no connection to {describe(self.url)} became free in time"


def connect(url: str, *, autocommit: bool = False, application_name: str = APPLICATION_NAME) -> Connection[DictRow]:
    """One configured connection. Raises `DatabaseUnavailable` naming the host, never the password."""
    try:
        connection = Connection[DictRow].connect(
            url, **_arguments(application_name=application_name, autocommit=autocommit)
        )
    except psycopg.OperationalError as error:
        reason = one_line(error).partition(" Is the server running")[0].removeprefix("connection failed: ")
        reason = reason.replace(str(conninfo_to_dict(url).get("password") or "\0"), "***")
        _outage.begins(reason)
        raise DatabaseUnavailable(
            f"STATS_DATABASE_URL: cannot connect to {describe(url)}: {reason.rstrip('.?! ')}; "
            "check host, port, user, password and sslmode"
        ) from None
    _configure(connection)
    _outage.is_over()
    return connection


def _arguments(*, application_name: str, autocommit: bool) -> dict[str, Any]:
    return {
        "autocommit": autocommit,
        "row_factory": dict_row,
        "prepare_threshold": None,  # prepared statements do not survive a transaction pooler
        "application_name": application_name,
        **_RESILIENCE,
    }


def _configure(connection: Connection[Any]) -> None:
    set_json_loads(_read_json, connection)
    connection.execute(_PIN_SESSION.encode())
    if not connection.autocommit:
        connection.commit()
    # Set at each `begin` as well: a transaction pooler does not keep a session's settings.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED


def _read_json(data: bytes | str) -> Any:
    """Parsed JSON; the text itself if PostgreSQL accepts it but Python does not, such as a number of 5 000 digits."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode() if isinstance(data, bytes) else data


def can_listen(url: str) -> bool:
    """Whether notifications and session locks work: not behind a transaction pooler."""
    return str(conninfo_to_dict(url).get("port", "")) != TRANSACTION_POOLER_PORT


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


def sqlalchemy_url(url: str, *, schema: str) -> str:
    """The same database for SQLAlchemy with psycopg2, working in the given schema only.

    Dagster's event watching needs psycopg2: with SQLAlchemy 2.1 a bare `postgresql://` means psycopg 3. The session's
    settings are in the URL, so that they apply from the first statement on: Dagster writes times without a zone, and
    would otherwise create its tables under the role's own `lock_timeout`.
    """
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    parts = _RESILIENCE | parts
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
