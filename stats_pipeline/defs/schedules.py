"""The schedules: the nightly refresh, and the daily pruning.

The nightly refresh is one job per tenant, enqueued like any other, and launched by the tick that enqueued it.

Enqueuing and leasing are one transaction, so the queue sensor cannot lease the job first, and the tick shows the run it
started. If that run never starts, the lease expires and the queue sensor launches one.
"""

from datetime import UTC

import dagster as dg

from stats_pipeline.database import budget
from stats_pipeline.defs.jobs import JOB_NAME, PRUNE_JOB_NAME
from stats_pipeline.defs.sensors import pool, run_requests
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Payload
from stats_pipeline.settings import Settings


def build_nightly_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """A schedule that is running by default, at `STATS_CRON` in `STATS_TIMEZONE`."""

    @dg.schedule(
        name="nightly_stats",
        job_name=JOB_NAME,
        cron_schedule=settings.cron,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Refreshes every tenant once, whether or not there was a match.",
    )
    def nightly_stats(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        # The time the tick was due, not the time it runs: a tick that is evaluated twice gets the same job.
        request_id = f"nightly-{context.scheduled_execution_time.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
        with pool(settings).transaction() as connection:
            queue.enqueue_each(
                connection,
                (
                    Payload(triggered_by="cron", request_id=request_id, tenant_id=str(tenant) if tenant else None)
                    for tenant in settings.tenants or (None,)
                ),
            )
            leases = queue.lease(
                connection, lease_seconds=settings.lease_seconds, max_runs=budget.runs_at_a_time(settings)
            )
        if not leases:
            return dg.SkipReason("Enqueued; the queue sensor launches it when the open runs have ended")
        return list(run_requests(leases))

    return nightly_stats


def build_prune_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Every day at 04:30 in the settings' time zone; runs by default only if the settings allow deletion."""
    return dg.ScheduleDefinition(
        name="daily_prune",
        job_name=PRUNE_JOB_NAME,
        cron_schedule="30 4 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.retention_days
        else dg.DefaultScheduleStatus.STOPPED,
        description="Deletes history older than STATS_RETENTION_DAYS.",
    )
