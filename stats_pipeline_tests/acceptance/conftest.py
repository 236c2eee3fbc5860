"""Fixtures for tests with real processes: `stats-pipeline up` with the demo's league and an app, once per module."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from stats_pipeline.demo import league
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.app_server import KEY, App, take_all
from stats_pipeline_tests.acceptance.processes import PASSWORD, Pipeline
from stats_pipeline_tests.ports import free_port

COMMAND = str(Path(sys.executable).with_name("stats-pipeline"))
COMMANDS = ("up", "demo", "migrate", "enqueue", "jobs", "activity", "run-direct", "doctor", "job", "retry")
NO_JOB = "00000000-0000-4000-8000-000000000000"
Result = subprocess.CompletedProcess[str]
Cli = Callable[..., Result]
Doctor = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    """The app: checks the key and takes every tag."""
    app = App()
    app.start()
    yield app
    app.stop()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, app: App) -> Iterator[Pipeline]:
    """`stats-pipeline up`, and the demo's league in its database."""
    started = Pipeline(tmp_path_factory.mktemp("up"), app, {})
    app.version = dict
    started.start()
    try:
        with started.connect() as connection, connection.transaction():
            league.load(connection, league.generate(last_match=date.today()))
        yield started
    finally:
        started.stop()
    # While it stops, Dagster's daemon may still log a tick whose code location has just gone.
    assert "Traceback" not in started.log.read_text().split("Stopping …")[0]


def environment(home: Path, **settings: str) -> dict[str, str]:
    """The environment of a command that has a state folder and ports of its own."""
    return {
        **os.environ,
        "STATS_HOME": str(home),
        "STATS_PORT": str(free_port()),
        "ADMIN_PASSWORD": PASSWORD,
        **settings,
    }


def run(home: Path, *arguments: str, **settings: str) -> Result:
    """Run `stats-pipeline` to its end, as a user does; whatever happens, the user sees no stack trace."""
    finished = subprocess.run(
        [COMMAND, *arguments],
        env=environment(home, **settings),
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in finished.stdout + finished.stderr
    return finished


def refusal(finished: Result, code: int = 1) -> str:
    """The one line that a command which cannot do its work says."""
    assert finished.returncode == code, finished.stdout + finished.stderr
    assert finished.stdout == ""
    *progress, error = finished.stderr.splitlines()
    assert all(line.endswith(" …") for line in progress)
    assert error.startswith("Error: ")
    return error.removeprefix("Error: ")


def misuse(finished: Result) -> str:
    """The one line, after the usage, that says what is wrong with the invocation."""
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert finished.stdout == ""
    usage, _, _, error = finished.stderr.splitlines()
    assert usage.startswith("Usage: ")
    return error.removeprefix("Error: ")


@pytest.fixture(scope="module")
def cli(pipeline: Pipeline, app: App) -> Cli:
    """`stats-pipeline` beside the one that is up."""

    def call(*arguments: str) -> Result:
        return run(pipeline.home, *arguments, NEXT_PUBLIC_APP_URL=app.url, INTERNAL_API_KEY=KEY)

    return call


def findings(finished: Result) -> dict[str, tuple[str, str]]:
    """State and words by subject; where one is found twice, the last."""
    found = {finding["subject"]: (finding["state"], finding["said"]) for finding in json.loads(finished.stdout)}
    is_well = all(state != "problem" for state, _ in found.values())
    assert finished.returncode == (0 if is_well else 1), finished.stderr
    return found


@pytest.fixture
def doctor(tmp_path: Path, database_url: str, app: App) -> Doctor:
    app.behaviour = take_all

    def examine(**settings: str) -> dict[str, tuple[str, str]]:
        given = {"STATS_DATABASE_URL": database_url, "NEXT_PUBLIC_APP_URL": app.url, "INTERNAL_API_KEY": KEY}
        return findings(run(tmp_path, "doctor", "--json", **(given | settings)))

    return examine
