"""Two hosts on one database, as in every rolling deployment: neither considers the other's runs dead."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.app_server import KEY
from stats_pipeline_tests.acceptance.processes import PASSWORD, Pipeline, running, until
from stats_pipeline_tests.ports import free_port

# Processes of its own, as on another machine: a process id of the one says nothing to the other.
ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
LONG = 14  # seconds of each function: run monitoring looks each five
CLUBS = [UUID(int=number) for number in (0xA1, 0xA2)]  # with more runs at once, a hundred connections are not enough

pytestmark = pytest.mark.skipif(
    subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to make a pid namespace",
)


@contextmanager
def another_host(home: Path, pipeline: Pipeline) -> Iterator[None]:
    home.mkdir()
    log = home / "up.log"
    environment = {
        **os.environ,
        "STATS_HOME": str(home),
        "STATS_DATABASE_URL": pipeline.url,
        "STATS_PORT": str(free_port()),
        "ADMIN_PASSWORD": PASSWORD,
        "NEXT_PUBLIC_APP_URL": pipeline.app.url,
        "INTERNAL_API_KEY": KEY,
    }
    command = [*ELSEWHERE, sys.executable, "-c", "from stats_pipeline.cli.commands import app; app()", "up"]
    with log.open("wb") as output:
        up = subprocess.Popen(
            command, env=environment, cwd=PROJECT_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        until(lambda: "Up." in log.read_text() or up.poll() is not None, f"up; see {log}", patience=120)
        assert up.poll() is None, log.read_text()
        yield
    finally:
        with suppress(ProcessLookupError):
            up.kill()  # and with it all of its namespace
        up.wait()


def over(pipeline: Pipeline, job: UUID) -> dict[str, Any]:
    """The job's row, once the job is over."""

    def row() -> dict[str, Any] | None:
        found = pipeline.job(job)
        return found if found["status"] in ("completed", "failed") else None

    return until(row, f"the end of job {job}")


def test_long_runs_of_either_host_are_left_to_their_end(tmp_path: Path) -> None:
    with running(tmp_path / "one") as pipeline, another_host(tmp_path / "other", pipeline):
        pipeline.query("update witness.pace set seconds = %s", LONG)
        jobs = [pipeline.enqueue(club) for club in CLUBS]
        ended = [over(pipeline, job) for job in jobs]
        assert [(row["status"], row["attempts"], row["error_message"]) for row in ended] == [
            ("completed", 1, None)
        ] * len(jobs)
        pipeline.query("update witness.pace set seconds = 0")
