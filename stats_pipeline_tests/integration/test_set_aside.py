"""One bad or locked thing stops no other: it is set aside, where it is shown, and done as soon as possible."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from stats_pipeline.database import Database
from stats_pipeline.jobs import outbox, queue
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Payload, SetAside
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

CLUBS = [UUID(int=number) for number in (11, 12, 13)]
QUEUE = "pgmq.q_stats_update"


def aside(connection: Connected) -> dict[str, SetAside]:
    return {one.what: one for one in queue.list_set_aside(connection)}


def refuse(connection: Connected, condition: str, *, when: str = "update") -> None:
    """What an app's trigger does."""
    connection.execute(
        "create or replace function public.refuse() returns trigger language plpgsql as "
        "$$ begin raise exception 'not in my app'; end $$"
    )
    connection.execute(
        f"create trigger refuse before {when} on public.background_job_status for each row when ({condition}) "
        "execute function public.refuse()".encode()
    )


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


# Refused.


@pytest.mark.parametrize("deferred", ["", "deferrable initially deferred"])
def test_a_message_of_a_club_that_the_apps_foreign_key_refuses(
    connection: Connected, count: Count, query: Query, deferred: str
) -> None:
    connection.execute("create table public.clubs (id uuid primary key)")
    connection.execute("insert into public.clubs values (%s)", (TENANT,))
    connection.execute(
        "alter table public.background_job_status add constraint of_a_tenant foreign key (tenant_id) "
        f"references public.clubs (id) {deferred}".encode()
    )
    send(connection, steps.payload(tenantId=str(OTHER_TENANT)))
    send(connection, steps.payload(tenantId=str(TENANT)))
    steps.enqueue(connection)
    assert {leased.tenant_id for leased in steps.lease(connection)} == {None, TENANT}
    [refused] = query("select error_message from public.background_job_status where status = 'failed'")
    assert refused["error_message"].startswith("Rejected: ")
    assert "of_a_tenant" in refused["error_message"]
    assert (count(QUEUE), count("stats_pipeline.set_aside")) == (2, 0)


def test_a_message_that_can_not_even_be_shown_is_set_aside(connection: Connected, count: Count) -> None:
    refuse(connection, "new.job_payload ->> 'userId' = 'mallory'", when="insert")
    send(connection, steps.payload(userId="mallory"))
    steps.enqueue(connection)
    assert len(steps.lease(connection)) == 1
    assert aside(connection)["message"].reason == "not in my app"
    connection.execute("drop trigger refuse on public.background_job_status")
    steps.lease(connection)
    assert count("public.background_job_status") == 1  # not yet
    pass_time(connection)
    steps.lease(connection)
    assert (count("public.background_job_status"), aside(connection)) == (2, {})


def test_a_row_that_refuses_to_be_completed(connection: Connected, opened: Database) -> None:
    """Its run ends and its siblings complete; it is tried later and later, and completed in the end."""
    bad, sibling = steps.enqueue(connection, userId="mallory"), steps.enqueue(connection)
    refuse(connection, "new.status = 'completed' and new.job_payload ->> 'userId' = 'mallory'")
    steps.compute(opened, steps.start(connection))
    steps.settle(connection)
    assert [steps.job(connection, job_id).status for job_id in (bad, sibling)] == ["processing", "completed"]
    assert (aside(connection)["job"].key, aside(connection)["job"].reason) == (str(bad), "not in my app")
    later = steps.enqueue(connection)
    assert len(steps.lease(connection)) == 1  # the club is free

    for tries in (2, 3):
        pass_time(connection)
        assert steps.reconcile(opened) == []
        assert aside(connection)["job"].tries == tries
        assert steps.reconcile(opened) == []
        assert aside(connection)["job"].tries == tries  # not each second
    connection.execute("drop trigger refuse on public.background_job_status")
    pass_time(connection)
    steps.reconcile(opened)
    assert (steps.job(connection, bad).status, steps.job(connection, bad).attempts) == ("completed", 1)
    assert aside(connection) == {}
    assert steps.job(connection, later).status == "queued"


