"""Several raw messages at once: which of them become jobs, of which club, and what is kept of the others.

Single messages are in `test_enqueue.py`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]


def send(connection: Connected, message: Any) -> None:
    connection.execute("select pgmq.send('stats_update', %s::jsonb)", (Jsonb(message),))


def test_of_messages_with_one_request_the_oldest_becomes_the_job(connection: Connected) -> None:
    for name in ("oldest", "younger", "youngest"):
        send(connection, steps.payload(requestId="press", userId=name))
    steps.lease(connection)
    [job] = queue.list_jobs(connection, limit=10)
    assert job.job_payload["userId"] == "oldest"


def test_one_request_of_two_clubs_is_two_jobs(connection: Connected) -> None:
    for tenant in (TENANT, OTHER_TENANT, TENANT):
        send(connection, steps.payload(requestId="nightly", tenantId=str(tenant)))
    send(connection, steps.payload(requestId="nightly"))
    assert [(leased.tenant_id, leased.jobs) for leased in steps.lease(connection)] == [
        (TENANT, 1),
        (OTHER_TENANT, 1),
        (None, 1),
    ]


def test_another_clubs_request_with_the_same_id_is_none_of_ours(connection: Connected) -> None:
    steps.enqueue(connection, OTHER_TENANT, requestId="nightly")
    send(connection, steps.payload(requestId="nightly", tenantId=str(TENANT)))
    assert {leased.tenant_id for leased in steps.lease(connection)} == {TENANT, OTHER_TENANT}


def test_a_job_is_as_old_as_its_message(connection: Connected, query: Query) -> None:
    """It has waited since then, and that is what the list and the latencies count from."""
    send(connection, steps.payload())
    query("update pgmq.q_stats_update set enqueued_at = '2025-06-27 02:00+00'")
    steps.lease(connection)
    [job] = queue.list_jobs(connection, limit=10)
    sent = datetime.fromisoformat("2025-06-27T02:00+00:00")
    assert job.created_at == sent
    assert datetime.fromisoformat(job.job_payload["timestamp"]) == sent


def test_what_a_malformed_message_held_is_kept_for_the_reader(connection: Connected) -> None:
    for message in ({"triggeredBy": "boredom"}, "a sentence", {"triggeredBy": "admin", "note": "x" * 100_000}):
        send(connection, message)
    assert steps.lease(connection) == []
    payloads = [job.job_payload for job in reversed(queue.list_jobs(connection, limit=10))]
    assert payloads[0] == {"triggeredBy": "boredom"}
    assert payloads[1] == {"message": "a sentence"}
    assert payloads[2]["truncated"]
    assert "xxx" in payloads[2]["message"]


def test_messages_and_rows_that_cannot_be_jobs_keep_no_club_waiting(
    connection: Connected, opened: Database, query: Query
) -> None:
    send(connection, None)
    query("insert into public.background_job_status (job_payload, status) values ('{}', 'queued')")
    send(connection, steps.payload(tenantId=str(TENANT)))
    send(connection, {"jobId": "no id"})
    steps.enqueue(connection, OTHER_TENANT)
    assert {leased.tenant_id for leased in steps.lease(connection)} == {TENANT, OTHER_TENANT}
    steps.reconcile(opened)
    assert len(query("select * from pgmq.q_stats_update")) == 2
