"""An app whose triggers, constraints and transactions interfere: nothing else waits for it, and our work never undoes
its transactions."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline import database
from stats_pipeline.database import Database
from stats_pipeline.errors import LeaseLost
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Payload
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

CLUBS = [UUID(int=number) for number in (11, 12, 13)]
PATIENCE = 2  # seconds that a step of ours may take, whatever is locked


@pytest.fixture
def other(database_url: str) -> Iterator[Connected]:
    """The app's own connection, in a transaction."""
    with database.connect(database_url) as connection:
        yield connection
        connection.rollback()


def trigger(connection: Connected, when: str, body: str, condition: str = "true") -> None:
    connection.execute(
        f"create function public.app() returns trigger language plpgsql as $$ begin {body} end $$".encode()
    )
    connection.execute(
        f"create trigger app {when} on public.background_job_status for each row when ({condition}) "
        "execute function public.app()".encode()
    )


def send(connection: Connected, payload: Any) -> None:
    connection.execute("select pgmq.send('stats_update'::text, %s::jsonb, 0)", (Jsonb(payload),))


def aside(query: Query) -> set[str]:
    return {row["what"] for row in query("select what from stats_pipeline.set_aside")}


def test_a_deferred_constraint_refuses_even_the_failed_row(connection: Connected, query: Query) -> None:
    query("create table public.tenants (id uuid primary key)")
    query(
        "alter table public.background_job_status add club uuid generated always as "
        "((job_payload ->> 'tenantId')::uuid) stored references public.tenants deferrable initially deferred"
    )
    send(connection, steps.payload(tenantId=str(TENANT)))
    steps.enqueue(connection)
    assert len(steps.lease(connection)) == 1
    assert aside(query) == {"message"}


def test_a_deferred_constraint_of_one_club_keeps_no_other_from_its_nightly_job(
    connection: Connected, opened: Database, query: Query
) -> None:
    query("create table public.tenants (id uuid primary key)")
    query("insert into public.tenants values (%s), (%s)", CLUBS[0], CLUBS[2])
    query(
        "alter table public.background_job_status add foreign key (tenant_id) references public.tenants (id) "
        "deferrable initially deferred"
    )
    payloads = [Payload(triggered_by="cron", request_id="nightly", tenant_id=str(club)) for club in CLUBS]
    with opened.transaction() as transaction:
        assert len(queue.enqueue_each(transaction, payloads)) == 2
        assert len(steps.lease(transaction)) == 2
    assert aside(query) == {"enqueue"}
    query("update stats_pipeline.set_aside set next_try_at = now() - interval '1 hour'")
    assert steps.reconcile(opened) == []
    assert aside(query) == {"enqueue"}  # wanted until it is done


def test_a_trigger_that_leaves_rows_out_loses_no_job_in_silence(
    connection: Connected, opened: Database, query: Query
) -> None:
    trigger(connection, "before insert", "return null;")
    with pytest.raises(psycopg.errors.RaiseException, match="left the row out"):
        steps.enqueue(connection)
    send(connection, steps.payload())
    steps.lease(connection)
    query("drop trigger app on public.background_job_status")
    query("update stats_pipeline.set_aside set next_try_at = now()")
    assert [leased.jobs for leased in steps.lease(connection)] == [1]


def test_a_trigger_that_chooses_ids_of_its_own(connection: Connected) -> None:
    trigger(connection, "before insert", "new.id := gen_random_uuid(); return new;")
    claimed = steps.claim(connection, None, "by hand")
    assert claimed is not None
    assert steps.job(connection, claimed.job_ids[0]).run_id == "by hand"


