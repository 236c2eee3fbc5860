"""`stats-pipeline web` as a process: its address, its output, and how it stops while a browser is connected."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline.web import address
from stats_pipeline_tests.ports import free_port
from stats_pipeline_tests.web.conftest import JOBS, PASSWORD, settings

COMMAND = Path(sys.executable).with_name("stats-pipeline")
PATIENCE = 60  # seconds


@contextmanager
def process(database_url: str, home: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address it says, once it answers there."""
    port = str(free_port())
    environment = {**os.environ, "STATS_DATABASE_URL": database_url, "STATS_HOME": str(home), "STATS_WEB_PORT": port}
    started = subprocess.Popen(
        [str(COMMAND), "web"],
        cwd=PROJECT_ROOT,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        transport = httpx.HTTPTransport(retries=12)  # waits longer before each: half a minute in all
        with httpx.Client(transport=transport, timeout=PATIENCE) as client:
            assert client.get(f"http://127.0.0.1:{port}/static/icon.svg").status_code == 200
        yield started, f"http://127.0.0.1:{port}"
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_with_a_stream_open(database_url: str, tmp_path: Path, number: signal.Signals) -> None:
    with process(database_url, tmp_path) as (started, url):
        with httpx.Client(timeout=PATIENCE) as client, client.stream("GET", f"{url}{JOBS}/stream") as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("retry:")
            started.send_signal(number)
            for _ in lines:  # to its proper end: a broken connection would raise
                pass
        assert started.wait(PATIENCE) == 130
        assert started.stdout is not None
        said = started.stdout.read()
    assert f"Admin page: {url}/admin/info" in said
    assert "Traceback" not in said
    assert "ERROR" not in said


def test_without_a_password_it_listens_on_this_machine_only_and_says_so(database_url: str, tmp_path: Path) -> None:
    with process(database_url, tmp_path, STATS_HOST="0.0.0.0") as (started, _):
        assert listening(started.pid) == {"127.0.0.1"}
        started.terminate()
        assert started.stdout is not None
        assert "ADMIN_PASSWORD is not set: the admin page listens on 127.0.0.1 only" in started.stdout.read()
    with process(database_url, tmp_path, STATS_HOST="0.0.0.0", ADMIN_PASSWORD=PASSWORD) as (started, _):
        assert listening(started.pid) == {"0.0.0.0"}


def listening(pid: int) -> set[str]:
    """The addresses on which a process takes connections."""
    connections = psutil.Process(pid).net_connections(kind="tcp")
    return {found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(
    ("host", "password", "expected"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("::1", None, "::1"),
        ("localhost", None, "localhost"),
        ("0.0.0.0", None, "127.0.0.1"),
        ("stats.club.example", None, "127.0.0.1"),
        ("0.0.0.0", PASSWORD, "0.0.0.0"),
        ("192.0.2.1", PASSWORD, "192.0.2.1"),
    ],
)
def test_address(host: str, password: str | None, expected: str) -> None:
    chosen = settings(STATS_HOST=host, **({"ADMIN_PASSWORD": password} if password else {}))
    assert address.address(chosen) == expected
    assert (address.access_note(chosen) is None) == (password is not None)


@pytest.mark.parametrize(
    ("host", "expected"), [("::1", "http://[::1]:8080/admin/info"), ("0.0.0.0", "http://127.0.0.1:8080/admin/info")]
)
def test_the_url_is_one_that_a_browser_can_open(host: str, expected: str) -> None:
    assert address.url(settings(STATS_HOST=host, ADMIN_PASSWORD=PASSWORD)) == expected
