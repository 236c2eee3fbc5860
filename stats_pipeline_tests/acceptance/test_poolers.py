"""A deployment behind PgBouncer, as behind Supabase's poolers: in session mode within its fifteen connections, and in
transaction mode. The connections themselves are in `test_pooled_connections.py`."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from stats_pipeline.database import connect, migrate
from stats_pipeline.settings import Settings
from stats_pipeline.web.api import ENQUEUE
from stats_pipeline_tests.acceptance import pooler
from stats_pipeline_tests.acceptance.app_server import KEY, App
from stats_pipeline_tests.acceptance.conftest import COMMAND
from stats_pipeline_tests.acceptance.pooler import Mode, Pooled, Watch
from stats_pipeline_tests.acceptance.processes import (
    CODE_SERVER,
    DAEMON,
    DOOR,
    FORK_SERVER,
    RPC_OF_TAG,
    RPCS,
    Pipeline,
    kill,
    until,
)
from stats_pipeline_tests.acceptance.soundness import assert_sound

pytestmark = pooler.needs_both

BUDGET = Settings().max_connections
STREAM = "/api/admin/background-jobs/stream"
KNOWN = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def up(folder: Path, mode: Mode | None, **settings: str) -> Iterator[Pooled]:
    """`up` behind a pooler in this mode, or none, with the log of all calls."""
    app = App()
    app.start()
    try:
        with pooler.postgres(folder) as server, ExitStack() as stack:
            port = stack.enter_context(pooler.pgbouncer(folder, server, mode)) if mode else server
            with connect(pooler.url_of(server), autocommit=True) as connection:
                migrate.migrate(connection, reference_stats=True)
            home = folder / "up"
            home.mkdir()
            pipeline = Pooled(home, app, server, port, mode or "session", **settings)
            try:
                pipeline.start()
                pipeline.install_witness()
                yield pipeline
            finally:
                pipeline.stop()
    finally:
        app.stop()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    """Behind the session pooler."""
    with up(tmp_path_factory.mktemp("pooled"), "session", STATS_DEAD_AFTER_SECONDS="3") as started:
        yield started


def calls(pipeline: Pipeline, tenant: UUID) -> list[str]:
    """The functions whose work for the tenant was committed, once for each time."""
    return sorted(row["rpc"] for row in pipeline.query("select rpc from witness.call where tenant = %s", tenant))


def post(pipeline: Pipeline, tenant: UUID) -> UUID:
    """Enqueue as the app's server does."""
    body = {"triggeredBy": "admin", "requestId": str(uuid4()), "tenantId": str(tenant)}
    answer = httpx.post(f"{pipeline.door}{ENQUEUE}", json=body, headers=KNOWN, timeout=30)
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["jobId"])


def test_the_main_job_from_the_apps_call_to_the_apps_cache(pipeline: Pooled) -> None:
    tenant = uuid4()
    (row,) = assert_sound(pipeline, [post(pipeline, tenant)])
    assert row["attempts"] == 1
    assert calls(pipeline, tenant) == RPCS
    assert {tag for call in pipeline.app.received for tag in call.tags} == RPC_OF_TAG.keys()


@pytest.mark.parametrize("name", [CODE_SERVER, DAEMON, FORK_SERVER, DOOR])
def test_a_process_is_killed_while_a_run_is_in_flight(pipeline: Pooled, name: str) -> None:
    tenant = uuid4()
    with pipeline.gate("functions"):
        job = pipeline.enqueue(tenant)
        until(pipeline.waiting, "a run to wait")
        pipeline.kill_child(name)
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1
    assert_sound(pipeline, [pipeline.enqueue(tenant)])
    assert calls(pipeline, tenant) == sorted(RPCS * 2)


def test_a_run_is_killed(pipeline: Pooled) -> None:
    tenant = uuid4()
    with pipeline.gate("functions"):
        job = pipeline.enqueue(tenant)
        pid = until(pipeline.waiting, "a run to wait")[0]
        pipeline.kill_run(pid)
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 2
    assert calls(pipeline, tenant) == RPCS


