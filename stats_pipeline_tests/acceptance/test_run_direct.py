"""The emergency path as its user sees it: no Dagster anywhere, real processes that are interrupted and killed."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline import database
from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import budget
from stats_pipeline.demo import league
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.app_server import KEY, App, refuse
from stats_pipeline_tests.acceptance.conftest import COMMAND, Result, environment, run
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.integration.steps import claim, enqueue, job, lease

Query = Callable[..., list[dict[str, Any]]]

RPCS = {function.rpc for function in STATS_FUNCTIONS}
TAGS = {tag for function in STATS_FUNCTIONS for tag in function.cache_tags}
HALL_OF_FAME = STATS_FUNCTIONS[2]


@pytest.fixture
def settings(database_url: str, app: App) -> dict[str, str]:
    """What the command is given: a database with the demo's league, and an app."""
    app.received.clear()
    app.version = dict
    with database.connect(database_url) as connection:
        league.load(connection, league.generate())
    return {
        "STATS_DATABASE_URL": database_url,
        "NEXT_PUBLIC_APP_URL": app.url,
        "INTERNAL_API_KEY": KEY,
        "STATS_DEAD_AFTER_SECONDS": "2",
    }


@pytest.fixture
def run_direct(tmp_path: Path, settings: dict[str, str]) -> Callable[..., Result]:
    return lambda *arguments: run(tmp_path, "run-direct", *arguments, **settings)


