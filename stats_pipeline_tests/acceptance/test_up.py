"""`up` and `demo`: they work, and leave nothing running, however they end."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import fasteners  # type: ignore[import-untyped]
import psutil
import pytest

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import embedded
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.app_server import App
from stats_pipeline_tests.acceptance.conftest import COMMAND, NO_JOB, environment, refusal, run
from stats_pipeline_tests.acceptance.processes import FORK_SERVER, Pipeline, kill, until

RPCS = {function.rpc for function in STATS_FUNCTIONS}
TAGS = {tag for function in STATS_FUNCTIONS for tag in function.cache_tags}


@contextmanager
def started(home: Path, app: App, **settings: str) -> Iterator[Pipeline]:
    """An `up` of the test's own, which nothing is left of in the end."""
    pipeline = Pipeline(home, app, settings)
    app.version = dict
    pipeline.start()
    try:
        yield pipeline
    finally:
        assert pipeline._process is not None
        if pipeline._process.poll() is None:
            pipeline.stop()
        assert "Traceback" not in pipeline.log.read_text()


def family(pipeline: Pipeline) -> list[psutil.Process]:
    """The process of `up` and all it has started, the database's too."""
    assert pipeline._process is not None
    up = psutil.Process(pipeline._process.pid)
    postmaster = int((pipeline.home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    return [up, *up.children(recursive=True), psutil.Process(postmaster)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def ends(pipeline: Pipeline, number: signal.Signals) -> None:
    """The signal ends `up` and everything it has started."""
    processes = family(pipeline)
    assert len(processes) >= 5
    assert pipeline._process is not None
    pipeline._process.send_signal(number)
    assert pipeline._process.wait(60) == 130
    assert alive(processes) == []


def test_ctrl_c_ends_everything(tmp_path: Path, app: App) -> None:
    with started(tmp_path, app) as pipeline:
        ends(pipeline, signal.SIGINT)
    assert not (tmp_path / "children.json").exists()
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()


def test_a_closed_terminal_ends_everything(tmp_path: Path, app: App) -> None:
    with started(tmp_path, app) as pipeline:
        ends(pipeline, signal.SIGHUP)


def test_ctrl_c_while_it_starts_ends_everything(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        starting = subprocess.Popen(
            [COMMAND, "up"], env=environment(tmp_path), cwd=PROJECT_ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        until((tmp_path / "children.json").exists, "the first child")
        up = psutil.Process(starting.pid)
        postmaster = psutil.Process(int((tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()[0]))
        processes = [up, *up.children(recursive=True), postmaster]
        starting.send_signal(signal.SIGINT)
        assert starting.wait(60) == 130
    finally:
        starting.kill()
        starting.wait()
    assert alive(processes) == []
    assert "Traceback" not in log.read_text()


def test_up_works_after_it_was_killed(tmp_path: Path, app: App) -> None:
    """The children and the database outlive a killed `up`; the next one takes the database over and ends the rest."""
    with started(tmp_path, app) as pipeline:
        assert pipeline._process is not None
        before = family(pipeline)[1:-1]
        kill(pipeline._process.pid)
        pipeline._process.wait()
        assert alive(before) != []
        pipeline.log.write_text("")

        pipeline.start()
        assert alive(before) == []
        finished = run(tmp_path, "enqueue", "--wait", "--json")
        assert json.loads(finished.stdout)["status"] == "completed", finished.stderr
        ends(pipeline, signal.SIGTERM)


def test_a_run_whose_fork_server_was_killed_ends_with_up_and_keeps_nobody_waiting(tmp_path: Path, app: App) -> None:
    """It waits for a lock when everything is stopped; the next command finds a database that it can start."""
    with started(tmp_path, app) as pipeline:
        pipeline.install_witness()
        with pipeline.gate("functions"):
            pipeline.enqueue()
            run_pid = until(pipeline.waiting, "a run to wait")[0]
            pipeline.kill_child(FORK_SERVER)
            orphan = psutil.Process(run_pid)
            assert orphan.is_running()
            ends(pipeline, signal.SIGINT)
    assert alive([orphan]) == []
    assert run(tmp_path, "jobs").returncode == 0


def test_the_lines_of_a_forked_process_are_ours(tmp_path: Path, app: App) -> None:
    """A sensor says it in the code server."""
    with started(tmp_path, app, NEXT_PUBLIC_APP_URL="http://127.0.0.1:1") as pipeline:
        pipeline.enqueue()
        until(lambda: "the app is out of reach" in pipeline.log.read_text(), "the line about the app")


def test_down_leaves_a_process_alone_that_has_the_pid_of_a_killed_up(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger, fasteners.InterProcessLock(tmp_path / "up.lock"):
        (tmp_path / "up.pid").write_text(f"{stranger.pid} {psutil.Process(stranger.pid).create_time() - 100}")
        said = refusal(run(tmp_path, "down"))
        assert said.startswith(f"a stats-pipeline in {tmp_path} is just starting or stopping: try again")
        assert stranger.poll() is None
        stranger.kill()


def test_up_on_a_database_that_is_given(tmp_path: Path, app: App, database_url: str) -> None:
    with started(tmp_path, app, STATS_DATABASE_URL=database_url):
        finished = run(tmp_path, "enqueue", "--wait", "--json", STATS_DATABASE_URL=database_url)
        assert json.loads(finished.stdout)["status"] == "completed", finished.stderr
    assert not (tmp_path / "postgres").exists()


def test_the_embedded_database_stops_with_the_last_command(tmp_path: Path) -> None:
    assert run(tmp_path, "enqueue").returncode == 0
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()
    with pytest.raises(Exception, match="is not running: start it with `stats-pipeline up`"):
        embedded.running_url(tmp_path)


@pytest.mark.parametrize("command", [("jobs",), ("activity",), ("reconcile", "--dry-run"), ("retry", NO_JOB)])
def test_a_command_that_reads_makes_no_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    home = tmp_path / "mistyped"
    assert refusal(run(home, *command)).startswith(f"there is no database in {home} yet: check STATS_HOME")
    assert not home.exists()


# The demo


def test_the_demo_runs_to_the_end_and_leaves_nothing_running(tmp_path: Path) -> None:
    finished = run(tmp_path, "demo", "--exit", "--json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result.keys() == {
        *("job_id", "status", "seconds_to_start", "seconds_to_complete", "functions", "delivered_tags")
    }
    assert UUID(result["job_id"])
    assert result["status"] == "completed"
    assert 0 <= result["seconds_to_start"] <= result["seconds_to_complete"]
    assert {rpc for rpc, outcome in result["functions"].items() if outcome["status"] == "success"} == RPCS
    assert result["delivered_tags"] == sorted(TAGS)
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()
    assert [
        p.pid for p in psutil.process_iter() if str(tmp_path) in " ".join(_command(p)) and p.pid != os.getpid()
    ] == []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
