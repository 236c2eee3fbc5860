"""Compares queue, rows and runs, and repairs every mismatch.

`decide` is a pure function over snapshots of the three; `apply` carries a decision out with the same SQL functions
the normal path uses, each of which looks again before it changes anything. So a snapshot may be old, a repair may be
applied twice, and two reconcilers may work side by side. A repair that fails is set aside for a while, and keeps no
other. The snapshot of Dagster's runs is taken in `defs/runs.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, assert_never
from uuid import UUID

import psycopg
import structlog
from psycopg import Connection

from stats_pipeline.database import Database, run
from stats_pipeline.errors import is_outage, one_line
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Status
from stats_pipeline.settings import Settings

log = structlog.get_logger()

# What Dagster says of a run: "unknown" if it has none, "not asked" where Dagster may be down.
DagsterState = Literal["live", "finished", "canceled", "unknown", "not asked"]


@dataclass(frozen=True)
class JobRow:
    """A job that is queued without a message, or processed by nobody."""

    id: UUID
    status: Status


@dataclass(frozen=True)
class RunRow:
    """A run that is open, left a job open or set aside, or died lately.

    Seconds are None before the run is claimed or ends.
    """

    id: UUID
    run_id: str | None
    outcome: str | None
    seen_at: datetime | None
    lease_expired: bool
    launch_overdue: bool
    silent_seconds: float | None
    ended_seconds: float | None
    unrecorded: int | None
    tags_due: bool


@dataclass(frozen=True)
class Limits:
    """When silence means death, and how long a job waits for its tags; seconds."""

    dead_after: float
    cache_deadline: float
    cache_configured: bool


# Each repair as text completes "Would …".


@dataclass(frozen=True)
class SendMessage:
    """A queued job without a message gets one."""

    job_id: UUID

    def __str__(self) -> str:
        return f"send the missing message of job {self.job_id}"


@dataclass(frozen=True)
class ArchiveMessage:
    """A message whose job is over, or gone, leaves the queue."""

    msg_id: int

    def __str__(self) -> str:
        return f"archive message {self.msg_id}, whose job is over or gone"


@dataclass(frozen=True)
class RequeueJob:
    """A job that is being processed by no run is queued again."""

    job_id: UUID
    reason: str = "Its run is unknown"

    def __str__(self) -> str:
        return f"queue job {self.job_id} again, which no run is processing"


@dataclass(frozen=True)
class VoidLease:
    """A lease that no run will claim gives its jobs back, saying why; they fail if the run was cancelled before it
    started."""

    lease_id: UUID
    problem: str | None = None
    cause: str | None = None  # of its run's failure, if it had one

    def __str__(self) -> str:
        return f"take back lease {self.lease_id}, which no run will claim"


@dataclass(frozen=True)
class SettleRun:
    """A run that has recorded everything, or that waits for nothing any more, ends its jobs."""

    run_id: str

    def __str__(self) -> str:
        return f"end the jobs of run {self.run_id}, which waits for nothing any more"


@dataclass(frozen=True)
class AbandonRun:
    """A dead run gives its jobs back; a cancelled one fails them."""

    run_id: str
    not_seen_since: datetime
    reason: str
    retry: bool = True

    def __str__(self) -> str:
        what = f"queue the jobs of run {self.run_id} again" if self.retry else f"fail the jobs of run {self.run_id}"
        return f"{what}: {self.reason}"


@dataclass(frozen=True)
class FailInDagster:
    """Dagster is told that a run it believes in is dead."""

    run_id: str

    def __str__(self) -> str:
        return f"mark run {self.run_id} as failed in Dagster"


@dataclass(frozen=True)
class EnqueueAgain:
    """A job that could not be enqueued, such as a club's nightly one, is enqueued after all."""

    key: str

    def __str__(self) -> str:
        return f"enqueue the refused job of club {self.key} again"


Repair = SendMessage | ArchiveMessage | RequeueJob | VoidLease | SettleRun | AbandonRun | FailInDagster | EnqueueAgain


@dataclass(frozen=True)
class Snapshot:
    """What is out of step in queue and rows, and the runs to look at, as one transaction saw them."""

    jobs: list[JobRow]
    stale_messages: list[int]
    runs: list[RunRow]
    enqueues: list[str]  # set aside, and due to be tried again
    resting: frozenset[str]  # repairs that have failed and are not due yet


def decide(snapshot: Snapshot, dagster: Mapping[str, DagsterState] | None, limits: Limits) -> list[Repair]:
    """What to repair, given what there is. Pure; the same state gives the same repairs, a sound one gives none.

    `dagster` tells of a claimed run under its id, of one that has not claimed its lease under the lease's; None if
    Dagster was not asked.
    """
    repairs: list[Repair] = [ArchiveMessage(msg_id) for msg_id in snapshot.stale_messages]
    repairs += [SendMessage(job.id) if job.status == "queued" else RequeueJob(job.id) for job in snapshot.jobs]
    for candidate in snapshot.runs:
        state = "not asked" if dagster is None else dagster.get(candidate.run_id or str(candidate.id), "unknown")
        repairs += _decide_run(candidate, state, limits)
    repairs += [EnqueueAgain(key) for key in snapshot.enqueues]
    return [repair for repair in repairs if name_of(repair) not in snapshot.resting]


