"""Every history ends well. `make model MINUTES=30` looks at more of them."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from stats_pipeline.cache import CacheClient
from stats_pipeline.settings import Settings
from stats_pipeline_tests.acceptance.app_server import KEY, App
from stats_pipeline_tests.model.machine import Machine
from stats_pipeline_tests.model.world import World

SECONDS = 60 * float(os.environ.get("MODEL_MINUTES", "0.9"))
EXAMPLES = 20  # in a row, between two looks at the clock

SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
    print_blob=False,
)


@pytest.fixture
def world(create_database: object, postgres: str) -> Iterator[World]:
    with closing(World(create_database())) as world:  # type: ignore[operator]
        yield world


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    app.start()
    yield app
    app.stop()


@pytest.mark.timeout(SECONDS + 900)
def test_every_history_ends_well(world: World, app: App) -> None:
    """Seed by seed, so that what one machine finds another one finds too."""
    deadline = time.monotonic() + SECONDS
    client = CacheClient(Settings.model_validate({"NEXT_PUBLIC_APP_URL": app.url, "INTERNAL_API_KEY": KEY}))
    with closing(client) as cache:
        for number in itertools.count(int(os.environ.get("MODEL_SEED", "0"))):
            if time.monotonic() > deadline:
                break
            run_state_machine_as_test(seed(number)(lambda: Machine(world, app, cache)), settings=SETTINGS)
    print(f"{number} seeds of {EXAMPLES} histories")
