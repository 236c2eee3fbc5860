"""Migrating: a new database, an app's own, twice, twenty at once, and everything that must be rejected as a whole."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline import database
from stats_pipeline.database import embedded, migrate
from stats_pipeline.errors import MigrationError
from stats_pipeline.settings import SQL_ROOT
from stats_pipeline_tests.integration import steps

Connected = Connection[DictRow]

# As an app may have created it before us: with columns of its own, and none of ours.
APPS_TABLE = """
create table public.background_job_status (
    id uuid primary key default gen_random_uuid(),
    job_type text not null default 'stats_update',
    job_payload jsonb not null,
    status text not null check (status in ('queued', 'processing', 'completed', 'failed')),
    started_at timestamptz,
    completed_at timestamptz,
    error_message text,
    results jsonb,
    retry_count integer default 0,
    max_retries integer default 3,
    priority integer default 1,
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);
create function public.update_updated_at_column() returns trigger language plpgsql as
$$ begin new.updated_at = now(); return new; end $$;
create trigger update_background_job_status_updated_at before update on public.background_job_status
for each row execute function public.update_updated_at_column();
"""

APPS_BARE_TABLE = """
create table public.background_job_status (
    id uuid unique default gen_random_uuid(), job_type varchar(40), job_payload jsonb, status text,
    started_at timestamptz(3), completed_at timestamptz, error_message text, results jsonb,
    created_at timestamptz, updated_at timestamptz
);
"""


@pytest.fixture
def empty_url(create_database: Callable[..., str]) -> str:
    """A database with the queue extension and nothing else."""
    return create_database()


@pytest.fixture
def empty(empty_url: str) -> Iterator[Connected]:
    with database.connect(empty_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def sql_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the SQL files that the test may change."""
    copy = tmp_path / "sql"
    shutil.copytree(SQL_ROOT, copy)
    monkeypatch.setattr(migrate, "SQL_ROOT", copy)
    return copy


def names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(file.name for file in (SQL_ROOT / folder).glob("*.sql")))


def schemas(connection: Connected) -> set[str]:
    rows = connection.execute("select nspname from pg_namespace where nspname !~ '^(pg_|information_schema|pgmq)'")
    return {row["nspname"] for row in rows}


def refused(connection: Connected, **arguments: Any) -> str:
    """Migrating raises, in one line, and leaves nothing behind."""
    before = schemas(connection)
    with pytest.raises(MigrationError) as caught:
        migrate.migrate(connection, **arguments)
    assert "\n" not in str(caught.value)
    assert schemas(connection) == before
    return str(caught.value)


def works(connection: Connected) -> None:
    """A job comes through."""
    steps.enqueue(connection)
    claimed = steps.start(connection)
    for function in steps.TWO:
        steps.complete(connection, function.rpc, "tag")
    steps.settle(connection)
    assert steps.job(connection, claimed.job_ids[0]).status == "completed"


def test_a_new_database(empty: Connected) -> None:
    applied = migrate.migrate(empty)
    assert (applied.migrations, applied.functions, applied.reference_stats) == (
        names("migrations"),
        names("functions"),
        (),
    )
    assert schemas(empty) == {"public", "stats_pipeline", "dagster"}
    works(empty)


def test_a_new_database_with_the_reference_stats(empty: Connected) -> None:
    assert migrate.migrate(empty, reference_stats=True).reference_stats == names("stats")
    assert migrate.migrate(empty, reference_stats=True) == migrate.Applied((), (), (), ())


@pytest.mark.parametrize("before", ["select", APPS_TABLE, APPS_BARE_TABLE], ids=["new", "app's", "app's bare one"])
def test_the_second_time_nothing_is_left_to_do(empty: Connected, before: str) -> None:
    empty.execute(before.encode())
    migrate.migrate(empty)
    assert list(migrate.differences(empty)) == []
    assert migrate.migrate(empty) == migrate.Applied((), (), (), ())
    works(empty)


def test_what_the_apps_table_lacks_is_added_and_said(empty: Connected) -> None:
    empty.execute(APPS_BARE_TABLE.encode())
    assert set(migrate.migrate(empty).repaired) == {
        "not null of public.background_job_status.status",
        "a check on status of public.background_job_status",
        *(f"the default of public.background_job_status.{name}" for name in ("created_at", "job_type", "updated_at")),
    }


def test_twenty_at_once_do_the_work_of_one(empty_url: str, at_once: Callable[..., list[Any]]) -> None:
    def process(_: int) -> migrate.Applied:
        with database.connect(empty_url, autocommit=True) as connection:
            return migrate.migrate(connection, reference_stats=True)

    outcomes = at_once(20, process)
    nothing = migrate.Applied((), (), (), ())
    [worker] = [outcome for outcome in outcomes if outcome != nothing]
    assert worker == migrate.Applied(names("migrations"), names("functions"), names("stats"), ())


