"""The state of our runs in Dagster, for the repairs that `reconcile.py` decides on. `sensors.py` calls them."""

from dataclasses import replace
from typing import Any, TypeGuard
from uuid import UUID

import dagster as dg

from stats_pipeline import database
from stats_pipeline.defs.resources import LEASE_TAG
from stats_pipeline.jobs import reconcile
from stats_pipeline.jobs.reconcile import DagsterState, ExpireLease, Repair, Snapshot
from stats_pipeline.log import Outage
from stats_pipeline.settings import Settings

# The events that may explain why a run did not start.
_TELLING = {
    dg.DagsterEventType.ENGINE_EVENT,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.RUN_FAILURE,
}
_CAUSE_LENGTH = 400  # characters


def repair_all(
    opened: database.Database,
    settings: Settings,
    instance: dg.DagsterInstance,
    *,
    dry_run: bool = False,
    starting: Outage | None = None,
) -> tuple[list[Repair], list[str]]:
    """Compare once and make every repair; returns the repairs and a line for each that failed. `dry_run` only lists."""
    snapshot = reconcile.read(opened)
    repairs = [
        replace(repair, cause=failure_of_start(instance, repair.lease_id)) if _is_unclaimed(repair) else repair
        for repair in reconcile.decide(snapshot, dagster_states(instance, snapshot), reconcile.limits_of(settings))
    ]
    if dry_run:
        return repairs, []
    if starting is not None:
        for repair in repairs:
            if isinstance(repair, ExpireLease) and repair.cause is not None:
                starting.begins(repair.cause)
        if any(lease.run_id is not None and lease.outcome is None for lease in snapshot.leases):
            starting.is_over()
    return repairs, reconcile.apply_all(opened, repairs, settings, lambda run_id: fail_in_dagster(instance, run_id))


def dagster_states(instance: dg.DagsterInstance, snapshot: Snapshot) -> dict[str, DagsterState]:
    """The states in Dagster of these leases' runs, and of runs launched for leases still unclaimed (by the lease's id).
    Runs unknown to Dagster are left out."""
    claimed = [lease.run_id for lease in snapshot.leases if lease.run_id is not None]
    leases = [str(lease.id) for lease in snapshot.leases if lease.run_id is None]
    states: dict[str, DagsterState] = {}
    if claimed:
        states |= {run.run_id: _state(run) for run in instance.get_runs(dg.RunsFilter(run_ids=claimed))}
    if leases:
        launched = instance.get_runs(dg.RunsFilter(tags={LEASE_TAG: leases}))
        # A re-execution has its parent's tags, but not the lease.
        states |= {run.tags[LEASE_TAG]: _state(run) for run in launched if run.parent_run_id is None}
    return states


def _is_unclaimed(repair: Repair) -> TypeGuard[ExpireLease]:
    return isinstance(repair, ExpireLease) and repair.not_renewed_since is None


def failure_of_start(instance: dg.DagsterInstance, lease_id: UUID) -> str | None:
    """The last error, as one line, of the run that was launched for a lease and did not claim it."""
    for launched in instance.get_runs(dg.RunsFilter(tags={LEASE_TAG: str(lease_id)})):
        if launched.parent_run_id is None and launched.status is dg.DagsterRunStatus.FAILURE:
            entries = instance.all_logs(launched.run_id, of_type=_TELLING)
            errors = [getattr(entry.get_dagster_event().event_specific_data, "error", None) for entry in entries]
            said = [_innermost(error) for error in errors if error is not None]
            said = said or [entry.get_dagster_event().message or "" for entry in entries]
            return " ".join(said[-1].split())[:_CAUSE_LENGTH] if said else None
    return None


def _innermost(error: Any) -> str:
    """The first error of a chain: Dagster wraps our errors in its own."""
    while error.cause is not None:
        error = error.cause
    return str(error.message)


def _state(run: dg.DagsterRun) -> DagsterState:
    if run.status is dg.DagsterRunStatus.CANCELED:
        return "canceled"
    return "finished" if run.is_finished else "live"


def fail_in_dagster(instance: dg.DagsterInstance, run_id: str) -> None:
    """Mark a dead run as failed in Dagster, so that the UI does not show it as running."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, "The run's process stopped answering; its jobs were given to a new run.")
