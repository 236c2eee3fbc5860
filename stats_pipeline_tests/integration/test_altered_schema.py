"""Objects dropped or altered after migrating: `migrate` restores them or names the SQL, `doctor` reports them."""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import migrate, schema
from stats_pipeline.errors import MigrationError
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.write_schema import as_made

Connected = Connection[DictRow]

JOBS = "public.background_job_status"
NOTHING = migrate.Applied((), (), (), ())


def parts(connection: Connected) -> set[tuple[str, str]]:
    """Every part there is, and what tells it from an altered one."""
    return {(part["what"], part["definition"]) for part in schema.describe(connection)}


def refused(connection: Connected) -> str:
    """Migrating raises, in one line, and repairs nothing."""
    before = parts(connection)
    with pytest.raises(MigrationError) as caught:
        migrate.migrate(connection)
    assert "\n" not in str(caught.value)
    assert parts(connection) == before
    return str(caught.value)


def sql_of(message: str, start: str) -> bytes:
    """The statement that a message says to run."""
    return message[message.rindex(start) :].encode()


def test_the_committed_description_is_what_the_migrations_make(create_database: Callable[..., str]) -> None:
    assert schema.AS_MADE.read_text() == as_made(create_database()), "run `make schema`"


REPAIRED = {
    f"drop trigger zz_stats_pipeline_job_inserted on {JOBS}": ["trigger zz_stats_pipeline_job_inserted"],
    f"alter table {JOBS} disable trigger zz_stats_pipeline_job_queued": ["trigger zz_stats_pipeline_job_queued"],
    f"create or replace trigger stats_pipeline_job_deleted after delete on {JOBS} "
    "for each row execute function stats_pipeline.job_changed()": ["trigger stats_pipeline_job_deleted"],
    f"create or replace trigger zz_stats_pipeline_job_queued after insert on {JOBS} for each row "
    "when (new.status = 'failed') execute function stats_pipeline.job_queued()": [
        "trigger zz_stats_pipeline_job_queued"
    ],
    "drop index stats_pipeline.lease_one_open_per_tenant": ["the index stats_pipeline.lease_one_open_per_tenant"],
    "drop index stats_pipeline.lease_one_open_per_tenant; create index lease_one_open_per_tenant "
    "on stats_pipeline.lease (tenant_key)": ["the index stats_pipeline.lease_one_open_per_tenant"],
    "drop index public.idx_background_job_status_waiting": ["the index public.idx_background_job_status_waiting"],
    f"alter table {JOBS} alter id drop default": [f"the default of {JOBS}.id"],
    "alter table stats_pipeline.outbox alter next_try_at set default 'infinity'": [
        "the default of stats_pipeline.outbox.next_try_at"
    ],
    "alter table stats_pipeline.outbox alter tag drop not null": ["not null of stats_pipeline.outbox.tag"],
    f"alter table {JOBS} drop constraint background_job_status_status_check": [f"a check on status of {JOBS}"],
    "alter table stats_pipeline.lease drop constraint lease_ended_has_outcome": [
        "the constraint lease_ended_has_outcome of stats_pipeline.lease"
    ],
    "alter table stats_pipeline.attempt drop constraint attempt_job_id_fkey, add constraint attempt_job_id_fkey "
    f"foreign key (job_id) references {JOBS} (id)": ["the constraint attempt_job_id_fkey of stats_pipeline.attempt"],
    f"alter table {JOBS} drop constraint background_job_status_pkey cascade": [
        f"a key on id of {JOBS}",
        "the constraint attempt_job_id_fkey of stats_pipeline.attempt",
    ],
    "alter table stats_pipeline.outbox drop column tries": ["the column stats_pipeline.outbox.tries"],
    "alter table stats_pipeline.lease drop column tenant_key": [
        "the column stats_pipeline.lease.tenant_key",
        "the index stats_pipeline.lease_last_claimed",
        "the index stats_pipeline.lease_one_open_per_tenant",
    ],
    "alter table stats_pipeline.job_request set unlogged": ["the table stats_pipeline.job_request"],
    "drop table stats_pipeline.outbox": ["the table stats_pipeline.outbox"],
    "drop table stats_pipeline.audit": ["the table stats_pipeline.audit"],
    "drop index stats_pipeline.audit_refused; alter table stats_pipeline.audit disable row level security": [
        "the index stats_pipeline.audit_refused",
        "row security of stats_pipeline.audit",
    ],
    "grant execute on function stats_pipeline.record_audit(text, text, text, text, text, text, text) to anon": [
        "stats_pipeline.record_audit(text, text, text, text, text, text, text)"
    ],
    "drop table stats_pipeline.lease cascade": [
        "the table stats_pipeline.lease",
        "stats_pipeline.claim_lease(uuid, text, text[], uuid, jsonb, text)",
        "stats_pipeline.acquire_lease(uuid, text[], integer)",
        "stats_pipeline.end_lease(uuid, text, timestamptz)",
        "stats_pipeline.release_lease(uuid, text)",
    ],
    "select pgmq.drop_queue('stats_update')": ["the queue stats_update"],
    f"drop policy background_job_status_read on {JOBS}": [f"the policy background_job_status_read of {JOBS}"],
    f"alter policy background_job_status_read on {JOBS} using (false)": [
        f"the policy background_job_status_read of {JOBS}"
    ],
    f"alter table {JOBS} disable row level security": [f"row security of {JOBS}"],
    "alter table pgmq.q_stats_update disable row level security": ["row security of pgmq.q_stats_update"],
    f"revoke select on {JOBS} from anon": [f"the right of anon to select on {JOBS}"],
    "revoke usage on schema stats_pipeline from service_role": [
        "the rights of service_role on the schema stats_pipeline"
    ],
    "grant all on schema stats_pipeline to public": ["the rights of public on the schema stats_pipeline"],
    "create or replace function stats_pipeline.tenant_key(tenant_id uuid) returns text language sql immutable "
    "set search_path = pg_catalog, pg_temp as 'select ''everybody'''": ["stats_pipeline.tenant_key(uuid)"],
    "alter function public.enqueue_stats_job(jsonb) security invoker": ["public.enqueue_stats_job(jsonb)"],
    "alter function stats_pipeline.settle_lease(uuid, boolean, integer) reset search_path": [
        "stats_pipeline.settle_lease(uuid, boolean, integer)"
    ],
    "revoke execute on function public.retry_stats_job(uuid) from service_role": ["public.retry_stats_job(uuid)"],
    "grant execute on function stats_pipeline.acquire_leases(integer, integer) to public": [
        "stats_pipeline.acquire_leases(integer, integer)"
    ],
    "drop function stats_pipeline.renew_lease(uuid, integer, integer)": [
        "stats_pipeline.renew_lease(uuid, integer, integer)"
    ],
    "drop function stats_pipeline.job_queued() cascade": [
        "stats_pipeline.job_queued()",
        "trigger zz_stats_pipeline_job_queued",
    ],
}


