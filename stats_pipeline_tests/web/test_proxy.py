"""The door behind a real nginx that terminates TLS, in a real browser: login, page, live stream, a run in the Dagster
UI, a logout; and pages of other origins, which can do nothing with the admin's session.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Playwright, WebSocket, expect
from psycopg import Connection

from stats_pipeline.web.auth import COOKIE
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.ports import free_port
from stats_pipeline_tests.web.conftest import PASSWORD, VIEWER_PASSWORD
from stats_pipeline_tests.web.toy_dagster import RealDoor, opened, real_door

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="there is no nginx here: apt-get install nginx"),
]

HOST, EVIL_HOST = "stats.club.example", "evil.example"
PATIENCE = 60_000  # milliseconds
_CONFIGURATION = """
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    log_format asked '$request_method $uri $status $http_sec_fetch_site';
    access_log {folder}/access.log asked;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    ssl_certificate {folder}/certificate.pem;
    ssl_certificate_key {folder}/key.pem;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' close;
    }}
    server {{
        listen 127.0.0.1:{port} ssl;
        location / {{
            proxy_pass {door};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
    server {{
        listen 127.0.0.1:{evil_port} ssl;
        root {folder}/evil;
        default_type text/html;
    }}
}}
"""


@dataclass(frozen=True)
class Proxied:
    """The door, the address that people use, and the addresses of two pages of somebody else's."""

    door: RealDoor
    url: str
    log: Path
    evil: str
    same_site_evil: str


@contextmanager
def nginx(folder: Path, door: str, port: int, evil_port: int) -> Iterator[None]:
    names = f"subjectAltName=DNS:{HOST},DNS:{EVIL_HOST}"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "key.pem")
    made = ("-out", folder / "certificate.pem", "-days", "2", "-subj", f"/CN={HOST}", "-addext", names)
    subprocess.run(["openssl", "req", "-x509", *key, *made], check=True, capture_output=True)
    user = "user root;" if os.geteuid() == 0 else ""
    text = _CONFIGURATION.format(folder=folder, door=door, port=port, evil_port=evil_port, user=user)
    (folder / "nginx.conf").write_text(text)
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=8, verify=False)) as client:
            client.get(f"https://127.0.0.1:{port}/health", timeout=20)
        yield
    finally:
        started.terminate()
        started.wait()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory, shared_database: str) -> Iterator[Proxied]:
    folder, home = tmp_path_factory.mktemp("nginx"), tmp_path_factory.mktemp("door")
    (folder / "evil").mkdir()
    (folder / "evil" / "index.html").write_text("<!doctype html><title>A page of somebody else's</title>")
    port, evil_port = free_port(), free_port()
    url = f"https://{HOST}:{port}"
    with (
        real_door(home, shared_database, STATS_PUBLIC_URL=url, FORWARDED_ALLOW_IPS="127.0.0.1") as door,
        nginx(folder, door.url, port, evil_port),
    ):
        opened(door)
        yield Proxied(
            door, url, folder / "access.log", f"https://{EVIL_HOST}:{evil_port}/", f"https://{HOST}:{evil_port}/"
        )


@pytest.fixture(scope="module")
def outside(chromium: str, playwright: Playwright) -> Iterator[Browser]:
    """A browser that finds the names on this machine."""
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP *.example 127.0.0.1"]
    launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
    yield launched
    launched.close()


@pytest.fixture
def page(outside: Browser) -> Iterator[Page]:
    """A new person's browser. What a content security policy forbids to our pages fails the test."""
    context = outside.new_context(ignore_https_errors=True, viewport={"width": 1300, "height": 900})
    said: list[str] = []
    context.on("console", lambda message: said.append(message.text))
    yield context.new_page()
    context.close()
    assert [line for line in said if "Content Security Policy" in line] == []


def log_in(page: Page, password: str) -> None:
    page.get_by_label("Password").fill(password)
    page.keyboard.press("Enter")


