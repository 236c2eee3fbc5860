"""`stats-pipeline up` in unusual surroundings: the folder's name, the files in the folder it is started from, the
environment, other pages in the browser, and a database that dies.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stats_pipeline import database
from stats_pipeline.database import embedded, migrate
from stats_pipeline_tests.acceptance.app_server import KEY, App, take_all
from stats_pipeline_tests.acceptance.conftest import run
from stats_pipeline_tests.acceptance.processes import Pipeline, until

PASSWORD, SECRET, BYPASS = "a password of the admin's", "a secret of the cron's", "a header of the app's"
HOSTILE_ENVIRONMENT = {
    "PGPORT": "1",
    "PGOPTIONS": "-csearch_path=nowhere",
    "PGSSLMODE": "verify-full",
    "PGSERVICE": "nobody",
    "ALL_PROXY": "socks5://127.0.0.1:1",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS": "1",
    "DAGSTER_HOME": "/nowhere",
    "PYTHONWARNINGS": "error",
    "LC_ALL": "tr_TR.UTF-8",
    "A_SECRET_OF_ANOTHER_PROGRAM": "its value",
}


# What a session inherits from its role.
ODD_DEFAULTS = (
    "timezone = 'Pacific/Auckland'",
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'sql_standard'",
    "default_transaction_isolation = 'serializable'",
    "search_path = 'nowhere'",
    "statement_timeout = '3s'",
    "lock_timeout = '5ms'",
    "standard_conforming_strings = off",
    "bytea_output = 'escape'",
    "extra_float_digits = 0",
    "row_security = off",
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("surroundings")
    folder.chmod(0o755)
    (folder / ".env").write_text("NEXT_PUBLIC_APP_URL=http://127.0.0.1:1\nINTERNAL_API_KEY=the wrong key of somebody\n")
    for module in ("json", "dagster", "psycopg", "stats_pipeline"):
        (folder / f"{module}.py").write_text("raise SystemExit('imported from the folder')\n")
    home = folder / "o'brien & sons" / "my club"
    home.mkdir(parents=True)
    app = App()
    app.start()
    app.behaviour = take_all
    settings = {
        "STATS_HOST": "0.0.0.0",
        "ADMIN_PASSWORD": PASSWORD,
        "CRON_SECRET": SECRET,
        "STATS_APP_HEADERS": json.dumps({"x-bypass": BYPASS}),
    }
    started = Pipeline(home, app, HOSTILE_ENVIRONMENT | settings, folder=folder)
    started.start()
    started.install_witness()
    try:
        yield started
    finally:
        started.stop()
        app.stop()


def do_a_job(pipeline: Pipeline) -> dict[str, Any]:
    job_id = pipeline.enqueue()
    return until(lambda: (job := pipeline.job(job_id))["completed_at"] and job, "the end of the job")


def test_a_job_is_done_and_its_tags_reach_the_app(pipeline: Pipeline) -> None:
    job = do_a_job(pipeline)
    assert job["status"] == "completed", job
    assert job["results"]["cache"]["status"] == "delivered", job["results"]["cache"]
    assert "PGPORT is PostgreSQL's and has no effect" in pipeline.log.read_text()


def test_a_stopped_sensor_is_named_and_the_next_start_starts_it(pipeline: Pipeline) -> None:
    [relay] = [sensor for sensor in _sensors(pipeline) if sensor["name"] == "stats_relay"]
    pipeline.ask_dagster("mutation($id: String!) { stopSensor(id: $id) { __typename } }", id=relay["id"])
    health = until(
        lambda: (found := httpx.get(f"{pipeline.door}/health", timeout=20).json())["sensor"]["silent"] and found,
        "the silence of a sensor",
    )
    assert (health["status"], health["sensor"]["status"]) == ("degraded", "late")
    assert health["sensor"]["silent"] == ["stats_relay"]
    settings = {"NEXT_PUBLIC_APP_URL": pipeline.app.url, "INTERNAL_API_KEY": KEY}
    said = run(pipeline.home, "doctor", "--json", **settings).stdout
    assert "Silent are the sensors stats_relay: if they were stopped in Dagster's UI, start them there" in said

    assert pipeline.stop() in (0, 130)
    pipeline.log.write_text("")
    pipeline.start()
    assert "The sensor stats_relay had been stopped and was started again" in pipeline.log.read_text()
    assert do_a_job(pipeline)["status"] == "completed"


def _sensors(pipeline: Pipeline) -> Any:
    return pipeline.ask_dagster(
        '{ sensorsOrError(repositorySelector: {repositoryName: "__repository__", repositoryLocationName: '
        '"stats_pipeline"}) { ... on Sensors { results { name id } } } }',
    )["sensorsOrError"]["results"]


def test_what_it_says_is_short(pipeline: Pipeline) -> None:
    """After some jobs and some seconds: its own few lines, and nothing of Dagster's, which is in a file."""
    do_a_job(pipeline)
    said = pipeline.log.read_text().split("Up.")[1].splitlines()
    assert len(said) < 5, said
    assert "dagster.daemon" in (pipeline.home / "logs" / "daemon.log").read_text()


