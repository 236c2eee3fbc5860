"""Dagster's storage over one pool: the same content as Dagster's own class, in a handful of connections."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import DagsterPostgresException

from stats_pipeline import database
from stats_pipeline.database import migrate
from stats_pipeline.runtime.storage import PooledPostgresStorage, _pools, _without_session

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


def test_all_instances_of_a_process_share_the_connection_and_the_last_one_closes_it(
    open_instance: Callable[..., dg.DagsterInstance], connections: Callable[[], int]
) -> None:
    first, second = open_instance(), open_instance()
    for instance in (first, second):
        assert instance.get_runs() == []
    assert connections() == 1
    first.dispose()
    assert second.get_runs() == []
    assert connections() == 1
    second.dispose()
    assert connections() == 0


def test_a_first_look_that_fails_leaves_no_user_of_the_pool_behind(storage_url: str) -> None:
    nowhere = storage_url.replace("@/", "@/of_nobody_")
    with pytest.raises(DagsterPostgresException):
        PooledPostgresStorage(nowhere)
    assert all(nowhere not in key for key in _pools)


def test_the_web_servers_own_settings_leave_the_pool_as_it_is(
    open_instance: Callable[..., dg.DagsterInstance], connections: Callable[[], int]
) -> None:
    instance = open_instance()
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=300, max_overflow=20)
    assert dg.materialize([made, derived], instance=instance).success
    assert connections() == 1


def planned(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """The tables that a run is going to fill, as this instance reads them."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    return [entry.get_dagster_event().asset_key.to_user_string() for entry in entries if entry.dagster_event]  # type: ignore[union-attr]


@pytest.mark.parametrize("then", ["an event", "a read", "the end"])
def test_what_a_run_plans_is_stored_together_before_anything_else_is(
    open_instance: Callable[..., dg.DagsterInstance], query: Query, then: str
) -> None:
    pooled, stock = open_instance(), open_instance(DagsterPostgresStorage)
    assets = [made, derived]
    job = dg.Definitions(assets, jobs=[dg.define_asset_job("both", assets)]).resolve_job_def("both")
    run = pooled.create_run_for_job(job, asset_selection=frozenset(asset.key for asset in assets))
    assert planned(stock, run.run_id) == []
    if then == "an event":
        pooled.report_engine_event("next", run)
    elif then == "a read":
        assert sorted(planned(pooled, run.run_id)) == ["derived", "made"]
    else:
        pooled.dispose()
    assert sorted(planned(stock, run.run_id)) == ["derived", "made"]
    assert {record.asset_entry.last_run_id for record in stock.get_asset_records([made.key, derived.key])} == {
        run.run_id
    }
    of_planned = (
        "select count(distinct xmin::text) as writes from dagster.event_logs where dagster_event_type ~ 'PLANNED'"
    )
    assert query(of_planned) == [{"writes": 1}]


def test_what_is_planned_survives_an_outage(open_instance: Callable[..., dg.DagsterInstance], query: Query) -> None:
    pooled = open_instance()
    job = dg.Definitions([made], jobs=[dg.define_asset_job("one", [made])]).resolve_job_def("one")
    run = pooled.create_run_for_job(job, asset_selection=frozenset([made.key]))
    query("alter table dagster.asset_keys rename to away")
    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        pooled.report_engine_event("lost", run)
    query("alter table dagster.away rename to asset_keys")
    assert planned(pooled, run.run_id) == ["made"]


@pytest.mark.parametrize(
    ("options", "left", "session"),
    [
        ("", None, {}),
        ("-csearch_path=dagster", None, {"search_path": "dagster"}),
        (
            r"-c lock_timeout=1s --work_mem=4MB -cDateStyle=ISO,\ MDY",
            None,
            {"lock_timeout": "1s", "work_mem": "4MB", "DateStyle": "ISO, MDY"},
        ),
        ("-e -cstats_pipeline.x=a=b", "-e", {"stats_pipeline.x": "a=b"}),
    ],
)
def test_what_a_url_sets_for_a_session_is_taken_out_of_it(
    options: str, left: str | None, session: dict[str, str]
) -> None:
    url = sqlalchemy.make_url("postgresql+psycopg2://me:p%40ss@/app?host=%2Ftmp")
    given = url.update_query_dict({"options": options}) if options else url
    without, found = _without_session(given.render_as_string(hide_password=False))
    assert sqlalchemy.make_url(without).query.get("options") == left
    assert sqlalchemy.make_url(without).password == "p@ss"
    assert found == session
