"""Dagster's storage in PostgreSQL, over one connection for each process: `storage` in dagster.yaml.

Dagster's own class opens a connection for each read and write, and before many of them looks up the existing tables and
columns, which may be those of an older version: a quarter of a job's time (1.02 s with it, 0.76 s without). The stored
data is the same: the `stock` profile reads and writes the same tables.

What the URL's `options` set for a session is set by statements here, as poolers refuse it at the connect. Behind a
transaction pooler, which gives each transaction another session, every statement sets it for its own transaction.
"""

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any, Self

import dagster as dg
import psycopg2  # type: ignore[import-untyped]
from dagster._core.events.log import EventLogEntry  # an event as it is stored
from dagster._core.storage.event_log import (  # the tables of events and assets, and how any database stores an event
    AssetKeyTable,
    SqlEventLogStorage,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.migration import ASSET_KEY_INDEX_COLS  # names columns of the table of assets
from dagster._serdes import ConfigurableClassData  # type only: config from dagster.yaml
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import (  # how Dagster's own storage reads its config, connects and makes its tables
    create_pg_connection,
    create_pg_engine,
    get_token_provider_from_config,
    pg_config,
    pg_url_from_config,
    retry_pg_connection_fn,
    retry_pg_creation_fn,
)
from sqlalchemy import Connection, Engine, event, inspect, make_url
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateSchema

# The `fallback_application_name` of a URL that leads to a transaction pooler.
TRANSACTION_POOLER = "transaction pooler"
# Seconds that a thread waits for the connection: the others use it for milliseconds, unless the database hangs.
TURN_SECONDS = 600
_STRINGS = "standard_conforming_strings"
_REFUSED_SECONDS = 600  # for which a refused connection is tried again
_END_SECONDS = 1.0
_PLANNED = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED


class PooledPostgresStorage(DagsterPostgresStorage):
    """Runs, events and ticks of one instance over one pool of `pool_size` connections, safe to share between threads.

    Each thread has one connection at most, so one is enough for all of them. All instances of a process share the pool.
    It must not cross a fork: create the instance in the process that uses it. Each connection is tested before use, so
    an outage of the database fails only the reads and writes made during it. A connection that is refused with a
    message matching `wait_when_refused` is tried again for ten minutes.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
        pool_size: int = 1,
        wait_when_refused: str = "",
    ) -> None:
        self._shared = _shared(postgres_url, token_provider, pool_size, wait_when_refused)
        engine = self._shared.engine
        try:
            # One look-up of the table that is created last; otherwise each of the three parts would list all tables.
            is_new = should_autocreate_tables and not retry_pg_connection_fn(lambda: inspect(engine).has_table("jobs"))
        except BaseException:
            self._shared.leave()
            raise
        # The parts of the base class are replaced: it is not to make any tables over connections of its own.
        super().__init__(postgres_url, False, inst_data, token_provider)
        self._run_storage = _RunStorage(postgres_url, False, token_provider=token_provider)
        self._event_log_storage = _EventLogStorage(postgres_url, False, token_provider=token_provider)
        self._schedule_storage = _ScheduleStorage(postgres_url, False, token_provider=token_provider)
        for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
            part._engine = engine
            part.shared = self._shared
        if is_new:
            self._make_tables(_without_session(postgres_url)[1].get("search_path"))

    @classmethod
    def config_type(cls) -> Any:
        config: Any = pg_config()
        return {
            **config,
            "pool_size": dg.Field(int, is_required=False, default_value=1),
            "wait_when_refused": dg.Field(str, is_required=False, default_value=""),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
            config_value.get("pool_size", 1),
            config_value.get("wait_when_refused", ""),
        )

    def _make_tables(self, schema: str | None) -> None:
        """As the three parts make theirs. Another process may be at the same."""
        if schema is not None:
            with self._shared.connection() as connection:
                connection.execute(CreateSchema(schema, if_not_exists=True))
        tables = set(retry_pg_connection_fn(lambda: inspect(self._shared.engine).get_table_names(schema)))
        if "runs" not in tables:
            retry_pg_creation_fn(self._run_storage._init_db)
            self._run_storage.migrate()
            self._run_storage.optimize()
        if "event_logs" not in tables:
            retry_pg_creation_fn(self._event_log_storage._init_db)
            self._event_log_storage.reindex_events()
            self._event_log_storage.reindex_assets()
        retry_pg_creation_fn(self._schedule_storage._init_db)


class _Shared:
    """The pool of all instances of this process: Dagster opens one more for each tick that asks for it.

    A thread that has a connection gets the same one again: with one for all it would otherwise wait for itself, as
    Dagster looks things up while it writes.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.users = 0
        self._of_thread = threading.local()

    @property
    def is_held(self) -> bool:
        return getattr(self._of_thread, "connection", None) is not None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        if self.is_held:
            yield self._of_thread.connection
            return
        with create_pg_connection(self.engine) as connection:
            self._of_thread.connection = connection
            try:
                yield connection
            finally:
                self._of_thread.connection = None

    def leave(self) -> None:
        """Close the pool with its last user. Returns when the server has ended an idle session: until then it would
        count as one more."""
        with _opening:
            self.users -= 1
            if self.users > 0:
                return
            for key in [key for key, shared in _pools.items() if shared is self]:
                del _pools[key]
        file = None
        pool: Any = self.engine.pool
        if pool.checkedin():
            with suppress(Exception), self.engine.connect() as connection:
                driver = connection.connection.dbapi_connection
                file = os.dup(driver.fileno()) if driver is not None else None
        self.engine.dispose()
        if file is not None:
            until = time.monotonic() + _END_SECONDS
            with suppress(OSError):
                while wait([file], max(0.0, until - time.monotonic())) and os.read(file, 4096):
                    pass
            os.close(file)


_pools: dict[tuple[object, ...], _Shared] = {}
_opening = threading.Lock()
_of_parent: list[_Shared] = []


def _leave_to_parent() -> None:
    """Kept, as to forget a connection is to close it, which would end the parent's session."""
    _of_parent.extend(_pools.values())
    _pools.clear()
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_leave_to_parent)


