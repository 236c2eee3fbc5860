"""Compares queue, rows, leases and runs, and repairs every mismatch.

`decide` is a pure function over snapshots of them; `apply` carries out a decision with the same SQL functions as the
normal path, each of which checks the current state before it changes anything. So a snapshot may be old, a repair may
be applied twice, and two reconcilers may run side by side. A repair that fails is set aside for a while and does not
delay the others. The snapshot of Dagster's runs is taken in `defs/runs.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, assert_never
from uuid import UUID

import psycopg
import structlog
from psycopg import Connection

from stats_pipeline.database import Database, call, run
from stats_pipeline.errors import is_outage, one_line
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Status
from stats_pipeline.settings import Settings

log = structlog.get_logger()

# The state of a run in Dagster: "unknown" if there is none, "not asked" where Dagster may be down.
DagsterState = Literal["live", "finished", "canceled", "unknown", "not asked"]


@dataclass(frozen=True)
class JobRow:
    """A job that is queued without a message, or `processing` without a run."""

    id: UUID
    status: Status


@dataclass(frozen=True)
class LeaseRow:
    """A lease that is open, has left a job open or set aside, or was lost recently.

    Seconds are None before it is claimed or ends.
    """

    id: UUID
    run_id: str | None
    outcome: str | None
    renewed_at: datetime | None
    claim_overdue: bool
    launch_overdue: bool
    silent_seconds: float | None
    ended_seconds: float | None
    unrecorded: int | None
    tags_due: bool


@dataclass(frozen=True)
class Limits:
    """After how long a silent run counts as dead, and how long a job waits for its tags; seconds."""

    dead_after: float
    cache_deadline: float
    cache_configured: bool


# The text of each repair completes "Would …".


@dataclass(frozen=True)
class SendMessage:
    """A queued job without a message gets one."""

    job_id: UUID

    def __str__(self) -> str:
        return f"send the missing message of job {self.job_id}"


@dataclass(frozen=True)
class ArchiveMessage:
    """A message whose job has ended or no longer exists leaves the queue."""

    msg_id: int

    def __str__(self) -> str:
        return f"archive message {self.msg_id}, whose job is over or gone"


@dataclass(frozen=True)
class RequeueJob:
    """A `processing` job without a run is queued again."""

    job_id: UUID
    reason: str = "Its run is unknown"

    def __str__(self) -> str:
        return f"queue job {self.job_id} again, which no run is processing"


@dataclass(frozen=True)
class SettleLease:
    """A lease whose run has recorded everything, or waits for nothing more, ends its jobs."""

    lease_id: UUID

    def __str__(self) -> str:
        return f"end the jobs of lease {self.lease_id}, which waits for nothing any more"


@dataclass(frozen=True)
class ExpireLease:
    """A lease that no run will claim, or whose run is dead, returns its jobs to the queue."""

    lease_id: UUID
    not_renewed_since: datetime | None
    reason: str
    cause: str | None = None  # why its run failed before it could claim the lease

    def __str__(self) -> str:
        return f"queue the jobs of lease {self.lease_id} again: {self.reason}"


@dataclass(frozen=True)
class RevokeLease:
    """A lease whose run was cancelled fails its jobs."""

    lease_id: UUID
    not_renewed_since: datetime | None
    reason: str

    def __str__(self) -> str:
        return f"fail the jobs of lease {self.lease_id}: {self.reason}"


@dataclass(frozen=True)
class FailInDagster:
    """A dead run that Dagster considers alive is marked as failed there."""

    run_id: str

    def __str__(self) -> str:
        return f"mark run {self.run_id} as failed in Dagster"


@dataclass(frozen=True)
class EnqueueAgain:
    """A job that could not be enqueued, such as a club's nightly one, is enqueued again."""

    key: str

    def __str__(self) -> str:
        return f"enqueue the refused job of club {self.key} again"


Repair = (
    SendMessage | ArchiveMessage | RequeueJob | SettleLease | ExpireLease | RevokeLease | FailInDagster | EnqueueAgain
)


@dataclass(frozen=True)
class Snapshot:
    """The inconsistencies of queue and rows, and the leases to check, as one transaction saw them."""

    jobs: list[JobRow]
    stale_messages: list[int]
    leases: list[LeaseRow]
    enqueues: list[str]  # set aside, and due for a retry
    resting: frozenset[str]  # repairs that have failed and are not due yet


def decide(snapshot: Snapshot, dagster: Mapping[str, DagsterState] | None, limits: Limits) -> list[Repair]:
    """The repairs for a snapshot. Pure; the same state gives the same repairs, a consistent one gives none.

    `dagster` maps a claimed run's id, or an unclaimed lease's id, to the state of the run; None if Dagster was not
    asked. A run with recent heartbeats on one lease is alive, even if its other leases have ended.
    """
    heard = {row.run_id for row in snapshot.leases if row.outcome is None and not _is_silent(row, limits)}
    repairs: list[Repair] = [ArchiveMessage(msg_id) for msg_id in snapshot.stale_messages]
    repairs += [SendMessage(job.id) if job.status == "queued" else RequeueJob(job.id) for job in snapshot.jobs]
    for lease in snapshot.leases:
        state = "not asked" if dagster is None else dagster.get(lease.run_id or str(lease.id), "unknown")
        repairs += _decide_lease(lease, state, limits, is_heard=lease.run_id in heard)
    repairs += [EnqueueAgain(key) for key in snapshot.enqueues]
    # Several leases may name the same run.
    return [repair for repair in dict.fromkeys(repairs) if name_of(repair) not in snapshot.resting]