def _kill_the_server(pipeline: Pipeline) -> None:
    server = psutil.Process(int((pipeline.home / "postgres" / "postmaster.pid").read_text().split()[0]))
    server.kill()
    psutil.wait_procs([server], timeout=30)


def test_a_database_that_dies_is_started_again(pipeline: Pipeline) -> None:
    _kill_the_server(pipeline)
    until(lambda: pipeline.query("select 1"), "a database")
    assert do_a_job(pipeline)["status"] == "completed"
    assert "The embedded PostgreSQL had died and was restarted" in pipeline.log.read_text()


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Pipeline]:
    """Beside a database of the user's own, which `up` cannot start again."""
    app = App()
    app.start()
    app.behaviour = take_all
    with embedded.running(tmp_path / "theirs") as url:
        with database.connect(url, autocommit=True) as connection:
            migrate.migrate(connection, reference_stats=True)
            for setting in ODD_DEFAULTS:
                connection.execute(f"alter role postgres set {setting}".encode())
        pipeline = Pipeline(tmp_path, app, {"STATS_DATABASE_URL": url})
        app.version = dict
        pipeline.start()
        yield pipeline
        app.stop()


def test_what_its_sessions_inherit_has_no_effect(theirs: Pipeline) -> None:
    assert do_a_job(theirs)["status"] == "completed"
    health = httpx.get(f"{theirs.door}/health", timeout=20).json()
    assert health["status"] == "ok", health
    assert theirs.stop() in (0, 130)


def test_a_database_that_goes_is_a_line_for_each_process_and_one_when_it_is_back(theirs: Pipeline) -> None:
    embedded.control(theirs.home / "theirs", "stop", "-m", "immediate")
    health = f"{theirs.door}/health"
    began = time.monotonic()
    while time.monotonic() - began < 15:  # an outage of some length
        assert httpx.get(health, timeout=20).status_code == 503
    embedded.control(theirs.home / "theirs", "start")
    until(lambda: httpx.get(health, timeout=20).json()["status"] == "ok", "health")
    assert do_a_job(theirs)["status"] == "completed"
    said = theirs.log.read_text().split("Up.")[1].splitlines()[2:]
    gone, back = (sum(what in line for line in said) for what in ("is out of reach", "is back"))
    # Of the web process and the code server; the latter looks only when Dagster's daemon asks it to.
    assert 1 <= gone == back == len(said) - gone <= 2, said
    assert theirs.stop() in (0, 130)


def test_without_its_database_it_ends_soon_and_without_a_traceback(theirs: Pipeline) -> None:
    embedded.control(theirs.home / "theirs", "stop", "-m", "immediate")
    began = time.monotonic()
    assert theirs.stop() in (0, 130)
    assert time.monotonic() - began < 25
    assert "Traceback" not in theirs.log.read_text()
