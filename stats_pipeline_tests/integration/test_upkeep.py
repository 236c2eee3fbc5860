"""The upkeep sensor's reads from and writes to Dagster, with real Dagster instances.

The mismatches and their repairs are in `test_reconcile.py`.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import pytest
import structlog
from dagster._core.events import EngineEventData
from dagster._utils.error import serializable_error_info_from_exc_info
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.database import Database
from stats_pipeline.defs.jobs import JOB_NAME
from stats_pipeline.defs.resources import LEASE_TAG
from stats_pipeline.defs.runs import dagster_states, fail_in_dagster, failure_of_start, repair_all
from stats_pipeline.jobs import queue, reconcile
from stats_pipeline.log import Outage
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]

STATUS = dg.DagsterRunStatus
SETTINGS = Settings.model_validate({})


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def add_run(instance: dg.DagsterInstance, status: STATUS, **fields: Any) -> str:
    run = dg.DagsterRun(job_name=JOB_NAME, run_id=str(uuid4()), status=status, **fields)
    return instance.add_run(run).run_id


def status_of(instance: dg.DagsterInstance, run_id: str) -> STATUS:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.mark.parametrize("status", [STATUS.SUCCESS, STATUS.CANCELED])
def test_a_run_that_ended_meanwhile_keeps_its_end(instance: dg.DagsterInstance, status: STATUS) -> None:
    """It was alive when the decision was taken."""
    run_id = add_run(instance, status)
    fail_in_dagster(instance, run_id)
    assert status_of(instance, run_id) is status


@pytest.mark.parametrize("status", [STATUS.STARTING, STATUS.STARTED, STATUS.CANCELING])
def test_a_run_that_will_never_end_is_failed(instance: dg.DagsterInstance, status: STATUS) -> None:
    run_id = add_run(instance, status)
    fail_in_dagster(instance, run_id)
    assert status_of(instance, run_id) is STATUS.FAILURE


def test_a_run_that_dagster_has_deleted_is_nobodys_to_fail(instance: dg.DagsterInstance) -> None:
    fail_in_dagster(instance, str(uuid4()))


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (STATUS.STARTING, "live"),
        (STATUS.STARTED, "live"),
        (STATUS.CANCELING, "live"),
        (STATUS.SUCCESS, "finished"),
        (STATUS.FAILURE, "finished"),
        (STATUS.CANCELED, "canceled"),
    ],
)
@pytest.mark.parametrize("is_claimed", [True, False])
def test_what_dagster_says_of_a_run(
    connection: Connected,
    opened: Database,
    instance: dg.DagsterInstance,
    status: STATUS,
    state: str,
    is_claimed: bool,
) -> None:
    steps.enqueue(connection)
    [leased] = steps.lease(connection)
    run_id = add_run(instance, status, tags={LEASE_TAG: str(leased.lease_id)})
    if is_claimed:
        steps.claim(connection, leased, run_id)
    states = dagster_states(instance, reconcile.read(opened))
    assert states == {run_id if is_claimed else str(leased.lease_id): state}


def test_a_re_execution_says_nothing_of_its_parents_lease(
    connection: Connected, opened: Database, instance: dg.DagsterInstance
) -> None:
    steps.enqueue(connection)
    [leased] = steps.lease(connection)
    tags = {LEASE_TAG: str(leased.lease_id)}
    add_run(instance, STATUS.CANCELED, tags=tags, parent_run_id="deleted", root_run_id="deleted")
    assert dagster_states(instance, reconcile.read(opened)) == {}
    add_run(instance, STATUS.STARTING, tags=tags)
    assert dagster_states(instance, reconcile.read(opened)) == {str(leased.lease_id): "live"}


def test_a_run_that_fell_silent_is_given_up_here_and_failed_there(
    connection: Connected, opened: Database, instance: dg.DagsterInstance, query: Query
) -> None:
    job_id = steps.enqueue(connection)
    run_id = add_run(instance, STATUS.STARTED)
    steps.start(connection, run_id)
    query("update stats_pipeline.lease set renewed_at = renewed_at - interval '7 seconds'")
    # A server that has just started would count from its start: this one has been up for longer.
    query("select pg_sleep(greatest(0, 7 - extract(epoch from clock_timestamp() - pg_postmaster_start_time())))")
    planned, _ = repair_all(opened, SETTINGS, instance, dry_run=True)
    assert (steps.job(connection, job_id).status, status_of(instance, run_id)) == ("processing", STATUS.STARTED)
    assert repair_all(opened, SETTINGS, instance) == (planned, [])
    assert (steps.job(connection, job_id).status, status_of(instance, run_id)) == ("queued", STATUS.FAILURE)
    assert repair_all(opened, SETTINGS, instance) == ([], [])


def launch_in_vain(instance: dg.DagsterInstance, lease_id: UUID) -> None:
    """What Dagster leaves behind when the launcher raises."""
    run_id = add_run(instance, STATUS.STARTING, tags={LEASE_TAG: str(lease_id)})
    run = instance.get_run_by_id(run_id)
    assert run is not None
    try:
        raise OSError("no space\nleft on device")
    except OSError:
        error = serializable_error_info_from_exc_info(sys.exc_info())
    instance.report_engine_event("Caught an error", run, EngineEventData.engine_error(error))
    instance.report_run_failed(run)


def test_why_no_run_starts_stands_on_the_waiting_job_until_one_does(
    connection: Connected, opened: Database, instance: dg.DagsterInstance
) -> None:
    job_id = steps.enqueue(connection)
    [leased] = steps.lease(connection)
    launch_in_vain(instance, leased.lease_id)
    repairs, problems = repair_all(opened, SETTINGS, instance)
    assert (len(repairs), problems) == (1, [])

    waiting = steps.job(connection, job_id)
    assert waiting.status == "queued"
    assert waiting.error_message == "No run has started yet: OSError: no space left on device"
    [aside] = queue.list_set_aside(connection)
    assert (aside.what, aside.reason) == ("start", "No run has started: OSError: no space left on device")

    connection.execute("update stats_pipeline.set_aside set next_try_at = now()")
    connection.execute("update pgmq.q_stats_update set vt = now()")
    steps.start(connection, "run-2")
    assert steps.job(connection, job_id).error_message is None
    assert queue.list_set_aside(connection) == []


def test_that_runs_do_not_start_is_logged_once_and_once_that_they_do(
    connection: Connected, opened: Database, instance: dg.DagsterInstance
) -> None:
    starting = Outage("runs do not start", "runs start again")
    steps.enqueue(connection)
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            [leased] = steps.lease(connection)
            launch_in_vain(instance, leased.lease_id)
            for _ in range(3):
                repair_all(opened, SETTINGS, instance, starting=starting)
            connection.execute("update stats_pipeline.set_aside set next_try_at = now()")
            connection.execute("update pgmq.q_stats_update set vt = now()")
        steps.start(connection, add_run(instance, STATUS.STARTED))
        for _ in range(3):
            repair_all(opened, SETTINGS, instance, starting=starting)
    assert [line["event"] for line in logged] == ["runs do not start", "runs start again"]
    assert logged[0]["reason"] == "OSError: no space left on device"


def test_a_lease_that_no_run_was_launched_for_has_no_cause(connection: Connected, instance: dg.DagsterInstance) -> None:
    steps.enqueue(connection)
    [leased] = steps.lease(connection)
    assert failure_of_start(instance, leased.lease_id) is None
    add_run(instance, STATUS.CANCELED, tags={LEASE_TAG: str(leased.lease_id)})
    assert failure_of_start(instance, leased.lease_id) is None
