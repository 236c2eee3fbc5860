"""Every history ends correctly. `make test` runs histories for a minute, `make model MINUTES=30` for longer."""

import itertools
import logging
import os
import time
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline_tests.acceptance.app_server import App
from stats_pipeline_tests.model.machine import Machine
from stats_pipeline_tests.model.world import World

SECONDS = 60 * float(os.environ.get("MODEL_MINUTES", "0.9"))
SHRINKING = 600  # seconds that finding the shortest history may take

SETTINGS = settings(
    max_examples=20,  # between two looks at the clock
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    print_blob=False,
)


def histories(number: int, world: World, app: App, cache: CacheClient) -> type[RuleBasedStateMachine]:
    """The histories of one seed. Hypothesis takes a function where it says that it takes a class."""
    return cast(type[RuleBasedStateMachine], seed(number)(lambda: Machine(world, app, cache)))


@pytest.mark.timeout(SECONDS + SHRINKING)
def test_every_history_ends_well(world: World, app: App, cache: CacheClient, caplog: pytest.LogCaptureFixture) -> None:
    """Always the same histories in the same order; how far it gets depends on the machine."""
    caplog.set_level(logging.CRITICAL, "stats_pipeline")
    deadline = time.monotonic() + SECONDS
    for number in itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count()):
        run_state_machine_as_test(histories(number, world, app, cache), settings=SETTINGS)
    print(f"{number} seeds of {SETTINGS.max_examples} histories")
