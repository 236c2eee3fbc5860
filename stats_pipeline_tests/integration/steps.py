"""The life of a job, as short calls for tests. Each step is the product's own; nothing here knows any SQL of its."""

from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection

from stats_pipeline.catalog import STATS_FUNCTIONS, StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.jobs import queue, refresh
from stats_pipeline.jobs.models import Claim, Job, Lease
from stats_pipeline.jobs.reconcile import DagsterState, Limits, apply_all, decide, read
from stats_pipeline.settings import Settings

TENANT = UUID("8f14e45f-ceea-467f-9d0c-3a1b2c3d4e5f")
OTHER_TENANT = UUID("c9f0f895-fb98-4b91-99f9-9a1e3c2d7b6a")
TWO = STATS_FUNCTIONS[1:3]  # all-time stats and hall of fame: enough of a run for most questions


def payload(**fields: Any) -> dict[str, Any]:
    """A well-formed payload with a requestId of its own, unless the fields say otherwise."""
    return {"triggeredBy": "admin", "requestId": str(uuid4()), **fields}


def enqueue(connection: Connection[Any], tenant: UUID | None = None, **fields: Any) -> UUID:
    if tenant is not None:
        fields["tenantId"] = str(tenant)
    return queue.enqueue(connection, payload(**fields)).job_id


def lease(connection: Connection[Any], *, max_runs: int = 4) -> list[Lease]:
    return queue.lease(connection, lease_seconds=30, max_runs=max_runs)


def claim(
    connection: Connection[Any],
    leased: Lease | None,
    run_id: str = "run-1",
    functions: tuple[StatsFunction, ...] = TWO,
    tenant: UUID | None = None,
) -> Claim | None:
    return refresh.claim(
        connection,
        run_id=run_id,
        lease_id=leased.lease_id if leased else None,
        functions=[function.rpc for function in functions],
        tenant_id=leased.tenant_id if leased else tenant,
        payload=payload(requestId=run_id),
    )


def start(connection: Connection[Any], run_id: str = "run-1", functions: tuple[StatsFunction, ...] = TWO) -> Claim:
    """Lease what waits for one tenant, and claim it."""
    [leased] = lease(connection)
    claimed = claim(connection, leased, run_id, functions)
    assert claimed is not None
    return claimed


def compute(database: Database, claimed: Claim, *functions: StatsFunction, attempt: int = 1) -> None:
    for function in functions or TWO:
        refresh.compute(database, function, claimed, attempt=attempt)


def settle(connection: Connection[Any], run_id: str = "run-1", *, app: bool = False, deadline: int = 900) -> None:
    refresh.settle(connection, run_id=run_id, cache_configured=app, cache_deadline=deadline)


def finish(connection: Connection[Any], database: Database, run_id: str = "run-1") -> Claim:
    """Lease what waits for one tenant, and take it to its end, without an app to tell."""
    claimed = start(connection, run_id)
    compute(database, claimed)
    settle(connection, run_id)
    return claimed


def fail(connection: Connection[Any], database: Database, run_id: str = "run-1") -> Claim:
    """Like `finish`, but the second function fails for good."""
    claimed = start(connection, run_id)
    compute(database, claimed, TWO[0])
    database.run("fail_function", run_id=run_id, rpc=TWO[1].rpc, error="no such table")
    settle(connection, run_id)
    return claimed


def reconcile(database: Database, dagster: dict[str, DagsterState] | None = None) -> list[str]:
    """One look of the reconciler and its repairs; what went wrong. Without states, Dagster is not asked."""
    repairs = decide(read(database), dagster, Limits(dead_after=6, cache_deadline=900, cache_configured=False))
    return apply_all(database, repairs, Settings.model_validate({}), lambda _: None)


def job(connection: Connection[Any], job_id: UUID) -> Job:
    return queue.get_job(connection, job_id)
