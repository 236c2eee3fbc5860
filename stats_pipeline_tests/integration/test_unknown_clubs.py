"""A club that is not in the app's `public.tenants` has no jobs: rejected at each way to enqueue, and when leased."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline.errors import InvalidJob
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

JOBS = "public.background_job_status"
REASON = f"tenantId must be the id of a row of public.tenants; {OTHER_TENANT} is none"


@pytest.fixture
def tenants(query: Query) -> None:
    """The app's table, with one club."""
    query("create table public.tenants (id uuid primary key, name text)")
    query("insert into public.tenants values (%s, 'Harbour City')", TENANT)


def insert(connection: Connected, payload: dict[str, Any], column: Any = None) -> None:
    connection.execute(
        "insert into public.background_job_status (job_payload, status, tenant_id) values (%s, 'queued', %s)",
        (Jsonb(payload), column),
    )


def send(connection: Connected, payload: dict[str, Any]) -> None:
    connection.execute("select pgmq.send('stats_update', %s::jsonb)", (Jsonb(payload),))


def leased_clubs(connection: Connected) -> set[Any]:
    return {leased.tenant_id for leased in steps.lease(connection)}


def enqueue_everywhere(connection: Connected, club: Any) -> None:
    """By each door, as somebody who may use it."""
    for door in (queue.enqueue, insert, send):
        door(connection, steps.payload(tenantId=str(club)))


@pytest.mark.usefixtures("tenants")
def test_the_function_refuses_it_by_name_and_leaves_nothing(connection: Connected, count: Count) -> None:
    payload = steps.payload(tenantId=str(OTHER_TENANT))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=REASON):
        connection.execute("select public.enqueue_stats_job(%s)", (Jsonb(payload),))
    with pytest.raises(InvalidJob, match=f"^{REASON}$"):
        queue.enqueue(connection, payload)
    assert [count(table) for table in (JOBS, "pgmq.q_stats_update", "stats_pipeline.job_request")] == [0, 0, 0]


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("door", [insert, send], ids=["row", "message"])
def test_a_row_or_message_of_it_becomes_a_failed_job_that_says_why(
    connection: Connected, count: Count, door: Callable[..., None]
) -> None:
    door(connection, steps.payload(tenantId=str(OTHER_TENANT)))
    door(connection, steps.payload(tenantId=str(TENANT)))
    door(connection, steps.payload())
    assert leased_clubs(connection) == {TENANT, None}
    [failed] = [job for job in queue.list_jobs(connection, limit=10) if job.status == "failed"]
    assert failed.error_message == f"Rejected: {REASON}"
    assert failed.completed_at is not None
    assert (count("pgmq.q_stats_update"), count("stats_pipeline.set_aside")) == (2, 0)


@pytest.mark.usefixtures("tenants")
def test_the_column_of_a_row_says_whose_it_is(connection: Connected) -> None:
    insert(connection, steps.payload(), OTHER_TENANT)
    insert(connection, steps.payload(tenantId=str(OTHER_TENANT)), TENANT)
    assert leased_clubs(connection) == {TENANT}
    assert {job.status for job in queue.list_jobs(connection, limit=10)} == {"queued", "failed"}


@pytest.mark.usefixtures("tenants")
def test_a_club_that_is_deleted_while_its_job_waits(connection: Connected, query: Query) -> None:
    job_id = steps.enqueue(connection, TENANT)
    query("delete from public.tenants")
    assert leased_clubs(connection) == set()
    assert (steps.job(connection, job_id).error_message or "").endswith(f"{TENANT} is none")

    with pytest.raises(InvalidJob, match=r"^tenantId "):
        queue.retry(connection, job_id)
    query("insert into public.tenants values (%s)", TENANT)
    queue.retry(connection, job_id)
    assert leased_clubs(connection) == {TENANT}


@pytest.mark.usefixtures("tenants")
def test_a_request_that_was_taken_is_known_whatever_became_of_the_club(
    connection: Connected, opened: Database, query: Query
) -> None:
    payload = steps.payload(tenantId=str(TENANT))
    first = queue.enqueue(connection, payload).job_id
    steps.finish(connection, opened)
    query("delete from public.tenants")
    assert queue.enqueue(connection, payload).job_id == first
    send(connection, payload)
    assert steps.lease(connection) == []
    assert [job.id for job in queue.list_jobs(connection, limit=10)] == [first]


