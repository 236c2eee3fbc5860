"""What a run does with the jobs of its lease: claim, beat, compute, record, settle.

Each function calls one SQL function of `sql/functions/`, which says what is atomic. Enqueuing and leasing are in
`queue.py`; delivering cache tags is in `outbox.py`.
"""

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from stats_pipeline.catalog import StatsFunction, dependents
from stats_pipeline.database import Database, run, run_one
from stats_pipeline.errors import (
    LEASE_LOST_SQLSTATE,
    LeaseLost,
    StatsPipelineError,
    one_line,
)
from stats_pipeline.jobs.models import Claim
from stats_pipeline.log import Outage

log = structlog.get_logger()

HEARTBEAT_SECONDS = 1


def claim(
    connection: Connection[Any],
    *,
    run_id: str,
    lease_id: UUID | None,
    functions: Sequence[str],
    tenant_id: UUID | None,
    payload: dict[str, Any],
) -> Claim | None:
    """Move the leased jobs to `processing`, or give a run without a lease a job of its own, described by `payload`.

    Safe to call from every op of the run: one of them claims, the others get the same answer. None means that another
    run of the tenant is open; call again when it has ended. Raises `LeaseLost`, also when none of the leased jobs is
    there to be done any more.
    """
    try:
        rows = run(
            connection,
            "claim_run",
            run_id=run_id,
            lease_id=lease_id,
            functions=list(functions),
            tenant_id=tenant_id,
            payload=Jsonb(payload),
        )
    except psycopg.Error as error:
        raise _lease_lost(error) from None
    if not rows:
        return None
    row = rows[0]
    if row["outcome"] == "expired":
        raise LeaseLost(f"none of the jobs of lease {lease_id} is left to do, or to be had now")
    carried_over = frozenset(carried["rpc"] for carried in run(connection, "list_carried_over", run_id=run_id))
    return Claim(run_id, row["tenant_id"], tuple(row["job_ids"]), carried_over)


def heartbeat(connection: Connection[Any], *, run_id: str, lease_seconds: int) -> bool:
    """Say that the run is alive, and keep its messages leased. False if it has been replaced or has ended."""
    return bool(run_one(connection, "heartbeat", run_id=run_id, lease_seconds=lease_seconds)["is_open"])


@contextmanager
def beating(database: Database, *, run_id: str, lease_seconds: int) -> Iterator[None]:
    """Beat each second until the end of the block. A beat that cannot be sent is missing: the next may get through."""
    ending = threading.Event()
    silence = Outage(f"run {run_id} could not say that it is alive", f"run {run_id} is heard again")

    def beat() -> None:
        # The first beat at once: a process may do one function of a run, and live for less than a second.
        while not ending.is_set():
            try:
                with database.connection() as connection:
                    heartbeat(connection, run_id=run_id, lease_seconds=lease_seconds)
                silence.is_over()
            except (psycopg.Error, StatsPipelineError) as error:
                silence.begins(one_line(error))
            ending.wait(HEARTBEAT_SECONDS)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def compute(
    database: Database, function: StatsFunction, claimed: Claim, *, attempt: int, timezone: str = "UTC"
) -> tuple[int, dict[str, int]]:
    """Call the stats function and make its tags due, in one transaction; milliseconds, and rows per table.

    Its day is that of `timezone`, unless the app knows the club's own. A try that fails leaves nothing behind. Raises
    what the database raised, or `LeaseLost`.
    """
    started = time.monotonic()

    def elapsed_ms() -> int:
        return round((time.monotonic() - started) * 1000)

    try:
        with database.transaction() as connection:
            _call(connection, function, claimed.tenant_id, timezone)
            duration = elapsed_ms()
            rows = {
                row["table_name"]: row["row_count"]
                for row in run(connection, "count_rows", tables=list(function.tables), tenant_id=claimed.tenant_id)
            }
            run(
                connection,
                "complete_function",
                run_id=claimed.run_id,
                rpc=function.rpc,
                tags=list(function.cache_tags),
                attempts=attempt,
                duration_ms=duration,
            )
        return duration, rows
    except psycopg.Error as error:
        raise _lease_lost(error) from error


def _call(connection: Connection[Any], function: StatsFunction, tenant_id: UUID | None, timezone: str) -> None:
    run(connection, "begin_computing", milliseconds=function.timeout_seconds * 1000, timezone=timezone)
    argument = sql.SQL("") if tenant_id is None else sql.Literal(tenant_id)
    connection.execute(sql.SQL("select public.{}({})").format(sql.Identifier(function.rpc), argument))


def try_function(
    connection: Connection[Any], function: StatsFunction, tenant_id: UUID | None, *, timezone: str
) -> int | None:
    """Call the stats function as a run does and take everything back; milliseconds. None: the club has an open run.

    Waits a second for a lock at most. Raises what the database raises, at the call or by a deferred constraint. What is
    left are gaps in sequences. Not within a transaction of the caller's.
    """
    with connection.transaction(force_rollback=True):
        if run_one(connection, "begin_trying", tenant_id=tenant_id)["is_busy"]:
            return None
        started = time.monotonic()
        _call(connection, function, tenant_id, timezone)
        connection.execute("set constraints all immediate")
        return round((time.monotonic() - started) * 1000)


def record_failed_try(
    database: Database, *, run_id: str, rpc: str, attempt: int, duration_ms: int, problem: str
) -> None:
    """Note a try that failed, with another one perhaps to come."""
    database.run(
        "record_function",
        run_id=run_id,
        rpc=rpc,
        status="retrying",
        attempts=attempt,
        duration_ms=duration_ms,
        error=problem,
    )


def fail(database: Database, run_id: str, rpc: str, functions: Collection[StatsFunction], problem: str) -> set[str]:
    """Note that a function has failed for good, and with it those that come after it; the latter's names."""
    skipped = dependents(rpc, functions)
    database.run("fail_function", run_id=run_id, rpc=rpc, error=problem)
    for later in skipped:
        database.run("fail_function", run_id=run_id, rpc=later, error=f"Not run, because {rpc} failed")
    return skipped


def settle(connection: Connection[Any], *, run_id: str, cache_configured: bool, cache_deadline: int) -> None:
    """Bring a run's jobs up to what has been recorded; ends them when nothing is left to do. Idempotent."""
    run(connection, "settle_run", run_id=run_id, cache_configured=cache_configured, deadline=cache_deadline)


def _lease_lost(error: psycopg.Error) -> Exception:
    return LeaseLost(error.diag.message_primary) if error.sqlstate == LEASE_LOST_SQLSTATE else error
