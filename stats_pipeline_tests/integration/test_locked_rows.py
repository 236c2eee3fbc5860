"""Rows, messages and requests that another transaction holds are set aside; the others continue."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from stats_pipeline import database
from stats_pipeline.database import Database
from stats_pipeline.jobs import outbox, queue
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Payload, SetAside
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT, TWO

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

CLUBS = [UUID(int=number) for number in (11, 12, 13)]


@pytest.fixture
def other(database_url: str) -> Iterator[Connected]:
    """The app's own connection, in a transaction. What waits for it longer than it should is an error, not a pause."""
    with database.connect(database_url) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def patient(connection: Connected) -> Connected:
    """The test's connection, which waits for a lock no longer than two seconds in all."""
    connection.execute("set statement_timeout = '2s'")
    return connection


def aside(connection: Connected) -> dict[str, SetAside]:
    return {one.what: one for one in queue.list_set_aside(connection)}


def pass_time(connection: Connected) -> None:
    """What was set aside is due again, and every message visible."""
    connection.execute("update stats_pipeline.set_aside set next_try_at = clock_timestamp()")
    connection.execute("update pgmq.q_stats_update set vt = clock_timestamp()")


def send(connection: Connected, payload: Any) -> None:
    connection.execute("select pgmq.send('stats_update'::text, %s::jsonb, 0)", (Jsonb(payload),))


def claim_all(connection: Connected) -> dict[UUID | None, Any]:
    """Lease and claim for every club; each run has its club's name."""
    claims = {}
    for leased in steps.lease(connection):
        claims[leased.tenant_id] = steps.claim(connection, leased, f"run of {leased.tenant_id}")
    return claims


def app(httpserver: HTTPServer) -> CacheClient:
    """An app that takes every tag, and the client that calls it."""

    def take(request: Request) -> Response:
        tags = request.get_json()["tags"]
        body = Jsonb({"success": True, "invalidated_tags": tags, "failed_tags": []}).obj
        return Response(json.dumps(body), content_type="application/json")

    httpserver.expect_request("/api/internal/cache/invalidate").respond_with_handler(take)
    return CacheClient(
        Settings.model_validate({"NEXT_PUBLIC_APP_URL": httpserver.url_for(""), "INTERNAL_API_KEY": "k" * 20})
    )


def hold(other: Connected, job_id: UUID) -> None:
    other.execute("select from public.background_job_status where id = %s for update", (job_id,))


def test_a_row_that_is_held_while_its_run_ends(
    patient: Connected, opened: Database, other: Connected, httpserver: HTTPServer
) -> None:
    """The others complete, no tag is sent twice, and the row follows when it is free."""
    client = app(httpserver)
    jobs = [steps.enqueue(patient, club) for club in CLUBS]
    claims = claim_all(patient)
    hold(other, jobs[1])
    for claimed in claims.values():
        steps.compute(opened, claimed)
        steps.settle(patient, claimed.lease_id, app=True)
        assert steps.renew(patient, claimed.lease_id) is False  # it has ended
    patient.execute("update stats_pipeline.outbox set due_at = due_at - interval '3 s'")
    for _ in range(3):
        outbox.deliver(opened, client, cache_deadline=900)
        steps.reconcile(opened)
    assert [steps.job(patient, job_id).status for job_id in jobs] == ["completed", "processing", "completed"]
    assert aside(patient)["job"].key == str(jobs[1])
    assert len(httpserver.log) == 1

    other.rollback()
    pass_time(patient)
    steps.reconcile(opened)
    assert (steps.job(patient, jobs[1]).status, steps.job(patient, jobs[1]).attempts) == ("completed", 1)
    assert aside(patient) == {}


def test_a_row_that_is_held_while_it_waits(patient: Connected, opened: Database, other: Connected) -> None:
    held, sibling, elsewhere = steps.enqueue(patient), steps.enqueue(patient), steps.enqueue(patient, TENANT)
    hold(other, held)
    assert {leased.jobs for leased in steps.lease(patient)} == {1}
    other.rollback()
    assert {steps.job(patient, job_id).status for job_id in (held, sibling, elsewhere)} == {"queued"}
    assert aside(patient)["job"].key == str(held)


def test_a_row_that_is_held_between_lease_and_claim(patient: Connected, opened: Database, other: Connected) -> None:
    held, sibling = steps.enqueue(patient), steps.enqueue(patient)
    [leased] = steps.lease(patient)
    hold(other, held)
    claimed = steps.claim(patient, leased)
    assert claimed is not None
    assert claimed.job_ids == (sibling,)
    steps.compute(opened, claimed)
    steps.settle(patient)
    other.rollback()
    pass_time(patient)
    assert steps.finish(patient, opened, "run-2").job_ids == (held,)
    assert steps.job(patient, held).attempts == 1


def test_a_row_that_is_held_while_its_run_dies(patient: Connected, opened: Database, other: Connected) -> None:
    held, sibling = steps.enqueue(patient), steps.enqueue(patient)
    steps.start(patient)
    hold(other, held)
    assert steps.reconcile(opened, {"run-1": "finished"}) == []
    assert [steps.job(patient, job_id).status for job_id in (held, sibling)] == ["processing", "queued"]
    other.rollback()
    pass_time(patient)
    steps.reconcile(opened)
    assert steps.job(patient, held).status == "queued"