@pytest.mark.parametrize("change", REPAIRED)
def test_what_was_dropped_or_altered_is_made_again_and_said(connection: Connected, change: str) -> None:
    before = parts(connection)
    connection.execute(change.encode())
    seen = list(migrate.differences(connection))
    repaired = migrate.migrate(connection).repaired
    assert sorted(repaired) == sorted(REPAIRED[change])
    assert all(any(what in line and "`stats-pipeline migrate`" in line for line in seen) for what in repaired)
    assert migrate.migrate(connection) == NOTHING
    assert list(migrate.differences(connection)) == []
    assert parts(connection) == before
    steps.enqueue(connection)
    assert [leased.jobs for leased in steps.lease(connection)] == [1]


def test_the_job_table_is_made_again_with_all_that_stands_on_it(connection: Connected) -> None:
    before = parts(connection)
    connection.execute("alter default privileges in schema public grant all on tables to anon")  # as Supabase has it
    connection.execute(f"drop table {JOBS} cascade".encode())
    repaired = migrate.migrate(connection).repaired
    assert {f"the table {JOBS}", "trigger zz_stats_pipeline_job_queued"} <= set(repaired)
    assert migrate.migrate(connection) == NOTHING
    assert parts(connection) == before
    steps.enqueue(connection)
    assert [leased.jobs for leased in steps.lease(connection)] == [1]


