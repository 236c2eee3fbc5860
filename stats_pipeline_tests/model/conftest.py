"""The model's world, and the app that its tags are delivered to."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.settings import Settings
from stats_pipeline_tests.acceptance.app_server import KEY, App
from stats_pipeline_tests.model.world import World


@pytest.fixture
def world(create_database: Callable[[], str]) -> Iterator[World]:
    with closing(World(create_database())) as world:
        yield world


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    app.start()
    yield app
    app.stop()


@pytest.fixture
def cache(app: App) -> Iterator[CacheClient]:
    settings = Settings.model_validate({"NEXT_PUBLIC_APP_URL": app.url, "INTERNAL_API_KEY": KEY})
    with closing(CacheClient(settings)) as cache:
        yield cache
