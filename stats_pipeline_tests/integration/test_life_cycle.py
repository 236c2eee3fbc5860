"""From lease to settled: each step alone, twice, late, concurrently, and the resulting row of the job."""

import dataclasses
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.database import Database
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Job
from stats_pipeline.jobs.refresh import Refresh
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import TENANT, TWO

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

QUEUE = "pgmq.q_stats_update"
ARCHIVE = "pgmq.a_stats_update"
OUTBOX = "stats_pipeline.outbox"


def deliver(connection: Connected, run_id: str = "run-1") -> None:
    """What the app's taking the tags does."""
    connection.execute(
        "update stats_pipeline.outbox set delivered_at = now() where lease_id = %s",
        (steps.lease_of(connection, run_id),),
    )


def replace_function(connection: Connected, then: str) -> None:
    """Put a function in the place of the first one's that writes a row, and then does what is said."""
    connection.execute(f"drop function public.{TWO[0].rpc}".encode())
    connection.execute("create table public.written (what text)")
    connection.execute(
        f"create function public.{TWO[0].rpc}() returns void language plpgsql as "
        f"$$ begin insert into public.written values ('half'); {then}; end $$".encode()
    )


def state(job: Job) -> dict[str, Any]:
    return job.model_dump(exclude={"updated_at"})


# One run, from its start to its end


def test_a_job_from_lease_to_completed(connection: Connected, opened: Database, query: Query, count: Count) -> None:
    job_id = steps.enqueue(connection)

    [leased] = steps.lease(connection)
    assert (leased.tenant_id, leased.jobs) == (None, 1)
    assert steps.job(connection, job_id).status == "queued"

    claimed = steps.claim(connection, leased)
    assert claimed is not None
    assert (claimed.lease_id, claimed.tenant_id, claimed.job_ids) == (leased.lease_id, None, (job_id,))
    job = steps.job(connection, job_id)
    assert (job.status, job.run_id, job.attempts, job.completed_at) == ("processing", "run-1", 1, None)
    assert job.started_at is not None

    steps.compute(opened, claimed, TWO[0])
    steps.settle(connection, app=True)
    job = steps.job(connection, job_id)
    assert job.status == "processing"
    assert job.results is not None
    assert (job.results["successful_functions"], job.results["total_functions"]) == (1, 2)

    steps.compute(opened, claimed, TWO[1])
    steps.settle(connection, app=True)
    job = steps.job(connection, job_id)
    assert job.status == "processing"
    assert job.results is not None
    assert job.results["cache"] == {
        "status": "pending",
        "delivered": [],
        "pending": ["all_time_stats", "hall_of_fame"],
    }
    assert count(QUEUE) == 1

    deliver(connection)
    steps.settle(connection, app=True)
    job = steps.job(connection, job_id)
    assert (job.status, job.error_message) == ("completed", None)
    assert job.started_at is not None
    assert job.completed_at is not None
    assert job.completed_at > job.started_at
    assert job.results is not None
    durations = [result.pop("duration_ms") for result in job.results["functions"].values()]
    assert all(duration >= 0 for duration in durations)
    assert job.results == {
        "run_id": "run-1",
        "attempt": 1,
        "total_functions": 2,
        "successful_functions": 2,
        "failed_functions": 0,
        "functions": {function.rpc: {"status": "success", "attempts": 1} for function in TWO},
        "cache": {"status": "delivered", "delivered": ["all_time_stats", "hall_of_fame"], "pending": []},
        "coalesced_with": {"count": 0, "first": []},
    }
    assert (count(QUEUE), count(ARCHIVE)) == (0, 1)
    assert query("select job_id, attempt, lease_id, outcome, error from stats_pipeline.attempt") == [
        {"job_id": job_id, "attempt": 1, "lease_id": leased.lease_id, "outcome": "completed", "error": None}
    ]


def test_claiming_again_changes_nothing(connection: Connected) -> None:
    job_id = steps.enqueue(connection)
    [leased] = steps.lease(connection)
    first = steps.claim(connection, leased)
    before = steps.job(connection, job_id)
    assert steps.claim(connection, leased) == first
    assert state(steps.job(connection, job_id)) == state(before)


def test_ten_ops_that_claim_at_once_are_one_attempt(
    connection: Connected, opened: Database, at_once: Callable[..., list[Any]]
) -> None:
    job_id = steps.enqueue(connection)
    [leased] = steps.lease(connection)

    def op(_: int) -> object:
        with opened.connection() as pooled:
            return steps.claim(pooled, leased)

    claims = at_once(10, op)
    assert [claimed.job_ids for claimed in claims] == [(job_id,)] * 10
    assert steps.job(connection, job_id).attempts == 1