def test_a_table_that_the_app_has_created_is_adopted(empty: Connected) -> None:
    empty.execute(APPS_TABLE.encode())
    old = [
        empty.execute(
            "insert into public.background_job_status (job_payload, status, priority) values (%s, %s, 5) returning *",
            (Jsonb(steps.payload(requestId=request)), status),
        ).fetchone()
        for request, status in [("1", "completed"), ("2", "failed"), ("2", "completed")]
    ]
    empty.execute("insert into public.background_job_status (job_payload, status) values ('[]', 'failed')")

    migrate.migrate(empty)

    for row in old:
        assert row is not None
        now = empty.execute("select * from public.background_job_status where id = %s", (row["id"],)).fetchone()
        assert now is not None
        assert {column: now[column] for column in row} == row
    # Requests the app has made before are known, also those it has made twice.
    assert old[0] is not None
    assert steps.enqueue(empty, requestId="1") == old[0]["id"]
    steps.enqueue(empty, requestId="2")
    assert steps.lease(empty) == []
    works(empty)


def test_columns_of_ours_that_exist_already_are_kept(empty: Connected) -> None:
    empty.execute(APPS_TABLE.encode())
    empty.execute("alter table public.background_job_status add tenant_id uuid, add attempts integer default 0")
    migrate.migrate(empty)
    works(empty)


def test_a_queue_that_the_app_has_created_is_kept_with_its_messages(empty: Connected) -> None:
    empty.execute("select pgmq.create('stats_update')")
    empty.execute("select pgmq.send('stats_update', %s::jsonb)", (Jsonb(steps.payload()),))
    migrate.migrate(empty)
    [leased] = steps.lease(empty)
    assert leased.jobs == 1


@pytest.mark.parametrize(
    "object_of_the_app",
    [
        "create table public.players (id int)",
        "create table public.aggregated_hall_of_fame (id int)",
        "create function public.update_power_ratings() returns int language sql return 7",
        "create function public.update_power_ratings(target_tenant_id uuid) returns int language sql return 7",
    ],
)
def test_reference_stats_never_meet_the_apps_own(empty: Connected, object_of_the_app: str) -> None:
    empty.execute(object_of_the_app.encode())
    assert "stats objects of its own" in refused(empty, reference_stats=True)

    migrate.migrate(empty)
    assert refused(empty, reference_stats=True)
    if "()" in object_of_the_app:
        assert empty.execute("select public.update_power_ratings() as answer").fetchone() == {"answer": 7}


def test_a_database_without_the_queue_extension(create_database: Callable[..., str]) -> None:
    with database.connect(create_database("template1"), autocommit=True) as connection:
        message = refused(connection)
    assert message.startswith("this database has no pgmq")
    assert "enable Queues in the Supabase dashboard" in message


def test_a_role_without_rights(empty: Connected) -> None:
    empty.execute("create role visitor_of_migrations")
    empty.execute("set role visitor_of_migrations")
    try:
        message = refused(empty)
    finally:
        empty.execute("reset role")
        empty.execute("drop role visitor_of_migrations")
    assert message.startswith("STATS_DATABASE_URL: this role may not set the schema up")


def test_an_applied_migration_never_changes(empty: Connected, sql_files: Path) -> None:
    migrate.migrate(empty)
    with next((sql_files / "migrations").glob("0002_*.sql")).open("a") as file:
        file.write("-- one more thought\n")
    assert "0002_background_job_status.sql was applied to this database with other content" in refused(empty)


def test_a_changed_function_is_applied_again_alone(empty: Connected, sql_files: Path) -> None:
    migrate.migrate(empty)
    with (sql_files / "functions" / "tenant_key.sql").open("a") as file:
        file.write("-- one more thought\n")
    assert migrate.migrate(empty) == migrate.Applied((), ("tenant_key.sql",), (), ())
    assert migrate.migrate(empty) == migrate.Applied((), (), (), ())


def test_changed_reference_stats_are_applied_again(empty: Connected, sql_files: Path) -> None:
    migrate.migrate(empty, reference_stats=True)
    with (sql_files / "stats" / "update_power_ratings.sql").open("a") as file:
        file.write("-- one more thought\n")
    assert migrate.migrate(empty, reference_stats=True).reference_stats == names("stats")


def test_reference_stats_that_were_installed_under_other_file_names_are_applied_again(
    empty: Connected, sql_files: Path
) -> None:
    functions = list((sql_files / "stats").glob("update_*.sql"))
    for number, file in enumerate(functions):
        file.rename(file.with_name(f"{1010 + number}_{file.name}"))
    migrate.migrate(empty, reference_stats=True)
    empty.execute("insert into aggregated_records (tenant_id) values (gen_random_uuid())")
    for number, file in enumerate(functions):
        file.with_name(f"{1010 + number}_{file.name}").rename(file)
    assert migrate.migrate(empty, reference_stats=True).reference_stats == names("stats")
    assert empty.execute("select count(*) as rows from aggregated_records").fetchone() == {"rows": 1}


