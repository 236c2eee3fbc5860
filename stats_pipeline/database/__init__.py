"""The database: one connection and the named queries (`connection.py`), several connections (`pool.py`), how many there
may be (`budget.py`, `allowance.py`), the schema (`migrate.py`, `schema.py`), the embedded server (`embedded.py`), and
that server as Dagster's own commands start it (`first_use.py`).
"""

from stats_pipeline.database.connection import (
    APPLICATION_NAME,
    CONNECT_TIMEOUT,
    REFUSED,
    TRANSACTION_POOLER_PORT,
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
from stats_pipeline.database.pool import Database

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
