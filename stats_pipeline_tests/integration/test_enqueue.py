"""The three ways to enqueue: what is accepted, what is rejected and why, and that a repeated request has no effect."""

import functools
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline.errors import InvalidJob
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

JOBS = "public.background_job_status"
QUEUE = "pgmq.q_stats_update"
ARCHIVE = "pgmq.a_stats_update"
NO_JOB = UUID("00000000-0000-4000-8000-000000000000")

GOOD = [
    {"triggeredBy": "post-match"},  # the app's own call, while the match has no id
    {"triggeredBy": "post-match", "matchId": 7},
    {"triggeredBy": "post-match", "matchId": 7, "timestamp": "2025-06-26T21:00:00.123Z"},
    {"triggeredBy": "admin", "userId": "admin", "timestamp": "2025-06-26T21:00:00+02:00"},
    {"triggeredBy": "cron", "timestamp": "2025-06-26T21:00"},
    {"tenantId": str(steps.TENANT)},
    {"tenantId": str(steps.TENANT).upper()},
    {"matchId": None, "userId": None, "tenantId": None, "retryOf": None},
    {"requestId": "x" * 200},
    {"requestId": "\u00e9 '\"; drop table matches; --"},
    {"something": {"of": ["the", "app's"]}},
]
BAD: list[tuple[Any, str]] = [
    ({"triggeredBy": "boredom"}, "triggeredBy"),
    ({"triggeredBy": None}, "triggeredBy"),
    ({"triggeredBy": ["admin"]}, "triggeredBy"),
    ({"requestId": None}, "requestId"),
    ({"requestId": ""}, "requestId"),
    ({"requestId": 7}, "requestId"),
    ({"requestId": "x" * 201}, "requestId"),
    ({"matchId": 0}, "matchId"),
    ({"matchId": -7}, "matchId"),
    ({"matchId": 1.5}, "matchId"),
    ({"matchId": "7"}, "matchId"),
    ({"matchId": True}, "matchId"),
    ({"matchId": 10**30}, "matchId"),
    ({"tenantId": "the-other-club"}, "tenantId"),
    ({"tenantId": 7}, "tenantId"),
    ({"tenantId": ""}, "tenantId"),
    ({"retryOf": "yesterday's"}, "retryOf"),
    ({"timestamp": "yesterday"}, "timestamp"),
    ({"timestamp": 1750971600}, "timestamp"),
    ({"userId": {"id": 7}}, "userId"),
    ({"userId": "x" * 1_000_000}, "payload"),
    ({"nested": functools.reduce(lambda inner, _: [inner], range(20), list[Any]())}, "payload"),
    ({"huge": 10**400}, "payload"),
    ({"huge": {"and": {"deep": [-(10**400)]}}}, "payload"),
]
NO_OBJECTS: list[Any] = [[], ["admin"], "admin", 7, True, None]


def bad_payloads() -> list[Any]:
    cases = [
        pytest.param(
            {**steps.payload(), **fields}, named, id=f"{next(iter(fields))}={str(next(iter(fields.values())))[:20]}"
        )
        for fields, named in BAD
    ]
    missing = [
        pytest.param(
            {key: value for key, value in steps.payload().items() if key != left_out}, left_out, id=f"no {left_out}"
        )
        for left_out in ("triggeredBy", "requestId")
    ]
    return [*cases, *missing, *(pytest.param(value, "payload", id=json.dumps(value)) for value in NO_OBJECTS)]


def insert(connection: Connected, payload: Any) -> UUID:
    """Door b, as the app's route does it."""
    cursor = connection.execute(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued') returning id",
        (Jsonb(payload),),
    )
    row = cursor.fetchone()
    assert row is not None
    return UUID(str(row["id"]))


def send(connection: Connected, message: Any) -> None:
    """Door c."""
    connection.execute("select pgmq.send('stats_update', %s::jsonb)", (Jsonb(message),))


# Door a: the function


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_a_good_payload_is_queued_with_its_message(
    connection: Connected, query: Query, count: Count, fields: dict[str, Any]
) -> None:
    payload = steps.payload(**fields)
    answer = queue.enqueue(connection, payload)

    assert (answer.success, answer.status) == (True, "queued")
    job = steps.job(connection, answer.job_id)
    sent = {key: value for key, value in payload.items() if value is not None}
    assert job.job_payload == {"timestamp": job.job_payload["timestamp"], **sent}
    assert job.tenant_id == (UUID(fields["tenantId"]) if fields.get("tenantId") else None)
    assert (job.status, job.attempts, job.started_at, job.results) == ("queued", 0, None, None)
    assert query(f"select msg_id, message from {QUEUE}") == [
        {"msg_id": job.msg_id, "message": {"jobId": str(answer.job_id)}}
    ]
    assert [lease.jobs for lease in steps.lease(connection)] == [1]
    assert count(JOBS) == 1