@pytest.mark.parametrize("loss", ["drop table stats_pipeline.migration", "delete from stats_pipeline.migration"])
def test_a_lost_list_of_applied_files_is_written_anew(connection: Connected, loss: str) -> None:
    job_id = steps.enqueue(connection, requestId="1")
    connection.execute(loss.encode())
    applied = migrate.migrate(connection)
    assert (applied.migrations, applied.repaired) == ((), ("the rows of stats_pipeline.migration",))
    assert migrate.migrate(connection) == NOTHING
    assert steps.enqueue(connection, requestId="1") == job_id


def test_a_column_made_again_has_its_default_in_rows_that_there_are(connection: Connected) -> None:
    connection.execute("insert into stats_pipeline.outbox (lease_id, rpc, tag) values (gen_random_uuid(), 'f', 't')")
    connection.execute("alter table stats_pipeline.outbox drop column tries")
    migrate.migrate(connection)
    assert connection.execute("select tries from stats_pipeline.outbox").fetchall() == [{"tries": 0}]


def test_a_unique_index_that_duplicates_are_in_the_way_of(connection: Connected) -> None:
    connection.execute("drop index stats_pipeline.lease_one_open_per_tenant")
    connection.execute("drop index stats_pipeline.lease_lost")
    connection.execute(
        "insert into stats_pipeline.lease (job_ids, claim_until) select array[gen_random_uuid()], now() "
        "from generate_series(1, 2)"
    )
    message = refused(connection)
    assert "Key (tenant_key)=(default) is duplicated" in message
    statement = sql_of(message, "CREATE UNIQUE INDEX")
    connection.execute("delete from stats_pipeline.lease where ctid = (select max(ctid) from stats_pipeline.lease)")
    connection.execute(statement)
    assert migrate.migrate(connection).repaired == ("the index stats_pipeline.lease_lost",)


def test_another_type_is_named_with_the_sql(connection: Connected) -> None:
    connection.execute("alter table stats_pipeline.endpoint alter failures type smallint")
    message = refused(connection)
    assert "the column stats_pipeline.endpoint.failures: smallint, not integer" in message
    assert any("smallint, not integer" in line for line in migrate.differences(connection))
    connection.execute(sql_of(message, "alter table"))
    assert migrate.migrate(connection) == NOTHING


@pytest.mark.parametrize(
    "overload",
    ["public.enqueue_stats_job(payload text)", "stats_pipeline.tenant_key(tenant_id text)"],
)
def test_a_function_with_the_name_of_ours_is_named_with_the_sql(connection: Connected, overload: str) -> None:
    connection.execute(f"create function {overload} returns text language sql as 'select null::text'".encode())
    message = refused(connection)
    assert "has the name of ours" in message
    assert any("has the name of ours" in line for line in migrate.differences(connection))
    connection.execute(sql_of(message, "drop function"))
    assert migrate.migrate(connection) == NOTHING


def test_a_function_that_returns_something_else_is_named_with_the_sql(connection: Connected) -> None:
    connection.execute(
        "drop function stats_pipeline.tenant_key(uuid); create function stats_pipeline.tenant_key(tenant_id uuid) "
        "returns uuid language sql as 'select $1'"
    )
    connection.execute(sql_of(refused(connection), "drop function"))
    assert migrate.migrate(connection).repaired == ("stats_pipeline.tenant_key(uuid)",)


