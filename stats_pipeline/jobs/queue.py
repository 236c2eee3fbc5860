"""Jobs as rows and messages: enqueue, retry, lease, list, set aside.

Each function calls one SQL function of `sql/functions/`, which says what is atomic. The work of a run on the jobs of a
lease is in `refresh.py`.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import structlog
from psycopg import Connection
from psycopg.types.json import Jsonb

from stats_pipeline.database import call, call_one, run
from stats_pipeline.errors import (
    INVALID_JOB_SQLSTATE,
    InvalidJob,
    one_line,
)
from stats_pipeline.jobs.models import Enqueued, Job, Lease, Payload, SetAside

log = structlog.get_logger()


def enqueue(connection: Connection[Any], payload: dict[str, Any]) -> Enqueued:
    """Enqueue a job, or return the one that has this requestId already. Raises `InvalidJob` naming the field."""
    return _public_call(connection, "public.enqueue_stats_job", payload=Jsonb(payload))


def try_to_enqueue(connection: Connection[Any]) -> None:
    """Enqueue a job for the default club and roll back, so that it is never visible. Raises what an enqueue raises.

    Leaves only an unused message id. The caller must not have a transaction open.
    """
    payload = Payload(triggered_by="admin", request_id=f"try-{uuid4()}")
    with connection.transaction(force_rollback=True):
        enqueue(connection, payload.as_json())


def retry(connection: Connection[Any], job_id: UUID) -> Enqueued:
    """Enqueue a failed job again, or return its retry if one is queued or processing. Raises `InvalidJob`."""
    return _public_call(connection, "public.retry_stats_job", job_id=job_id)


def _public_call(connection: Connection[Any], function: str, **arguments: Any) -> Enqueued:
    try:
        return Enqueued.model_validate(call_one(connection, function, **arguments))
    except psycopg.DataError as error:
        if error.sqlstate == INVALID_JOB_SQLSTATE:
            raise InvalidJob(error.diag.message_primary) from None
        # NaN, a zero character, half a surrogate pair: valid JSON for Python, but not for PostgreSQL.
        raise InvalidJob(f"payload cannot be stored as JSON: {one_line(error)}") from None


def enqueue_each(connection: Connection[Any], payloads: Iterable[Payload]) -> list[Enqueued]:
    """Enqueue one job for each payload, in the caller's transaction.

    One that is rejected, or whose request is being enqueued by another session, is set aside with the reason, for the
    reconciler to retry. The others are enqueued; the answers are theirs.
    """
    answers = []
    for payload in payloads:
        key = payload.tenant_id or "default"
        answer = call_one(connection, "enqueue_or_put_aside", payload=Jsonb(payload.as_json()), aside_key=key)
        if answer is None:
            log.warning("a job could not be enqueued and is set aside", request_id=payload.request_id, tenant=key)
        else:
            answers.append(Enqueued.model_validate(answer))
    return answers


def enqueue_again(connection: Connection[Any], key: str) -> None:
    """Enqueue the job that `enqueue_each` has set aside under this key, or set it aside for longer."""
    enqueue_each(
        connection, [Payload.model_validate(row["detail"]) for row in run(connection, "read_set_aside", key=key)]
    )


def put_aside(connection: Connection[Any], what: str, key: str, error: Exception) -> None:
    """Record a failure for one thing, so that it is shown and retried."""
    call(
        connection,
        "put_aside",
        kind=what,
        subject=key,
        problem=one_line(error),
        problem_state=getattr(error, "sqlstate", None) or type(error).__name__,
    )


def list_set_aside(connection: Connection[Any]) -> list[SetAside]:
    """Everything that was set aside and is retried, oldest first."""
    return [SetAside(**row) for row in run(connection, "list_set_aside")]


def lease(connection: Connection[Any], *, lease_seconds: int, max_runs: int) -> list[Lease]:
    """Lease the waiting jobs of every tenant without an open lease, up to `max_runs` open leases in all."""
    return [Lease(**row) for row in call(connection, "acquire_leases", lease_seconds=lease_seconds, max_runs=max_runs)]


def list_jobs(connection: Connection[Any], *, limit: int) -> list[Job]:
    """The newest jobs, newest first."""
    return [Job.model_validate(row) for row in run(connection, "list_jobs", newest=limit)]


def get_job(connection: Connection[Any], job_id: UUID) -> Job:
    """One job. Raises `InvalidJob` if there is none with this id."""
    rows = run(connection, "get_job", job_id=job_id)
    if not rows:
        raise InvalidJob(f"job {job_id} does not exist")
    return Job.model_validate(rows[0])


def find_job(connection: Connection[Any], beginning: str) -> Job:
    """The only job whose id begins with these characters. Raises `InvalidJob` if there is none, or more than one."""
    ids = [row["id"] for row in run(connection, "find_jobs", beginning=beginning)]
    if not ids:
        is_whole = len(beginning) == len(str(uuid4()))
        raise InvalidJob(
            f"job {beginning} does not exist" if is_whole else f"no job has an id that begins with {beginning}"
        )
    if len(ids) > 1:
        raise InvalidJob(f"several jobs have an id that begins with {beginning}: give more of it")
    return get_job(connection, ids[0])