@pytest.mark.parametrize(("payload", "named"), bad_payloads())
def test_a_bad_payload_is_refused_by_name_and_leaves_nothing(
    connection: Connected, count: Count, payload: Any, named: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute("select public.enqueue_stats_job(%s)", (Jsonb(payload),))
    assert caught.value.sqlstate == "22023"
    message = caught.value.diag.message_primary or ""
    assert message.startswith(f"{named} ")
    assert len(message) < 200

    with pytest.raises(InvalidJob, match=f"^{named} "):
        queue.enqueue(connection, payload)
    assert [count(table) for table in (JOBS, QUEUE, ARCHIVE, "stats_pipeline.job_request")] == [0, 0, 0, 0]


def test_null_is_no_payload(connection: Connected) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="payload must be a JSON object"):
        connection.execute("select public.enqueue_stats_job(null)")


def test_row_and_message_are_one_transaction(connection: Connected, count: Count) -> None:
    with connection.transaction(force_rollback=True):
        steps.enqueue(connection)
        assert (count(JOBS), count(QUEUE)) == (1, 1)
    assert (count(JOBS), count(QUEUE), count("stats_pipeline.job_request")) == (0, 0, 0)


def test_a_repeated_request_returns_the_first_job(connection: Connected, count: Count) -> None:
    first = queue.enqueue(connection, steps.payload(requestId="press"))
    second = queue.enqueue(connection, steps.payload(requestId="press", triggeredBy="cron"))
    assert second.job_id == first.job_id
    assert second.message != first.message
    assert (count(JOBS), count(QUEUE)) == (1, 1)


def test_a_repeated_request_shows_what_became_of_the_first(connection: Connected, opened: Database) -> None:
    first = queue.enqueue(connection, steps.payload(requestId="press"))
    steps.finish(connection, opened)
    assert (first.repeated, first.completed_at) == (False, None)
    assert first.created_at is not None
    assert queue.enqueue(connection, steps.payload(requestId="press")) == first.model_copy(
        update={
            "status": "completed",
            "message": "This request has been enqueued before",
            "repeated": True,
            "completed_at": steps.job(connection, first.job_id).completed_at,
        }
    )
    assert steps.lease(connection) == []


def test_two_tenants_may_use_the_same_request_id(connection: Connected) -> None:
    ids = {
        steps.enqueue(connection, tenant, requestId="nightly") for tenant in (None, steps.TENANT, steps.OTHER_TENANT)
    }
    assert len(ids) == 3


def test_a_request_that_is_sent_many_times_at_once_is_one_job(
    opened: Database, at_once: Callable[..., list[Any]], count: Count
) -> None:
    payload = steps.payload()

    def press(_: int) -> UUID:
        with opened.connection() as connection:
            return queue.enqueue(connection, payload).job_id

    assert len(set(at_once(10, press))) == 1
    assert (count(JOBS), count(QUEUE)) == (1, 1)


# Door b: the row


def test_an_inserted_row_sends_its_message(connection: Connected, opened: Database, count: Count) -> None:
    job_id = insert(connection, steps.payload(triggeredBy="post-match", matchId=7, tenantId=str(steps.TENANT)))
    assert steps.job(connection, job_id).tenant_id == steps.TENANT
    assert count(QUEUE) == 1

    assert steps.finish(connection, opened).job_ids == (job_id,)
    assert steps.job(connection, job_id).status == "completed"


@pytest.mark.parametrize("status", ["processing", "completed", "failed"])
def test_a_row_that_does_not_wait_sends_none(connection: Connected, count: Count, status: str) -> None:
    connection.execute(
        "insert into public.background_job_status (job_payload, status) values (%s, %s)",
        (Jsonb(steps.payload()), status),
    )
    assert count(QUEUE) == 0


def test_a_row_of_another_kind_of_job_is_none_of_our_business(connection: Connected, count: Count) -> None:
    connection.execute(
        "insert into public.background_job_status (job_type, job_payload, status) values ('newsletter', '{}', 'queued')"
    )
    assert count(QUEUE) == 0
    assert steps.lease(connection) == []
    assert queue.list_jobs(connection, limit=10) == []


@pytest.mark.parametrize(("payload", "named"), bad_payloads())
def test_an_inserted_bad_payload_becomes_a_failed_job_that_says_why(
    connection: Connected, count: Count, payload: Any, named: str
) -> None:
    job_id = insert(connection, payload)
    assert steps.lease(connection) == []
    [job] = queue.list_jobs(connection, limit=10)
    assert (job.id, job.status) == (job_id, "failed")
    assert (job.error_message or "").startswith(f"Rejected: {named} ")
    assert job.completed_at is not None
    assert (count(QUEUE), count(ARCHIVE)) == (0, 1)


