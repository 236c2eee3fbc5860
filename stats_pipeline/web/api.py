"""The JSON API: enqueue, cron, list, read, retry, stream. Each handler is one call of `jobs/queue.py`.

The access to each is declared beside the routes in `app.py`; errors are turned into answers there too.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from psycopg import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from stats_pipeline.errors import InvalidJob
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Enqueued, Job, Payload
from stats_pipeline.web.audit import address_of, log_retry, record_job
from stats_pipeline.web.context import Web, answer, read_json, web_of
from stats_pipeline.web.schemas import CronAnswer, Problem, TenantJob
from stats_pipeline.web.sessions import Caller

MAX_LIMIT = 100
ENQUEUE = "/api/admin/enqueue-stats-job"
_LOGGED_TEXT = 200  # characters of a text whose length the caller chooses


async def enqueue(request: Request, caller: Caller) -> Response:
    """Enqueue a job, or find the one with the same requestId."""
    web = web_of(request)
    web.writable()
    payload = await read_json(request)
    context = _loggable(payload) | {"caller": caller.name, "address": address_of(request)}

    def enqueue_and_record(connection: Connection[Any]) -> Enqueued:
        job = queue.enqueue(connection, payload)
        user = f" for user {context['userId']}" if "userId" in context else ""
        record_job(connection, request, caller, "launch", job, about=user)
        return job

    try:
        job = await web.call(enqueue_and_record)
    except InvalidJob as error:
        structlog.get_logger().warning("stats job refused", **context, reason=str(error)[:_LOGGED_TEXT])
        raise
    structlog.get_logger().info("stats job enqueued", **context, job_id=str(job.job_id), message=job.message)
    return answer(job, HTTPStatus.ACCEPTED)


async def cron(request: Request, caller: Caller) -> Response:
    """Enqueue today's job for every club, unless that has been done already."""
    web = web_of(request)
    web.writable()
    today = datetime.now(ZoneInfo(web.settings.timezone)).date()

    def enqueue_all(connection: Connection[Any]) -> list[TenantJob]:
        jobs = []
        for tenant in web.settings.tenants or (None,):
            payload = Payload(
                triggered_by="cron",
                request_id=f"cron-{today}",
                tenant_id=str(tenant) if tenant else None,
                timestamp=datetime.now(UTC),
            )
            for enqueued in queue.enqueue_each(connection, [payload]):
                jobs.append(TenantJob(**enqueued.model_dump(), tenant_id=tenant))
        record_job(connection, request, caller, "launch", *jobs)
        return jobs

    jobs = await web.call(enqueue_all)
    if not jobs:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE, "no job could be enqueued; what was set aside is tried again"
        )
    structlog.get_logger().info(
        "cron jobs enqueued",
        caller=caller.name,
        address=address_of(request),
        day=str(today),
        job_ids=[str(job.job_id) for job in jobs],
    )
    return answer(CronAnswer(**jobs[0].model_dump(exclude={"tenant_id"}), jobs=jobs), HTTPStatus.ACCEPTED)


def cron_moved(_: Request) -> Response:
    """Removed: use the enqueue endpoint instead."""
    return answer(Problem(error=f"POST {ENQUEUE} takes its place"), HTTPStatus.GONE)


def list_jobs(request: Request, _: Caller) -> Response:
    """The newest jobs, newest first."""
    limit = request.query_params.get("limit", "10")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= MAX_LIMIT):
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"limit must be a whole number from 1 to {MAX_LIMIT}")
    with web_of(request).database.connection() as connection:
        jobs = queue.list_jobs(connection, limit=int(limit))
    return JSONResponse([job.model_dump(mode="json") for job in jobs])


def get_job(request: Request, _: Caller) -> Response:
    """One job."""
    with web_of(request).database.connection() as connection:
        return answer(_find(connection, request.path_params["job_id"]))


async def retry(request: Request, caller: Caller) -> Response:
    """Enqueue a failed job again."""
    web = web_of(request)
    web.writable()
    failed: UUID = request.path_params["job_id"]

    def find_and_retry(connection: Connection[Any]) -> Enqueued:
        _find(connection, failed)
        try:
            job = queue.retry(connection, failed)
        except InvalidJob as error:
            raise HTTPException(HTTPStatus.CONFLICT, str(error)) from None
        record_job(connection, request, caller, "retry", job, about=f", a retry of {failed}")
        return job

    job = await web.call(find_and_retry)
    log_retry(request, caller, failed, job)
    return answer(job, HTTPStatus.ACCEPTED)


async def stream(request: Request, caller: Caller) -> Response:
    """One event per change of a job, until the client goes away or logs out."""
    web = web_of(request)
    events = await web.changes.events(caller.session)
    if events is None:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "too many streams are open", {"Retry-After": "10"})
    # A proxy that buffers the answer would hold back every event.
    return StreamingResponse(
        _until_over(events, web, caller), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _until_over(events: AsyncIterator[str], web: Web, caller: Caller) -> AsyncIterator[str]:
    """End the stream with its session."""
    with web.guard.sessions.watching(caller, partial(web.changes.end, {caller.session or ""})):
        async for lines in events:
            yield lines


def _find(connection: Connection[Any], job_id: UUID) -> Job:
    try:
        return queue.get_job(connection, job_id)
    except InvalidJob as error:
        raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from None


def _loggable(payload: Any) -> dict[str, Any]:
    """The parts of a payload that are logged: its trigger and for whom it is, nothing else."""
    if not isinstance(payload, dict):
        return {}
    fields = ("triggeredBy", "requestId", "matchId", "userId", "tenantId", "retryOf")
    return {
        field: value[:_LOGGED_TEXT] if isinstance(value := payload[field], str) else value
        for field in fields
        if isinstance(payload.get(field), str | int)
    }