def test_settling_an_ended_run_changes_nothing(connection: Connected, opened: Database, count: Count) -> None:
    job_id = steps.enqueue(connection)
    steps.finish(connection, opened)
    before = steps.job(connection, job_id)
    steps.settle(connection)
    steps.settle(connection, app=True)
    assert steps.job(connection, job_id).status == "completed"
    steps.settle(connection)
    assert state(steps.job(connection, job_id)) == state(before)
    assert count(ARCHIVE) == 1


def test_settling_a_lease_that_is_unknown_or_unclaimed_changes_nothing(connection: Connected) -> None:
    job_id = steps.enqueue(connection)
    [leased] = steps.lease(connection)
    before = steps.job(connection, job_id)
    for lease_id in (uuid4(), leased.lease_id):
        steps.settle(connection, lease_id)
    assert steps.job(connection, job_id) == before


def test_hooks_that_settle_at_once_end_the_job_once(
    connection: Connected, opened: Database, at_once: Callable[..., list[Any]], count: Count
) -> None:
    job_id = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))

    def hook(_: int) -> None:
        with opened.connection() as pooled:
            steps.settle(pooled)

    assert at_once(10, hook) == [None] * 10
    assert steps.job(connection, job_id).status == "completed"
    assert (count(QUEUE), count(ARCHIVE)) == (0, 1)


def test_the_last_two_functions_end_the_job_whichever_is_last(
    connection: Connected, opened: Database, at_once: Callable[..., list[Any]]
) -> None:
    for number in range(10):
        job_id = steps.enqueue(connection)
        claimed = steps.start(connection, f"run-{number}")

        def op(which: int, claimed: Any = claimed) -> None:
            steps.compute(opened, claimed, TWO[which])
            with opened.connection() as pooled:
                steps.settle(pooled, claimed.lease_id)

        assert at_once(2, op) == [None, None]
        assert steps.job(connection, job_id).status == "completed"


# Runs that nobody enqueued


def test_a_run_launched_by_hand_gets_a_job_of_its_own(connection: Connected, opened: Database, count: Count) -> None:
    claimed = steps.claim(connection, None, "by-hand", TWO[:1], TENANT)
    assert claimed is not None
    [job_id] = claimed.job_ids
    job = steps.job(connection, job_id)
    assert (job.status, job.attempts, job.tenant_id, job.msg_id) == ("processing", 1, TENANT, None)
    assert job.started_at is not None
    assert count(QUEUE) == 0

    assert steps.claim(connection, None, "by-hand", TWO[:1], TENANT) == claimed
    steps.compute(opened, claimed, TWO[0])
    steps.settle(connection, "by-hand")
    job = steps.job(connection, job_id)
    assert job.status == "completed"
    assert job.results is not None
    assert list(job.results["functions"]) == [TWO[0].rpc]
    assert count("public.background_job_status") == 1


def test_a_run_launched_by_hand_waits_for_the_tenants_open_run(connection: Connected, opened: Database) -> None:
    steps.enqueue(connection)
    claimed = steps.start(connection)
    assert steps.claim(connection, None, "by-hand") is None
    assert steps.claim(connection, None, "by-hand", tenant=TENANT) is not None

    steps.compute(opened, claimed)
    steps.settle(connection)
    assert steps.claim(connection, None, "by-hand-2") is not None
    steps.enqueue(connection)
    assert steps.lease(connection) == []


# Failure


def test_a_failed_function_fails_the_job_by_name_and_no_other(
    connection: Connected, opened: Database, query: Query
) -> None:
    job_id = steps.enqueue(connection)
    steps.fail(connection, opened)
    job = steps.job(connection, job_id)
    assert job.status == "failed"
    assert job.error_message == f"Failed functions: {TWO[1].rpc} (no such table)"
    assert job.results is not None
    assert (job.results["successful_functions"], job.results["failed_functions"]) == (1, 1)
    assert job.results["functions"][TWO[1].rpc]["error"] == "no such table"
    assert query(f"select tag from {OUTBOX}") == [{"tag": TWO[0].cache_tags[0]}]
    assert query("select outcome, error from stats_pipeline.attempt") == [
        {"outcome": "failed", "error": job.error_message}
    ]


