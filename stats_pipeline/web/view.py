"""The content of the admin's page, from rows: durations, estimates, bars. Pure functions, no HTML, no database.

Its look belongs to the templates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.jobs.models import Job

UNKNOWN_REFRESH_SECONDS = 60  # the estimate before any refresh has been measured
_ABSENT = {"queued": "waiting", "processing": "running", "completed": "not run", "failed": "not run"}


@dataclass(frozen=True)
class FunctionRow:
    """One stats function of a job. `share` is its duration in percent of the job's longest one."""

    rpc: str
    summary: str
    status: str
    duration_ms: int | None
    share: float
    tries: int | None
    error: str | None


@dataclass(frozen=True)
class JobRow:
    """One row of the table, and the details that open below it."""

    job: Job
    trigger: str
    match: str | None
    duration: str
    seconds_left: int | None
    functions: tuple[FunctionRow, ...]
    cache_status: str | None
    delivered: tuple[str, ...]
    pending: tuple[str, ...]
    coalesced_with: tuple[str, ...]  # the first of them
    coalesced: int
    run_url: str | None


@dataclass(frozen=True)
class Bar:
    """One job in the strip of bars. `height` is in percent of the longest job's."""

    status: str
    started_at: datetime
    seconds: float
    height: float


@dataclass(frozen=True)
class Overview:
    """The waiting jobs, the longest wait, and the usual duration of a refresh; seconds."""

    waiting: int
    oldest_wait: str | None
    usual_wait: float
    usual_run: float
    is_experience: bool

    @property
    def usual_total(self) -> int:
        """From the press of the button to the end."""
        return max(1, round(self.usual_wait + self.usual_run))


def overview(row: Mapping[str, Any]) -> Overview:
    """From the row of `read_overview`."""
    run = row["usual_run_seconds"]
    wait = row["oldest_wait_seconds"]
    return Overview(
        waiting=row["waiting"],
        oldest_wait=None if wait is None else age(wait),
        usual_wait=float(row["usual_wait_seconds"] or 0),
        usual_run=float(UNKNOWN_REFRESH_SECONDS if run is None else run),
        is_experience=run is not None,
    )


def job_row(
    job: Job, functions: Sequence[StatsFunction], usual: Overview, *, now: datetime, dagster_url: str | None
) -> JobRow:
    """One job. Any program may write `results`, so its shape is not relied on."""
    results = job.results or {}
    cache = _mapping(results.get("cache"))
    coalesced = _mapping(results.get("coalesced_with"))
    return JobRow(
        job=job,
        trigger=str(job.job_payload.get("triggeredBy") or "unknown"),
        match=job.match,
        duration=duration(job),
        seconds_left=seconds_left(job, usual, now),
        functions=function_rows(job, functions),
        cache_status=str(cache["status"]) if "status" in cache else None,
        delivered=_texts(cache.get("delivered")),
        pending=_texts(cache.get("pending")),
        coalesced_with=_texts(coalesced.get("first")),
        coalesced=_whole(coalesced.get("count")) or 0,
        run_url=f"{dagster_url}/runs/{job.run_id}" if job.run_id and dagster_url else None,
    )


def function_rows(job: Job, functions: Sequence[StatsFunction]) -> tuple[FunctionRow, ...]:
    """The catalog's functions in its order, then those of the results that are no longer in the catalog."""
    found = _mapping((job.results or {}).get("functions"))
    summaries = {function.rpc: function.summary for function in functions}
    results = {rpc: _mapping(found.get(rpc)) for rpc in (*summaries, *(rpc for rpc in found if rpc not in summaries))}
    longest = max((_whole(result.get("duration_ms")) or 0 for result in results.values()), default=0)
    return tuple(
        FunctionRow(
            rpc=rpc,
            summary=summaries.get(rpc, ""),
            status=str(result.get("status") or _ABSENT[job.status]),
            duration_ms=(took := _whole(result.get("duration_ms"))),
            share=round(100 * (took or 0) / longest, 1) if longest else 0.0,
            tries=_whole(result.get("attempts")),
            error=str(result["error"]) if result.get("error") else None,
        )
        for rpc, result in results.items()
    )


def duration(job: Job) -> str:
    """From start to end, as the app words it."""
    if job.started_at is None:
        return "N/A"
    if job.completed_at is None:
        return "In progress..."
    return took(max(0.0, (job.completed_at - job.started_at).total_seconds()))


def seconds_left(job: Job, usual: Overview, now: datetime) -> int | None:
    """The estimated seconds until an unfinished job ends, from earlier jobs; 0 when it is overdue."""
    if job.is_over:
        return None
    if job.started_at is None:
        left = usual.usual_wait + usual.usual_run - (now - (job.created_at or now)).total_seconds()
    else:
        left = usual.usual_run - (now - job.started_at).total_seconds()
    return max(0, round(left))


def strip(rows: Sequence[Mapping[str, Any]]) -> tuple[Bar, ...]:
    """The last jobs that ended, oldest first."""
    longest = max((row["seconds"] for row in rows), default=0) or 1
    return tuple(
        Bar(row["status"], row["started_at"], row["seconds"], max(4.0, round(100 * row["seconds"] / longest, 1)))
        for row in rows
    )


def took(seconds: float) -> str:
    """A duration: with tenths below ten seconds, the usual length of a refresh."""
    return f"{seconds:.1f}s" if seconds < 10 else f"{round(seconds)}s"


def age(seconds: float) -> str:
    """How old something is, in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
