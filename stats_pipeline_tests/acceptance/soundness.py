"""The conditions that must hold after any crash, once everything has settled: the same checks for every case.

They read the database, the log that the wrapped stats functions write, and the pages of the app.
"""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from stats_pipeline import database
from stats_pipeline.jobs import reconcile
from stats_pipeline.jobs.reconcile import Limits
from stats_pipeline_tests.acceptance.processes import RPCS, Pipeline, until

_UNFINISHED = """
select
    (select count(*) from public.background_job_status where status in ('queued', 'processing')) as jobs,
    (select count(*) from pgmq.q_stats_update) as messages,
    (select count(*) from stats_pipeline.lease where ended_at is null) as leases,
    (select count(*) from stats_pipeline.attempt where ended_at is null) as attempts,
    (select count(*) from stats_pipeline.outbox where delivered_at is null) as tags,
    (
        select count(*) from dagster.runs where status not in ('SUCCESS', 'FAILURE', 'CANCELED')
    ) as runs_in_dagster
"""

# Two live runs at the same function of the same tenant, by what both have committed.
OVERLAPS = """
select a.rpc, a.tenant, a.backend, b.backend as other
from witness.call as a
join witness.call as b on b.rpc = a.rpc and b.tenant = a.tenant and b.id > a.id and b.backend <> a.backend
where a.started < b.ended and b.started < a.ended
"""

# A run may not have committed anything after its lease was taken from it.
_LATE_RESULTS = """
select l.run_id, f.rpc
from stats_pipeline.function_result as f
join stats_pipeline.lease as l on l.id = f.lease_id
where f.status = 'success' and l.outcome in ('expired', 'revoked') and f.recorded_at > l.ended_at
"""


def unfinished(pipeline: Pipeline) -> dict[str, int]:
    """What is still to be done, by kind."""
    (row,) = pipeline.query(_UNFINISHED)
    return {kind: count for kind, count in row.items() if count}


def assert_sound(pipeline: Pipeline, jobs: Collection[UUID], *, status: str = "completed") -> list[dict[str, Any]]:
    """Wait until nothing is left to do, then check that it was done, and done once. Returns the jobs."""
    try:
        until(lambda: not unfinished(pipeline), "everything to end")
    except AssertionError:
        raise AssertionError(f"still unfinished: {unfinished(pipeline)}") from None

    rows = [pipeline.job(job_id) for job_id in jobs]
    assert {row["status"] for row in rows} == {status}, [(row["error_message"], row["results"]) for row in rows]
    for row in rows:
        assert_results_complete(row)
        attempts = pipeline.query("select * from stats_pipeline.attempt where job_id = %s order by attempt", row["id"])
        assert [attempt["attempt"] for attempt in attempts] == list(range(1, row["attempts"] + 1))
        *earlier, last = (attempt["outcome"] for attempt in attempts)
        assert set(earlier) <= {"died"}
        assert last == "completed" if status == "completed" else last in ("failed", "died")
        assert all(attempt["error"] for attempt in attempts if attempt["outcome"] != "completed")

    assert pipeline.app.stale_tags() == set()
    assert pipeline.query(OVERLAPS) == []
    assert pipeline.query(_LATE_RESULTS) == []
    assert pipeline.value("select count(*) from witness.call where ended is null") == 0
    with database.Database(pipeline.url) as opened:
        seen = reconcile.read(opened)
    assert reconcile.decide(seen, {}, Limits(6, 900, True)) == []
    return rows


def assert_results_complete(job: dict[str, Any]) -> None:
    """The job's row tells of every function and every tag."""
    if job["status"] == "completed":
        assert sorted(job["results"]["functions"]) == RPCS
        assert job["results"]["successful_functions"] == len(RPCS)
        assert job["results"]["cache"]["pending"] == []
