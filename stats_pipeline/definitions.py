"""The definitions that Dagster loads. This module only assembles them; each kind has its module in `defs/`."""

import dagster as dg

from stats_pipeline import log
from stats_pipeline import settings as settings_module
from stats_pipeline.defs.assets import build_source_assets, build_stats_assets
from stats_pipeline.defs.hooks import hooks_for
from stats_pipeline.defs.jobs import build_prune_job, build_stats_job, executor_for
from stats_pipeline.defs.resources import refresh_resource
from stats_pipeline.defs.schedules import build_nightly_schedule, build_prune_schedule
from stats_pipeline.defs.sensors import build_queue_sensor, build_upkeep_sensors
from stats_pipeline.settings import Settings


def build_defs(settings: Settings | None = None) -> dg.Definitions:
    """All definitions for the given settings, by default those of the environment. Opens no connection.

    `up` sets the profile for its processes; every other process gets `stock`, unless STATS_RUNTIME is set.
    """
    settings = (settings or settings_module.load()).for_dagster()
    log.configure(settings.log_level)
    runtime = settings.runtime or "stock"
    executor = executor_for(runtime)
    stats_assets = build_stats_assets(settings.functions, hooks=hooks_for(runtime))
    return dg.Definitions(
        assets=[*build_source_assets(settings.functions), *stats_assets],
        jobs=[build_stats_job(stats_assets, executor=executor), build_prune_job(settings, executor=executor)],
        sensors=[build_queue_sensor(settings), *build_upkeep_sensors(settings)],
        schedules=[build_nightly_schedule(settings), build_prune_schedule(settings)],
        resources={"refresh": refresh_resource},
        executor=executor,  # also for a table refreshed alone from the UI
    )


defs = build_defs()
