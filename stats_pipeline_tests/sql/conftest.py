"""Fixtures for the tests of the SQL: one database per module, and a transaction per test that is rolled back."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline_tests.reference import RPCS
from stats_pipeline_tests.sql.club import Club, load, read, refresh
from stats_pipeline_tests.sql.golden import DAY_3, GOLDEN, Refreshed


@pytest.fixture(scope="module")
def stats_url(create_database: Callable[..., str], template: str) -> str:
    """A database with the reference stats, no rows, for the tests of one module."""
    return create_database(template)


@pytest.fixture(scope="module")
def stats_connection(stats_url: str) -> Iterator[Connection[Any]]:
    """An autocommit connection that keeps its cached plans for the module; tests undo what they write."""
    with psycopg.connect(stats_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def stats(stats_connection: Connection[Any]) -> Iterator[Connection[Any]]:
    """The module's connection inside a transaction that ends with the test."""
    with stats_connection.transaction(force_rollback=True):
        yield stats_connection


@pytest.fixture
def refreshed(stats: Connection[Any]) -> Refreshed:
    """Load a club, call one function (or all) on a day, and give the reader of what it stored."""

    def run(*rpcs: str, club: Club = GOLDEN, today: date = DAY_3) -> Callable[..., list[dict[str, Any]]]:
        load(stats, club)
        refresh(stats, today=today, rpcs=rpcs or RPCS)
        return lambda table, **options: read(stats, f"aggregated_{table}", **options)

    return run