def test_a_new_function_never_meets_what_somebody_else_has_made(empty: Connected, sql_files: Path) -> None:
    new = sql_files / "stats" / "update_power_ratings.sql"
    later = new.rename(sql_files / "later")
    migrate.migrate(empty, reference_stats=True)
    later.rename(new)
    empty.execute("create table public.aggregated_performance_ratings (id int)")
    with pytest.raises(MigrationError, match=r"^public\.aggregated_performance_ratings is there already and not of"):
        migrate.migrate(empty, reference_stats=True)
    empty.execute("drop table public.aggregated_performance_ratings")
    assert migrate.migrate(empty, reference_stats=True).reference_stats == names("stats")


def test_a_file_of_the_reference_stats_that_fails_is_named(empty: Connected, sql_files: Path) -> None:
    (sql_files / "stats" / "update_nothing.sql").write_text("create table public.nothing (id nonsense);")
    message = refused(empty, reference_stats=True)
    assert message.startswith("migrating failed and nothing was changed: sql/stats/update_nothing.sql: ")
    assert "nonsense" in message


def test_a_migration_that_fails_leaves_nothing_of_its_batch(empty: Connected, sql_files: Path) -> None:
    migrate.migrate(empty)
    (sql_files / "migrations" / "9998_good.sql").write_text("create table stats_pipeline.good (id int);")
    (sql_files / "migrations" / "9999_broken.sql").write_text("create table stats_pipeline.broken (id nonsense);")
    message = refused(empty)
    assert message.startswith("migrating failed and nothing was changed")
    assert "nonsense" in message
    assert empty.execute("select to_regclass('stats_pipeline.good') as good").fetchone() == {"good": None}


def test_two_databases_of_a_new_server_are_migrated_at_once(tmp_path: Path, at_once: Callable[..., list[Any]]) -> None:
    """Roles belong to the server: both find none, and both create them."""
    with embedded.running(tmp_path) as url:
        with database.connect(url.replace("/postgres?", "/template1?"), autocommit=True) as connection:
            connection.execute("create database another template postgres")
        urls = [url, url.replace("/postgres?", "/another?")]

        def process(number: int) -> migrate.Applied:
            with database.connect(urls[number], autocommit=True) as connection:
                return migrate.migrate(connection)

        assert [type(outcome) for outcome in at_once(2, process)] == [migrate.Applied, migrate.Applied]


FOREIGN = [
    pytest.param(
        "create type public.job_state as enum ('queued', 'processing', 'completed', 'failed');"
        "alter table public.background_job_status drop constraint background_job_status_status_check,"
        " alter column status type public.job_state using status::public.job_state",
        "status is job_state, not text",
        id="an enum",
    ),
    pytest.param(
        "alter table public.background_job_status alter column created_at type timestamp(3),"
        " alter column started_at type timestamp(3), alter column completed_at type timestamp(3)",
        "created_at is timestamp(3) without time zone, not timestamp with time zone",
        id="times without a zone",
    ),
    pytest.param(
        "alter table public.background_job_status alter column results type json",
        "results is json, not jsonb",
        id="json",
    ),
]


@pytest.mark.parametrize(("change", "difference"), FOREIGN)
def test_a_column_of_the_apps_that_cannot_be_worked_with_is_refused_with_the_sql_to_run(
    empty: Connected, change: str, difference: str
) -> None:
    empty.execute(APPS_TABLE.encode())
    empty.execute(
        "insert into background_job_status (job_payload, status) values (%s, 'queued')", [Jsonb(steps.payload())]
    )
    empty.execute(change.encode())
    with pytest.raises(MigrationError) as refused:
        migrate.migrate(empty)
    said = str(refused.value)
    assert "\n" not in said
    assert difference in said
    assert "stats_pipeline" not in schemas(empty)
    empty.execute(said[said.index("alter table") :].encode())
    assert migrate.migrate(empty).migrations == names("migrations")
    assert empty.execute("select status from background_job_status").fetchone() == {"status": "queued"}


def test_columns_with_a_type_that_does_as_well_are_taken(empty: Connected) -> None:
    empty.execute(APPS_TABLE.encode())
    empty.execute(b"alter table background_job_status alter column status type varchar(20)")
    assert migrate.migrate(empty).migrations == names("migrations")


def test_a_dropped_queue_is_made_anew_and_said(empty: Connected) -> None:
    migrate.migrate(empty)
    empty.execute("select pgmq.drop_queue('stats_update')")
    assert migrate.migrate(empty).repaired == ("the queue stats_update",)
    assert migrate.migrate(empty).repaired == ()
    steps.enqueue(empty)
    [leased] = steps.lease(empty)
    assert leased.jobs == 1
