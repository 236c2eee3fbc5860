"""A real Dagster instance, and a real code server with `toy_location`, for the length of a block."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stats_pipeline.deployment.up import dagster_ui
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline.web.dagster_ui import DagsterUI
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.web.conftest import PASSWORD, VIEWER_PASSWORD, Served, serving, settings

REPOSITORY = {"repositoryLocationName": "toys", "repositoryName": "__repository__"}
JOB = REPOSITORY | {"pipelineName": "toy_job"}
_INSTANCE = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
}
_LAUNCH = """mutation($job: JobOrPipelineSelector!, $config: RunConfigData) {
    launchRun(executionParams: {selector: $job, runConfigData: $config}) {
        __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


@dataclass(frozen=True)
class RealDoor:
    """Our app and Dagster's UI behind one door."""

    served: Served
    home: Path
    code_server: psutil.Process
    ui: DagsterUI

    @property
    def url(self) -> str:
        return self.served.url

    def client(self, headers: dict[str, str]) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def ask(self, query: str, headers: dict[str, str] | None = None, **variables: Any) -> Any:
        """The answer of the UI's GraphQL, by default to the admin."""
        body = {"query": query, "variables": variables}
        with self.client(self.served.session() if headers is None else headers) as client:
            return client.post("/dagster/graphql", json=body).json()["data"]

    def launch(self, gate: Path | None = None) -> str:
        """Launch the toy job, which ends when the gate is there; the run's id."""
        config = {"ops": {"pass_gate": {"config": {"until": str(gate or "")}}}}
        answer = self.ask(_LAUNCH, job=JOB, config=config)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def status(self, run_id: str) -> str:
        answer = self.ask("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)
        return str(answer["runOrError"]["status"])

    def wait_for(self, run_id: str, status: str) -> None:
        until(lambda: self.status(run_id) == status, f"{status} of run {run_id}")


@contextmanager
def code_server(home: Path) -> Iterator[tuple[psutil.Process, Path]]:
    """The process of a code server, once it answers, and the workspace file that names it."""
    (home / "dagster.yaml").write_text(json.dumps(_INSTANCE))
    socket, workspace = home / "code.sock", home / "workspace.yaml"
    server = {"grpc_server": {"socket": str(socket), "location_name": "toys"}}
    workspace.write_text(json.dumps({"load_from": [server]}))
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(PROJECT_ROOT)}
    module = ["-m", "stats_pipeline_tests.web.toy_location", "--location-name", "toys"]
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "api", "grpc", "--socket", str(socket), *module]
    with (home / "code-server.log").open("wb") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(socket.exists, "the code server")
        yield psutil.Process(started.pid), workspace
    finally:
        started.kill()
        started.wait()


@contextmanager
def real_door(home: Path, database_url: str, **variables: Any) -> Iterator[RealDoor]:
    """The door as it is served, with both passwords. Dagster's part is not opened yet."""
    chosen = settings(ADMIN_PASSWORD=PASSWORD, VIEWER_PASSWORD=VIEWER_PASSWORD, **variables)
    with pytest.MonkeyPatch.context() as patch, code_server(home) as (process, workspace):
        patch.setenv("DAGSTER_HOME", str(home))
        ui = dagster_ui(workspace, chosen)
        with serving(chosen, database_url, ui) as served:
            yield RealDoor(served, home, process, ui)


def opened(door: RealDoor) -> RealDoor:
    """The same, its Dagster UI open."""
    with door.client(door.served.session()) as client:
        until(lambda: client.get("/dagster/runs").status_code == 200, "the Dagster UI")
        location = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"
        until(lambda: "LOADED" in str(door.ask(location)), "the code location")
    return door