def test_a_message_that_is_held(patient: Connected, opened: Database, other: Connected) -> None:
    held = steps.enqueue(patient)
    running = steps.enqueue(patient, TENANT)
    [*_, claimed] = claim_all(patient).values()
    other.execute("select from pgmq.q_stats_update for update")
    assert steps.renew(patient, claimed.lease_id, lease_seconds=3600)
    fresh = steps.enqueue(patient, OTHER_TENANT)
    assert [leased.tenant_id for leased in steps.lease(patient)] == [OTHER_TENANT]
    for one in (claimed,):
        steps.compute(opened, one)
        steps.settle(patient, one.lease_id)
    assert steps.job(patient, running).status == "completed"
    other.rollback()
    assert {steps.job(patient, job_id).status for job_id in (held, fresh)} == {"processing", "queued"}
    steps.reconcile(opened)
    assert len(patient.execute("select from pgmq.q_stats_update").fetchall()) == 2


def test_a_request_that_is_being_enqueued_keeps_only_itself(
    patient: Connected, opened: Database, other: Connected, count: Count
) -> None:
    first = steps.enqueue(other, requestId="press")
    send(patient, steps.payload(requestId="press"))
    send(patient, steps.payload(tenantId=str(TENANT)))
    steps.enqueue(patient, OTHER_TENANT)
    assert {leased.tenant_id for leased in steps.lease(patient)} == {TENANT, OTHER_TENANT}
    assert steps.lease(patient) == []
    assert set(aside(patient)) == {"message"}
    other.commit()
    pass_time(patient)
    assert [leased.jobs for leased in steps.lease(patient)] == [1]
    assert aside(patient) == {}
    assert count("public.background_job_status") == 3
    assert steps.job(patient, first).status == "queued"


def test_a_run_by_hand_that_is_starting_keeps_only_its_own_club_waiting(
    patient: Connected, opened: Database, other: Connected
) -> None:
    """While the nightly leases."""
    steps.claim(other, None, "by hand", tenant=CLUBS[1])
    nightly = [Payload(triggered_by="cron", request_id="nightly", tenant_id=str(club)) for club in CLUBS]
    with opened.transaction() as transaction:
        assert len(queue.enqueue_each(transaction, nightly)) == 3
        assert [leased.tenant_id for leased in steps.lease(transaction)] == [CLUBS[0], CLUBS[2]]
    other.commit()
    pass_time(patient)
    assert steps.lease(patient) == []  # the run by hand is open
    other.execute("update stats_pipeline.lease set ended_at = now(), outcome = 'failed' where run_id = 'by hand'")
    other.commit()
    assert [leased.tenant_id for leased in steps.lease(patient)] == [CLUBS[1]]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_run_beats_while_a_function_works_whatever_the_databases_default_isolation(
    connection: Connected, database_url: str, level: str
) -> None:
    """Under repeatable read the function's transaction would not see its run any more (40001)."""
    name = connection.info.dbname
    connection.execute(f"alter database {name} set default_transaction_isolation = '{level}'".encode())
    connection.execute(f"drop function public.{TWO[0].rpc}".encode())
    connection.execute(
        f"create function public.{TWO[0].rpc}() returns void language sql as "
        "$$ select pg_advisory_xact_lock(42) $$".encode()
    )
    with Database(database_url) as opened, database.connect(database_url) as gate:
        gate.execute("select pg_advisory_xact_lock(42)")
        with opened.connection() as pooled:
            job_id = steps.enqueue(pooled)
            claimed = steps.start(pooled)
        working = threading.Thread(target=steps.compute, args=(opened, claimed, TWO[0]))
        working.start()
        waiting = "select from pg_locks where locktype = 'advisory' and objid = 42 and not granted"
        while not gate.execute(waiting).fetchall():
            pass
        steps.renew(opened)
        gate.rollback()
        working.join()
        steps.compute(opened, claimed, TWO[1])
        with opened.connection() as pooled:
            steps.settle(pooled)
            assert steps.job(pooled, job_id).status == "completed"


def test_three_thousand_jobs_of_one_club(patient: Connected, opened: Database, database_url: str) -> None:
    """One run, one attempt each, small results; and the run can beat while another process settles it."""
    patient.execute("set statement_timeout = '60s'")
    patient.execute(
        "insert into public.background_job_status (job_payload, status) "
        "select jsonb_build_object('triggeredBy', 'admin', 'requestId', 'r' || n), 'queued' "
        "from generate_series(1, 3000) as n"
    )
    claimed = steps.start(patient)
    assert len(claimed.job_ids) == 3000
    steps.compute(opened, claimed, TWO[0])
    with database.connect(database_url) as settling:
        steps.settle(settling)
        patient.execute("set lock_timeout = '1ms'")
        assert steps.renew(patient, "run-1")
        settling.commit()
    steps.compute(opened, claimed, TWO[1])
    steps.settle(patient)
    rows = patient.execute(
        "select status, attempts, count(*) as jobs, max(length(results::text)) as longest, "
        "min((results #>> '{coalesced_with,count}')::int) as coalesced from public.background_job_status group by 1, 2"
    ).fetchall()
    assert [(row["status"], row["attempts"], row["jobs"], row["coalesced"]) for row in rows] == [
        ("completed", 1, 3000, 2999)
    ]
    assert rows[0]["longest"] < 3000
    first = steps.job(patient, claimed.job_ids[0]).results
    assert first is not None
    assert first["coalesced_with"]["first"] == [str(other) for other in claimed.job_ids[1:21]]
    assert uuid4() not in claimed.job_ids


def test_a_row_that_is_changed_by_whoever_holds_it_while_its_run_dies(
    patient: Connected, opened: Database, other: Connected, query: Query
) -> None:
    job_id = steps.enqueue(patient)
    steps.start(patient)
    other.execute("update public.background_job_status set status = 'failed' where id = %s", (job_id,))
    steps.reconcile(opened, {"run-1": "finished"})
    other.commit()
    pass_time(patient)
    steps.reconcile(opened)
    assert steps.job(patient, job_id).status == "failed"
    assert query("select outcome from stats_pipeline.attempt") == [{"outcome": "withdrawn"}]
