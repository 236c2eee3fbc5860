"""A clean clone under Dagster's own commands, started as a Dagster user would: with an empty environment, no `.env`.

The embedded server starts when it is first needed, and stops with the last process. Then the two profiles under `up`,
with a Dagster that has moved a private name: `fast` says what to do, `stock` works.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from stats_pipeline.database import embedded
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.app_server import App
from stats_pipeline_tests.acceptance.processes import DAEMON, FORK_SERVER, PASSWORD, Pipeline, kill, until
from stats_pipeline_tests.ports import free_port

pytestmark = pytest.mark.timeout(600)  # Dagster's own executor imports everything anew for each of ten ops

BIN = Path(sys.executable).parent
JOB_PATIENCE = 300
# What was started in a shell's background ignores Ctrl-C, and so do its children.
_AS_FROM_A_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)
DAGSTER_IN_FOLDER = ["history", "schedules", "storage", "logs"]  # what Dagster writes into its home


def copy_of_the_project(folder: Path) -> Path:
    """What a clone holds: no `.env`, no state, nothing that a build has left."""
    hidden_and_made = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", *DAGSTER_IN_FOLDER)
    return shutil.copytree(PROJECT_ROOT, folder, ignore=hidden_and_made)


class Clone:
    """A clone of the project, and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_of_the_project(folder / "clone")
        self.state = self.folder / ".stats-pipeline"
        # PYTHONPATH stands for an installation of the clone: the one that runs these tests is another folder's.
        path = f"{BIN}:/usr/bin:/bin"
        self.environment = {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(self.folder)}

    def run(self, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """A command to its end."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOB_PATIENCE + 60,
            check=False,
        )

    @contextmanager
    def running(self, *command: str, **variables: str) -> "Iterator[subprocess.Popen[bytes]]":
        """A command for the length of the block; then Ctrl-C, at which it must end."""
        log = self.folder.parent / f"{Path(command[0]).name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _AS_FROM_A_TERMINAL, *command],
                cwd=self.folder,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
            assert process.poll() is None, log.read_text()[-3000:]
        finally:
            _interrupt(process)

    @property
    def is_idle(self) -> bool:
        """Whether the embedded server is stopped."""
        return not embedded.is_running(self.state)

    def do_a_job(self) -> dict[str, Any]:
        """Enqueue from the command line, and wait for the end."""
        done = self.run("stats-pipeline", "enqueue", "--trigger", "admin", "--wait", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def jobs(self) -> list[dict[str, Any]]:
        """The rows, by the command that shows them."""
        return list(json.loads(self.run("stats-pipeline", "jobs", "--json").stdout))


def _interrupt(process: "subprocess.Popen[bytes]") -> None:
    family = _family(process)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(90)
    finally:
        _, left = psutil.wait_procs(family, timeout=60)
        for each in left:
            each.kill()
    assert not left, "Ctrl-C left processes behind"


def _family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The process and what it has started, but for the embedded server and the one that stops it afterwards."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return [each for each in family if not _is_of_the_server(each)]


def _is_of_the_server(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.name().startswith(("postgres", "pg_ctl")) or embedded._STOP_AFTER_THE_LAST in process.cmdline()
    return False


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    folder = tmp_path_factory.mktemp("stock")
    folder.chmod(0o711)  # the embedded server's own user passes through it
    return Clone(folder)


def test_validation_starts_nothing(clone: Clone) -> None:
    validated = clone.run("dagster", "definitions", "validate", "-w", "workspace.yaml")
    assert validated.returncode == 0, validated.stdout + validated.stderr
    assert not clone.state.exists()


def test_a_job_executed_from_the_command_line_is_a_completed_row(clone: Clone) -> None:
    executed = clone.run("dagster", "job", "execute", "-m", "stats_pipeline.definitions", "-j", "stats_update")
    assert executed.returncode == 0, executed.stdout + executed.stderr
    until(lambda: clone.is_idle, "the end of the embedded server")
    [job] = clone.jobs()
    assert (job["status"], job["results"]["successful_functions"]) == ("completed", 10)


def test_dagster_dev_does_a_job_and_stops_what_it_started(clone: Clone) -> None:
    with clone.running("dagster", "dev", "-p", str(free_port())):
        until(lambda: not clone.is_idle, "the embedded server, started by the first sensor", patience=120)
        assert clone.do_a_job()["status"] == "completed"
    until(lambda: clone.is_idle, "the end of the embedded server")


def test_dagster_dev_that_is_killed_leaves_no_server(clone: Clone) -> None:
    module = ("-m", "stats_pipeline.definitions")
    with clone.running("dagster", "dev", *module, "-p", str(free_port())) as dev:
        until(lambda: not clone.is_idle, "the embedded server, started by the first sensor", patience=120)
        for process in _family(dev):
            with suppress(psutil.NoSuchProcess):
                kill(process.pid)
        until(lambda: clone.is_idle, "the end of the embedded server")
        dev.poll = lambda: None  # type: ignore[method-assign]  # its end is what was asked for


def test_web_server_and_daemon_beside_each_other(clone: Clone) -> None:
    """With Dagster's home in the project's folder, where its dagster.yaml is."""
    home = {"DAGSTER_HOME": str(clone.folder)}
    port = str(free_port())
    with ExitStack() as running:
        running.enter_context(clone.running("dagster-webserver", "-p", port, **home))
        # First: Dagster's SQLite storage does not survive being created by two processes at once.
        assert answer(f"http://127.0.0.1:{port}/server_info")["dagster_version"]
        running.enter_context(clone.running("dagster-daemon", "run", **home))
        assert clone.do_a_job()["status"] == "completed"
    until(lambda: clone.is_idle, "the end of the embedded server")


def answer(url: str) -> dict[str, Any]:
    """What a server says in JSON, once it is up."""

    def ask() -> dict[str, Any] | None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            return dict(json.load(answer))
        return None

    return until(ask, f"an answer of {url}", patience=120) or {}


# `up` on a Dagster that has moved a name.


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it would meet such a Dagster: it asks for a name that is not there."""
    folder = tmp_path_factory.mktemp("moved")
    folder.chmod(0o711)
    project = copy_of_the_project(folder / "project")
    hooks = project / "stats_pipeline" / "runtime" / "hooks.py"
    text = hooks.read_text()
    assert "event_list_hook" in text
    hooks.write_text(text.replace("event_list_hook", "moved_elsewhere"))
    return project


def _up(project: Path, home: Path, **variables: str) -> Pipeline:
    app = App()
    app.start()
    home.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline(home, app, {"PYTHONPATH": str(project), **variables})
    app.version = dict  # nobody counts the calls of the functions here
    return pipeline


def test_fast_says_in_one_line_which_name_is_missing_and_what_to_do(moved: Path, tmp_path: Path) -> None:
    environment: Mapping[str, str] = {
        **os.environ,
        "STATS_HOME": str(tmp_path),
        "STATS_PORT": str(free_port()),
        "ADMIN_PASSWORD": PASSWORD,
        "PYTHONPATH": str(moved),
    }
    refused = subprocess.run(
        [BIN / "stats-pipeline", "up"], env=environment, cwd=moved, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert "hook_decorator.moved_elsewhere, which the fast runtime needs: set STATS_RUNTIME=stock" in last
    assert "Traceback" not in refused.stdout + refused.stderr
    assert not embedded.is_running(tmp_path)


def test_stock_under_up_does_a_job_there(moved: Path, tmp_path: Path) -> None:
    pipeline = _up(moved, tmp_path / "home", STATS_RUNTIME="stock")
    pipeline.start()
    try:
        assert pipeline.child_pid(DAEMON)
        assert not pipeline.child_pid(FORK_SERVER)
        written = (pipeline.home / "dagster" / "dagster.yaml").read_text()
        assert "stats_pipeline.runtime" not in written
        job_id = pipeline.enqueue()
        job = until(lambda: (row := pipeline.job(job_id))["completed_at"] and row, "its end", patience=JOB_PATIENCE)
        assert (job["status"], job["attempts"], job["results"]["cache"]["status"]) == ("completed", 1, "delivered"), job
        statuses = "select array_agg(status) from dagster.runs"
        until(lambda: pipeline.value(statuses) == ["SUCCESS"], "the end of its only run")
    finally:
        assert pipeline.stop() in (0, 130)
        pipeline.app.stop()
    assert not embedded.is_running(pipeline.home)
