"""Fixtures for all tests: a clean environment, one real PostgreSQL, a separate migrated database for each test.

The server is started once; a template database is migrated once and cloned per test (about 50 ms).
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from fasteners import InterProcessLock  # type: ignore[import-untyped]
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow

from stats_pipeline import database
from stats_pipeline.database import embedded, migrate

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> None:
    """No setting of the developer's own reaches a test."""
    for name in list(os.environ):
        if (
            name.startswith(
                ("STATS_", "DAGSTER_", "NEXT_PUBLIC_", "INTERNAL_API_KEY", "CRON_SECRET", "ADMIN_", "VIEWER_")
            )
            or name == "PORT"
        ):
            del os.environ[name]


@pytest.fixture(autouse=True)
def no_log_of_another_test() -> None:
    """Whoever configures the log does so for the process, and for the output that there was then."""
    structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def passable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As root, the embedded server's user must exist, and pass through pytest's folders to the test's own."""
    if os.geteuid() == 0:
        base = tmp_path_factory.getbasetemp()
        levels = 3 if "PYTEST_XDIST_WORKER" in os.environ else 2
        for folder in (base, *base.parents)[:levels]:
            folder.chmod(folder.stat().st_mode | 0o011)
        with InterProcessLock(base.parent / "user.lock"):  # workers make the user one at a time
            embedded._let_in(embedded._ROOTS_USER, embedded._BINARIES, base)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test's own. It has less of the test's name than pytest's: the path of a socket must be short."""
    name = re.sub(r"\W", "_", request.node.name).removeprefix("test_")[:12]
    folder = tmp_path_factory.mktemp(name)
    if os.geteuid() == 0:
        folder.chmod(0o711)
    return folder


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the session's server, whose `postgres` database has the queue but none of our objects."""
    folder: Path = tmp_path_factory.mktemp("pg")
    with embedded.running(folder) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("alter system set fsync = off")  # nobody's data
            connection.execute("select pg_reload_conf()")
        yield url


@pytest.fixture(scope="session")
def create_database(postgres: str) -> Callable[..., str]:
    """Make a database, by default empty but for the queue, and return its URL."""

    def create(template: str = "postgres") -> str:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(make_conninfo(postgres, dbname="template1"), autocommit=True) as connection:
            connection.execute(f"create database {name} template {template}".encode())
        return make_conninfo_url(postgres, name)

    return create


def make_conninfo_url(url: str, name: str) -> str:
    """The same server's URL for another database."""
    return url.replace("/postgres?", f"/{name}?", 1)


@pytest.fixture(scope="session")
def template(create_database: Callable[..., str]) -> str:
    """The name of a migrated database with the reference stats and no rows."""
    url = create_database()
    with database.connect(url, autocommit=True) as connection:
        migrate.migrate(connection, reference_stats=True)
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])


@pytest.fixture
def database_url(create_database: Callable[..., str], template: str, postgres: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    url = create_database(template)
    yield url
    with psycopg.connect(make_conninfo(postgres, dbname="template1"), autocommit=True) as connection:
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection[DictRow]]:
    """An autocommit connection with dictionary rows to the test's database."""
    with database.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def query(connection: Connection[Any]) -> Callable[..., list[dict[str, Any]]]:
    """Run a statement and return its rows."""

    def run(statement: str, *parameters: object) -> list[dict[str, Any]]:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    return run
