"""The upkeep sensor: redelivers due tags and repairs what runs, crashes and failed hooks have left behind.

Each second it looks at every open run, in our tables and in Dagster's, so it does the work of sensors for failed,
cancelled and succeeded runs without their five-second loop. What is a mismatch, and its repair: `reconcile.py`.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable

import dagster as dg
import psycopg

from stats_pipeline import database, outbox, reconcile
from stats_pipeline.cache import CacheClient
from stats_pipeline.defs.resources import LEASE_TAG
from stats_pipeline.defs.sensors import POLL_SECONDS, STOP_CHANNEL, TICK_SECONDS
from stats_pipeline.errors import DatabaseUnavailable, RepairFailed, one_line
from stats_pipeline.reconcile import DagsterState, Repair, Snapshot
from stats_pipeline.settings import Settings

log = logging.getLogger(__name__)


def build_upkeep_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that is running by default and launches nothing; its ticks say what it did."""

    @dg.sensor(
        name="stats_upkeep",
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Redelivers cache tags, rescues the jobs of dead runs, repairs every mismatch.",
    )
    def stats_upkeep(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        done: Counter[str] = Counter()
        try:
            with database.Database(database.database_url(settings), max_connections=2) as opened:
                _keep_up(opened, settings, context.instance, done)
        except (psycopg.OperationalError, DatabaseUnavailable) as error:
            done[f"stopped: {one_line(error)}"] += 1
        return dg.SkipReason(", ".join(f"{text} ({count})" for text, count in done.items()) or "All is well")

    return stats_upkeep


def _keep_up(opened: database.Database, settings: Settings, instance: dg.DagsterInstance, done: Counter[str]) -> None:
    deadline = time.monotonic() + TICK_SECONDS
    cache = CacheClient(settings) if settings.app_url else None
    try:
        with opened.dedicated_connection() as listener:
            if opened.can_listen:
                listener.execute(f"listen {STOP_CHANNEL}".encode())
            while True:
                if cache is not None:
                    _redeliver(opened, cache, settings, done)
                done.update(type(repair).__name__ for repair in repair_all(opened, settings, instance))
                left = deadline - time.monotonic()
                if left <= 0 or any(listener.notifies(timeout=min(left, POLL_SECONDS), stop_after=1)):
                    return
    finally:
        if cache is not None:
            cache.close()


def _redeliver(opened: database.Database, cache: CacheClient, settings: Settings, done: Counter[str]) -> None:
    delivery = outbox.deliver(opened, cache, cache_deadline=settings.cache_deadline)
    if delivery.taken:
        done["tags redelivered"] += len(delivery.taken)
    if delivery.problem:
        done[delivery.problem] += 1


def repair_all(
    opened: database.Database, settings: Settings, instance: dg.DagsterInstance, *, dry_run: bool = False
) -> list[Repair]:
    """One look, and every repair it asks for; with `dry_run` only the list.

    Raises `RepairFailed` if one of them fails, after the others were tried.
    """
    snapshot = reconcile.read(opened)
    states = dagster_states(instance, snapshot)
    repairs = reconcile.decide(snapshot.jobs, snapshot.messages, snapshot.runs, states, reconcile.limits_of(settings))
    if not dry_run:
        _apply_all(opened, repairs, settings, instance)
    return repairs


def _apply_all(
    opened: database.Database, repairs: Iterable[Repair], settings: Settings, instance: dg.DagsterInstance
) -> None:
    problems: list[str] = []
    for repair in repairs:
        try:
            with opened.transaction() as connection:
                # Whoever holds the row is alive and may well make the repair unnecessary; the other repairs go on.
                connection.execute("set local lock_timeout = '2s'")
                reconcile.apply(connection, repair, settings, lambda run_id: fail_in_dagster(instance, run_id))
        except DatabaseUnavailable:
            raise
        except Exception as error:
            log.exception("%s failed", repair)
            problems.append(f"{repair}: {one_line(error)}")
    if problems:
        raise RepairFailed(f"{len(problems)} repairs failed: " + "; ".join(problems))


def dagster_states(instance: dg.DagsterInstance, snapshot: Snapshot) -> dict[str, DagsterState]:
    """What Dagster says of these runs, and of the runs that were launched for leases still unclaimed (by the lease's
    id); what it does not know is left out."""
    claimed = [run.run_id for run in snapshot.runs if run.run_id is not None]
    leases = [str(run.id) for run in snapshot.runs if run.run_id is None]
    states: dict[str, DagsterState] = {}
    if claimed:
        states |= {run.run_id: _state(run) for run in instance.get_runs(dg.RunsFilter(run_ids=claimed))}
    if leases:
        launched = instance.get_runs(dg.RunsFilter(tags={LEASE_TAG: leases}))
        # A re-execution has its parent's tags, but not the lease.
        states |= {run.tags[LEASE_TAG]: _state(run) for run in launched if run.parent_run_id is None}
    return states


def _state(run: dg.DagsterRun) -> DagsterState:
    if run.status is dg.DagsterRunStatus.CANCELED:
        return "canceled"
    return "finished" if run.is_finished else "live"


def fail_in_dagster(instance: dg.DagsterInstance, run_id: str) -> None:
    """Tell Dagster that a run is dead, so that nobody waits for it in the UI."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, "The run's process stopped answering; its jobs were given to a new run.")
