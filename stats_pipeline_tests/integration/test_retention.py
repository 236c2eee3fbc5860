"""Pruning with the real database and a real Dagster instance: old rows are deleted, needed ones stay, and nothing is
deleted when it is off."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import pytest
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.definitions import build_defs
from stats_pipeline.defs.jobs import build_prune_job, prune_dagster_runs
from stats_pipeline.jobs import audit, retention
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration.steps import enqueue, finish, lease_of, start

Query = Callable[..., list[dict[str, Any]]]

# Everything happened so many days earlier.
AGE = """
update public.background_job_status set completed_at = completed_at - %(age)s where completed_at is not null;
update stats_pipeline.lease set ended_at = ended_at - %(age)s where ended_at is not null;
update stats_pipeline.outbox set due_at = due_at - %(age)s;
update pgmq.a_stats_update set archived_at = archived_at - %(age)s;
update stats_pipeline.audit set at = at - %(age)s;
"""


@pytest.fixture
def age(connection: Connection[Any]) -> Callable[[int], None]:
    def age(days: int) -> None:
        for statement in AGE.strip().split(";\n"):
            connection.execute(statement.replace("%(age)s", f"interval '{days} days'").rstrip(";").encode())

    return age


@pytest.fixture
def complete(connection: Connection[Any], opened: Database) -> Callable[[str], UUID]:
    """A job that is taken to its end by the run of that name; its two tags are due."""

    def complete(run_id: str) -> UUID:
        job_id = enqueue(connection)
        finish(connection, opened, run_id)
        return job_id

    return complete


def deliver_everything(query: Query) -> None:
    query("update stats_pipeline.outbox set delivered_at = now()")


def log_in(connection: Connection[Any], who: str) -> None:
    audit.record(connection, action="login", who=who, role="admin", address="192.0.2.1")


def ids(query: Query, table: str, column: str) -> set[Any]:
    return {row[column] for row in query(f"select {column} from {table}")}


def test_what_is_old_is_deleted_and_nothing_else(
    connection: Connection[Any],
    opened: Database,
    complete: Callable[[str], UUID],
    age: Callable[[int], None],
    query: Query,
) -> None:
    complete("old")
    deliver_everything(query)
    log_in(connection, "old")
    age(31)
    fresh = complete("fresh")
    waiting = enqueue(connection)
    log_in(connection, "fresh")
    assert retention.prune(opened, days=30) == {"jobs": 1, "leases": 1, "tags": 2, "messages": 1, "audit": 1}
    assert ids(query, "stats_pipeline.audit", "who") == {"fresh"}
    assert ids(query, "public.background_job_status", "id") == {fresh, waiting}
    assert ids(query, "stats_pipeline.job_request", "job_id") == {fresh, waiting}
    assert ids(query, "stats_pipeline.attempt", "job_id") == {fresh}
    for table in ("lease", "function_result", "outbox"):
        column = "id" if table == "lease" else "lease_id"
        assert ids(query, f"stats_pipeline.{table}", column) == {lease_of(opened, "fresh")}
    assert retention.prune(opened, days=30) == {"jobs": 0, "leases": 0, "tags": 0, "messages": 0, "audit": 0}


def test_what_is_not_ours_or_not_over_is_kept_however_old(
    connection: Connection[Any], opened: Database, query: Query
) -> None:
    waiting = enqueue(connection)
    start(connection)
    going = enqueue(connection)
    query("insert into public.background_job_status (job_type, job_payload, status) "
        "values ('newsletter', '{}', 'completed')")  # fmt: skip
    with connection.transaction():
        connection.execute("set local session_replication_role = replica")  # or the trigger would say that it is now
        for column in ("created_at", "updated_at"):
            query(f"update public.background_job_status set {column} = {column} - interval '31 days'")
    assert retention.prune(opened, days=30)["jobs"] == 0
    assert {waiting, going} < ids(query, "public.background_job_status", "id")


def test_a_lease_is_kept_for_as_long_as_a_job_names_its_run(
    opened: Database, complete: Callable[[str], UUID], age: Callable[[int], None], query: Query
) -> None:
    """The tags of this one were taken late."""
    complete("late")
    age(31)
    query("update public.background_job_status set completed_at = now()")
    assert retention.prune(opened, days=30)["leases"] == 0
    assert ids(query, "stats_pipeline.lease", "run_id") == {"late"}
    assert len(ids(query, "stats_pipeline.function_result", "rpc")) == 2


def test_a_due_tag_is_kept_however_old_but_only_once(
    opened: Database, complete: Callable[[str], UUID], age: Callable[[int], None], query: Query
) -> None:
    complete("first")
    complete("second")
    second = lease_of(opened, "second")
    age(31)
    assert retention.prune(opened, days=30)["tags"] == 2
    assert query("select distinct lease_id from stats_pipeline.outbox") == [{"lease_id": second}]


def test_nothing_younger_is_deleted(
    connection: Connection[Any],
    opened: Database,
    complete: Callable[[str], UUID],
    age: Callable[[int], None],
    query: Query,
) -> None:
    complete("young")
    deliver_everything(query)
    log_in(connection, "young")
    age(29)
    assert set(retention.prune(opened, days=30).values()) == {0}


def test_everything_goes_in_however_many_batches(
    connection: Connection[Any],
    opened: Database,
    complete: Callable[[str], UUID],
    age: Callable[[int], None],
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for number in range(5):
        complete(f"run-{number}")
        log_in(connection, f"admin {number}")
    deliver_everything(query)
    age(31)
    assert retention.prune(opened, days=30) == {"jobs": 5, "leases": 5, "tags": 10, "messages": 5, "audit": 5}


def add_run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> str:
    return instance.add_run(dg.DagsterRun(job_name="stats_update", run_id=str(uuid4()), status=status)).run_id


def test_only_dagsters_finished_runs_are_deleted() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
            add_run(instance, status)
        going = add_run(instance, dg.DagsterRunStatus.STARTED)
        assert prune_dagster_runs(instance, days=1) == 0
        assert prune_dagster_runs(instance, days=0) == 3
        assert [run.run_id for run in instance.get_runs()] == [going]


@pytest.mark.parametrize(("days", "left", "status"), [("0", 1, "STOPPED"), ("30", 0, "RUNNING")])
def test_the_setting_decides_whether_anything_is_deleted(
    database_url: str,
    complete: Callable[[str], UUID],
    age: Callable[[int], None],
    query: Query,
    days: str,
    left: int,
    status: str,
) -> None:
    complete("old")
    age(31)
    settings = Settings.model_validate({"STATS_DATABASE_URL": database_url, "STATS_RETENTION_DAYS": days})
    assert build_defs(settings).resolve_schedule_def("daily_prune").default_status.value == status
    with dg.DagsterInstance.ephemeral() as instance:
        assert build_prune_job(settings).execute_in_process(instance=instance).success
    assert len(ids(query, "public.background_job_status", "id")) == left