def _shared(postgres_url: str, token_provider: Any, pool_size: int, wait_when_refused: str) -> _Shared:
    key = (postgres_url, id(token_provider), pool_size, wait_when_refused)
    with _opening:
        if key not in _pools:
            url, session = _without_session(postgres_url)
            engine = create_pg_engine(
                url,
                token_provider,
                isolation_level="AUTOCOMMIT",
                pool_size=pool_size,
                max_overflow=0,
                pool_timeout=TURN_SECONDS,
                pool_pre_ping=True,
                pool_recycle=300,
            )
            is_set_at_connect = not _set_for_each_statement(engine, session)
            _connect_with(engine, session if is_set_at_connect else {}, wait_when_refused)
            _pools[key] = _Shared(engine)
        _pools[key].users += 1
        return _pools[key]


class _RunStorage(PostgresRunStorage):
    shared: _Shared

    def connect(self) -> AbstractContextManager[Connection]:
        return self.shared.connection()

    # The columns are older than this project, so every database it created has them: no look-up for each run.

    def has_run_stats_index_cols(self) -> bool:
        return True

    def has_backfill_id_column(self) -> bool:
        return True

    def optimize_for_webserver(self, *_: object, **__: object) -> None:
        """Dagster's own would replace the pool, here and in the other parts, by one of up to 21 connections each."""


class _ScheduleStorage(PostgresScheduleStorage):
    shared: _Shared

    def connect(self, run_id: str | None = None) -> AbstractContextManager[Connection]:  # noqa: ARG002
        return self.shared.connection()

    def has_instigators_table(self) -> bool:
        return True  # as old as the columns above; Dagster would list all tables in each round of the sensors

    def optimize_for_webserver(self, *_: object, **__: object) -> None:
        pass