def test_a_burst_stays_within_the_budget(tmp_path: Path) -> None:
    """A hundred jobs of thirty clubs, with a page and the Dagster UI open, and command lines beside them. Without a
    pooler: those keep connections open that are not ours any more."""
    clubs = [uuid4() for _ in range(30)]
    with up(tmp_path, None) as pipeline, Watch(pipeline.url) as watch:
        assert 4 <= len(watch.now()) <= 8
        pipeline.ask_dagster("query { runsOrError { __typename } }")
        with httpx.Client(timeout=httpx.Timeout(30, read=None), headers=KNOWN) as client, opened_page(client, pipeline):
            jobs = [pipeline.enqueue(clubs[number % 30]) for number in range(100)]
            for _ in range(3):
                command = subprocess.run(
                    [COMMAND, "jobs", "--json"],
                    env=pipeline._environment,
                    capture_output=True,
                    timeout=120,
                    check=False,
                )
                assert command.returncode == 0, command.stderr
                pipeline.ask_dagster("query { runsOrError { ... on Runs { results { runId tags { key value } } } } }")
            rows = assert_sound(pipeline, jobs)
        assert watch.looks > 100
        assert 8 < len(watch.highest) <= BUDGET, "\n".join(watch.highest)
        assert {row["attempts"] for row in rows} == {1}
        until(lambda: len(watch.now()) <= 8, "the end of what the runs had")


@contextmanager
def opened_page(client: httpx.Client, pipeline: Pipeline) -> Iterator[None]:
    """The live stream of an open page."""
    with client.stream("GET", f"{pipeline.door}{STREAM}") as page:
        assert page.status_code == 200

        def read() -> None:
            with suppress(httpx.HTTPError, httpx.StreamError):
                for _ in page.iter_raw():
                    pass

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        yield


def test_through_a_transaction_pooler(tmp_path: Path) -> None:
    """Nothing is told to it at once, and it does all the same; of Dagster's tables none is where the app's are."""
    tenant = uuid4()
    with up(tmp_path, "transaction") as pipeline:
        assert_sound(pipeline, [post(pipeline, tenant)])
        assert_sound(pipeline, [pipeline.enqueue(tenant)])
        assert calls(pipeline, tenant) == sorted(RPCS * 2)
        assert pipeline.value("select to_regclass('public.runs') is null and to_regclass('dagster.runs') is not null")
        # A run that is killed is found by the upkeep sensor, whose look at everything is one transaction.
        with pipeline.gate("functions"):
            job = pipeline.enqueue(tenant)
            pipeline.kill_run(until(pipeline.waiting, "a run to wait")[0])
        assert_sound(pipeline, [job])
        assert pipeline.value("select count(*) from dagster.job_ticks where status = 'FAILURE'") == 0


def test_no_job_is_lost_with_all_that_dagster_knows(tmp_path: Path) -> None:
    """Dagster's tables are in a database of their own, which is empty after a crash."""
    app = App()
    app.start()
    tenant = uuid4()
    with pooler.postgres(tmp_path) as server:
        direct = pooler.url_of(server)
        with connect(direct, autocommit=True) as connection:
            migrate.migrate(connection, reference_stats=True)
            connection.execute("create database of_dagster")
        of_dagster = direct.removesuffix("postgres") + "of_dagster"
        home = tmp_path / "up"
        home.mkdir()
        given = {
            "STATS_DATABASE_URL": direct,
            "STATS_DAGSTER_DATABASE_URL": of_dagster,
            "STATS_DEAD_AFTER_SECONDS": "3",
        }
        pipeline = Pipeline(home, app, given)
        try:
            pipeline.start()
            pipeline.install_witness()
            with pipeline.gate("functions"):
                job = pipeline.enqueue(tenant)
                run = until(pipeline.waiting, "a run to wait")[0]
                assert pipeline._process is not None
                for process in [pipeline._process.pid, *(child.pid for child in pipeline.children())]:
                    kill(process)
                kill(run)
                pipeline._process.wait()
                waiting = pipeline.enqueue(uuid4())
                pipeline.query("drop database of_dagster with (force)")
                pipeline.query("create database of_dagster")
                pipeline.log.write_text("")
                pipeline.start()
            ended = "select count(*) = 2 from public.background_job_status where status = 'completed'"
            until(lambda: pipeline.value(ended), "the end of both jobs")
            assert pipeline.job(job)["attempts"] == 2
            assert pipeline.job(waiting)["attempts"] == 1
            assert calls(pipeline, tenant) == RPCS
            with connect(of_dagster, autocommit=True) as connection:
                assert connection.execute("select count(*) as runs from dagster.runs").fetchone() == {"runs": 2}
        finally:
            pipeline.stop()
            app.stop()