def test_an_owner_who_may_not_touch_the_jobs_is_named_with_the_sql(connection: Connected) -> None:
    owner = f"visitor_{uuid4().hex}"
    connection.execute(f"create role {owner}".encode())
    connection.execute(f"alter function public.enqueue_stats_job(jsonb) owner to {owner}".encode())
    try:
        message = refused(connection)
        assert f"belongs to {owner}" in message
        connection.execute(sql_of(message, "alter function"))
        assert migrate.migrate(connection).repaired in ((), ("public.enqueue_stats_job(jsonb)",))
        assert migrate.migrate(connection) == NOTHING
    finally:
        connection.execute(f"drop owned by {owner}; drop role {owner}".encode())


def test_a_queue_extension_that_lacks_what_we_call_is_named(connection: Connected) -> None:
    connection.execute("drop function pgmq.set_vt(text, bigint, integer)")
    assert "pgmq has no pgmq.set_vt(text,bigint,integer)" in refused(connection)
    assert any("pgmq.set_vt" in line for line in migrate.differences(connection))


def test_what_the_app_has_besides_is_left_alone(connection: Connected) -> None:
    connection.execute(
        f"alter table {JOBS} add club text not null default 'x', add constraint apps check (club <> ''), "
        "alter updated_at set default clock_timestamp(), drop constraint background_job_status_status_check, "
        "add constraint apps_status check (status in ('queued', 'processing', 'completed', 'failed', 'cancelled'));"
        f"create index apps on {JOBS} (club); create policy apps on {JOBS} for insert to authenticated "
        f"with check (true); grant insert on {JOBS} to authenticated; alter table {JOBS} force row level security;"
        f"drop index idx_background_job_status_status; create index idx_background_job_status_status on {JOBS} "
        "(status, created_at)"
    )
    assert list(migrate.differences(connection)) == []
    assert migrate.migrate(connection) == NOTHING


@pytest.mark.parametrize(
    ("change", "repaired"),
    [
        (f"alter table {JOBS} alter id drop default", f"the default of {JOBS}.id"),
        (f"drop trigger stats_pipeline_job_changed on {JOBS}", "trigger stats_pipeline_job_changed"),
    ],
)
def test_nobody_waits_long_for_a_repair(connection: Connected, first: Connected, change: str, repaired: str) -> None:
    connection.execute(change.encode())
    with first.transaction():
        first.execute(
            f"insert into {JOBS} (id, job_payload, status) values (gen_random_uuid(), '{{}}', 'failed')".encode()
        )
        began = time.monotonic()
        assert "lock timeout" in refused(connection)
        assert time.monotonic() - began < 10
    assert migrate.migrate(connection).repaired == (repaired,)


def test_looking_takes_no_lock_that_a_worker_waits_for(connection: Connected, first: Connected) -> None:
    with first.transaction():
        first.execute("select * from public.background_job_status for update")
        first.execute("insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
            (Jsonb(steps.payload()),))  # fmt: skip
        assert migrate.migrate(connection) == NOTHING


def test_functions_that_an_older_version_applied_are_applied_again(connection: Connected) -> None:
    connection.execute("alter table stats_pipeline.migration drop column made")
    connection.execute("alter function stats_pipeline.renew_lease(uuid, integer, integer) reset search_path")
    assert "renew_lease.sql" in migrate.pending(connection)
    assert "renew_lease.sql" in migrate.migrate(connection).functions
    assert migrate.migrate(connection) == NOTHING


def test_the_sql_is_made_for_one_database_as_for_any_other(connection: Connected, query: Callable[..., Any]) -> None:
    """Whatever search path a role or database has, definitions are worded alike."""
    query("set search_path = stats_pipeline, public")
    assert list(migrate.differences(connection)) == []
    assert query("show search_path") == [{"search_path": "stats_pipeline, public"}]
