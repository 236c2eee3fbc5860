"""The database as a process of Dagster finds it: there, whoever has started the process.

Under `up` its URL is given. Dagster's own commands have nobody who starts the embedded server for them, so that the
first call here does. Starting and stopping is `embedded.py`'s, the schema `migrate.py`'s business.
"""

import functools

from stats_pipeline.database import embedded, migrate
from stats_pipeline.database.connection import connect
from stats_pipeline.settings import Settings


def database_url(settings: Settings) -> str:
    """The URL of the database that all processes share: the one given, or else the embedded one.

    The embedded one is then running, and brought to this version with the reference stats. It stays so until this
    process ends, and is stopped with the last process that uses it. Raises `DatabaseUnavailable` and `MigrationError`.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    url = embedded.hold(settings.home)
    _migrate(url)
    return url


@functools.cache  # once for each process
def _migrate(url: str) -> None:
    with connect(url, autocommit=True) as connection:
        migrate.migrate(connection, reference_stats=True)
