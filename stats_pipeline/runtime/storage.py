"""Dagster's storage in PostgreSQL, with pooled connections: `storage` in dagster.yaml.

Dagster's own class opens a connection for each read and write, and before many of them looks up the existing tables and
columns, which may be those of an older version: a quarter of a job's time (1.02 s with it, 0.76 s without). The stored
data is the same: the `stock` profile reads and writes the same tables.
"""

from typing import Any, Self

from dagster._serdes import ConfigurableClassData  # type only: config from dagster.yaml
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_postgres.utils import (  # how Dagster's own storage reads its config and connects
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
    retry_pg_connection_fn,
)
from sqlalchemy import Connection, inspect

# Connections that one process keeps: one for each op of a run, as all may write events at the same time. Further ones
# are opened when they are needed, and closed after use.
POOL_SIZE = 10
MAX_OVERFLOW = 30


class PooledPostgresStorage(DagsterPostgresStorage):
    """Runs, events and ticks of one instance over one pool of connections, safe to share between threads.

    A pool must not cross a fork: create the instance in the process that uses it. Each connection is tested before use,
    so an outage of the database fails only the reads and writes made during it.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        engine = create_pg_engine(
            postgres_url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            pool_pre_ping=True,
            pool_recycle=300,
        )
        # One look-up of the table that is created last; otherwise each of the three parts would list all tables.
        is_new = should_autocreate_tables and not retry_pg_connection_fn(lambda: inspect(engine).has_table("jobs"))
        super().__init__(postgres_url, is_new, inst_data, token_provider)
        self._event_log_storage = _EventLogStorage(postgres_url, token_provider=token_provider)
        for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
            part._engine = engine

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )


class _EventLogStorage(PostgresEventLogStorage):
    """The event log, without repeated look-ups of things that do not change."""

    def __init__(self, postgres_url: str, *, token_provider: Any) -> None:
        super().__init__(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        self._tables: set[str] = set()

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
        self._engine.dispose()
