"""The jobs: all stats functions side by side, under the profile's executor; and the pruning of history.

Run config may select another of Dagster's executors: `execution: {config: {in_process: {}}}`, or, in `stock`, whose
default it is, `multiprocess: {}`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from stats_pipeline import database
from stats_pipeline.jobs import retention
from stats_pipeline.settings import Runtime, Settings

JOB_NAME = "stats_update"
PRUNE_JOB_NAME = "prune"

_BATCH = 100  # Dagster deletes run by run, 16 ms each
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def executor_for(runtime: Runtime) -> dg.ExecutorDefinition:
    """`fast`: each op in a thread of the run's process; `stock`: each op in its own process, as Dagster does."""
    if runtime == "stock":
        return dg.multi_or_in_process_executor
    # Imported here: `stock` must load even if a private name of Dagster's is missing.
    from stats_pipeline.runtime.executor import thread_executor  # noqa: PLC0415

    return thread_executor


def build_stats_job(
    assets: Sequence[dg.AssetsDefinition], *, executor: dg.ExecutorDefinition = dg.multi_or_in_process_executor
) -> Any:
    """The job that refreshes every table. Dagster has no public name for the type of its result."""
    return dg.define_asset_job(
        JOB_NAME,
        selection=dg.AssetSelection.assets(*assets),
        executor_def=executor,
        description="Refresh all player statistics of one club and invalidate the app's cache tags.",
    )


def build_prune_job(
    settings: Settings, *, executor: dg.ExecutorDefinition = dg.multi_or_in_process_executor
) -> dg.JobDefinition:
    """One op that deletes rows of our tables and finished Dagster runs that are older than the settings allow.

    With 0 days it deletes nothing. The retention of Dagster's ticks is set in `dagster.yaml`.
    """

    @dg.op(name="prune_history", out=dg.Out(dg.Nothing))
    def prune_history(context: dg.OpExecutionContext) -> None:
        if settings.retention_days == 0:
            context.log.info("STATS_RETENTION_DAYS is 0: everything is kept")
            return
        with database.Database(database.database_url(settings), max_connections=1) as opened:
            pruned = retention.prune(opened, days=settings.retention_days)
        pruned["Dagster runs"] = prune_dagster_runs(context.instance, days=settings.retention_days)
        context.log.info("Deleted " + ", ".join(f"{count} {kind}" for kind, count in pruned.items()))

    @dg.job(name=PRUNE_JOB_NAME, executor_def=executor, description="Delete history older than STATS_RETENTION_DAYS.")
    def prune() -> None:
        prune_history()

    return prune


def prune_dagster_runs(instance: dg.DagsterInstance, *, days: int) -> int:
    """Delete Dagster's runs, with their events, that were created and have ended more than `days` days ago."""
    ended = dg.RunsFilter(statuses=_ENDED, created_before=datetime.now(UTC) - timedelta(days=days))
    pruned = 0
    while runs := instance.get_runs(filters=ended, limit=_BATCH):
        for run in runs:
            instance.delete_run(run.run_id)
        pruned += len(runs)
    return pruned
