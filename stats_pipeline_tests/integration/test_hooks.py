"""Each profile's hooks for each way in which an op can end: recorded for good, or left for the job's next run.

The whole job of the product, in this process, on a real database; Dagster's instance is real, and made to fail.
"""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_run_iterator
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline import settings
from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import Database
from stats_pipeline.definitions import build_defs
from stats_pipeline.defs.jobs import JOB_NAME
from stats_pipeline.defs.resources import LEASE_TAG
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Job
from stats_pipeline.jobs.reconcile import apply
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps

pytestmark = pytest.mark.slow

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]

RPC = "update_power_ratings"  # called last in one process: the run is claimed by then


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(params=["fast", "stock"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def finished(
    connection: Connected,
    database_url: str,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
) -> Callable[..., Job]:
    """A job whose run has ended, as its row is then."""
    monkeypatch.setenv("STATS_DATABASE_URL", database_url)
    monkeypatch.setenv("STATS_RUNTIME", runtime)
    definitions = build_defs(settings.load())

    def execute(*, enqueues: bool = True, **options: Any) -> Job:
        if enqueues:
            steps.enqueue(connection)
        leases = steps.lease(connection)
        tags = {LEASE_TAG: str(leases[0].lease_id)} if leases else None
        definitions.resolve_job_def(JOB_NAME).execute_in_process(
            instance=instance, tags=tags, raise_on_error=False, **options
        )
        [job] = queue.list_jobs(connection, limit=10)
        return job

    return execute


def function(job: Job) -> dict[str, Any]:
    assert job.results is not None
    return dict(job.results["functions"][RPC])


def test_when_all_is_well_the_job_completes(finished: Callable[..., Job]) -> None:
    job = finished()
    assert (job.status, job.error_message) == ("completed", None)
    assert job.results is not None
    assert job.results["successful_functions"] == len(STATS_FUNCTIONS)


@pytest.mark.parametrize("error", [OSError("storage is gone"), dg.DagsterInvariantViolationError("storage is odd")])
def test_what_dagster_itself_could_not_do_is_left_to_the_next_run(
    finished: Callable[..., Job], instance: dg.DagsterInstance, error: Exception
) -> None:
    """The op may not even have started: it is no failure of its function's."""
    store = instance.handle_new_event

    def refuse(event: dg.EventLogEntry, **kwargs: Any) -> None:
        if event.step_key == RPC and event.dagster_event is not None and event.dagster_event.is_step_start:
            raise error
        store(event, **kwargs)

    instance.handle_new_event = refuse  # type: ignore[method-assign]
    job = finished()
    assert job.status == "processing"
    assert job.results is not None
    assert (job.results["successful_functions"], job.results["failed_functions"]) == (len(STATS_FUNCTIONS) - 1, 0)
    assert function(job)["status"] == "retrying"
    assert str(error) in function(job)["error"]


def test_a_database_that_hung_up_each_time_is_left_to_the_next_run(finished: Callable[..., Job], query: Query) -> None:
    replace(query, "perform pg_terminate_backend(pg_backend_pid())")
    job = finished()
    assert job.status == "processing"
    assert function(job)["status"] == "retrying"


def test_what_a_function_cannot_do_is_tried_once_and_fails_the_job(finished: Callable[..., Job], query: Query) -> None:
    query(f"drop function public.{RPC}(uuid)")
    job = finished()
    assert (job.status, job.error_message) == ("failed", f"Failed functions: {RPC} ({function(job)['error']})")
    assert (function(job)["status"], function(job)["attempts"]) == ("failed", 1)
    assert "does not exist" in function(job)["error"]


def test_what_may_be_gone_the_next_time_is_tried_three_times(finished: Callable[..., Job], query: Query) -> None:
    replace(query, "raise exception 'not now'")
    job = finished()
    assert (job.status, job.error_message) == ("failed", f"Failed functions: {RPC} (not now (SQLSTATE P0001))")
    assert (function(job)["status"], function(job)["attempts"]) == ("failed", 3)
    assert "not now" in function(job)["error"]


def test_what_a_dead_run_has_computed_is_not_computed_again(
    finished: Callable[..., Job], connection: Connected, opened: Database, query: Query
) -> None:
    steps.enqueue(connection)
    [last] = [function for function in STATS_FUNCTIONS if function.rpc == RPC]
    steps.compute(opened, steps.start(connection, "run-1", STATS_FUNCTIONS), last)
    death = steps.expiry(opened)
    apply(connection, death, Settings.model_validate({}), lambda _: None)
    query("update pgmq.q_stats_update set vt = now()")
    query("create table public.called ()")
    replace(query, "insert into public.called default values")
    job = finished(enqueues=False)
    assert (job.status, job.attempts) == ("completed", 2)
    assert query("select count(*) as times from public.called") == [{"times": 0}]


def test_a_table_refreshed_alone_is_a_job_of_one_function(finished: Callable[..., Job]) -> None:
    job = finished(enqueues=False, asset_selection=[dg.AssetKey("aggregated_performance_ratings")])
    assert (job.status, job.job_payload["userId"]) == ("completed", "dagster")
    assert job.results is not None
    assert list(job.results["functions"]) == [RPC]
    assert job.results["total_functions"] == 1


def test_a_re_execution_of_what_failed_repairs_the_job(
    finished: Callable[..., Job], connection: Connected, instance: dg.DagsterInstance, query: Query, runtime: str
) -> None:
    query(f"alter function public.{RPC}(uuid) rename to mislaid")
    failed = finished()
    assert failed.status == "failed"
    query(f"alter function public.mislaid(uuid) rename to {RPC}")
    whole = build_defs(settings.load()).resolve_job_def(JOB_NAME)
    in_this_process: dict[str, Any] = {"execution": {"config": {"in_process": {}}}} if runtime == "stock" else {}
    run = instance.create_run_for_job(
        whole,
        create_execution_plan(whole, step_keys_to_execute=[RPC]),
        parent_run_id=failed.run_id,
        root_run_id=failed.run_id,
        run_config=in_this_process,
    )
    list(execute_run_iterator(InMemoryJob(whole), run, instance))
    [job] = queue.list_jobs(connection, limit=10)
    assert (job.id, job.status, job.run_id) == (failed.id, "completed", run.run_id)
    assert job.results is not None
    assert job.results["successful_functions"] == job.results["total_functions"] == 10


def replace(query: Query, body: str) -> None:
    query(f"drop function public.{RPC}(uuid)")
    query(f"create function public.{RPC}() returns void language plpgsql as $$ begin {body}; end $$")