def name_of(repair: Repair) -> str:
    """The name under which a failed repair is set aside: its kind and its subject."""
    subject, *_ = vars(repair).values()
    return f"{type(repair).__name__} {subject}"


def _is_silent(row: LeaseRow, limits: Limits) -> bool:
    return row.silent_seconds is not None and row.silent_seconds > limits.dead_after


def _decide_lease(row: LeaseRow, state: DagsterState, limits: Limits, *, is_heard: bool) -> list[Repair]:
    if row.run_id is None:
        return _decide_unclaimed(row, state)
    in_dagster: list[Repair] = [FailInDagster(row.run_id)] if state == "live" and not is_heard else []
    if row.outcome in ("expired", "revoked"):
        return in_dagster
    if row.outcome is not None:
        waits = row.tags_due and limits.cache_configured and (row.ended_seconds or 0) < limits.cache_deadline
        return [] if waits else [SettleLease(row.id)]
    if row.unrecorded == 0:
        return [SettleLease(row.id)]
    if state == "canceled":
        return [RevokeLease(row.id, row.renewed_at, "The run was cancelled")]
    if state == "finished":
        return [ExpireLease(row.id, row.renewed_at, "The run ended before its work was done")]
    if _is_silent(row, limits):
        return [ExpireLease(row.id, row.renewed_at, "The run stopped answering"), *in_dagster]
    return []


def _decide_unclaimed(row: LeaseRow, state: DagsterState) -> list[Repair]:
    if row.outcome is not None:
        return []
    if state == "canceled":
        return [RevokeLease(row.id, None, "The run was cancelled before it started")]
    # If the run is launched later, it finds that its lease has expired, and stops.
    never_launched = state == "unknown" and row.launch_overdue
    if state == "finished" or never_launched or row.claim_overdue:
        return [ExpireLease(row.id, None, "No run has claimed it")]
    return []


def read(database: Database) -> Snapshot:
    """Take the snapshot of the database, in one repeatable-read transaction."""
    with database.transaction() as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        aside = run(connection, "snapshot_set_aside")
        return Snapshot(
            [JobRow(**row) for row in run(connection, "snapshot_jobs")],
            [row["msg_id"] for row in run(connection, "snapshot_messages")],
            [LeaseRow(**row) for row in run(connection, "snapshot_leases")],
            [row["key"] for row in aside if row["what"] == "enqueue"],
            frozenset(row["key"] for row in aside if row["what"] == "repair"),
        )


def limits_of(settings: Settings) -> Limits:
    """The limits from the settings."""
    return Limits(settings.dead_after, settings.cache_deadline, settings.app_url is not None)


def apply_all(
    opened: Database, repairs: Iterable[Repair], settings: Settings, fail_in_dagster: Callable[[str], None]
) -> list[str]:
    """Carry out repairs, each in its own transaction; returns a line for each repair that failed.

    One that fails is set aside, for longer each time, and not decided on until then. An outage of the database is
    raised at once, as `DatabaseUnavailable` or the error of the driver.
    """
    problems: list[str] = []
    for repair in repairs:
        try:
            with opened.transaction() as connection:
                # The session that holds the row is alive and may make the repair unnecessary; the others need not wait.
                connection.execute("set local lock_timeout = '2s'")
                apply(connection, repair, settings, fail_in_dagster)
                run(connection, "take_up_again", what="repair", key=name_of(repair))
        except Exception as error:
            if is_outage(error):
                raise
            problems.append(f"{name_of(repair)}: {one_line(error)}")
            log.warning("a repair is set aside", repair=name_of(repair), reason=one_line(error))
            with opened.connection() as connection:
                queue.put_aside(connection, "repair", name_of(repair), error)
    try:
        with opened.transaction() as connection:
            connection.execute("set local lock_timeout = '1s'")
            run(connection, "tidy_up")
    except psycopg.errors.LockNotAvailable as error:
        problems.append(f"tidying up: {one_line(error)}")
    return problems


def apply(
    connection: Connection[Any], repair: Repair, settings: Settings, fail_in_dagster: Callable[[str], None]
) -> None:
    """Carry out one repair, in one transaction. Idempotent; does nothing if the mismatch no longer exists."""
    match repair:
        case SendMessage(job_id):
            call(connection, "ensure_messages", job_ids=[job_id])
        case ArchiveMessage(msg_id):
            call(connection, "archive_stale_messages", msg_ids=[msg_id])
        case RequeueJob(job_id, reason):
            call(connection, "requeue_jobs", job_ids=[job_id], max_attempts=settings.max_attempts, reason=reason)
        case SettleLease(lease_id):
            call(
                connection,
                "settle_lease",
                this_lease=lease_id,
                cache_configured=settings.app_url is not None,
                cache_deadline=settings.cache_deadline,
            )
        case ExpireLease(lease_id, not_renewed_since, reason, cause):
            call(
                connection,
                "expire_lease",
                this_lease=lease_id,
                not_renewed_since=not_renewed_since,
                max_attempts=settings.max_attempts,
                reason=reason,
            )
            if cause is not None:
                call(connection, "note_failed_start", this_lease=lease_id, cause=cause)
        case RevokeLease(lease_id, not_renewed_since, reason):
            call(connection, "revoke_lease", this_lease=lease_id, not_renewed_since=not_renewed_since, reason=reason)
        case FailInDagster(run_id):
            fail_in_dagster(run_id)
        case EnqueueAgain(key):
            queue.enqueue_again(connection, key)
        case _:
            assert_never(repair)