@pytest.mark.usefixtures("tenants")
def test_a_run_by_hand_for_it_makes_no_job(connection: Connected, count: Count) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=REASON):
        steps.claim(connection, None, "by hand", tenant=OTHER_TENANT)
    assert (count(JOBS), count("stats_pipeline.lease")) == (0, 0)
    assert steps.claim(connection, None, "by hand too", tenant=TENANT) is not None


@pytest.mark.usefixtures("tenants")
def test_the_default_club_is_never_refused(connection: Connected, query: Query) -> None:
    [default] = query("select stats_pipeline.default_tenant() as club")
    assert default["club"] is not None
    enqueue_everywhere(connection, default["club"])
    steps.enqueue(connection)
    assert [(leased.tenant_id, leased.jobs) for leased in steps.lease(connection)] == [(None, 4)]


@pytest.mark.parametrize(
    "table",
    [
        "table public.tenants (id text primary key)",
        "table public.tenants (tenant_id uuid primary key)",
        "table public.tenants ()",
        "view public.tenants as select gen_random_uuid() as id",
        "schema tenants create table tenants.tenants (id uuid)",
    ],
)
def test_without_a_table_that_says_who_there_is_everybody_may(connection: Connected, query: Query, table: str) -> None:
    query(f"create {table}")
    enqueue_everywhere(connection, OTHER_TENANT)
    assert leased_clubs(connection) == {OTHER_TENANT}


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize(
    "change",
    [
        "revoke select on public.tenants from worker",
        "revoke select on public.tenants from worker; grant select (name) on public.tenants to worker",
        "alter table public.tenants enable row level security",
    ],
    ids=["no right", "no right to the id", "row security"],
)
def test_who_cannot_see_every_club_refuses_none(connection: Connected, query: Query, change: str) -> None:
    query("create role worker")
    try:
        query("grant select on public.tenants to worker; grant usage on schema stats_pipeline to worker")
        query("grant execute on all functions in schema stats_pipeline to worker")
        query("set role worker")
        assert query("select stats_pipeline.tenant_problem(%s) as problem", OTHER_TENANT) == [{"problem": REASON}]
        query(f"reset role; {change}; set role worker")
        assert query("select stats_pipeline.tenant_problem(%s) as problem", OTHER_TENANT) == [{"problem": None}]
    finally:
        query("reset role")
        query("drop owned by worker")
        query("drop role worker")


@pytest.mark.usefixtures("tenants")
def test_a_callers_search_path_finds_no_other_table(connection: Connected, query: Query) -> None:
    query("create temporary table tenants (id uuid)")
    query("set search_path = pg_temp, public")
    steps.enqueue(connection, TENANT)
    with pytest.raises(InvalidJob):
        steps.enqueue(connection, OTHER_TENANT)


@pytest.mark.usefixtures("tenants")
def test_a_look_at_the_clubs_is_one_look_into_an_index(connection: Connected, query: Query) -> None:
    query("insert into public.tenants select gen_random_uuid() from generate_series(1, 20000)")
    query("analyze public.tenants")
    counted = (
        "select pg_stat_get_xact_numscans('public.tenants'::regclass) as scans, "
        "pg_stat_get_xact_numscans('public.tenants_pkey'::regclass) as looks"
    )
    with connection.transaction():
        [before] = query(counted)
        steps.enqueue(connection, TENANT)
        assert query(counted) == [before | {"looks": before["looks"] + 1}]


@pytest.mark.usefixtures("tenants")
def test_a_table_that_somebody_holds_delays_the_clubs_in_it_alone(
    connection: Connected, first: Connected, query: Query
) -> None:
    steps.enqueue(connection, TENANT)
    steps.enqueue(connection)
    with first.transaction():
        first.execute("lock table public.tenants")
        assert leased_clubs(connection) == {None}
    query("update stats_pipeline.set_aside set next_try_at = now()")
    assert leased_clubs(connection) == {TENANT}


def test_a_club_and_its_first_job_in_one_transaction(connection: Connected, query: Query) -> None:
    query("create table public.tenants (id uuid primary key)")
    with connection.transaction():
        query("insert into public.tenants values (%s)", TENANT)
        steps.enqueue(connection, TENANT)
    assert leased_clubs(connection) == {TENANT}
