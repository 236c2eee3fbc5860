"""`stats-pipeline web` as a process: its address, its output, and how it stops while a browser is connected."""

import os
import pty
import re
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
from stats_pipeline.web.auth import COOKIE
from stats_pipeline_tests.ports import free_port
from stats_pipeline_tests.web.conftest import JOBS, PASSWORD, START_KEY, settings

COMMAND = Path(sys.executable).with_name("stats-pipeline")
PATIENCE = 60  # seconds


@contextmanager
def process(database_url: str, home: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address it says, once it answers there."""
    port = str(free_port())
    environment = {**os.environ, "STATS_DATABASE_URL": database_url, "STATS_HOME": str(home), "STATS_PORT": port}
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
    with process(database_url, tmp_path, ADMIN_PASSWORD=PASSWORD) as (started, url):
        with (
            httpx.Client(timeout=PATIENCE, headers=log_in(url)) as client,
            client.stream("GET", f"{url}{JOBS}/stream") as stream,
        ):
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


def log_in(url: str) -> dict[str, str]:
    answer = httpx.post(f"{url}/login", data={"password": PASSWORD})
    return {"Cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}


def test_with_a_password_it_listens_where_it_is_told_to(database_url: str, tmp_path: Path) -> None:
    with process(database_url, tmp_path, STATS_HOST="0.0.0.0", ADMIN_PASSWORD=PASSWORD) as (started, _):
        assert listening(started.pid) == {"0.0.0.0"}


def test_without_a_password_and_a_terminal_it_does_not_start(database_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "STATS_DATABASE_URL": database_url, "STATS_HOME": str(tmp_path)}
    port = {"STATS_PORT": str(free_port())}
    command = [str(COMMAND), "web"]
    refused = subprocess.run(command, env=environment | port, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: ADMIN_PASSWORD must be set when standard error is not a terminal")


def test_on_a_terminal_the_link_lets_in_once(database_url: str, tmp_path: Path) -> None:
    port = str(free_port())
    environment = {**os.environ, "STATS_DATABASE_URL": database_url, "STATS_HOME": str(tmp_path), "STATS_PORT": port}
    terminal, its_end = pty.openpty()
    started = subprocess.Popen(
        [str(COMMAND), "web"], env=environment | {"STATS_HOST": "0.0.0.0", "TERM": "dumb"}, stderr=its_end
    )
    try:
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/login\?key=([0-9a-f]{64})\s", said)):
            said += os.read(terminal, 10_000).decode()
        assert found[1] == port
        transport = httpx.HTTPTransport(retries=12)
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            for _ in range(2):  # whoever only looks does not use it up
                assert "This link works once" in client.get(f"/login?key={found[2]}").text
            assert client.post("/login", data={"key": found[2]}).status_code == 303
            assert client.get(JOBS).status_code == 200
        assert listening(started.pid) == {"127.0.0.1"}
        assert "ADMIN_PASSWORD is not set" in said or "ADMIN_PASSWORD is not set" in os.read(terminal, 10_000).decode()
    finally:
        started.kill()
        started.wait()
        os.close(terminal)
        os.close(its_end)


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


def test_behind_a_proxy_the_urls_are_those_that_people_use() -> None:
    chosen = settings(STATS_PUBLIC_URL="https://stats.example.com")
    assert address.url(chosen) == "https://stats.example.com/admin/info"
    assert address.dagster_url(chosen) == "https://stats.example.com/dagster"
    assert address.login_link(chosen, START_KEY).startswith("https://stats.example.com/login?key=")
