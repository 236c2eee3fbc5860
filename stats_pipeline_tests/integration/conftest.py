"""Fixtures for tests of the database through the functions that the product calls it with."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

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