def test_the_login_leads_to_the_page_that_was_asked_for(page: Page, proxied: Proxied) -> None:
    page.goto(f"{proxied.url}/dagster/runs?q%5B%5D=status%3AFAILURE")
    assert page.url.startswith(f"{proxied.url}/login?next=")
    log_in(page, PASSWORD)
    expect(page.get_by_text("No runs")).to_be_visible(timeout=PATIENCE)
    assert page.url.startswith(f"{proxied.url}/dagster/runs?q%5B%5D=status%3AFAILURE")
    (cookie,) = [found for found in page.context.cookies() if found["name"] == COOKIE]
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Lax")


def test_the_page_is_live(page: Page, proxied: Proxied, connection: Connection[Any], database_url: str) -> None:
    page.goto(f"{proxied.url}/admin/info")
    log_in(page, PASSWORD)
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.get_by_text("Logged in as admin")).to_be_visible()
    page.evaluate("window.isSamePage = true")
    job = steps.enqueue(connection)
    expect(page.locator(f"#job-{job} .status")).to_have_text("queued")
    page.locator("#press").click()
    expect(page.locator("tr[data-job]")).to_have_count(2)
    assert page.evaluate("window.isSamePage")
    page.get_by_role("link", name="Dagster").click()
    expect(page).to_have_url(re.compile(rf"^{proxied.url}/dagster/"))


@pytest.mark.parametrize("password", [PASSWORD, VIEWER_PASSWORD], ids=["admin", "viewer"])
def test_a_run_is_followed_to_its_end_without_a_reload(
    page: Page, proxied: Proxied, tmp_path: Path, password: str
) -> None:
    gate = tmp_path / "gate"
    run = proxied.door.launch(gate)
    proxied.door.wait_for(run, "STARTED")
    frames: list[object] = []

    def note(frame: object) -> None:
        frames.append(frame)

    def listen(web_socket: WebSocket) -> None:
        web_socket.on("framereceived", note)

    page.on("websocket", listen)
    page.goto(f"{proxied.url}/dagster/runs/{run}")
    log_in(page, password)
    expect(page.get_by_text("at the gate").first).to_be_visible(timeout=PATIENCE)
    page.evaluate("window.isSamePage = true")
    seen = len(frames)
    assert seen > 0
    gate.touch()
    expect(page.get_by_text("through the gate").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=PATIENCE)
    assert len(frames) > seen
    assert page.evaluate("window.isSamePage")


@pytest.mark.parametrize(("password", "may"), [(PASSWORD, True), (VIEWER_PASSWORD, False)], ids=["admin", "viewer"])
def test_only_the_admin_finds_buttons_to_press(page: Page, proxied: Proxied, password: str, may: bool) -> None:
    page.goto(f"{proxied.url}/dagster/assets/toy_asset")
    log_in(page, password)
    materialize = page.get_by_role("button", name=re.compile("Materialize")).first
    expect(materialize).to_be_enabled(enabled=may, timeout=PATIENCE)
    page.goto(f"{proxied.url}/admin/info")
    expect(page.get_by_text(f"Logged in as {'admin' if may else 'viewer'}")).to_be_visible()
    expect(page.get_by_role("link", name="Dagster")).to_be_visible()
    expect(page.get_by_role("button", name="Enqueue Stats Job")).to_have_count(int(may))
    expect(page.get_by_role("button", name="Log out")).to_be_visible()