@pytest.fixture
def held(
    tmp_path: Path, settings: dict[str, str], database_url: str, query: Query
) -> Callable[[], AbstractContextManager["subprocess.Popen[str]"]]:
    """A `run-direct` that has done nine functions and waits in the tenth."""

    @contextmanager
    def hold() -> Iterator["subprocess.Popen[str]"]:
        with psycopg.connect(database_url) as lock:
            lock.execute(f"lock table public.{HALL_OF_FAME.tables[0]}".encode())
            process = subprocess.Popen(
                [COMMAND, "run-direct"],
                env=environment(tmp_path, **settings),
                cwd=PROJECT_ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                until(
                    lambda: (
                        query("select pid from pg_locks where not granted and locktype = 'relation'")
                        and len(query("select rpc from stats_pipeline.function_result")) == len(RPCS) - 1
                    ),
                    "the function that waits for its table",
                )
                yield process
            finally:
                process.kill()
                process.communicate()

    return hold


def sessions(query: Query) -> list[dict[str, Any]]:
    return query("select pid from pg_stat_activity where application_name like 'stats-pipeline run %%'")


def told(app: App) -> set[str]:
    return {tag for call in app.received for tag in call.tags}


def test_it_does_what_waits(connection: Connection[Any], run_direct: Callable[..., Result], app: App) -> None:
    waiting = {enqueue(connection), enqueue(connection)}
    finished = run_direct("--json")
    assert finished.returncode == 0, finished.stderr
    done = json.loads(finished.stdout)
    assert {UUID(row["id"]) for row in done} == waiting
    for row in done:
        assert (row["status"], row["attempts"]) == ("completed", 1)
        assert {rpc: result["status"] for rpc, result in row["results"]["functions"].items()} == dict.fromkeys(
            RPCS, "success"
        )
    assert told(app) == TAGS


def test_it_says_that_it_waits_for_its_connections_and_then_goes_on_without(
    tmp_path: Path, connection: Connection[Any], run_direct: Callable[..., Result]
) -> None:
    waiting = enqueue(connection)
    slots = budget.Slots(tmp_path / "connections", budget.split(12, 4).shared)
    with slots.take("run", 6):
        finished = run_direct()
    assert "All 12 connections (STATS_MAX_CONNECTIONS) are in use: waiting for two" in finished.stderr
    assert "None became free within 10 seconds: going on" in finished.stderr
    assert finished.returncode == 0
    [row] = connection.execute("select status from public.background_job_status where id = %s", [waiting]).fetchall()
    assert row == {"status": "completed"}


def test_with_nothing_waiting_it_refreshes_once(run_direct: Callable[..., Result], query: Query) -> None:
    finished = run_direct()
    assert finished.returncode == 0, finished.stderr
    [row] = query("select status, job_payload ->> 'userId' as who from public.background_job_status")
    assert row == {"status": "completed", "who": "run-direct"}
    assert query("select 1 from public.aggregated_all_time_stats limit 1")


def test_a_function_that_fails_is_named_and_the_others_are_done(
    run_direct: Callable[..., Result], query: Query, app: App
) -> None:
    query(f"alter function public.{HALL_OF_FAME.rpc}(uuid) rename to the_original")
    finished = run_direct()
    assert finished.returncode == 1
    assert f"Failed functions: {HALL_OF_FAME.rpc} (" in finished.stderr
    assert told(app) == TAGS - set(HALL_OF_FAME.cache_tags)


def test_tags_that_the_app_does_not_take_are_said_to_be_due(run_direct: Callable[..., Result], app: App) -> None:
    with app.behaving(refuse(503)):
        finished = run_direct()
    assert finished.returncode == 1
    assert "Cache tags not delivered yet: the app answered 503" in finished.stderr


def test_a_dead_run_is_replaced_and_a_live_one_is_left_alone(
    connection: Connection[Any], run_direct: Callable[..., Result], query: Query
) -> None:
    job_id = enqueue(connection)
    [leased] = lease(connection)
    claim(connection, leased, "run-1", STATS_FUNCTIONS)
    query("update stats_pipeline.lease set renewed_at = now() + interval '1 minute'")  # its next beats, so to speak
    refused = run_direct()
    assert refused.returncode == 1
    assert "every club has an open run already" in refused.stderr
    assert job(connection, job_id).run_id == "run-1"
    assert len(query("select id from public.background_job_status")) == 1

    query("update stats_pipeline.lease set renewed_at = now() - interval '1 minute'")
    finished = run_direct("--json")
    assert finished.returncode == 0, finished.stderr
    row = job(connection, job_id)
    assert (row.status, row.attempts) == ("completed", 2)


def test_a_job_that_waits_for_its_next_attempt_waits_no_longer(
    connection: Connection[Any], run_direct: Callable[..., Result], query: Query
) -> None:
    job_id = enqueue(connection)
    query("update pgmq.q_stats_update set vt = now() + interval '5 minutes'")
    finished = run_direct()
    assert finished.returncode == 0, finished.stderr
    assert job(connection, job_id).status == "completed"
    assert len(query("select id from public.background_job_status")) == 1


def test_tags_that_another_run_has_left_due_are_delivered(
    connection: Connection[Any], run_direct: Callable[..., Result], query: Query, app: App
) -> None:
    with app.behaving(refuse(503)):
        run_direct()
    query("update stats_pipeline.outbox set due_at = due_at - interval '3 seconds', next_try_at = now()")
    query("update stats_pipeline.endpoint set next_try_at = now()")
    finished = run_direct()
    assert finished.returncode == 0, finished.stderr
    assert {row["status"] for row in query("select status from public.background_job_status")} == {"completed"}
    assert not query("select tag from stats_pipeline.outbox where delivered_at is null")


def test_ctrl_c_gives_the_jobs_back_at_once(
    connection: Connection[Any], held: Callable[[], Any], run_direct: Callable[..., Result], query: Query
) -> None:
    job_id = enqueue(connection)
    with held() as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in said
        assert job(connection, job_id).status == "queued"
        until(lambda: not sessions(query), "the end of its sessions")
    finished = run_direct()
    assert finished.returncode == 0, finished.stderr
    assert (job(connection, job_id).status, job(connection, job_id).attempts) == ("completed", 2)


def test_jobs_of_a_killed_one_are_done_by_the_next(
    connection: Connection[Any], held: Callable[[], Any], run_direct: Callable[..., Result], query: Query
) -> None:
    job_id = enqueue(connection)
    with held() as process:
        process.kill()
        process.communicate()
    until(
        lambda: query("select 1 from stats_pipeline.lease where renewed_at < now() - interval '2 seconds'"),
        "its silence",
    )
    finished = run_direct()
    assert finished.returncode == 0, finished.stderr
    row = job(connection, job_id)
    assert (row.status, row.attempts) == ("completed", 2)
