"""The pace of Dagster's daemon, with Dagster's own loop."""

import logging
import threading

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon import sensor

from stats_pipeline.runtime import daemon


class FirstPause(threading.Event):
    """Ends the loop at its first pause, and knows how long that would have been."""

    seconds: float | None = None

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds = timeout
        raise StopAsyncIteration


def pause() -> float:
    stop = FirstPause()
    with (
        dg.instance_for_test() as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as workspace,
        pytest.raises(StopAsyncIteration),
    ):
        for _ in sensor.execute_sensor_iteration_loop(workspace, logging.getLogger(__name__), stop):
            pass
    assert stop.seconds is not None
    return stop.seconds


def test_the_pause_between_two_rounds_of_the_sensors_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor, "MIN_INTERVAL_LOOP_TIME", sensor.MIN_INTERVAL_LOOP_TIME)  # put back afterwards
    assert pause() > 3 * daemon.ROUND_SECONDS
    daemon.quicken_sensors()
    assert pause() <= daemon.ROUND_SECONDS
