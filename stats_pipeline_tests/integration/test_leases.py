"""What a lease holds and for how long, and what happens when its jobs or those of its run change in the meantime."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]


def visible_at(query: Query, job_id: UUID) -> datetime:
    [row] = query("select vt from pgmq.q_stats_update where message ->> 'jobId' = %s", str(job_id))
    return datetime.fromisoformat(str(row["vt"]))


def test_a_claimed_run_may_go_on_for_longer_than_its_lease(
    connection: Connected, opened: Database, query: Query
) -> None:
    job_id = steps.enqueue(connection)
    claimed = steps.start(connection)
    query("update stats_pipeline.lease set claim_until = now() - interval '1 minute'")
    steps.enqueue(connection)
    assert steps.lease(connection) == []
    assert steps.renew(opened)
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, job_id).status == "completed"


def test_a_lease_lasts_as_long_as_was_said_whoever_is_leased_after_it(connection: Connected, query: Query) -> None:
    ours = steps.enqueue(connection, TENANT)
    steps.lease(connection)
    before = visible_at(query, ours)
    steps.enqueue(connection, OTHER_TENANT)
    assert len(steps.lease(connection)) == 1
    assert visible_at(query, ours) == before


def test_a_job_that_is_being_processed_is_not_leased(connection: Connected, query: Query) -> None:
    """Its message may be seen, when nobody has beaten for a while, or somebody has sent it again."""
    steps.enqueue(connection)
    query("update public.background_job_status set status = 'processing', run_id = 'somebody'")
    query("update pgmq.q_stats_update set vt = now()")
    assert steps.lease(connection) == []


def test_a_payload_that_is_spoilt_while_its_job_is_processed_changes_nothing(
    connection: Connected, opened: Database, query: Query
) -> None:
    job_id = steps.enqueue(connection)
    claimed = steps.start(connection)
    query("update public.background_job_status set job_payload = '{}'")
    query("update pgmq.q_stats_update set vt = now()")
    assert steps.lease(connection) == []
    assert steps.job(connection, job_id).status == "processing"
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, job_id).status == "completed"


def test_a_leased_job_that_somebody_has_ended_stays_as_it_is(
    connection: Connected, opened: Database, query: Query
) -> None:
    ended, other = steps.enqueue(connection), steps.enqueue(connection)
    [leased] = steps.lease(connection)
    query("update public.background_job_status set status = 'completed' where id = %s", ended)
    claimed = steps.claim(connection, leased)
    assert claimed is not None
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, other).status == "completed"
    row = steps.job(connection, ended)
    assert (row.status, row.run_id, row.attempts, row.results) == ("completed", None, 0, None)


def test_a_job_that_somebody_has_ended_leaves_the_queue(connection: Connected, opened: Database, query: Query) -> None:
    for status in ("completed", "failed"):
        steps.enqueue(connection)
        query("update public.background_job_status set status = %s where status = 'queued'", status)
    assert steps.lease(connection) == []
    steps.reconcile(opened)
    assert query("select * from pgmq.q_stats_update") == []


def test_a_lease_that_was_claimed_after_all_is_not_taken_back(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    [leased] = steps.lease(connection)
    claimed = steps.claim(connection, leased)
    assert claimed is not None
    steps.take_back(connection, leased.lease_id)
    steps.revoke(connection, leased.lease_id)
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, job_id).status == "completed"


def test_a_lease_that_is_cancelled_fails_none_of_its_jobs_that_are_over(connection: Connected, query: Query) -> None:
    ended, other = steps.enqueue(connection), steps.enqueue(connection)
    [leased] = steps.lease(connection)
    query("update public.background_job_status set status = 'completed' where id = %s", ended)
    steps.revoke(connection, leased.lease_id)
    assert steps.job(connection, ended).status == "completed"
    assert steps.job(connection, other).status == "failed"


def test_the_column_says_whose_job_it_is(connection: Connected, query: Query) -> None:
    """The payload is asked only where the column says nothing."""
    query(
        "insert into public.background_job_status (tenant_id, job_payload, status) values (%s, %s, 'queued')",
        TENANT,
        Jsonb(steps.payload(tenantId=str(OTHER_TENANT))),
    )
    assert [leased.tenant_id for leased in steps.lease(connection)] == [TENANT]


def test_a_trigger_of_the_apps_may_fill_the_payload(connection: Connected, query: Query) -> None:
    """Whatever its name: what counts is the row as it is stored."""
    query(f"""
        create function public.name_club() returns trigger language plpgsql as $$
        begin
            new.job_payload := new.job_payload || '{{"tenantId": "{TENANT}"}}';
            return new;
        end $$
    """)
    query("create trigger name_club before insert on public.background_job_status "
        "for each row execute function public.name_club()")  # fmt: skip
    query(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
        Jsonb(steps.payload()),
    )
    assert [leased.tenant_id for leased in steps.lease(connection)] == [TENANT]
