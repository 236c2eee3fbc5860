"""Starts sensors that were stopped: Dagster keeps that in its storage."""

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType  # tells a sensor's stored state from a schedule's
from dagster._core.scheduler.instigation import InstigatorStatus  # stopped in the UI, or as the code declares


def start_stopped_sensors(instance: dg.DagsterInstance, location: str) -> list[str]:
    """Start the location's sensors that were stopped in the UI; returns their names."""
    stopped = instance.all_instigator_state(
        instigator_type=InstigatorType.SENSOR, instigator_statuses={InstigatorStatus.STOPPED}
    )
    ours = [state for state in stopped if state.repository_selector.location_name == location]
    for state in ours:
        instance.update_instigator_state(state.with_status(InstigatorStatus.DECLARED_IN_CODE))
    return [state.name for state in ours]