def test_a_change_that_a_trigger_undoes_in_silence_is_a_refusal(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    connection.execute(
        "create function public.keep() returns trigger language plpgsql as "
        "$$ begin new.status := old.status; return new; end $$"
    )
    connection.execute(
        "create trigger keep before update on public.background_job_status for each row "
        "when (new.status = 'completed') execute function public.keep()"
    )
    steps.compute(opened, steps.start(connection))
    steps.settle(connection)
    assert steps.job(connection, job_id).status == "processing"
    assert "undone" in aside(connection)["job"].reason


def test_a_row_that_refuses_to_be_claimed_keeps_only_itself(connection: Connected, opened: Database) -> None:
    bad, sibling = steps.enqueue(connection, userId="mallory"), steps.enqueue(connection)
    refuse(connection, "new.status = 'processing' and new.job_payload ->> 'userId' = 'mallory'")
    claimed = steps.finish(connection, opened)
    assert claimed.job_ids == (sibling,)
    assert [steps.job(connection, job_id).status for job_id in (bad, sibling)] == ["queued", "completed"]
    assert aside(connection)["job"].key == str(bad)


def test_a_row_that_refuses_to_be_queued_again_fails_in_the_end(connection: Connected, opened: Database) -> None:
    """A repair that cannot be done falls back to one that can."""
    job_id = steps.enqueue(connection)
    steps.start(connection)
    refuse(connection, "new.status = 'queued'")
    for _ in range(5):
        steps.reconcile(opened, {"run-1": "finished"})
        pass_time(connection)
    assert steps.job(connection, job_id).status == "failed"


def test_one_refused_row_of_many_clubs_keeps_no_tag_and_no_club(
    connection: Connected, opened: Database, httpserver: HTTPServer
) -> None:
    client = app(httpserver)
    jobs = {club: steps.enqueue(connection, club) for club in CLUBS}
    refuse(connection, f"new.status = 'completed' and new.tenant_id = '{CLUBS[1]}'")
    for claimed in claim_all(connection).values():
        steps.compute(opened, claimed)
        steps.settle(connection, claimed.lease_id, app=True)
    connection.execute("update stats_pipeline.outbox set due_at = due_at - interval '3 s'")
    for _ in range(2):
        outbox.deliver(opened, client, cache_deadline=900)
    assert [steps.job(connection, jobs[club]).status for club in CLUBS] == ["completed", "processing", "completed"]
    assert len(httpserver.log) == 1


def test_a_nightly_job_that_is_refused_keeps_no_other_club(connection: Connected, opened: Database) -> None:
    connection.execute("create table public.tenants (id uuid primary key)")
    connection.execute("insert into public.tenants values (%s), (%s)", (CLUBS[0], CLUBS[2]))
    connection.execute(
        "alter table public.background_job_status add foreign key (tenant_id) references public.tenants (id)"
    )
    nightly = [Payload(triggered_by="cron", request_id="nightly", tenant_id=str(club)) for club in CLUBS]
    with opened.transaction() as transaction:
        assert len(queue.enqueue_each(transaction, nightly)) == 2
        assert [leased.tenant_id for leased in steps.lease(transaction)] == [CLUBS[0], CLUBS[2]]
    assert aside(connection)["enqueue"].key == str(CLUBS[1])

    pass_time(connection)
    steps.reconcile(opened)
    assert aside(connection)["enqueue"].tries == 2
    connection.execute("insert into public.tenants values (%s)", (CLUBS[1],))
    pass_time(connection)
    steps.reconcile(opened)
    assert aside(connection) == {}
    assert [leased.tenant_id for leased in steps.lease(connection)] == [CLUBS[1]]


def test_a_repair_that_fails_is_left_out_for_a_while(connection: Connected, opened: Database) -> None:
    steps.enqueue(connection)
    steps.start(connection)
    good = steps.enqueue(connection, TENANT)
    connection.execute("delete from pgmq.q_stats_update")
    connection.execute("drop function stats_pipeline.expire_lease")
    [problem] = steps.reconcile(opened, {"run-1": "finished"})
    repair = f"ExpireLease {steps.lease_of(connection)}"
    assert problem.startswith(f"{repair}: function stats_pipeline.expire_lease")
    assert aside(connection)["repair"].key == repair
    assert steps.reconcile(opened, {"run-1": "finished"}) == []
    pass_time(connection)
    assert [leased.tenant_id for leased in steps.lease(connection)] == [TENANT]
    assert steps.job(connection, good).status == "queued"


def test_what_nobody_wants_any_more_is_forgotten(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection, userId="mallory")
    refuse(connection, "new.status = 'completed'")
    steps.compute(opened, steps.start(connection))
    steps.settle(connection)
    assert aside(connection)
    connection.execute("delete from public.background_job_status where id = %s", (job_id,))
    connection.execute("update stats_pipeline.set_aside set next_try_at = now() - interval '2 minutes'")
    steps.reconcile(opened)
    assert aside(connection) == {}


# Locked.


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
