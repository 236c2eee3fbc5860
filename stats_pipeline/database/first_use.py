"""The database for a process of Dagster's, whether `up` or one of Dagster's own commands has started it.

Under `up` its URL is given. Under Dagster's own commands the first call here starts the embedded server. How it is
started and stopped belongs to `embedded.py`, the schema to `migrate.py`.
"""

import functools

from stats_pipeline.database import embedded, migrate
from stats_pipeline.database.connection import connect
from stats_pipeline.settings import Settings


def database_url(settings: Settings) -> str:
    """The URL of the database that all processes share: the one given, or else the embedded one.

    The embedded one is started and migrated to this version, with the reference stats. It runs until this process ends,
    and stops with the last process that uses it. Raises `DatabaseUnavailable` and `MigrationError`.
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
