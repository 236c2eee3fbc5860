"""Whether a run resumes where a dead one stopped, if more has happened in between than that death.

The plain case, and the jobs for which it applies, are in `test_rescue.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.jobs import reconcile
from stats_pipeline.jobs.reconcile import ExpireLease
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration.steps import (
    OTHER_TENANT,
    TENANT,
    TWO,
    claim,
    compute,
    enqueue,
    expiry,
    job,
    lease,
    settle,
    start,
)

Connected = Connection[Any]
Query = Callable[..., list[dict[str, Any]]]

ONE, OTHER = TWO


@pytest.fixture
def dies(connection: Connected, query: Query) -> Callable[[str], None]:
    """The run of that name is given up, and its jobs may be leased again."""

    def die(run_id: str) -> None:
        death = expiry(connection, run_id)
        with connection.transaction():
            reconcile.apply(connection, death, Settings.model_validate({}), lambda _: None)
        query("update pgmq.q_stats_update set vt = now()")

    return die


def test_a_lease_that_nobody_claimed_in_between(
    connection: Connected, opened: Database, query: Query, dies: Callable[[str], None]
) -> None:
    enqueue(connection)
    compute(opened, start(connection, "run-1"), ONE)
    dies("run-1")
    lease(connection)
    query("update stats_pipeline.lease set claim_until = now() where run_id is null")
    assert lease(connection) == []
    query("update pgmq.q_stats_update set vt = now()")
    assert start(connection, "run-2").carried_over == {ONE.rpc}


def test_another_clubs_run_in_between(connection: Connected, opened: Database, dies: Callable[[str], None]) -> None:
    enqueue(connection, TENANT)
    compute(opened, start(connection, "run-1"), ONE)
    enqueue(connection, OTHER_TENANT)
    compute(opened, start(connection, "theirs"))
    settle(connection, "theirs")
    dies("run-1")
    assert start(connection, "run-2").carried_over == {ONE.rpc}


def test_a_second_death_in_between(connection: Connected, opened: Database, dies: Callable[[str], None]) -> None:
    job_id = enqueue(connection)
    compute(opened, start(connection, "run-1"), ONE)
    dies("run-1")
    compute(opened, start(connection, "run-2"), OTHER)
    dies("run-2")
    assert start(connection, "run-3").carried_over == {ONE.rpc, OTHER.rpc}
    settle(connection, "run-3")
    row = job(connection, job_id)
    assert (row.status, row.attempts) == ("completed", 3)


def test_a_run_of_fewer_functions_counts_only_its_own(
    connection: Connected, opened: Database, dies: Callable[[str], None]
) -> None:
    job_id = enqueue(connection)
    compute(opened, start(connection, "run-1"), ONE)
    dies("run-1")
    [leased] = lease(connection)
    claimed = claim(connection, leased, "run-2", (OTHER,))
    assert claimed is not None
    assert claimed.carried_over == frozenset()
    settle(connection, "run-2")
    assert job(connection, job_id).status == "processing"
    compute(opened, claimed, OTHER)
    settle(connection, "run-2")
    row = job(connection, job_id)
    assert row.status == "completed"
    assert row.results is not None
    assert list(row.results["functions"]) == [OTHER.rpc]


def test_a_run_in_between_that_could_not_start_and_said_why(
    connection: Connected, opened: Database, query: Query, dies: Callable[[str], None]
) -> None:
    job_id = enqueue(connection)
    compute(opened, start(connection, "run-1"), ONE)
    dies("run-1")
    [leased] = lease(connection)
    repair = ExpireLease(leased.lease_id, None, "No run has claimed it", cause="no space left")
    for _ in range(2):
        with connection.transaction():
            reconcile.apply(connection, repair, Settings.model_validate({}), lambda _: None)
    assert job(connection, job_id).error_message == "No run has started yet: no space left"
    query("update pgmq.q_stats_update set vt = now()")
    query("update stats_pipeline.set_aside set next_try_at = now()")
    assert start(connection, "run-2").carried_over == {ONE.rpc}
