"""Fixtures for tests of the database through the functions that the product calls."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline import database

T = TypeVar("T")


@pytest.fixture
def opened(database_url: str) -> Iterator[database.Database]:
    """The test's database as a pool, for what many threads do."""
    with database.Database(database_url, max_connections=12) as opened:
        yield opened


@pytest.fixture
def at_once() -> Callable[[int, Callable[[int], T]], list[T | Exception]]:
    """Call a function so many times in threads that start together; results or exceptions, by number."""

    def run(count: int, call: Callable[[int], T]) -> list[T | Exception]:
        barrier = threading.Barrier(count)
        outcomes: dict[int, T | Exception] = {}

        def body(number: int) -> None:
            barrier.wait()
            try:
                outcomes[number] = call(number)
            except Exception as error:
                outcomes[number] = error

        threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [outcomes[number] for number in range(count)]

    return run


@pytest.fixture
def count(query: Callable[..., list[dict[str, Any]]]) -> Callable[[str], int]:
    """How many rows a table has."""
    return lambda table: int(query(f"select count(*) as rows from {table}")[0]["rows"])


@pytest.fixture
def first(database_url: str) -> Iterator[Connection[DictRow]]:
    """The connection of the caller who comes first in a race, and holds on in an open transaction."""
    with database.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def meanwhile(
    database_url: str, query: Callable[..., list[dict[str, Any]]]
) -> Iterator[Callable[[Callable[[Connection[DictRow]], T]], Future[T]]]:
    """Start a second caller, whose connection is open already; return when it has its answer or waits for a lock."""
    waiting = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    with database.connect(database_url, autocommit=True) as second, ThreadPoolExecutor(1) as threads:

        def start(call: Callable[[Connection[DictRow]], T]) -> Future[T]:
            answer = threads.submit(call, second)
            while not answer.done() and not query(waiting):
                pass  # the server answers each look, so this spins no faster than it can
            return answer

        yield start