def test_a_try_that_fails_is_shown_and_a_later_success_counts(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    claimed = steps.start(connection)
    steps.fail_try(opened, TWO[0].rpc, "deadlock detected")
    steps.settle(connection)
    results = steps.job(connection, job_id).results
    assert results is not None
    assert results["functions"][TWO[0].rpc] == {
        "status": "retrying",
        "attempts": 1,
        "duration_ms": 5,
        "error": "deadlock detected",
    }

    steps.compute(opened, claimed, TWO[0], tries=2)
    steps.compute(opened, claimed, TWO[1])
    steps.settle(connection)
    job = steps.job(connection, job_id)
    assert job.status == "completed"
    assert job.results is not None
    result = job.results["functions"][TWO[0].rpc]
    assert (result["status"], result["attempts"], result.get("error")) == ("success", 2, None)


def test_a_success_is_not_taken_back_by_late_reports(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    steps.fail_function(opened, TWO[0].rpc, "late")
    steps.fail_try(opened, TWO[1].rpc, "late")
    steps.settle(connection)
    assert steps.job(connection, job_id).status == "completed"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise exception using errcode = '42501', message = 'no'", psycopg.errors.InsufficientPrivilege),
        ("raise exception 'not now'", psycopg.errors.RaiseException),
        ("perform pg_catalog.pg_sleep(60)", psycopg.errors.QueryCanceled),
    ],
    ids=["refused", "raised", "timed out"],
)
def test_a_function_that_fails_leaves_no_trace_of_its_work(
    connection: Connected, opened: Database, count: Count, body: str, expected: type[psycopg.Error]
) -> None:
    """The function writes, then fails: neither its rows nor its tags are there."""
    steps.enqueue(connection)
    claimed = steps.start(connection)
    replace_function(connection, body)
    impatient = dataclasses.replace(TWO[0], timeout_seconds=1)
    with pytest.raises(expected):
        steps.compute(opened, claimed, impatient)
    assert [count(table) for table in ("public.written", OUTBOX, "stats_pipeline.function_result")] == [0, 0, 0]


def test_a_function_is_called_for_its_tenant(connection: Connected, opened: Database, query: Query) -> None:
    """Without a tenant it is called without arguments, as the app's own functions may take none."""
    connection.execute(f"drop function public.{TWO[0].rpc}".encode())
    connection.execute("create table public.called (with_tenant uuid)")
    for arguments, value in (("", "null"), ("target_tenant_id uuid", "target_tenant_id")):
        connection.execute(
            f"create function public.{TWO[0].rpc}({arguments}) returns void language sql as "
            f"$$ insert into public.called values ({value}) $$".encode()
        )
    steps.enqueue(connection)
    steps.compute(opened, steps.start(connection), TWO[0])
    steps.enqueue(connection, TENANT)
    steps.compute(opened, steps.start(connection, "run-2"), TWO[0])
    assert query("select with_tenant from public.called order by with_tenant") == [
        {"with_tenant": TENANT},
        {"with_tenant": None},
    ]


# The app


def test_without_an_app_invalidation_is_not_configured_and_never_done(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    steps.finish(connection, opened)
    job = steps.job(connection, job_id)
    assert job.status == "completed"
    assert job.results is not None
    assert job.results["cache"] == {
        "status": "not configured",
        "delivered": [],
        "pending": ["all_time_stats", "hall_of_fame"],
    }


def test_the_next_run_does_not_wait_for_tags(connection: Connected, opened: Database) -> None:
    early = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    steps.settle(connection, app=True)
    steps.enqueue(connection)
    assert len(steps.lease(connection)) == 1
    assert steps.job(connection, early).status == "processing"


def test_tags_that_are_not_taken_in_time_fail_the_job_until_they_are(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    steps.settle(connection, app=True)
    steps.settle(connection, app=True, deadline=0)
    job = steps.job(connection, job_id)
    assert (job.status, job.error_message) == ("failed", "Cache tags not delivered: all_time_stats, hall_of_fame")

    deliver(connection)
    steps.settle(connection, app=True)
    job = steps.job(connection, job_id)
    assert (job.status, job.error_message) == ("completed", None)


def test_a_tag_that_goes_stale_again_is_due_again(connection: Connected, opened: Database, query: Query) -> None:
    for run_id in ("run-1", "run-2"):
        steps.enqueue(connection)
        steps.compute(opened, steps.start(connection, run_id))
        steps.settle(connection, run_id, app=True)
    deliver(connection, "run-1")
    due = query(f"select lease_id, tag from {OUTBOX} where delivered_at is null order by tag")
    second = steps.lease_of(connection, "run-2")
    assert due == [{"lease_id": second, "tag": tag} for tag in ("all_time_stats", "hall_of_fame")]


# What the list says


def test_the_list_is_newest_first_and_limited(connection: Connected) -> None:
    ids = [steps.enqueue(connection) for _ in range(3)]
    assert [job.id for job in queue.list_jobs(connection, limit=2)] == ids[:0:-1]


@pytest.mark.parametrize("timezone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_a_functions_day_is_the_one_of_the_time_zone_it_is_told(
    connection: Connected, opened: Database, query: Query, timezone: str
) -> None:
    """Twenty-six hours apart: the one is always a day ahead of the other."""
    replace_function(connection, "insert into public.written values (current_date::text)")
    steps.enqueue(connection)
    there = Refresh(opened, Settings.model_validate({"STATS_TIMEZONE": timezone}), run_id="run-1")
    there.compute(TWO[0], steps.start(connection), tries=1)
    [now] = query("select (now() at time zone %s)::date::text as day", timezone)
    assert {"what": now["day"]} in query("select what from public.written")
