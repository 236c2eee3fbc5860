"""The database: connections and named queries (`connection.py`), how many there may be (`budget.py`), the schema
(`migrate.py`, `schema.py`), the embedded server (`embedded.py`), and the embedded server as Dagster's own commands
start it (`first_use.py`).
"""

from stats_pipeline.database.connection import (
    APPLICATION_NAME,
    CONNECT_TIMEOUT,
    REFUSED,
    TRANSACTION_POOLER_PORT,
    Database,
    call,
    call_one,
    can_listen,
    connect,
    dagster_url,
    describe,
    named_query,
    run,
    run_one,
    running_url,
    sqlalchemy_url,
)
from stats_pipeline.database.first_use import database_url  # after the names that it imports from this package

__all__ = [
    "APPLICATION_NAME",
    "CONNECT_TIMEOUT",
    "REFUSED",
    "TRANSACTION_POOLER_PORT",
    "Database",
    "call",
    "call_one",
    "can_listen",
    "connect",
    "dagster_url",
    "database_url",
    "describe",
    "named_query",
    "run",
    "run_one",
    "running_url",
    "sqlalchemy_url",
]
