"""The queue sensors: they wait for work, lease it, and ask for one run per tenant.

There are four alike. Dagster's daemon looks each five seconds which sensors are due, so one that has found work is away
for up to five, and meanwhile another one waits. What a lease is and who gets one is decided in the database
(`lease_jobs`); launching is Dagster's part.
"""

import time
from collections.abc import Iterable
from typing import Any

import dagster as dg
import psycopg
from psycopg import Connection

from stats_pipeline import database, job_status
from stats_pipeline.defs.jobs import JOB_NAME
from stats_pipeline.defs.resources import JOBS_TAG, LEASE_TAG, TENANT_TAG
from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.models import Lease
from stats_pipeline.settings import Settings

# A tick blocks for so many seconds at most: well below the 60 of the daemon's call, and so that it ends just before
# the daemon looks again, not just after.
TICK_SECONDS = 19.5
# Behind the notification, for what a lost one would miss and for leases that expire, which nothing notifies of.
POLL_SECONDS = 1
QUEUE_SENSORS = ("stats_queue", "stats_queue_2", "stats_queue_3", "stats_queue_4")
WORK_CHANNEL = "stats_pipeline_work"
STOP_CHANNEL = "stats_pipeline_stop"  # ends the tick at once, so that a shutdown need not wait for it


def build_queue_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Sensors that are running by default, each of which reacts to an enqueue within milliseconds while it waits."""
    return [_build_queue_sensor(settings, name) for name in QUEUE_SENSORS]


def _build_queue_sensor(settings: Settings, name: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        job_name=JOB_NAME,
        minimum_interval_seconds=1,  # 0 would mean Dagster's default of 30
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Launches a run for each tenant with waiting jobs. Four of a kind take turns.",
    )
    def stats_queue(_: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            url = database.database_url(settings)
            opened = database.Database(url)
            with opened.dedicated_connection() as connection:
                if opened.can_listen:
                    connection.execute(f"listen {WORK_CHANNEL}".encode())
                    connection.execute(f"listen {STOP_CHANNEL}".encode())
                return _wait_for_work(connection, settings)
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            return dg.SkipReason(f"The database is out of reach: {one_line(error)}")

    return stats_queue


def _wait_for_work(connection: Connection[Any], settings: Settings) -> dg.SensorResult | dg.SkipReason:
    deadline = time.monotonic() + TICK_SECONDS
    while True:
        leases = job_status.lease(connection, lease_seconds=settings.lease, max_runs=settings.max_runs)
        if leases:
            return dg.SensorResult(run_requests=list(run_requests(leases)))
        left = deadline - time.monotonic()
        if left <= 0:
            return dg.SkipReason("The queue holds nothing that can start")
        for notification in connection.notifies(timeout=min(left, POLL_SECONDS), stop_after=1):
            if notification.channel == STOP_CHANNEL:
                return dg.SkipReason("Shutting down")


def run_requests(leases: Iterable[Lease]) -> Iterable[dg.RunRequest]:
    """One request per lease. A lease is never given twice, so its id may be the run key."""
    for lease in leases:
        tags = {LEASE_TAG: str(lease.lease_id), JOBS_TAG: str(lease.jobs)}
        if lease.tenant_id is not None:
            tags[TENANT_TAG] = str(lease.tenant_id)
        yield dg.RunRequest(run_key=str(lease.lease_id), tags=tags)