def test_a_row_with_a_known_request_is_refused_whole(connection: Connected, count: Count) -> None:
    first = insert(connection, steps.payload(requestId="press"))
    with pytest.raises(psycopg.errors.UniqueViolation, match=str(first)):
        insert(connection, steps.payload(requestId="press"))
    assert (count(JOBS), count(QUEUE)) == (1, 1)


def test_rows_with_one_request_at_once_leave_one(
    opened: Database, at_once: Callable[..., list[Any]], count: Count
) -> None:
    payload = steps.payload()

    def press(number: int) -> UUID:
        with opened.connection() as connection:
            if number % 2:
                return insert(connection, payload)
            return queue.enqueue(connection, payload).job_id

    outcomes = at_once(10, press)
    assert {type(outcome) for outcome in outcomes} <= {UUID, psycopg.errors.UniqueViolation}
    assert len({outcome for outcome in outcomes if isinstance(outcome, UUID)}) == 1
    assert (count(JOBS), count(QUEUE)) == (1, 1)


# Door c: the message


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_a_raw_message_gets_its_row(connection: Connected, count: Count, fields: dict[str, Any]) -> None:
    send(connection, steps.payload(**fields))
    assert count(JOBS) == 0

    assert [lease.jobs for lease in steps.lease(connection)] == [1]

    [job] = queue.list_jobs(connection, limit=10)
    assert job.status == "queued"
    assert job.msg_id is not None
    assert "timestamp" in job.job_payload
    assert count(QUEUE) == 1


@pytest.mark.parametrize(("message", "named"), bad_payloads())
def test_a_malformed_message_is_a_failed_job_that_says_why_once(
    connection: Connected, count: Count, message: Any, named: str
) -> None:
    send(connection, message)
    assert steps.lease(connection) == []
    assert steps.lease(connection) == []

    [job] = queue.list_jobs(connection, limit=10)
    assert job.status == "failed"
    assert (job.error_message or "").startswith(f"Rejected: {named} ")
    assert job.completed_at is not None
    assert len(json.dumps(job.job_payload)) < 70_000
    assert (count(QUEUE), count(ARCHIVE)) == (0, 1)


def test_a_malformed_message_keeps_nobody_waiting(connection: Connected, opened: Database) -> None:
    send(connection, "first in the queue")
    good = steps.enqueue(connection)
    send(connection, {"triggeredBy": "boredom"})
    assert steps.finish(connection, opened).job_ids == (good,)


def test_raw_messages_with_one_request_are_one_job(connection: Connected, count: Count) -> None:
    payload = steps.payload()
    for _ in range(3):
        send(connection, payload)
    assert [lease.jobs for lease in steps.lease(connection)] == [1]
    assert steps.lease(connection) == []
    assert (count(JOBS), count(QUEUE), count(ARCHIVE)) == (1, 1, 3)


def test_a_raw_message_for_a_known_request_is_dropped(connection: Connected, count: Count) -> None:
    payload = steps.payload()
    first = queue.enqueue(connection, payload).job_id
    send(connection, payload)
    assert [lease.jobs for lease in steps.lease(connection)] == [1]
    assert [job.id for job in queue.list_jobs(connection, limit=10)] == [first]
    assert (count(QUEUE), count(ARCHIVE)) == (1, 1)


@pytest.mark.parametrize("job_id", [str(NO_JOB), "no id", None, 7])
def test_a_message_for_a_job_that_does_not_exist_is_dropped(
    connection: Connected, opened: Database, count: Count, job_id: Any
) -> None:
    send(connection, {"jobId": job_id})
    assert steps.lease(connection) == []
    steps.reconcile(opened)
    assert (count(JOBS), count(QUEUE), count(ARCHIVE)) == (0, 0, 1)


def test_a_deleted_jobs_message_is_dropped(connection: Connected, opened: Database, count: Count) -> None:
    steps.enqueue(connection)
    connection.execute("delete from public.background_job_status")
    assert steps.lease(connection) == []
    steps.reconcile(opened)
    assert (count(QUEUE), count("stats_pipeline.job_request")) == (0, 0)


def test_a_delayed_message_waits(connection: Connected, count: Count) -> None:
    connection.execute("select pgmq.send('stats_update', %s::jsonb, 3600)", (Jsonb(steps.payload()),))
    assert steps.lease(connection) == []
    assert (count(JOBS), count(QUEUE)) == (0, 1)
