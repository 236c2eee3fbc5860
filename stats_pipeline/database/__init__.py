"""The database: connections and named queries (`connection.py`), the schema (`migrate.py`, `schema.py`), and the
embedded server (`embedded.py`).
"""

from stats_pipeline.database.connection import (
    APPLICATION_NAME,
    CONNECT_TIMEOUT,
    TRANSACTION_POOLER_PORT,
    Database,
    call,
    call_one,
    can_listen,
    connect,
    database_url,
    describe,
    named_query,
    run,
    run_one,
    sqlalchemy_url,
)

__all__ = [
    "APPLICATION_NAME",
    "CONNECT_TIMEOUT",
    "TRANSACTION_POOLER_PORT",
    "Database",
    "call",
    "call_one",
    "can_listen",
    "connect",
    "database_url",
    "describe",
    "named_query",
    "run",
    "run_one",
    "sqlalchemy_url",
]