@pytest.mark.parametrize("step", ["claim", "settle", "lease", "deliver"])
def test_a_trigger_that_waits_for_somebody_holds_nobody_up_for_long(
    connection: Connected, opened: Database, other: Connected, query: Query, step: str
) -> None:
    """Thirty rows of each of three clubs want a row that another transaction holds."""
    query("create table public.clubs (id int primary key, jobs int)")
    query("insert into public.clubs values (1, 0)")
    many = 30
    payloads: list[dict[str, Any]] = [steps.payload(tenantId=str(club)) for club in CLUBS for _ in range(many)]
    for payload in payloads:
        if step == "lease":
            del payload["triggeredBy"]
        query("insert into public.background_job_status (job_payload, status) values (%s, 'queued')", Jsonb(payload))
    wanted = {"claim": "processing", "lease": "failed"}.get(step, "completed")
    claims = []
    if step != "lease":
        leases = steps.lease(connection)
        if step in ("settle", "deliver"):
            claims = [steps.claim(connection, leased, f"run {number}") for number, leased in enumerate(leases)]
    for claimed in claims:
        assert claimed is not None
        steps.compute(opened, claimed)
        if step == "deliver":
            steps.settle(connection, claimed.lease_id, app=True)
    trigger(
        connection, "before update", "update public.clubs set jobs = jobs + 1; return new;", f"new.status = '{wanted}'"
    )
    other.execute("select from public.clubs for update")
    waiting = steps.enqueue(connection, OTHER_TENANT) if step == "lease" else None

    began = time.monotonic()
    if step == "claim":
        with pytest.raises(LeaseLost):
            steps.claim(connection, leases[0])
    elif step == "settle":
        steps.settle(connection, "run 0")
    elif step == "deliver":
        due = opened.run("list_due_tags", route="r", lease_id=steps.lease_of(opened, "run 0"))
        opened.call("record_delivery", route="r", asked=[row["id"] for row in due],
            taken=[row["tag"] for row in due], problem=None, cache_deadline=900)  # fmt: skip
    else:
        leased = steps.lease(connection)
    assert time.monotonic() - began < PATIENCE
    if step == "deliver":
        delivered = steps.lease_of(opened, "run 0")
        assert not query("select from stats_pipeline.outbox where lease_id = %s and delivered_at is null", delivered)
    other.rollback()
    if waiting:
        query("update stats_pipeline.set_aside set next_try_at = now()")
        assert OTHER_TENANT in {one.tenant_id for one in [*leased, *steps.lease(connection)]}


def test_messages_of_a_club_that_somebody_holds(connection: Connected, other: Connected, query: Query) -> None:
    query("create table public.tenants (id uuid primary key)")
    query("insert into public.tenants values (%s), (%s)", TENANT, OTHER_TENANT)
    query("alter table public.background_job_status add foreign key (tenant_id) references public.tenants (id)")
    other.execute("select from public.tenants where id = %s for update", (TENANT,))
    for _ in range(60):
        send(connection, steps.payload(tenantId=str(TENANT)))
    send(connection, steps.payload(tenantId=str(OTHER_TENANT)))
    leased: list[Any] = []
    for _ in range(4):
        began = time.monotonic()
        leased += steps.lease(connection)
        assert time.monotonic() - began < PATIENCE
    assert [one.tenant_id for one in leased] == [OTHER_TENANT]


def test_what_was_written_while_a_run_settles_is_not_overwritten(
    connection: Connected, opened: Database, other: Connected, query: Query
) -> None:
    """The settle has read the row; before it writes there, somebody sets the job to queued."""
    job_id = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    query("alter function stats_pipeline.write_jobs(jsonb[]) rename to write_jobs_now")
    query(
        "create function stats_pipeline.write_jobs(changes jsonb[]) returns uuid[] language plpgsql as "
        "$$ begin perform pg_advisory_xact_lock(42); return stats_pipeline.write_jobs_now(changes); end $$"
    )
    other.execute("select pg_advisory_xact_lock(42)")
    other.execute("update public.background_job_status set status = 'queued' where id = %s", (job_id,))
    with opened.connection() as settling:
        settling.execute("select 1")
        with database.connect(opened.url, autocommit=True) as watcher:
            thread = threading.Thread(target=steps.settle, args=(settling,))
            thread.start()
            while not watcher.execute("select from pg_locks where objid = 42 and not granted").fetchall():
                pass
            other.commit()
            thread.join()
    assert steps.job(connection, job_id).status == "queued"
    assert query("select outcome from stats_pipeline.lease") == [{"outcome": "succeeded"}]


def test_a_job_that_is_being_deleted_keeps_no_run_from_its_end(
    connection: Connected, opened: Database, other: Connected
) -> None:
    deleted, sibling = steps.enqueue(connection), steps.enqueue(connection)
    claimed = steps.start(connection)
    connection.execute("update public.background_job_status set status = 'failed' where id = %s", (deleted,))
    other.execute("delete from public.background_job_status where id = %s", (deleted,))
    steps.compute(opened, claimed)
    began = time.monotonic()
    steps.settle(connection)
    assert steps.reconcile(opened) == []
    assert time.monotonic() - began < PATIENCE
    assert steps.job(connection, sibling).status == "completed"