def name_of(repair: Repair) -> str:
    """By which a repair that fails is known: what it is, and of what."""
    subject, *_ = vars(repair).values()
    return f"{type(repair).__name__} {subject}"


def _decide_run(row: RunRow, state: DagsterState, limits: Limits) -> list[Repair]:
    if row.run_id is None:
        return _decide_lease(row, state)
    if row.outcome == "died":
        return [FailInDagster(row.run_id)] if state == "live" else []
    if row.outcome is not None:
        waits = row.tags_due and limits.cache_configured and (row.ended_seconds or 0) < limits.cache_deadline
        return [] if waits else [SettleRun(row.run_id)]
    if row.unrecorded == 0:
        return [SettleRun(row.run_id)]
    assert row.seen_at is not None
    if state == "canceled":
        return [AbandonRun(row.run_id, row.seen_at, "The run was cancelled", retry=False)]
    if state == "finished":
        return [AbandonRun(row.run_id, row.seen_at, "The run ended before its work was done")]
    if row.silent_seconds is not None and row.silent_seconds > limits.dead_after:
        dead = AbandonRun(row.run_id, row.seen_at, "The run stopped answering")
        return [dead, FailInDagster(row.run_id)] if state == "live" else [dead]
    return []


def _decide_lease(row: RunRow, state: DagsterState) -> list[Repair]:
    if row.outcome is not None:
        return []
    if state == "canceled":
        return [VoidLease(row.id, "The run was cancelled before it started")]
    # Launched after all, the run will find its lease void and stop.
    never_launched = state == "unknown" and row.launch_overdue
    return [VoidLease(row.id)] if state == "finished" or never_launched or row.lease_expired else []


def read(database: Database) -> Snapshot:
    """Take the snapshot of the database, in one repeatable-read transaction."""
    with database.transaction() as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        aside = run(connection, "snapshot_set_aside")
        return Snapshot(
            [JobRow(**row) for row in run(connection, "snapshot_jobs")],
            [row["msg_id"] for row in run(connection, "snapshot_messages")],
            [RunRow(**row) for row in run(connection, "snapshot_runs")],
            [row["key"] for row in aside if row["what"] == "enqueue"],
            frozenset(row["key"] for row in aside if row["what"] == "repair"),
        )


def limits_of(settings: Settings) -> Limits:
    """The limits that the settings ask for."""
    return Limits(settings.dead_after, settings.cache_deadline, settings.app_url is not None)


def apply_all(
    opened: Database, repairs: Iterable[Repair], settings: Settings, fail_in_dagster: Callable[[str], None]
) -> list[str]:
    """Carry repairs out, each in a transaction of its own; what went wrong, a line for each repair that failed.

    One that fails is set aside and left out of the next looks, for longer each time. Raises `DatabaseUnavailable` and
    what the database says when it is out of reach, at once.
    """
    problems: list[str] = []
    for repair in repairs:
        try:
            with opened.transaction() as connection:
                # Whoever holds the row is alive and may well make the repair unnecessary; the other repairs go on.
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
    """Carry one repair out, in one transaction. Idempotent, and nothing if the mismatch has gone since."""
    match repair:
        case SendMessage(job_id):
            run(connection, "ensure_messages", job_ids=[job_id])
        case ArchiveMessage(msg_id):
            run(connection, "archive_stale_messages", msg_ids=[msg_id])
        case RequeueJob(job_id, reason):
            run(connection, "requeue_jobs", job_ids=[job_id], max_attempts=settings.max_attempts, reason=reason)
        case VoidLease(lease_id, problem, cause):
            run(connection, "void_lease", lease_id=lease_id, problem=problem)
            if cause is not None:
                run(connection, "note_failed_start", lease_id=lease_id, cause=cause)
        case SettleRun(run_id):
            run(
                connection,
                "settle_run",
                run_id=run_id,
                cache_configured=settings.app_url is not None,
                deadline=settings.cache_deadline,
            )
        case AbandonRun(run_id, not_seen_since, reason, retry):
            max_attempts = settings.max_attempts if retry else 0
            run(
                connection,
                "abandon_run",
                run_id=run_id,
                not_seen_since=not_seen_since,
                max_attempts=max_attempts,
                reason=reason,
            )
        case FailInDagster(run_id):
            fail_in_dagster(run_id)
        case EnqueueAgain(key):
            queue.enqueue_again(connection, key)
        case _:
            assert_never(repair)
