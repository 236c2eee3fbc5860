"""A code server that hangs keeps neither our own page waiting nor the door closed.

SIGSTOP is the worst of its failures: its socket takes connections and answers none.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from stats_pipeline.deployment.supervisor import STOP_SECONDS
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline.web import dagster_ui
from stats_pipeline.web.dagster_ui import MAX_REQUESTS
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.ports import free_port
from stats_pipeline_tests.web.conftest import JOBS, PASSWORD
from stats_pipeline_tests.web.toy_dagster import JOB, RealDoor, code_server, opened, real_door

pytestmark = pytest.mark.slow

QUICK = 2.0  # seconds within which our own page must answer, on a machine that is busy with tests
# The code server makes the plan.
PLAN = 'query($job: PipelineSelector!) { executionPlanOrError(pipeline: $job, mode: "default") { __typename } }'
PAGE = {"Accept": "text/html"}


@pytest.fixture
def door(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[RealDoor]:
    with real_door(tmp_path_factory.mktemp("door"), database_url) as started:
        yield started
        started.code_server.send_signal(signal.SIGCONT)


@contextmanager
def hung(door: RealDoor) -> Iterator[None]:
    door.code_server.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        door.code_server.send_signal(signal.SIGCONT)


def assert_quick(door: RealDoor, path: str) -> None:
    started = time.monotonic()
    answer = httpx.get(door.url + path, headers=door.served.session(), timeout=20)
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - started < QUICK


def test_our_page_answers_while_it_hangs(door: RealDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dagster_ui, "TURN_SECONDS", 3)
    opened(door)
    asked = threading.Semaphore(0)

    def ask(_: int) -> int:
        with door.client(door.served.session()) as client:
            asked.release()
            return client.post(
                "/dagster/graphql", json={"query": PLAN, "variables": {"job": JOB}}, timeout=120
            ).status_code

    number = MAX_REQUESTS + 40  # more than there are threads
    with ThreadPoolExecutor(number) as pool, door.client(door.served.session()) as client:
        with hung(door):
            answers = pool.map(ask, range(number))
            for _ in range(number):
                asked.acquire()
            until(door.ui._turns.locked, "as many requests as there may be")
            for _ in range(5):
                for path in ("/admin/info", "/health", JOBS):
                    assert_quick(door, path)
            assert client.get("/dagster/runs", headers=PAGE).status_code == 200  # a file
            busy = client.post("/dagster/graphql", json={"query": "{ version }"})
            assert busy.status_code == 503
            assert busy.headers["retry-after"] == "1"
            assert "perhaps its code server does not answer" in busy.text
            assert_quick(door, "/admin/info")
        assert set(answers) <= {200, 500, 503}
        until(lambda: client.get("/dagster/runs", headers=PAGE).status_code == 200, "the Dagster UI")


def test_at_the_start_it_keeps_the_dagster_ui_waiting_only(door: RealDoor, open_page: Callable[..., Page]) -> None:
    with hung(door):
        page = open_page(f"{door.url}/dagster/runs", session=door.served.session())
        expect(page.get_by_role("status")).to_contain_text("The Dagster UI is being opened.")
        for path in ("/admin/info", "/health", JOBS):
            assert_quick(door, path)
    expect(page.get_by_text("No runs found")).to_be_visible(timeout=90_000)


SERVE = """
import sys
from pathlib import Path
from stats_pipeline import settings
from stats_pipeline.deployment.up import dagster_ui
from stats_pipeline.web.server import serve
loaded = settings.load()
serve(loaded, sys.argv[1], start_key=b"a start", ui=dagster_ui(Path(sys.argv[2]), loaded))
"""


def test_it_does_not_keep_the_process_from_ending(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> None:
    home = tmp_path_factory.mktemp("door")
    with code_server(home) as (process, workspace), door_process(home, database_url, workspace) as (started, client):
        process.send_signal(signal.SIGSTOP)
        assert client.get("/dagster/runs").status_code == 503  # it is being opened from now on
        started.terminate()
        started.wait(STOP_SECONDS)


def test_it_ends_at_once_with_a_web_socket_and_a_stream_open(
    tmp_path_factory: pytest.TempPathFactory, database_url: str
) -> None:
    home = tmp_path_factory.mktemp("door")
    with code_server(home) as (_, workspace), door_process(home, database_url, workspace) as (started, client):
        until(lambda: client.get("/dagster/runs").status_code == 200, "the Dagster UI")
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
        address = f"{client.base_url}".replace("http:", "ws:") + "/dagster/graphql"
        with (
            connect(address, subprotocols=[Subprotocol("graphql-ws")], additional_headers=cookie) as connection,
            client.stream("GET", f"{JOBS}/stream") as stream,
        ):
            connection.send(json.dumps({"type": "connection_init"}))
            connection.recv(timeout=10)
            began = time.monotonic()
            started.terminate()
            for _line in stream.iter_lines():  # to its proper end
                pass
            started.wait(STOP_SECONDS)
            assert time.monotonic() - began < 3
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=10)
    said = (home / "door.log").read_text()
    assert "Traceback" not in said
    assert "ERROR" not in said


@contextmanager
def door_process(
    home: Path, database_url: str, workspace: Path
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """The door as a process, and the admin's browser. What it says is in `door.log`."""
    port = str(free_port())
    environment = os.environ | {
        "STATS_DATABASE_URL": database_url,
        "STATS_HOME": str(home),
        "STATS_PORT": port,
        "ADMIN_PASSWORD": PASSWORD,
        "DAGSTER_HOME": str(home),
    }
    command = [sys.executable, "-c", SERVE, database_url, str(workspace)]
    with (home / "door.log").open("wb") as log:
        started = subprocess.Popen(command, env=environment, cwd=PROJECT_ROOT, stdout=log, stderr=log)
    transport = httpx.HTTPTransport(retries=12)
    try:
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            assert client.post("/login", data={"password": PASSWORD}).status_code == 303
            yield started, client
    finally:
        started.kill()
        started.wait()