class _EventLogStorage(PostgresEventLogStorage):
    """The event log, without repeated look-ups of things that do not change.

    When a run is made, Dagster stores one event for each table that it is going to fill. They are kept until the next
    event or read of this process, and stored by one statement. If the process is killed before, the run itself still
    stores what it did.
    """

    shared: _Shared

    def __init__(self, postgres_url: str, should_autocreate_tables: bool, *, token_provider: Any) -> None:
        super().__init__(postgres_url, should_autocreate_tables, token_provider=token_provider)
        self._tables: set[str] = set()
        self._planned: list[EventLogEntry] = []
        self._storing = threading.RLock()
        self._is_storing = False
        self._is_disposed = False

    def _connect(self) -> AbstractContextManager[Connection]:
        if (self._planned or self._is_storing) and not self.shared.is_held:
            self._store_planned()
        return self.shared.connection()

    def optimize_for_webserver(self, *_: object, **__: object) -> None:
        pass

    def store_event(self, event: EventLogEntry) -> None:
        if event.is_dagster_event and event.dagster_event_type == _PLANNED:
            with self._storing:
                self._planned.append(event)
        else:
            # Without the notification for Dagster's older versions, which costs as much as the event.
            SqlEventLogStorage.store_event(self, event)

    def _store_planned(self) -> None:
        with self._storing:
            planned, self._planned = self._planned, []
            if not planned:
                return
            self._is_storing = True
            try:
                self._store_together(planned)
            except BaseException:
                self._planned = planned + self._planned
                raise
            finally:
                self._is_storing = False

    def _store_together(self, planned: Sequence[EventLogEntry]) -> None:
        has_columns = self.has_secondary_index(ASSET_KEY_INDEX_COLS)
        # One row per table, and always in the same order: another process may be writing the same ones.
        assets = {
            entry.dagster_event.asset_key.to_string(): self._get_asset_entry_values(entry, 0, has_columns)
            for entry in planned
            if entry.dagster_event is not None and entry.dagster_event.asset_key is not None
        }
        # The rows are parameters: SQLAlchemy keeps the text of such a statement, and makes that of another each time.
        insert = postgresql.insert(AssetKeyTable)
        changed = {name: insert.excluded[name] for values in assets.values() for name in values}
        upsert = insert.on_conflict_do_update(index_elements=[AssetKeyTable.c.asset_key], set_=changed)
        with self.index_transaction() as connection:
            connection.execute(SqlEventLogStorageTable.insert(), [self._event_to_row(entry) for entry in planned])
            connection.execute(upsert, [{"asset_key": key, **assets[key]} for key in sorted(assets)])

    def has_table(self, table_name: str) -> bool:
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:  # noqa: ARG002
        return True  # these columns are older than this project, so every database it created has them

    @property
    def asset_records_have_last_observation(self) -> bool:
        # Nothing observes the app's tables; otherwise each op would query the observations of each table it reads.
        return True

    def dispose(self) -> None:
        super().dispose()
        if self._is_disposed:
            return
        self._is_disposed = True
        with suppress(Exception):  # an outage at the very end
            self._connect()
        self.shared.leave()


def _without_session(postgres_url: str) -> tuple[str, dict[str, str]]:
    """The URL without what its `options` set for a session (`-cname=value`), and these settings."""
    url = make_url(postgres_url)
    options = url.query.get("options")
    if not isinstance(options, str):
        return postgres_url, {}
    session, others = {}, []
    for option in re.split(r"(?<!\\)\s+", re.sub(r"(^|\s)-c\s+", r"\1-c", options)):
        if found := re.fullmatch(r"(?:-c|--)([\w.]+)=(.*)", option, re.DOTALL):
            session[found[1]] = re.sub(r"\\(.)", r"\1", found[2])
        elif option:
            others.append(option)
    rest = url.difference_update_query(["options"])
    if others:
        rest = rest.update_query_dict({"options": " ".join(others)})
    return rest.render_as_string(hide_password=False), session


def _set_for_each_statement(engine: Engine, session: Mapping[str, str]) -> bool:
    """Have every statement executed under these settings, if the engine leads to a transaction pooler; whether it
    does."""
    if engine.url.query.get("fallback_application_name") != TRANSACTION_POOLER:
        return False
    if session:
        pairs = (f"set_config({_literal(name)}, {_literal(value)}, true)" for name, value in session.items())
        prefix = f"select {', '.join(pairs)}; ".replace("%", "%%")

        # Statements of one message are one transaction, which ends with the last of them.
        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def set_for_statement(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
            return prefix + statement, parameters

    return True


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _connect_with(engine: Engine, session: Mapping[str, str], refused: str) -> None:
    """Have every connection opened with these settings. A refusal that matches `refused` is waited out: a pooler may
    refuse the first statement, after the connect itself."""
    if not session and not refused:
        return
    setting = f"select {', '.join(['set_config(%s, %s, false)'] * len(session))}"
    values = [each for pair in session.items() for each in pair]

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        until = time.monotonic() + _REFUSED_SECONDS
        while True:
            driver = None
            try:
                driver = psycopg2.connect(*arguments, **options)
                if driver.get_parameter_status(_STRINGS) == "off":
                    # psycopg2 looks once, when it connects, how to quote bytes: set later, it would garble them.
                    driver.close()
                    driver = psycopg2.connect(*arguments, **options | {"options": f"-c{_STRINGS}=on"})
                with driver.cursor() as cursor:
                    cursor.execute(setting, values)
                driver.commit()
            except psycopg2.Error as error:
                # Of PgBouncer's `query_wait_timeout` psycopg2 tells no more than that the connection was closed.
                is_refused = re.search(refused, str(error)) or (driver is not None and driver.closed)
                if driver is not None:
                    driver.close()
                if not refused or not is_refused or time.monotonic() > until:
                    raise
            else:
                return driver
            time.sleep(0.5)
