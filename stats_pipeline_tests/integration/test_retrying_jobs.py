"""Retry: one new job that names the failed one, however often it is requested."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline.errors import InvalidJob
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps

Count = Callable[[str], int]
Connected = Connection[DictRow]

JOBS = "public.background_job_status"
QUEUE = "pgmq.q_stats_update"
NO_JOB = UUID("00000000-0000-4000-8000-000000000000")


def insert(connection: Connected, payload: Any) -> UUID:
    """Door b, as the app's route does it."""
    cursor = connection.execute(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued') returning id",
        (Jsonb(payload),),
    )
    row = cursor.fetchone()
    assert row is not None
    return UUID(str(row["id"]))


def failed_job(connection: Connected, opened: Database, **fields: Any) -> UUID:
    job_id = steps.enqueue(connection, **fields)
    steps.fail(connection, opened, run_id=str(uuid4()))
    assert steps.job(connection, job_id).status == "failed"
    return job_id


def test_a_retry_is_a_new_job_that_names_the_old_one(connection: Connected, opened: Database) -> None:
    old_id = failed_job(connection, opened, triggeredBy="post-match", matchId=7)
    old = steps.job(connection, old_id)

    new = steps.job(connection, queue.retry(connection, old_id).job_id)

    assert (new.status, new.retry_of, new.attempts) == ("queued", old_id, 0)
    assert new.job_payload == {
        "triggeredBy": "admin",
        "matchId": 7,
        "retryOf": str(old_id),
        "requestId": new.job_payload["requestId"],
        "timestamp": new.job_payload["timestamp"],
    }
    assert new.job_payload["requestId"] != old.job_payload["requestId"]
    assert steps.job(connection, old_id) == old
    steps.finish(connection, opened)
    assert steps.job(connection, new.id).status == "completed"


def test_retrying_twice_is_one_retry_until_it_has_ended(connection: Connected, opened: Database) -> None:
    old = failed_job(connection, opened)
    first = queue.retry(connection, old).job_id
    again = queue.retry(connection, old)
    assert (again.job_id, again.repeated) == (first, True)
    steps.fail(connection, opened, run_id="again")
    assert queue.retry(connection, old).job_id != first


def test_retrying_many_times_at_once_is_one_retry(
    connection: Connected, opened: Database, at_once: Callable[..., list[Any]]
) -> None:
    old = failed_job(connection, opened)

    def press(_: int) -> UUID:
        with opened.connection() as pooled:
            return queue.retry(pooled, old).job_id

    assert len(set(at_once(10, press))) == 1


def test_a_retry_keeps_the_tenant(connection: Connected, opened: Database) -> None:
    old = failed_job(connection, opened, tenantId=str(steps.TENANT))
    new = queue.retry(connection, old).job_id
    assert steps.job(connection, new).tenant_id == steps.TENANT


def test_a_job_that_does_not_exist_cannot_be_retried(connection: Connected, count: Count) -> None:
    with pytest.raises(InvalidJob, match=f"job {NO_JOB} does not exist"):
        queue.retry(connection, NO_JOB)
    with pytest.raises(InvalidJob, match=f"job {NO_JOB} does not exist"):
        queue.get_job(connection, NO_JOB)
    assert count(JOBS) == 0


@pytest.mark.parametrize("status", ["queued", "processing", "completed"])
def test_only_a_failed_job_can_be_retried(connection: Connected, opened: Database, count: Count, status: str) -> None:
    job_id = steps.enqueue(connection)
    if status == "processing":
        steps.start(connection)
    elif status == "completed":
        steps.finish(connection, opened)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"retryOf .* job {job_id} is {status}"):
        connection.execute("select public.retry_stats_job(%s)", (job_id,))
    assert count(JOBS) == 1


def test_a_rejected_job_says_again_what_is_wrong_with_it(connection: Connected, count: Count) -> None:
    job_id = insert(connection, steps.payload(matchId="seven"))
    steps.lease(connection)
    with pytest.raises(InvalidJob, match=r"^matchId "):
        queue.retry(connection, job_id)
    assert (count(JOBS), count(QUEUE)) == (1, 0)
