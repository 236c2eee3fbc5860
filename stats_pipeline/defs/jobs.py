"""The one job: all stats functions side by side, under the executor that overlaps them.

The stock executors stay selectable by run config: `execution: {config: {multiprocess: {}}}`, or `in_process: {}`.
"""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from stats_pipeline.defs.executor import thread_executor

JOB_NAME = "stats_update"


def build_stats_job(assets: Sequence[dg.AssetsDefinition]) -> UnresolvedAssetJobDefinition:
    """Refresh every table, each function in a thread of its own."""
    return dg.define_asset_job(
        JOB_NAME,
        selection=dg.AssetSelection.assets(*assets),
        executor_def=thread_executor,
        description="Refresh all player statistics of one club and invalidate the app's cache tags.",
    )
