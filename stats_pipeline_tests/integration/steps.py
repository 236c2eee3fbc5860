"""The life of a job, as short calls for tests. Each step is the product's own; nothing here knows its SQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import tuple_row

from stats_pipeline.catalog import STATS_FUNCTIONS, StatsFunction
from stats_pipeline.database import Database, call_one
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Claim, Job, Lease
from stats_pipeline.jobs.reconcile import DagsterState, ExpireLease, Limits, apply_all, decide, read
from stats_pipeline.jobs.refresh import Refresh
from stats_pipeline.settings import Settings

TENANT = UUID("8f14e45f-ceea-467f-9d0c-3a1b2c3d4e5f")
OTHER_TENANT = UUID("c9f0f895-fb98-4b91-99f9-9a1e3c2d7b6a")
SETTINGS = Settings.model_validate({})
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


class _Opened(Database):
    """A database with this one connection."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        yield self._connection


Opened = Database | Connection[Any]


def _database(opened: Opened) -> Database:
    return opened if isinstance(opened, Database) else _Opened(opened)


def run(opened: Opened, run_id: str = "run-1", lease_id: UUID | None = None, tenant: UUID | None = None) -> Refresh:
    """What a run with this id does."""
    return Refresh(_database(opened), SETTINGS, run_id=run_id, lease_id=lease_id, tenant_id=tenant)


def claim(
    connection: Connection[Any],
    leased: Lease | None,
    run_id: str = "run-1",
    functions: tuple[StatsFunction, ...] = TWO,
    tenant: UUID | None = None,
) -> Claim | None:
    refresh = run(connection, run_id, leased.lease_id if leased else None, leased.tenant_id if leased else tenant)
    return refresh.try_to_claim([function.rpc for function in functions])


def start(connection: Connection[Any], run_id: str = "run-1", functions: tuple[StatsFunction, ...] = TWO) -> Claim:
    """Lease what waits for one tenant, and claim it."""
    [leased] = lease(connection)
    claimed = claim(connection, leased, run_id, functions)
    assert claimed is not None
    return claimed


def compute(database: Database, claimed: Claim, *functions: StatsFunction, tries: int = 1) -> None:
    for function in functions or TWO:
        run(database).compute(function, claimed, tries=tries)


def lease_of(opened: Opened, run: str | UUID = "run-1") -> UUID:
    """The lease that this run has claimed; a lease's own id is that lease."""
    if isinstance(run, UUID):
        return run
    with _database(opened).connection() as connection:
        cursor = connection.cursor(row_factory=tuple_row)
        ((lease_id,),) = cursor.execute("select id from stats_pipeline.lease where run_id = %s", [run]).fetchall()
    return UUID(str(lease_id))


def run_of(opened: Opened, lease_id: UUID) -> str:
    """The run that has claimed this lease."""
    with _database(opened).connection() as connection:
        cursor = connection.cursor(row_factory=tuple_row)
        ((run_id,),) = cursor.execute("select run_id from stats_pipeline.lease where id = %s", [lease_id]).fetchall()
    return str(run_id)


def renew(opened: Opened, run: str | UUID = "run-1", *, lease_seconds: int = 30, silent_for: int = 0) -> bool:
    this_lease = lease_of(opened, run)
    with _database(opened).connection() as connection:
        return bool(
            call_one(
                connection, "renew_lease", this_lease=this_lease, lease_seconds=lease_seconds, silent_for=silent_for
            )
        )


def settle(opened: Opened, run: str | UUID = "run-1", *, app: bool = False, deadline: int = 900) -> None:
    this_lease = lease_of(opened, run)
    _database(opened).call("settle_lease", this_lease=this_lease, cache_configured=app, cache_deadline=deadline)


def complete(opened: Opened, rpc: str, *tags: str, run: str | UUID = "run-1") -> None:
    """Note a function as computed."""
    this_lease = lease_of(opened, run)
    _database(opened).call("complete_function", this_lease=this_lease, rpc=rpc, tags=list(tags), tries=1, duration_ms=1)


def take_back(opened: Opened, lease_id: UUID) -> None:
    """Expire a lease that no run has claimed."""
    _database(opened).call("expire_lease", this_lease=lease_id, not_renewed_since=None, max_attempts=3, reason="")


def revoke(opened: Opened, lease_id: UUID, reason: str = "The run was cancelled before it started") -> None:
    """Somebody has cancelled the run of a lease that it has not claimed."""
    _database(opened).call("revoke_lease", this_lease=lease_id, not_renewed_since=None, reason=reason)


def fail_try(
    opened: Opened, rpc: str, problem: str, run: str | UUID = "run-1", *, tries: int = 1, duration_ms: int = 5
) -> None:
    """Note a try that failed, and settle."""
    steps = Refresh(_database(opened), SETTINGS, run_id=str(run), lease_id=lease_of(opened, run))
    steps.record_failed_try(rpc, tries=tries, duration_ms=duration_ms, problem=problem)


def fail_function(opened: Opened, rpc: str, problem: str, run: str | UUID = "run-1") -> None:
    """Note a function as failed for good."""
    _database(opened).call("fail_function", this_lease=lease_of(opened, run), rpc=rpc, problem=problem)


def expiry(opened: Opened, run: str | UUID = "run-1", reason: str = "It stopped answering") -> ExpireLease:
    """The decision that a run is dead, as it looks now."""
    this_lease = lease_of(opened, run)
    with _database(opened).connection() as connection:
        cursor = connection.cursor(row_factory=tuple_row)
        ((renewed_at,),) = cursor.execute("select renewed_at from stats_pipeline.lease where id = %s", [this_lease])
    return ExpireLease(this_lease, renewed_at, reason)


def expire(opened: Opened, run: str | UUID = "run-1", *, max_attempts: int = 3, reason: str = "It is dead") -> bool:
    """Take the lease from a run."""
    decision = expiry(opened, run, reason)
    with _database(opened).connection() as connection:
        return bool(
            call_one(
                connection,
                "expire_lease",
                this_lease=decision.lease_id,
                not_renewed_since=decision.not_renewed_since,
                max_attempts=max_attempts,
                reason=reason,
            )
        )


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
    fail_function(connection, TWO[1].rpc, "no such table", run_id)
    settle(connection, run_id)
    return claimed


def reconcile(database: Database, dagster: dict[str, DagsterState] | None = None) -> list[str]:
    """One look of the reconciler and its repairs; what went wrong. Without states, Dagster is not asked."""
    repairs = decide(read(database), dagster, Limits(dead_after=6, cache_deadline=900, cache_configured=False))
    return apply_all(database, repairs, SETTINGS, lambda _: None)


def job(connection: Connection[Any], job_id: UUID) -> Job:
    return queue.get_job(connection, job_id)
