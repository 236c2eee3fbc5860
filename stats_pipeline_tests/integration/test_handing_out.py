"""Which jobs are leased: one lease per club, the longest wait first, and an unclaimed lease is handed out again."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.database import Database
from stats_pipeline.errors import LeaseLost
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT, TWO

Count = Callable[[str], int]
Connected = Connection[DictRow]

QUEUE = "pgmq.q_stats_update"
ARCHIVE = "pgmq.a_stats_update"
OUTBOX = "stats_pipeline.outbox"


def expire(connection: Connected) -> None:
    """What the passing of the lease's time does."""
    connection.execute("update stats_pipeline.lease set claim_until = now() where run_id is null")
    connection.execute("update pgmq.q_stats_update set vt = now()")


def replace_function(connection: Connected, then: str) -> None:
    """Put a function in the place of the first one's that writes a row, and then does what is said."""
    connection.execute(f"drop function public.{TWO[0].rpc}".encode())
    connection.execute("create table public.written (what text)")
    connection.execute(
        f"create function public.{TWO[0].rpc}() returns void language plpgsql as "
        f"$$ begin insert into public.written values ('half'); {then}; end $$".encode()
    )


def test_one_open_run_per_tenant(connection: Connected, opened: Database) -> None:
    ours = [steps.enqueue(connection, TENANT) for _ in range(2)]
    theirs = steps.enqueue(connection, OTHER_TENANT)
    first, second = steps.lease(connection)
    assert (first.tenant_id, first.jobs) == (TENANT, 2)
    assert (second.tenant_id, second.jobs) == (OTHER_TENANT, 1)
    claimed = steps.claim(connection, first, "ours")
    assert claimed is not None
    assert set(claimed.job_ids) == set(ours)

    late = steps.enqueue(connection, TENANT)
    assert steps.lease(connection) == []
    assert steps.job(connection, theirs).status == "queued"

    steps.compute(opened, claimed)
    steps.settle(connection, "ours")
    [third] = steps.lease(connection)
    claimed = steps.claim(connection, third, "ours-again")
    assert claimed is not None
    assert claimed.job_ids == (late,)


def test_a_job_enqueued_after_the_claim_is_not_satisfied_by_that_run(connection: Connected, opened: Database) -> None:
    early = steps.enqueue(connection)
    claimed = steps.start(connection)
    late = steps.enqueue(connection)
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, early).status == "completed"
    assert steps.job(connection, late).status == "queued"


def test_no_more_runs_than_allowed_and_the_longest_wait_goes_first(connection: Connected, opened: Database) -> None:
    tenants = [UUID(int=number) for number in (13, 11, 12)]
    for tenant in tenants:
        steps.enqueue(connection, tenant)
    steps.enqueue(connection, tenants[0])
    leases = steps.lease(connection, max_runs=2)
    assert [leased.tenant_id for leased in leases] == tenants[:2]
    assert steps.lease(connection, max_runs=2) == []

    claimed = steps.claim(connection, leases[0])
    assert claimed is not None
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert [leased.tenant_id for leased in steps.lease(connection, max_runs=2)] == tenants[2:]


def test_sensors_that_lease_at_once_share_nothing(
    connection: Connected, opened: Database, at_once: Callable[..., list[Any]]
) -> None:
    for number in range(8):
        steps.enqueue(connection, UUID(int=number))

    def sensor(_: int) -> object:
        with opened.connection() as pooled:
            return steps.lease(pooled, max_runs=6)

    leases = [leased for outcome in at_once(5, sensor) for leased in outcome]
    assert len(leases) == len({leased.tenant_id for leased in leases}) == 6


def test_jobs_that_wait_together_share_a_run(connection: Connected, opened: Database, count: Count) -> None:
    ids = [steps.enqueue(connection) for _ in range(20)]
    assert set(steps.finish(connection, opened).job_ids) == set(ids)
    for job_id in ids:
        job = steps.job(connection, job_id)
        assert job.status == "completed"
        assert job.results is not None
        others = [str(other) for other in ids if other != job_id]
        assert job.results["coalesced_with"] == {"count": 19, "first": others}
    assert count("stats_pipeline.lease") == 1
    assert (count(QUEUE), count(ARCHIVE)) == (0, 20)


def test_an_expired_lease_is_handed_out_again(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    [stale] = steps.lease(connection)
    assert steps.lease(connection) == []
    expire(connection)
    assert steps.lease(connection) == []
    connection.execute("update pgmq.q_stats_update set vt = now()")  # a second later
    [fresh] = steps.lease(connection)
    assert fresh.lease_id != stale.lease_id

    with pytest.raises(LeaseLost, match="has ended"):
        steps.claim(connection, stale, "late")
    assert steps.job(connection, job_id).status == "queued"

    claimed = steps.claim(connection, fresh, "in-time")
    assert claimed is not None
    assert steps.job(connection, job_id).attempts == 1
    with pytest.raises(LeaseLost):
        steps.claim(connection, stale, "late")


def test_a_lease_cannot_be_claimed_by_two_runs(connection: Connected) -> None:
    steps.enqueue(connection)
    [leased] = steps.lease(connection)
    steps.claim(connection, leased, "first")
    with pytest.raises(LeaseLost):
        steps.claim(connection, leased, "second")


def test_a_replaced_run_changes_nothing_more(connection: Connected, opened: Database, count: Count) -> None:
    """Its function's work is undone too: the run that took over computes it again."""
    steps.enqueue(connection)
    claimed = steps.start(connection)
    replace_function(connection, "null")
    connection.execute("update stats_pipeline.lease set ended_at = now(), outcome = 'expired'")
    with pytest.raises(LeaseLost, match="was taken from"):
        steps.compute(opened, claimed, TWO[0])
    with pytest.raises(LeaseLost, match="was taken from"):
        steps.claim(connection, None, "run-1")
    assert [count(table) for table in ("public.written", OUTBOX, "stats_pipeline.function_result")] == [0, 0, 0]
