"""The web app as it is served: a real uvicorn on a free loopback port, with a real database."""

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Playwright, sync_playwright
from starlette.applications import Starlette

from stats_pipeline.settings import Settings
from stats_pipeline.web.app import build_app
from stats_pipeline.web.auth import COOKIE
from stats_pipeline.web.dagster_ui import DagsterUI
from stats_pipeline.web.server import configuration
from stats_pipeline.web.sessions import Role

API_KEY = "the-key-of-the-app-0123456789"
CRON_SECRET = "the-secret-of-the-cron-0123456789"
PASSWORD = "correct horse battery"
VIEWER_PASSWORD = "only to look at"
START_KEY = bytes(32)
KEY = {"Authorization": f"Bearer {API_KEY}"}
JOBS = "/api/admin/background-jobs"
ENQUEUE = "/api/admin/enqueue-stats-job"
CRON = "/api/admin/trigger-stats-update"


@dataclass(frozen=True)
class Served:
    """A running app."""

    url: str
    settings: Settings
    app: Starlette

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return int(self.app.state.web.changes.streams)

    @property
    def host(self) -> str:
        """Host and port, as a browser would say them."""
        return self.url.removeprefix("http://")

    def session(self, role: Role = Role.ADMIN) -> dict[str, str]:
        """The headers of a browser that has logged in."""
        return {"Cookie": f"{COOKIE}={self.app.state.web.guard.sessions.begin(role)}"}


def settings(**variables: Any) -> Settings:
    """Settings with these variables, and nothing from a `.env` of the developer's own."""
    return Settings(_env_file=None, **variables)


@contextmanager
def serving(chosen: Settings, database_url: str, ui: DagsterUI | None = None) -> Iterator[Served]:
    """Serve for the length of the block; a stop that hangs is an error."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # who comes before the app has started waits for it
        app = build_app(chosen, database_url, start_key=START_KEY, ui=ui)
        server = uvicorn.Server(configuration(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            httpx.get(f"{url}/static/icon.svg", timeout=20)
            yield Served(url, chosen, app)
        finally:
            if thread.is_alive() and server.started:
                app.state.web.changes.close()
            server.should_exit = True
            thread.join(timeout=15)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def shared_database(create_database: Callable[..., str], template: str) -> str:
    """One migrated database for all tests of a module, and so for the apps that stay up between them."""
    return create_database(template)


@pytest.fixture
def database_url(shared_database: str) -> Iterator[str]:
    """The module's database, without jobs; what the test leaves behind is removed."""
    yield shared_database
    with psycopg.connect(shared_database, autocommit=True) as connection:
        connection.execute(
            "truncate public.background_job_status, stats_pipeline.job_request, stats_pipeline.lease, "
            "stats_pipeline.attempt, stats_pipeline.function_result, stats_pipeline.outbox, stats_pipeline.endpoint, "
            "stats_pipeline.set_aside, stats_pipeline.measurement, stats_pipeline.counter, "
            "stats_pipeline.repeated_request, "
            "stats_pipeline.ended_session, stats_pipeline.sensor_beat, stats_pipeline.audit"
        )
        connection.execute("select pgmq.purge_queue('stats_update')")


@pytest.fixture
def serve(database_url: str) -> Iterator[Callable[..., Served]]:
    """Serve the test's database with these variables, until the test is over."""
    with ExitStack() as stack:

        def start(url: str = database_url, **variables: Any) -> Served:
            return stack.enter_context(serving(settings(**variables), url))

        yield start


@pytest.fixture(scope="module")
def local(shared_database: str) -> Iterator[Served]:
    """The app as it is without any setting: no password, no keys."""
    with serving(settings(), shared_database) as served:
        yield served


@pytest.fixture(scope="module")
def guarded(shared_database: str) -> Iterator[Served]:
    """The app with every secret set, which believes a proxy on this machine."""
    secrets = {"ADMIN_PASSWORD": PASSWORD, "INTERNAL_API_KEY": API_KEY, "CRON_SECRET": CRON_SECRET}
    with serving(settings(**secrets, FORWARDED_ALLOW_IPS="127.0.0.1"), shared_database) as served:
        yield served


@pytest.fixture
def server(guarded: Served, database_url: str) -> Iterator[httpx.Client]:
    """A server of the app's: it has the key."""
    with httpx.Client(base_url=guarded.url, headers=KEY, timeout=20) as client:
        yield client


@pytest.fixture
def anyone(guarded: Served, database_url: str) -> Iterator[httpx.Client]:
    """Somebody with nothing."""
    with httpx.Client(base_url=guarded.url, timeout=20) as client:
        yield client


@pytest.fixture
def enqueues() -> None:
    """For a test that does enqueue something, among those that use `nothing_is_enqueued`."""


@pytest.fixture
def nothing_is_enqueued(request: pytest.FixtureRequest, query: Callable[..., list[dict[str, Any]]]) -> Iterator[None]:
    """After each test, but those that use `enqueues`."""
    yield
    (row,) = query(
        "select (select count(*) from public.background_job_status) + (select count(*) from pgmq.q_stats_update) as n"
    )
    assert (row["n"] > 0) == ("enqueues" in request.fixturenames)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of Debian's Chromium; it runs without its sandbox, as tests run as root in containers."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    return executable


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(chromium: str, playwright: Playwright) -> Iterator[Browser]:
    """A browser whose pages are all visible, each as if it were the only one."""
    launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    yield launched
    launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page in a browser context of its own, perhaps with a `session`; its complaints fail the test."""
    complaints: list[str] = []
    with ExitStack() as stack:

        def open_at(url: str, **context: Any) -> Page:
            session = context.pop("session", None)
            opened = browser.new_context(**context)
            stack.callback(opened.close)
            if session is not None:
                name, _, value = session["Cookie"].partition("=")
                opened.add_cookies([{"name": name, "value": value, "domain": "127.0.0.1", "path": "/"}])
            page = opened.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.extend([said.text] if said.type == "error" else []))
            page.goto(url)
            return page

        yield open_at
    assert [complaint for complaint in complaints if "Failed to load resource" not in complaint] == []
