"""The privileges of the app's visitors, its admins and its server, in the roles that the Data API gives them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline import database
from stats_pipeline.database import migrate
from stats_pipeline_tests.integration import steps

Query = Callable[..., list[dict[str, Any]]]
Connected = Connection[DictRow]

VISITORS = ("anon", "authenticated")
JOBS = "public.background_job_status"


@contextmanager
def acting_as(connection: Connected, role: str) -> Iterator[None]:
    connection.execute(f"set role {role}".encode())
    try:
        yield
    finally:
        connection.execute("reset role")


@pytest.fixture(scope="module")
def bare(create_database: Callable[..., str]) -> Iterator[Connected]:
    """A migrated database without the reference stats: all that is in it is ours."""
    with database.connect(create_database(), autocommit=True) as connection:
        migrate.migrate(connection)
        yield connection


def rows(connection: Connected, statement: str, *parameters: str) -> set[str]:
    return {row["name"] for row in connection.execute(statement.encode(), parameters or None)}


@pytest.mark.parametrize("role", VISITORS)
def test_visitors_read_the_jobs(connection: Connected, query: Query, role: str) -> None:
    job_id = steps.enqueue(connection)
    with acting_as(connection, role):
        assert query(f"select id from {JOBS}") == [{"id": job_id}]


@pytest.mark.parametrize("role", VISITORS)
@pytest.mark.parametrize(
    "statement",
    [
        "insert into public.background_job_status (job_payload, status) values ('{}', 'queued')",
        "update public.background_job_status set status = 'completed'",
        "delete from public.background_job_status",
        "truncate public.background_job_status",
        """select public.enqueue_stats_job('{"triggeredBy": "admin", "requestId": "1"}')""",
        "select public.retry_stats_job('00000000-0000-4000-8000-000000000000')",
        "select * from stats_pipeline.lease",
        "select * from stats_pipeline.audit",
        "select stats_pipeline.record_audit('login', 'done', 'admin', 'admin', '192.0.2.1', '192.0.2.1/32', null)",
        "select stats_pipeline.acquire_leases(30, 4)",
        "select * from pgmq.q_stats_update",
        "select pgmq.send('stats_update', '{}')",
    ],
)
def test_visitors_do_nothing_else(connection: Connected, role: str, statement: str) -> None:
    job_id = steps.enqueue(connection)
    before = steps.job(connection, job_id)
    with acting_as(connection, role), pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())
    assert steps.job(connection, job_id) == before


def test_the_apps_server_uses_the_doors_that_are_its_own(connection: Connected, query: Query) -> None:
    with acting_as(connection, "service_role"):
        steps.enqueue(connection)
        connection.execute(
            "insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
            (Jsonb(steps.payload()),),
        )
        assert len(query(f"select id from {JOBS}")) == 2
    [leased] = steps.lease(connection)
    assert leased.jobs == 2


def test_the_apps_server_retries_a_failed_job(connection: Connected, opened: database.Database) -> None:
    job_id = steps.enqueue(connection)
    steps.fail(connection, opened)
    with acting_as(connection, "service_role"):
        connection.execute("select public.retry_stats_job(%s)", (job_id,))
    [leased] = steps.lease(connection)
    assert leased.jobs == 1


@pytest.mark.parametrize("role", [*VISITORS, "service_role"])
def test_nothing_internal_can_be_called(bare: Connected, role: str) -> None:
    assert not rows(
        bare,
        "select p.oid::regprocedure::text as name from pg_proc as p "
        "where p.pronamespace = 'stats_pipeline'::regnamespace and has_function_privilege(%s, p.oid, 'execute')",
        role,
    )


@pytest.mark.parametrize(
    ("role", "callable_functions"),
    [*((role, set()) for role in VISITORS), ("service_role", {"enqueue_stats_job(jsonb)", "retry_stats_job(uuid)"})],
)
def test_in_public_the_apps_server_calls_two_functions_and_visitors_none(
    bare: Connected, role: str, callable_functions: set[str]
) -> None:
    found = rows(
        bare,
        "select p.oid::regprocedure::text as name from pg_proc as p "
        "where p.pronamespace = 'public'::regnamespace and has_function_privilege(%s, p.oid, 'execute')",
        role,
    )
    assert found == callable_functions


@pytest.mark.parametrize("role", [*VISITORS, "service_role"])
def test_no_internal_table_can_be_touched(query: Query, role: str) -> None:
    touchable = query(
        "select c.oid::regclass::text as name from pg_class as c "
        "where c.relnamespace in ('stats_pipeline'::regnamespace, 'dagster'::regnamespace) and c.relkind in ('r', 'v') "
        "and has_table_privilege(%s, c.oid, 'select, insert, update, delete, truncate')",
        role,
    )
    assert touchable == []


def test_every_table_of_ours_has_row_security(query: Query) -> None:
    open_tables = query(
        "select c.oid::regclass::text as name from pg_class as c where c.relkind = 'r' and not c.relrowsecurity "
        "and (c.relnamespace = 'stats_pipeline'::regnamespace "
        "or c.oid in ('public.background_job_status'::regclass, 'pgmq.q_stats_update'::regclass, "
        "'pgmq.a_stats_update'::regclass))"
    )
    assert open_tables == []


def test_every_function_of_ours_pins_its_search_path(bare: Connected) -> None:
    assert not rows(
        bare,
        "select p.oid::regprocedure::text as name from pg_proc as p "
        "where p.pronamespace in ('stats_pipeline'::regnamespace, 'public'::regnamespace) "
        "and not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)",
    )


def test_nothing_of_ours_in_public_but_the_table_and_its_functions(bare: Connected) -> None:
    """The Data API exposes whatever is in `public`."""
    assert rows(
        bare,
        "select 'relation ' || c.relname as name from pg_class as c "
        "where c.relnamespace = 'public'::regnamespace and c.relkind <> 'i' "
        "union all select 'function ' || p.oid::regprocedure from pg_proc as p "
        "where p.pronamespace = 'public'::regnamespace "
        "union all select 'type ' || t.typname from pg_type as t "
        "where t.typnamespace = 'public'::regnamespace and t.typrelid = 0 and t.typelem = 0",
    ) == {
        "relation background_job_status",
        "function enqueue_stats_job(jsonb)",
        "function retry_stats_job(uuid)",
        "function update_updated_at_column()",
    }
