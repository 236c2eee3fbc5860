"""The jobs: all stats functions side by side, under the executor that overlaps them; and the pruning of history.

The stock executors stay selectable by run config: `execution: {config: {multiprocess: {}}}`, or `in_process: {}`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from stats_pipeline import database
from stats_pipeline.jobs import retention
from stats_pipeline.runtime.executor import thread_executor
from stats_pipeline.settings import Settings

JOB_NAME = "stats_update"
PRUNE_JOB_NAME = "prune"

_BATCH = 100  # Dagster deletes run by run, 16 ms each
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def build_stats_job(assets: Sequence[dg.AssetsDefinition]) -> UnresolvedAssetJobDefinition:
    """Refresh every table, each function in a thread of its own."""
    return dg.define_asset_job(
        JOB_NAME,
        selection=dg.AssetSelection.assets(*assets),
        executor_def=thread_executor,
        description="Refresh all player statistics of one club and invalidate the app's cache tags.",
    )


def build_prune_job(settings: Settings) -> dg.JobDefinition:
    """One op that deletes what is older than the settings allow: our own tables, and Dagster's finished runs.

    With 0 days it deletes nothing. Dagster's ticks have a retention of their own in `dagster.yaml`.
    """

    @dg.op(name="prune_history", out=dg.Out(dg.Nothing))
    def prune_history(context: dg.OpExecutionContext) -> None:
        if settings.retention_days == 0:
            context.log.info("STATS_RETENTION_DAYS is 0: everything is kept")
            return
        with database.Database(database.database_url(settings)) as opened:
            pruned = retention.prune(opened, days=settings.retention_days)
        pruned["Dagster runs"] = prune_dagster_runs(context.instance, days=settings.retention_days)
        context.log.info("Deleted " + ", ".join(f"{count} {kind}" for kind, count in pruned.items()))

    @dg.job(
        name=PRUNE_JOB_NAME, executor_def=thread_executor, description="Delete history older than STATS_RETENTION_DAYS."
    )
    def prune() -> None:
        prune_history()

    return prune


def prune_dagster_runs(instance: dg.DagsterInstance, *, days: int) -> int:
    """Delete Dagster's runs, with their events, that were created and have ended more than so many days ago."""
    ended = dg.RunsFilter(statuses=_ENDED, created_before=datetime.now(UTC) - timedelta(days=days))
    pruned = 0
    while runs := instance.get_runs(filters=ended, limit=_BATCH):
        for run in runs:
            instance.delete_run(run.run_id)
        pruned += len(runs)
    return pruned
