"""Runs started from Dagster's UI: of some tables only, re-executed, and while another run of the club is open.

The claim of such a run alone is in `test_life_cycle.py`.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import Database
from stats_pipeline.definitions import build_defs
from stats_pipeline.defs import resources
from stats_pipeline.defs.jobs import JOB_NAME
from stats_pipeline.defs.resources import LEASE_TAG, TENANT_TAG, refresh_resource
from stats_pipeline.errors import TenantBusy
from stats_pipeline.jobs import reconcile
from stats_pipeline.jobs.models import Claim
from stats_pipeline.jobs.refresh import Refresh
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import TENANT, TWO

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]

RPCS = [function.rpc for function in TWO]


@pytest.fixture
def refresh(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The resource as a run's process has it."""
    monkeypatch.setenv("STATS_DATABASE_URL", database_url)

    @contextmanager
    def opened(run: dg.DagsterRun | None = None) -> Iterator[Refresh]:
        context: Any = SimpleNamespace(run=run or dagster_run(), instance=None)
        with contextmanager(refresh_resource.resource_fn)(context) as resource:
            yield resource

    return opened


def dagster_run(**fields: Any) -> dg.DagsterRun:
    return dg.DagsterRun(job_name=JOB_NAME, run_id=str(uuid4()), **fields)


# Of some tables only


def test_a_function_that_the_run_does_not_call_cannot_fail_it(connection: Connected, opened: Database) -> None:
    """It would come after one that failed, but was not selected."""
    first, second = TWO
    later = dataclasses.replace(second, after=(first.rpc,))
    claimed = steps.claim(connection, None, functions=TWO[:1])
    assert claimed is not None
    settings = Settings.model_validate({}).model_copy(update={"functions": (first, later)})
    Refresh(opened, settings, run_id="run-1", lease_id=claimed.lease_id).fail(first.rpc, "no such table")
    steps.settle(connection)
    job = steps.job(connection, claimed.job_ids[0])
    assert (job.status, job.error_message) == ("failed", f"Failed functions: {first.rpc} (no such table)")
    assert job.results is not None
    assert list(job.results["functions"]) == [first.rpc]


def test_a_late_failure_of_another_function_ends_no_run(connection: Connected, opened: Database) -> None:
    claimed = steps.claim(connection, None, functions=TWO)
    assert claimed is not None
    steps.fail_function(opened, STATS_FUNCTIONS[0].rpc, "not one of this run's")
    steps.compute(opened, claimed, TWO[0])
    steps.settle(connection)
    assert steps.job(connection, claimed.job_ids[0]).status == "processing"
    steps.compute(opened, claimed, TWO[1])
    steps.settle(connection)
    assert steps.job(connection, claimed.job_ids[0]).status == "completed"


# Executed again


def test_a_re_execution_has_its_parents_tags_and_a_job_of_its_own(
    connection: Connected, opened: Database, refresh: Callable[..., Any]
) -> None:
    steps.enqueue(connection, TENANT)
    [leased] = steps.lease(connection)
    parent = dagster_run(tags={LEASE_TAG: str(leased.lease_id), TENANT_TAG: str(TENANT)})
    with refresh(parent) as resource:
        first = resource.claim(RPCS)
    steps.compute(opened, first)
    steps.settle(connection, parent.run_id)
    again = dagster_run(tags=parent.tags, parent_run_id=parent.run_id, root_run_id=parent.run_id)
    with refresh(again) as resource:
        second = resource.claim(RPCS)
    assert second.job_ids != first.job_ids
    job = steps.job(connection, second.job_ids[0])
    assert (job.status, job.run_id, job.tenant_id) == ("processing", again.run_id, TENANT)


def test_a_re_execution_of_a_failed_run_repairs_its_job(
    connection: Connected, opened: Database, refresh: Callable[..., Any], query: Query
) -> None:
    """From the failure, so only the op that failed is called; or of all ops."""
    for selected in (RPCS[1:], RPCS):
        job_id = steps.enqueue(connection)
        parent = dagster_run()
        [leased] = steps.lease(connection)
        claimed = steps.claim(connection, leased, parent.run_id)
        assert claimed is not None
        steps.compute(opened, claimed, TWO[0])
        steps.fail_function(opened, RPCS[1], "division by zero", claimed.lease_id)
        steps.settle(connection, claimed.lease_id)
        job = steps.job(connection, job_id)
        assert job.status == "failed"
        started_at = job.started_at
        assert started_at is not None

        again = dagster_run(parent_run_id=parent.run_id, root_run_id=parent.run_id)
        with refresh(again) as resource:
            claimed = resource.claim(selected)
            assert claimed.job_ids == (job_id,)
            job = steps.job(connection, job_id)
            assert (job.status, job.error_message, job.attempts) == ("processing", None, 2)
            assert job.completed_at is None
            assert job.started_at is not None
            assert job.started_at > started_at
            assert claimed.carried_over == set(RPCS) - set(selected)
            for function in TWO:
                if function.rpc in selected:
                    resource.compute(function, claimed, tries=1)
            resource.settle()
        job = steps.job(connection, job_id)
        assert (job.status, job.run_id, job.error_message) == ("completed", again.run_id, None)
        assert job.results is not None
        assert job.results["successful_functions"] == 2
    assert len(query("select id from public.background_job_status")) == 2


