"""Dagster's storage over one pool: the same content as Dagster's own class, in a handful of connections."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import dagster as dg
import pytest
from dagster_postgres import DagsterPostgresStorage

from stats_pipeline import database
from stats_pipeline.database import migrate
from stats_pipeline.runtime.storage import PooledPostgresStorage

NAME = "dagster-under-test"

Query = Callable[..., list[dict[str, Any]]]


@dg.asset
def made() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 3})


@dg.asset(deps=[made])
def derived() -> None:
    pass


@pytest.fixture
def storage_url(database_url: str) -> str:
    """A database without any table of Dagster's, with a name of our own for what connects."""
    url = database.sqlalchemy_url(database_url, schema=migrate.DAGSTER_SCHEMA)
    return f"{url}&application_name={NAME}"


@pytest.fixture
def open_instance(storage_url: str) -> Iterator[Callable[..., dg.DagsterInstance]]:
    """Instances over the database, with our storage unless another class is named."""
    with ExitStack() as opened:

        def open_one(kind: type = PooledPostgresStorage, **config: object) -> dg.DagsterInstance:
            storage = {
                "module": kind.__module__,
                "class": kind.__name__,
                "config": {"postgres_url": storage_url, **config},
            }
            return opened.enter_context(dg.instance_for_test(overrides={"storage": {"custom": storage}}))

        yield open_one


@pytest.fixture
def connections(query: Query) -> Callable[[], int]:
    return lambda: len(query("select pid from pg_stat_activity where application_name = %s", NAME))


def test_the_tables_of_a_new_database_are_made_by_the_first_to_come(
    open_instance: Callable[..., dg.DagsterInstance], query: Query
) -> None:
    assert query("select to_regclass('dagster.runs') as made")[0]["made"] is None
    assert open_instance().get_runs() == []
    assert open_instance(should_autocreate_tables=False).get_runs() == []


def test_what_is_stored_is_what_dagsters_own_class_stores_and_reads(
    open_instance: Callable[..., dg.DagsterInstance],
) -> None:
    pooled, stock = open_instance(), open_instance(DagsterPostgresStorage)
    results = {instance: dg.materialize([made, derived], instance=instance) for instance in (pooled, stock)}
    by_pooled, by_stock = ([event.event_type_value for event in results[i].all_events] for i in (pooled, stock))
    assert by_pooled == by_stock
    for result in results.values():
        stored = [
            [(entry.dagster_event_type, entry.step_key, entry.message) for entry in reader.all_logs(result.run_id)]
            for reader in (pooled, stock)
        ]
        assert stored[0] == stored[1]
        assert len(stored[0]) > 10
    for key in (made.key, derived.key):
        records = [reader.get_asset_records([key]) for reader in (pooled, stock)]
        assert records[0] == records[1]
        assert records[0][0].asset_entry.last_run_id == results[stock].run_id
        provenance = [reader.get_latest_data_version_record(key) for reader in (pooled, stock)]
        assert provenance[0] == provenance[1]


def test_a_run_keeps_its_connections_and_an_ended_instance_has_none(
    open_instance: Callable[..., dg.DagsterInstance], connections: Callable[[], int]
) -> None:
    instance = open_instance()
    for _ in range(3):
        assert dg.materialize([made, derived], instance=instance).success
    assert connections() == 1
    instance.dispose()
    assert connections() == 0


def test_threads_share_the_pool(
    open_instance: Callable[..., dg.DagsterInstance], connections: Callable[[], int]
) -> None:
    instance = open_instance()
    start = threading.Barrier(30)
    runs: list[int] = []

    def read() -> None:
        start.wait()
        runs.append(len(instance.get_runs()))

    threads = [threading.Thread(target=read) for _ in range(start.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == [0] * start.parties
    assert connections() == 1


def test_connections_that_the_server_has_closed_are_replaced(
    open_instance: Callable[..., dg.DagsterInstance], connections: Callable[[], int], query: Query
) -> None:
    instance = open_instance()
    assert dg.materialize([made], instance=instance).success
    assert query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", NAME)
    assert dg.materialize([made, derived], instance=instance).success
    assert connections() > 0