def test_cancelling_a_lease_fails_no_other_clubs_job(connection: Connected, opened: Database) -> None:
    moved, other_type, ours = (steps.enqueue(connection, TENANT) for _ in range(3))
    [leased] = steps.lease(connection)
    connection.execute("update public.background_job_status set tenant_id = %s where id = %s", (OTHER_TENANT, moved))
    connection.execute("update public.background_job_status set job_type = 'email' where id = %s", (other_type,))
    steps.revoke(opened, leased.lease_id)
    rows = connection.execute("select id, status from public.background_job_status").fetchall()
    assert {row["id"]: row["status"] for row in rows} == {moved: "queued", other_type: "queued", ours: "failed"}


def test_message_numbers_that_start_again_beside_the_archive(
    connection: Connected, opened: Database, count: Count
) -> None:
    steps.enqueue(connection)
    steps.finish(connection, opened)
    connection.execute("truncate pgmq.q_stats_update restart identity")
    again = steps.enqueue(connection)
    steps.finish(connection, opened, "run-2")
    assert steps.job(connection, again).status == "completed"
    assert (count("pgmq.q_stats_update"), count("stats_pipeline.set_aside")) == (0, 0)


def test_a_dropped_queue_refuses_no_enqueue_and_is_made_anew(connection: Connected, opened: Database) -> None:
    connection.execute("select pgmq.drop_queue('stats_update'::text)")
    with connection.transaction():
        connection.execute("create table public.result_of_the_match (goals int)")
        job_id = steps.enqueue(connection)
    assert steps.lease(connection) == []
    connection.execute("update stats_pipeline.set_aside set next_try_at = now()")
    steps.reconcile(opened)
    steps.finish(connection, opened)
    assert steps.job(connection, job_id).status == "completed"


@pytest.mark.parametrize("tenant", ["f" * 12_000, ["x"] * 3_000, {"a": 1}, 7])
def test_a_club_without_a_name_of_a_club_undoes_no_transaction(connection: Connected, tenant: Any) -> None:
    connection.execute(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
        (Jsonb(steps.payload(tenantId=tenant)),),
    )
    assert steps.lease(connection) == []
    [job] = queue.list_jobs(connection, limit=1)
    assert job.error_message == "Rejected: tenantId must be a UUID"


def test_times_at_the_ends_of_the_calendar_undo_no_transaction(connection: Connected) -> None:
    job_id = steps.enqueue(connection)
    for change in (
        "started_at = '4713-01-01 BC', completed_at = '294276-12-31', status = 'failed'",
        "updated_at = 'infinity', status = 'queued'",
        "updated_at = '294276-12-31 23:59:59.999999', created_at = '-infinity', status = 'completed'",
    ):
        connection.execute("set session_replication_role = replica")
        connection.execute("update public.background_job_status set updated_at = '294276-12-31 23:59:59.999999'")
        connection.execute("set session_replication_role = origin")
        connection.execute(f"update public.background_job_status set {change}".encode())
    assert steps.job(connection, job_id).status == "completed"


@pytest.mark.parametrize("value", ["1e5000", "[" * 1_500 + "]" * 1_500])
def test_a_payload_that_python_cannot_hold_is_shown_as_text(connection: Connected, value: str) -> None:
    other = steps.enqueue(connection)
    job_id = steps.enqueue(connection)
    change = f"update public.background_job_status set job_payload = job_payload || '{{\"x\": {value}}}' where id = %s"
    connection.execute(change.encode(), (job_id,))
    listed = {job.id: job for job in queue.list_jobs(connection, limit=10)}
    assert listed.keys() == {job_id, other}
    assert "requestId" in listed[job_id].job_payload["message"]


def test_a_raw_message_may_have_a_field_that_names_a_job(connection: Connected) -> None:
    send(connection, steps.payload(jobId="mine"))
    assert [leased.jobs for leased in steps.lease(connection)] == [1]


def test_many_messages_without_a_job_are_archived_in_no_time(
    connection: Connected, opened: Database, count: Count
) -> None:
    connection.execute(
        "select pgmq.send('stats_update'::text, jsonb_build_object('jobId', gen_random_uuid()), 0) "
        "from generate_series(1, 1000)"
    )
    began = time.monotonic()
    steps.reconcile(opened)
    assert count("pgmq.q_stats_update") == 0
    assert time.monotonic() - began < 5 * PATIENCE