def test_what_is_not_executed_again_has_still_failed(
    connection: Connected, opened: Database, refresh: Callable[..., Any]
) -> None:
    job_id = steps.enqueue(connection)
    steps.start(connection, "parent")
    for rpc in RPCS:
        steps.fail_function(opened, rpc, f"{rpc} cannot", "parent")
    steps.settle(connection, "parent")
    with refresh(dagster_run(parent_run_id="parent", root_run_id="parent")) as resource:
        claimed = resource.claim(RPCS[:1])
        resource.compute(TWO[0], claimed, tries=1)
        resource.settle()
    job = steps.job(connection, job_id)
    assert (job.status, job.error_message) == ("failed", f"Failed functions: {RPCS[1]} ({RPCS[1]} cannot)")


def test_a_failed_job_that_somebody_has_changed_is_left_to_him(
    connection: Connected, opened: Database, refresh: Callable[..., Any], query: Query
) -> None:
    job_id = steps.enqueue(connection)
    steps.fail(connection, opened, "parent")
    query("update public.background_job_status set error_message = 'known; see the ticket'")
    again = dagster_run(parent_run_id="parent", root_run_id="parent")
    with refresh(again) as resource:
        claimed = resource.claim(RPCS)
        assert claimed.job_ids != (job_id,)
    assert steps.job(connection, job_id).error_message == "known; see the ticket"


# A process per op


@pytest.mark.parametrize(
    ("runtime", "selected", "is_paused"),
    [
        ("fast", {"threads": {}}, False),
        ("fast", {}, False),
        ("stock", {}, True),
        ("stock", {"multiprocess": {}}, True),
        ("stock", {"in_process": {}}, False),
    ],
)
def test_only_a_process_that_another_one_follows_asks_for_patience(
    connection: Connected,
    opened: Database,
    refresh: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    selected: dict[str, Any],
    is_paused: bool,
) -> None:
    """Until the next process has imported everything, nobody beats."""
    monkeypatch.setenv("STATS_RUNTIME", runtime)
    run = dagster_run(run_config={"execution": {"config": selected}})
    with refresh(run) as resource:
        resource.claim(RPCS)
    [row] = reconcile.read(opened).leases
    assert row.silent_seconds is not None
    assert (row.silent_seconds < -20) == is_paused


# While another run is open


def test_a_run_by_hand_is_woken_by_the_end_of_the_one_before(
    connection: Connected, opened: Database, refresh: Callable[..., Any], query: Query
) -> None:
    steps.enqueue(connection)
    before = steps.start(connection)
    claims: list[Claim] = []
    with refresh() as resource:
        claiming = threading.Thread(target=lambda: claims.append(resource.claim(RPCS)))
        claiming.start()
        until_listening(query)
        assert claims == []
        steps.compute(opened, before)
        steps.settle(connection)
        claiming.join(20)
    [claimed] = claims
    assert steps.job(connection, claimed.job_ids[0]).status == "processing"


def test_all_ops_of_a_run_by_hand_give_up_at_the_same_moment(
    connection: Connected, refresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, at_once: Callable[..., Any]
) -> None:
    """And not each of them only then begins to wait."""
    monkeypatch.setattr(resources, "BUSY_TIMEOUT", 2)
    steps.enqueue(connection)
    steps.start(connection)
    with refresh() as resource:
        began = time.monotonic()
        outcomes = at_once(10, lambda _: resource.claim(RPCS))
        assert 2 <= time.monotonic() - began < 6
    assert {type(outcome) for outcome in outcomes} == {TenantBusy}


def test_an_op_that_waited_in_vain_is_not_tried_again(
    connection: Connected, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATS_DATABASE_URL", database_url)
    monkeypatch.setattr(resources, "BUSY_TIMEOUT", 0)
    steps.enqueue(connection)
    steps.start(connection)
    job = build_defs().resolve_job_def(JOB_NAME)
    result = job.execute_in_process(op_selection=[TWO[0].rpc], raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "another run of this club was open for too long" in str(failure.step_failure_data.error)
    assert not any(event.is_step_up_for_retry for event in result.all_events)


def until_listening(query: Query) -> None:
    polling = threading.Event()
    while not query(
        "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and state = 'idle' and query ~ 'claim_lease'"
    ):
        polling.wait(0.02)
