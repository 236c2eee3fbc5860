"""The daily pruning of history older than STATS_RETENTION_DAYS: our own tables, and Dagster's finished runs.

Off by default: with 0 days the schedule is stopped, and the job, started by hand, deletes nothing. Dagster's ticks have
a retention of their own in `dagster.yaml`.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from stats_pipeline import database, retention
from stats_pipeline.defs.executor import thread_executor
from stats_pipeline.settings import Settings

JOB_NAME = "prune"
_BATCH = 100  # Dagster deletes run by run, 16 ms each
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def build_prune_job(settings: Settings) -> dg.JobDefinition:
    """One op that deletes what is older than the settings allow."""

    @dg.op(name="prune_history", out=dg.Out(dg.Nothing))
    def prune_history(context: dg.OpExecutionContext) -> None:
        if settings.retention_days == 0:
            context.log.info("STATS_RETENTION_DAYS is 0: everything is kept")
            return
        with database.Database(database.database_url(settings)) as opened:
            pruned = retention.prune(opened, days=settings.retention_days)
        pruned["Dagster runs"] = prune_dagster_runs(context.instance, days=settings.retention_days)
        context.log.info("Deleted " + ", ".join(f"{count} {kind}" for kind, count in pruned.items()))

    @dg.job(name=JOB_NAME, executor_def=thread_executor, description="Delete history older than STATS_RETENTION_DAYS.")
    def prune() -> None:
        prune_history()

    return prune


def build_prune_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Every day at 04:30 in the settings' time zone; running only if something may be deleted."""
    return dg.ScheduleDefinition(
        name="daily_prune",
        job_name=JOB_NAME,
        cron_schedule="30 4 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.retention_days
        else dg.DefaultScheduleStatus.STOPPED,
        description="Deletes history older than STATS_RETENTION_DAYS.",
    )


def prune_dagster_runs(instance: dg.DagsterInstance, *, days: int) -> int:
    """Delete Dagster's runs, with their events, that were created and have ended more than so many days ago."""
    ended = dg.RunsFilter(statuses=_ENDED, created_before=datetime.now(UTC) - timedelta(days=days))
    pruned = 0
    while runs := instance.get_runs(filters=ended, limit=_BATCH):
        for run in runs:
            instance.delete_run(run.run_id)
        pruned += len(runs)
    return pruned
