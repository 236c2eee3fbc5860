"""Rows that others change: by hand, by the app, by a restore. Their values count where they have a meaning; they never
block a club, and never give one club's work to another."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline import database
from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import Database, migrate
from stats_pipeline.errors import InvalidJob
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT, TWO

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

JOBS = "public.background_job_status"
DEFAULT_TENANT = UUID("00000000-0000-0000-0000-000000000001")  # the default of the reference functions


def change(connection: Connected, job_id: UUID, assignments: str) -> None:
    """What somebody does in the SQL editor."""
    connection.execute(f"update {JOBS} set {assignments} where id = %s".encode(), (job_id,))


def do_what_waits(connection: Connected, opened: Database) -> None:
    """Repair, let the waits pass, and do a run for each club that has work."""
    steps.reconcile(opened)
    connection.execute("update pgmq.q_stats_update set vt = now()")
    for leased in steps.lease(connection):
        claimed = steps.claim(connection, leased, str(uuid4()))
        assert claimed is not None
        steps.compute(opened, claimed)
        steps.settle(connection, claimed.lease_id)
    steps.reconcile(opened)


def is_calm(connection: Connected) -> bool:
    """Nothing is open, waits, or was set aside."""
    row = connection.execute(
        "select (select count(*) from stats_pipeline.lease where ended_at is null) "
        "+ (select count(*) from pgmq.q_stats_update) + (select count(*) from stats_pipeline.set_aside) as left_over"
    ).fetchone()
    assert row is not None
    return bool(row["left_over"] == 0)


def log_clubs(connection: Connected) -> None:
    """Put functions in the place of the two that note which club they are called for."""
    connection.execute("create table public.computed (club uuid, rpc text)")
    for function in TWO:
        connection.execute(f"drop function public.{function.rpc}".encode())
        connection.execute(
            f"create function public.{function.rpc}(target_tenant_id uuid default '{DEFAULT_TENANT}') returns void "
            f"language sql as $$ insert into public.computed values (target_tenant_id, '{function.rpc}') $$".encode()
        )


@pytest.mark.parametrize("app", [False, True])
def test_set_to_queued_while_its_run_works(connection: Connected, opened: Database, app: bool) -> None:
    """The run ends its other jobs; this one is computed again."""
    touched, sibling = steps.enqueue(connection), steps.enqueue(connection)
    claimed = steps.start(connection)
    change(connection, touched, "status = 'queued'")
    steps.compute(opened, claimed)
    connection.execute("update stats_pipeline.outbox set delivered_at = now()")
    steps.settle(connection, app=app)
    assert steps.job(connection, sibling).status == "completed"
    assert steps.job(connection, touched).status == "queued"
    do_what_waits(connection, opened)
    job = steps.job(connection, touched)
    assert (job.status, job.attempts) == ("completed", 2)
    assert is_calm(connection)


@pytest.mark.parametrize("attempts", ["0", "null", "-3", "99", "2147483647"])
def test_a_failed_job_set_to_queued_gets_a_new_attempt(connection: Connected, opened: Database, attempts: str) -> None:
    job_id = steps.enqueue(connection)
    steps.fail(connection, opened)
    innocent = steps.enqueue(connection)
    change(connection, job_id, f"status = 'queued', attempts = {attempts}")
    do_what_waits(connection, opened)
    job = steps.job(connection, job_id)
    assert (job.status, job.error_message) == ("completed", None)
    assert job.attempts >= 1
    assert steps.job(connection, innocent).status == "completed"
    assert is_calm(connection)


@pytest.mark.parametrize("status", ["failed", "completed"])
def test_what_was_ended_by_hand_stays_so(connection: Connected, opened: Database, status: str) -> None:
    job_id, sibling = steps.enqueue(connection), steps.enqueue(connection)
    claimed = steps.start(connection)
    steps.compute(opened, claimed, TWO[0])
    change(connection, job_id, f"status = '{status}', error_message = 'by hand'")
    steps.compute(opened, claimed, TWO[1])
    steps.settle(connection)
    do_what_waits(connection, opened)
    assert (steps.job(connection, job_id).status, steps.job(connection, job_id).error_message) == (status, "by hand")
    assert steps.job(connection, sibling).status == "completed"
    assert is_calm(connection)


def test_failed_by_hand_while_tags_are_due_stays_failed_when_they_are_taken(
    connection: Connected, opened: Database
) -> None:
    job_id = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    steps.settle(connection, app=True)
    change(connection, job_id, "status = 'failed', error_message = 'enough'")
    connection.execute("update stats_pipeline.outbox set delivered_at = now()")
    steps.settle(connection, app=True)
    assert steps.job(connection, job_id).status == "failed"
    do_what_waits(connection, opened)
    assert is_calm(connection)


def test_a_job_that_is_over_set_to_processing_is_done_again(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    steps.finish(connection, opened)
    change(connection, job_id, "status = 'processing', attempts = 0")
    do_what_waits(connection, opened)
    do_what_waits(connection, opened)
    assert steps.job(connection, job_id).status == "completed"
    assert len(connection.execute("select from stats_pipeline.lease").fetchall()) == 2
    assert is_calm(connection)


def test_a_deleted_job_keeps_nobody(connection: Connected, opened: Database) -> None:
    gone, sibling = steps.enqueue(connection, requestId="again"), steps.enqueue(connection)
    claimed = steps.start(connection)
    connection.execute("delete from public.background_job_status where id = %s", (gone,))
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, sibling).status == "completed"
    assert steps.enqueue(connection, requestId="again") != gone
    do_what_waits(connection, opened)
    assert is_calm(connection)


def test_an_id_that_is_used_again_is_another_job(connection: Connected, opened: Database) -> None:
    """The run that works on the first one does not end the second one."""
    job_id = steps.enqueue(connection)
    claimed = steps.start(connection)
    connection.execute("delete from public.background_job_status where id = %s", (job_id,))
    connection.execute(
        "insert into public.background_job_status (id, job_payload, status, run_id) values (%s, %s, 'processing', %s)",
        (job_id, Jsonb(steps.payload()), claimed.lease_id),
    )
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, job_id).status == "processing"
    do_what_waits(connection, opened)
    do_what_waits(connection, opened)
    assert steps.job(connection, job_id).status == "completed"
    assert is_calm(connection)


# Whose job it is.


@pytest.mark.parametrize("when", ["queued", "leased", "processing"])
def test_a_job_that_is_given_to_another_club_is_computed_for_that_one(
    connection: Connected, opened: Database, query: Query, when: str
) -> None:
    log_clubs(connection)
    job_id = steps.enqueue(connection, TENANT)
    steps.enqueue(connection, TENANT)
    if when == "queued":
        change(connection, job_id, f"tenant_id = '{OTHER_TENANT}'")
    leases = {leased.tenant_id: leased for leased in steps.lease(connection)}
    if when == "leased":
        change(connection, job_id, f"tenant_id = '{OTHER_TENANT}'")
    claimed = steps.claim(connection, leases[TENANT])
    assert claimed is not None
    if when == "processing":
        change(connection, job_id, f"tenant_id = '{OTHER_TENANT}'")
    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.job(connection, job_id).status != "completed"
    if when == "queued":
        connection.execute("update stats_pipeline.lease set claim_until = now() where run_id is null")
    do_what_waits(connection, opened)
    do_what_waits(connection, opened)
    assert steps.job(connection, job_id).status == "completed"
    assert {row["club"] for row in query("select club from public.computed")} == {TENANT, OTHER_TENANT}
    assert is_calm(connection)


def test_retry_is_for_the_failed_jobs_own_club(connection: Connected, opened: Database) -> None:
    """Also where the column alone names it."""
    connection.execute(
        "insert into public.background_job_status (job_payload, status, tenant_id) values (%s, 'queued', %s)",
        (Jsonb(steps.payload()), TENANT),
    )
    failed = steps.fail(connection, opened).job_ids[0]
    retried = queue.retry(connection, failed).job_id
    [leased] = steps.lease(connection)
    assert (leased.tenant_id, steps.job(connection, retried).tenant_id) == (TENANT, TENANT)


def test_a_payload_that_is_no_object_is_not_retried(connection: Connected) -> None:
    for payload in ("[1]", "7", "null"):
        job_id = steps.enqueue(connection)
        change(connection, job_id, f"status = 'failed', job_payload = '{payload}'")
        with pytest.raises(InvalidJob, match="payload must be a JSON object"):
            queue.retry(connection, job_id)


def test_rows_from_before_the_first_migration_are_for_the_club_of_their_payload(
    create_database: Callable[..., str],
) -> None:
    url = create_database()
    with database.connect(url, autocommit=True) as connection, Database(url) as opened:
        connection.execute(
            "create table public.background_job_status (id uuid primary key default gen_random_uuid(), "
            "job_type text not null default 'stats_update', job_payload jsonb not null, status text not null, "
            "started_at timestamptz, completed_at timestamptz, error_message text, results jsonb, "
            "created_at timestamptz default now(), updated_at timestamptz default now())"
        )
        connection.execute(
            "insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
            (Jsonb(steps.payload(tenantId=str(TENANT))),),
        )
        migrate.migrate(connection)
        assert steps.lease(connection) == []
        steps.reconcile(opened)
        assert [leased.tenant_id for leased in steps.lease(connection)] == [TENANT]


def test_no_tenant_and_the_functions_default_tenant_are_one_club(connection: Connected) -> None:
    assert steps.enqueue(connection, requestId="same") == steps.enqueue(connection, DEFAULT_TENANT, requestId="same")
    steps.enqueue(connection, DEFAULT_TENANT)
    [leased] = steps.lease(connection)
    assert (leased.tenant_id, leased.jobs) == (None, 2)
    steps.claim(connection, leased)
    assert steps.claim(connection, None, "by-hand", tenant=DEFAULT_TENANT) is None


def test_a_default_tenant_of_the_apps_own_is_found(connection: Connected) -> None:
    for function in STATS_FUNCTIONS:
        connection.execute(f"drop function public.{function.rpc}".encode())
    connection.execute("drop function public.update_aggregated_player_teammate_stats")
    connection.execute(
        f"create function public.{TWO[0].rpc}(target_tenant_id uuid default '{TENANT}') returns void "
        "language sql as $$ select $$".encode()
    )
    steps.enqueue(connection)
    steps.enqueue(connection, TENANT)
    steps.enqueue(connection, DEFAULT_TENANT)
    assert [(leased.tenant_id, leased.jobs) for leased in steps.lease(connection)] == [(None, 2), (DEFAULT_TENANT, 1)]


# What an insert can do.


def test_an_insert_that_the_apps_own_index_leaves_out_does_nothing(connection: Connected, count: Count) -> None:
    connection.execute("create unique index one_per_match on public.background_job_status ((job_payload -> 'matchId'))")
    steps.enqueue(connection, matchId=7, triggeredBy="post-match")
    payload = Jsonb(steps.payload(matchId=7, requestId="later"))
    with connection.transaction():
        connection.execute("create table public.result_of_the_match (goals int)")
        connection.execute(
            "insert into public.background_job_status (job_payload, status) values (%s, 'queued') "
            "on conflict do nothing",
            (payload,),
        )
    assert (count("public.result_of_the_match"), count(JOBS), count("pgmq.q_stats_update")) == (0, 1, 1)
    steps.enqueue(connection, requestId="later")  # free, because no job has it
    assert count(JOBS) == 2


def test_a_repeated_request_is_quiet_on_conflict_do_nothing(connection: Connected, count: Count) -> None:
    first = steps.enqueue(connection, requestId="press")
    for target in ("", "(id)"):
        connection.execute(
            "insert into public.background_job_status (job_payload, status) values (%s, 'queued') "
            f"on conflict {target} do nothing".encode(),
            (Jsonb(steps.payload(requestId="press")),),
        )
    assert (count(JOBS), count("pgmq.q_stats_update")) == (1, 1)
    assert steps.enqueue(connection, requestId="press") == first


def test_many_rows_in_one_statement(connection: Connected, count: Count) -> None:
    connection.execute(
        "insert into public.background_job_status (job_payload, status) "
        "select jsonb_build_object('triggeredBy', 'admin', 'requestId', 'r' || n % 3), 'queued' "
        "from generate_series(1, 9) as n on conflict do nothing",
    )
    assert (count(JOBS), count("pgmq.q_stats_update")) == (3, 3)


# The queue.


def test_a_queue_that_was_made_anew_is_used_at_once(connection: Connected, opened: Database) -> None:
    """Its ids start again at 1, which old rows have."""
    done = steps.enqueue(connection)
    steps.finish(connection, opened)
    waiting = steps.enqueue(connection)
    connection.execute("select pgmq.drop_queue('stats_update'::text)")
    connection.execute("select pgmq.create('stats_update'::text)")
    fresh = [steps.enqueue(connection) for _ in range(3)]
    do_what_waits(connection, opened)
    assert {steps.job(connection, job_id).status for job_id in (done, waiting, *fresh)} == {"completed"}
    assert steps.job(connection, done).attempts == 1
    assert is_calm(connection)


def test_a_raw_message_with_an_old_rows_id_is_a_job(connection: Connected, opened: Database, count: Count) -> None:
    connection.execute("select pgmq.send('stats_update'::text, %s::jsonb, 0)", (Jsonb(steps.payload()),))
    steps.finish(connection, opened)
    connection.execute("select pgmq.drop_queue('stats_update'::text)")
    connection.execute("select pgmq.create('stats_update'::text)")
    for _ in range(3):
        connection.execute("select pgmq.send('stats_update'::text, %s::jsonb, 0)", (Jsonb(steps.payload()),))
    do_what_waits(connection, opened)
    assert [job.status for job in queue.list_jobs(connection, limit=9)] == ["completed"] * 4


def test_a_message_that_somebody_else_has_read_for_long_is_visible_again(
    connection: Connected, opened: Database
) -> None:
    job_id = steps.enqueue(connection)
    connection.execute("select pgmq.read('stats_update'::text, 3600, 10)")
    steps.reconcile(opened)
    do_what_waits(connection, opened)
    assert steps.job(connection, job_id).status == "completed"


def test_both_ways_of_voiding_a_lease_wait_alike(connection: Connected, opened: Database, query: Query) -> None:
    waits = []
    for way in ("expired", "void"):
        steps.enqueue(connection, TENANT)
        [leased] = steps.lease(connection)
        if way == "expired":
            query("update stats_pipeline.lease set claim_until = now() where ended_at is null")
            steps.lease(connection)
        else:
            steps.take_back(opened, leased.lease_id)
        [row] = query("select extract(epoch from vt - clock_timestamp())::float as wait from pgmq.q_stats_update")
        waits.append(row["wait"])
        query(f"delete from {JOBS}")
        query("delete from pgmq.q_stats_update")
        query("delete from stats_pipeline.set_aside")
    assert all(0.5 < wait < 2.5 for wait in waits)