def test_a_logout_ends_what_is_open_in_other_tabs(page: Page, proxied: Proxied, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = proxied.door.launch(gate)
    closed: list[str] = []
    try:
        page.on("websocket", lambda web_socket: web_socket.on("close", lambda each: closed.append(each.url)))
        page.goto(f"{proxied.url}/dagster/runs/{run}")
        log_in(page, PASSWORD)
        expect(page.get_by_text("at the gate").first).to_be_visible(timeout=PATIENCE)
        other = page.context.new_page()
        other.goto(f"{proxied.url}/admin/info")
        other.get_by_role("button", name="Log out").click()
        expect(other.get_by_role("heading", name="Log in")).to_be_visible(timeout=PATIENCE)
        for _ in range(50):
            if closed:
                break
            page.wait_for_timeout(100)
        assert closed
        page.reload()
        expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    finally:
        gate.touch()
        proxied.door.wait_for(run, "SUCCESS")


# What a page of another origin can try, with what the browser sends by itself.
_ATTACK = """async (url) => {
    const query = JSON.stringify({ query: "mutation { setConcurrencyLimit(concurrencyKey: \\"evil\\", limit: 1) }" });
    const outcome = {};
    const settled = (start) => new Promise((resolve) => start(resolve));
    const post = (path, body, type) =>
        fetch(url + path, {
            method: "POST", mode: "no-cors", credentials: "include", body, headers: { "Content-Type": type },
        }).then((answer) => answer.type, () => "failed");
    outcome.text = await post("/dagster/graphql", query, "text/plain");
    outcome.form = await post("/dagster/graphql", "query=mutation", "application/x-www-form-urlencoded");
    outcome.enqueue = await post("/api/admin/enqueue-stats-job", "{}", "text/plain");
    outcome.cors = await fetch(url + "/dagster/graphql", {
        method: "POST", credentials: "include", body: query, headers: { "Content-Type": "application/json" },
    }).then(() => "read", () => "failed");
    const link = "/dagster/graphql?query=" + encodeURIComponent(JSON.parse(query).query);
    for (const path of [link, "/dagster/download_debug/1", "/admin/info"])
        outcome["image " + path.slice(0, 17)] = await settled((resolve) => {
            const image = new Image();
            image.onload = () => resolve("loaded");
            image.onerror = () => resolve("failed");
            image.src = url + path;
        });
    outcome.socket = await settled((resolve) => {
        const socket = new WebSocket(url.replace("https:", "wss:") + "/dagster/graphql", "graphql-ws");
        socket.onopen = () => resolve("open");
        socket.onerror = () => resolve("failed");
    });
    for (const path of ["/dagster/graphql", "/admin/info/enqueue", "/logout"])
        await settled((resolve) => {
            const frame = document.createElement("iframe");
            frame.name = "frame" + path;
            document.body.append(frame);
            const form = document.createElement("form");
            Object.assign(form, { action: url + path, method: "post", enctype: "text/plain", target: frame.name });
            form.innerHTML = "<input name=a value=b>";
            document.body.append(form);
            frame.onload = resolve;
            form.submit();
        });
    for (const path of ["/dagster/runs", "/admin/info"])
        await settled((resolve) => {
            const frame = document.createElement("iframe");
            frame.src = url + path;
            frame.onload = resolve;
            document.body.append(frame);
        });
    return outcome;
}"""


SITES = {"evil": "cross-site", "same_site_evil": "same-site"}


@pytest.mark.parametrize("whose", SITES)
def test_a_page_of_another_origin_can_do_nothing(outside: Browser, proxied: Proxied, whose: str) -> None:
    context = outside.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(f"{proxied.url}/dagster/runs")
    log_in(page, PASSWORD)
    expect(page.get_by_text("Runs").first).to_be_visible(timeout=PATIENCE)
    before = state(proxied)
    evil = context.new_page()
    proxied.log.write_text("")  # nginx appends
    evil.goto(getattr(proxied, whose))
    outcome = evil.evaluate(_ATTACK, proxied.url)
    assert set(outcome.values()) <= {"failed", "opaque"}, outcome
    assert (outcome["cors"], outcome["socket"]) == ("failed", "failed")
    asked = [line.split() for line in proxied.log.read_text().splitlines()]
    answers = {(method, path): int(status) for method, path, status, site in asked if site == SITES[whose]}
    assert set(answers) >= {("POST", "/dagster/graphql"), ("POST", "/logout"), ("GET", "/dagster/download_debug/1")}
    # Our own pages may be asked for: the browser keeps the answer from the other one.
    refused = {status for (_, path), status in answers.items() if path not in ("/admin/info", "/login")}
    assert refused <= {401, 403, 405, 415}, answers
    assert state(proxied) == before
    # The session is what it was: a link leads to the page.
    evil.evaluate("url => { location.href = url }", f"{proxied.url}/dagster/runs")
    expect(evil.get_by_text("Runs").first).to_be_visible(timeout=PATIENCE)
    context.close()


def state(proxied: Proxied) -> Any:
    """What the attacks would change."""
    with httpx.Client(headers=proxied.door.served.session()) as client:
        jobs = client.get(f"{proxied.door.url}/api/admin/background-jobs").json()
    query = "{ instance { concurrencyLimits { concurrencyKey } } runsOrError { ... on Runs { results { runId } } } }"
    return jobs, proxied.door.ask(query)
