"""The same project with Dagster's defaults: sensor interval, coordinator, launcher and executor.

Ops, hooks, resources and SQL are the product's. The two sensors are plain: each tick checks once and returns, because a
waiting sensor would delay the others in a daemon that runs them one after the other. Only the benchmarks load this;
`harness.py` configures it.
"""

from collections.abc import Iterator

import dagster as dg

from stats_pipeline import database
from stats_pipeline import settings as settings_module
from stats_pipeline.defs.assets import build_source_assets, build_stats_assets
from stats_pipeline.defs.jobs import JOB_NAME
from stats_pipeline.defs.resources import refresh_resource
from stats_pipeline.defs.runs import repair_all
from stats_pipeline.defs.sensors import run_requests
from stats_pipeline.jobs import outbox, queue
from stats_pipeline.jobs.invalidation import CacheClient

settings = settings_module.load()


@dg.sensor(job_name=JOB_NAME, default_status=dg.DefaultSensorStatus.RUNNING)
def stats_queue(_: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
    """Launch runs for the waiting jobs."""
    with database.connect(database.database_url(settings), autocommit=True) as connection:
        leases = queue.lease(connection, lease_seconds=settings.lease_seconds, max_runs=settings.max_runs)
    yield from run_requests(leases)


@dg.sensor(default_status=dg.DefaultSensorStatus.RUNNING)
def stats_upkeep(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Redeliver and repair once."""
    with database.Database(database.database_url(settings)) as opened:
        cache = CacheClient(settings)
        outbox.deliver(opened, cache, cache_deadline=settings.cache_deadline)
        cache.close()
        repairs, problems = repair_all(opened, settings, context.instance)
        return dg.SkipReason(f"{len(repairs)} repairs, {len(problems)} of them failed")


stats_assets = build_stats_assets(settings.functions)
defs = dg.Definitions(
    assets=[*build_source_assets(settings.functions), *stats_assets],
    jobs=[dg.define_asset_job(JOB_NAME, selection=dg.AssetSelection.assets(*stats_assets))],
    sensors=[stats_queue, stats_upkeep],
    resources={"refresh": refresh_resource},
)
