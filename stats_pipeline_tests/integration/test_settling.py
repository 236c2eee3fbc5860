"""Settling again: late, repeated, and after a row of the run was changed or deleted in the meantime.

A run's ordinary end is in `test_life_cycle.py`, waiting for the app in `test_outbox.py`.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.database import Database
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT, TWO

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]


def state(connection: Connected, job_id: UUID) -> dict[str, Any]:
    return steps.job(connection, job_id).model_dump(exclude={"updated_at"})


def test_a_failed_job_ends_once(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    steps.fail(connection, opened)
    before = state(connection, job_id)
    steps.settle(connection)
    assert state(connection, job_id) == before


def test_what_was_not_computed_is_not_made_good_by_the_app(
    connection: Connected, opened: Database, query: Query
) -> None:
    """One function failed, and the app took the other one's tags only after the deadline."""
    job_id = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection), TWO[0])
    steps.fail_function(opened, TWO[1].rpc, "no such table")
    steps.settle(connection, app=True)
    assert steps.job(connection, job_id).status == "processing"
    steps.settle(connection, app=True, deadline=0)
    late = steps.job(connection, job_id)
    assert late.status == "failed"
    for named in (TWO[1].rpc, TWO[0].cache_tags[0]):
        assert named in (late.error_message or "")
    query("update stats_pipeline.outbox set delivered_at = now()")
    steps.settle(connection, app=True)
    assert steps.job(connection, job_id).status == "failed"


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("no such\n table", "{} (no such table), {}"),
        ("", "{}, {}"),
        ("long " * 99, "{} (" + "long " * 99),
    ],
    ids=["one line", "no reason", "a long one"],
)
def test_functions_that_failed_are_named_in_their_order_with_the_first_reason(
    connection: Connected, opened: Database, reason: str, shown: str
) -> None:
    job_id = steps.enqueue(connection)
    steps.start(connection)
    names = [function.rpc for function in reversed(TWO)]
    for rpc, error in zip(names, (reason, "another reason"), strict=True):
        steps.fail_function(opened, rpc, error)
    steps.settle(connection)
    expected = f"Failed functions: {shown.format(*names)}"
    message = steps.job(connection, job_id).error_message
    assert message == (expected if len(expected) <= 300 else f"{expected[:299]}…")


@pytest.mark.parametrize("status", ["failed", "completed"])
def test_a_job_that_somebody_has_ended_stays_as_they_left_it(
    connection: Connected, opened: Database, query: Query, status: str
) -> None:
    ended, other = steps.enqueue(connection), steps.enqueue(connection)
    claimed = steps.start(connection)
    query(
        "update public.background_job_status set status = %s, completed_at = '2025-06-27', error_message = 'by hand' "
        "where id = %s",
        status,
        ended,
    )
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, other).status == "completed"
    row = steps.job(connection, ended)
    assert (row.status, row.error_message) == (status, "by hand")
    assert str(row.completed_at).startswith("2025-06-27")


def test_a_job_that_somebody_has_deleted_keeps_no_other_from_its_end(
    connection: Connected, opened: Database, query: Query
) -> None:
    deleted, other = steps.enqueue(connection), steps.enqueue(connection)
    claimed = steps.start(connection)
    query("delete from public.background_job_status where id = %s", deleted)
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, other).status == "completed"
    steps.reconcile(opened)
    assert query("select * from pgmq.q_stats_update") == []


def test_a_run_ends_nobody_elses_jobs(connection: Connected, opened: Database, query: Query) -> None:
    ours, theirs = steps.enqueue(connection, TENANT), steps.enqueue(connection, OTHER_TENANT)
    for leased in steps.lease(connection):
        steps.claim(connection, leased, f"run of {leased.tenant_id}")
    claimed = steps.claim(connection, None, f"run of {TENANT}")
    assert claimed is not None
    steps.compute(opened, claimed)
    steps.settle(connection, claimed.lease_id)
    assert steps.job(connection, ours).status == "completed"
    assert steps.job(connection, theirs).status == "processing"
    assert query("select message from pgmq.q_stats_update") == [{"message": {"jobId": str(theirs)}}]
    assert query("select job_id from stats_pipeline.attempt where ended_at is null") == [{"job_id": theirs}]
