"""Dagster's instance as `up` uses it: restart stopped sensors, and count the runs in progress."""

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType  # tells a sensor's stored state from a schedule's
from dagster._core.scheduler.instigation import InstigatorStatus  # stopped in the UI, or as the code declares

# Runs that have a process or are about to get one, but not those that only wait in Dagster's queue.
_IN_PROGRESS = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def start_stopped_sensors(instance: dg.DagsterInstance, location: str) -> list[str]:
    """Start the location's sensors that were stopped in the UI; returns their names."""
    stopped = instance.all_instigator_state(
        instigator_type=InstigatorType.SENSOR, instigator_statuses={InstigatorStatus.STOPPED}
    )
    ours = [state for state in stopped if state.repository_selector.location_name == location]
    for state in ours:
        instance.update_instigator_state(state.with_status(InstigatorStatus.DECLARED_IN_CODE))
    return [state.name for state in ours]


def count_runs_in_progress(instance: dg.DagsterInstance) -> int:
    """How many runs have a process, or are about to get one."""
    return instance.get_runs_count(dg.RunsFilter(statuses=_IN_PROGRESS))
