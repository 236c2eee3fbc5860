"""Who did what at the page and the API, and from where: one row and one log line for each, and no secret in either.

How rows are kept, and how few of them guesses leave, is in `integration/test_audit.py`.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
import structlog
from playwright.sync_api import Page, expect
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.typing import EventDict

from stats_pipeline.database import Database
from stats_pipeline.jobs import audit
from stats_pipeline.web.audit import MAX_WAITING
from stats_pipeline.web.auth import MAX_FAILURES
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import (
    API_KEY,
    CRON,
    CRON_SECRET,
    ENQUEUE,
    JOBS,
    PASSWORD,
    Served,
)

pytestmark = pytest.mark.slow

Query = Callable[..., list[dict[str, Any]]]
ADDRESS = "192.0.2.7"
GUESS = "hunter2-is-a-guess"
STRANGER = ("unknown", "unknown", ADDRESS)


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    secrets = {"ADMIN_PASSWORD": PASSWORD, "INTERNAL_API_KEY": API_KEY, "CRON_SECRET": CRON_SECRET}
    return serve(**secrets, FORWARDED_ALLOW_IPS="127.0.0.1")


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """A browser or a server that comes from ADDRESS, through a proxy on this machine."""
    with httpx.Client(base_url=served.url, headers={"X-Forwarded-For": ADDRESS}, timeout=20) as client:
        yield client


@pytest.fixture
def lines() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def rows(connection: Connection[Any]) -> Callable[[], list[tuple[Any, ...]]]:
    """All rows, oldest first: action, outcome, who, role, address, what about."""

    def read() -> list[tuple[Any, ...]]:
        found = reversed(audit.latest(connection, 100))
        return [(row.action, row.outcome, row.who, row.role, row.address, row.about) for row in found]

    return read


Rows = Callable[[], list[tuple[Any, ...]]]


def log_in(client: httpx.Client, password: str = PASSWORD) -> int:
    return client.post("/login", data={"password": password}).status_code


def token(client: httpx.Client) -> str:
    found = re.search(r'name="token" value="([^"]+)"', client.get("/admin/info").text)
    assert found is not None
    return found[1]


def with_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def failed_job(connection: Connection[Any], url: str) -> UUID:
    job_id = steps.enqueue(connection)
    with Database(url) as database:
        steps.fail(connection, database)
    return job_id


def of_address(lines: list[EventDict]) -> list[tuple[str, str]]:
    """The lines that name where something came from: level and text."""
    return [(line["log_level"], line["event"]) for line in lines if line.get("address") == ADDRESS]


def test_login_and_logout(client: httpx.Client, rows: Rows, lines: list[EventDict]) -> None:
    assert log_in(client) == 303
    assert rows() == [("login", "done", "admin", "admin", ADDRESS, None)]
    assert client.post("/logout", data={"token": token(client)}).status_code == 303
    assert rows()[1:] == [("logout", "done", "admin", "admin", ADDRESS, None)]
    assert of_address(lines) == [("info", "login done"), ("info", "logout done")]
    client.post("/logout")
    assert len(rows()) == 2  # there was no session


def test_wrong_passwords_and_too_many(client: httpx.Client, rows: Rows, lines: list[EventDict]) -> None:
    for _ in range(MAX_FAILURES):
        assert log_in(client, GUESS) == 401
    assert log_in(client, PASSWORD) == 429
    wrong = ("login", "refused", *STRANGER, "wrong password")
    assert rows() == [wrong] * MAX_FAILURES + [("login", "refused", *STRANGER, "too many wrong passwords: wait")]
    assert of_address(lines) == [("warning", "login refused")] * (MAX_FAILURES + 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", JOBS), ("POST", ENQUEUE), ("GET", CRON), ("GET", "/metrics"), ("GET", f"{JOBS}/stream")],
)
def test_refused_keys(client: httpx.Client, rows: Rows, lines: list[EventDict], method: str, path: str) -> None:
    assert client.request(method, path).status_code == 401  # nothing was shown
    assert rows() == []
    for _ in range(MAX_FAILURES):
        assert client.request(method, path, headers=with_key(GUESS)).status_code == 401
    assert client.request(method, path, headers=with_key(API_KEY)).status_code == 429
    refused = [("key", "refused", *STRANGER, f"the key is wrong, {method} {path}")] * MAX_FAILURES
    assert rows() == [*refused, ("key", "refused", *STRANGER, f"too many wrong keys: wait, {method} {path}")]
    assert of_address(lines) == [("warning", "key refused")] * (MAX_FAILURES + 1)


def test_a_key_that_is_right_leaves_nothing_by_reading(client: httpx.Client, rows: Rows) -> None:
    for path in (JOBS, "/metrics"):
        assert client.get(path, headers=with_key(API_KEY)).status_code == 200
    assert rows() == []


def test_a_launch_by_the_button(client: httpx.Client, rows: Rows, lines: list[EventDict], query: Query) -> None:
    log_in(client)
    form = {"token": token(client), "requestId": "pressed twice"}
    for _ in range(2):
        assert client.post("/admin/info/enqueue", data=form).status_code == 303
    [job] = query("select id from public.background_job_status")
    assert rows()[1:] == [("launch", "done", "admin", "admin", ADDRESS, f"job {job['id']}")]
    assert of_address(lines)[1:] == [("info", "stats job enqueued")] * 2


def test_a_launch_by_the_session_of_the_admin_at_the_api(client: httpx.Client, rows: Rows) -> None:
    log_in(client)
    body = {"triggeredBy": "admin", "requestId": "1"}
    answer = client.post(ENQUEUE, json=body, headers={"Origin": str(client.base_url)})
    assert answer.status_code == 202
    assert rows()[1:] == [("launch", "done", "admin", "admin", ADDRESS, f"job {answer.json()['jobId']}")]


def test_a_launch_by_the_key(client: httpx.Client, rows: Rows, lines: list[EventDict]) -> None:
    body = {"triggeredBy": "post-match", "requestId": "1", "matchId": 12, "userId": "u\n7\x1b[2J"}
    for _ in range(2):
        answer = client.post(ENQUEUE, json=body, headers=with_key(API_KEY))
        assert answer.status_code == 202
    about = f"job {answer.json()['jobId']} for user u 7 [2J"
    assert rows() == [("launch", "done", "server", "server", ADDRESS, about)]
    assert of_address(lines) == [("info", "stats job enqueued")] * 2


def test_a_request_that_is_no_job_leaves_no_row(client: httpx.Client, rows: Rows, lines: list[EventDict]) -> None:
    assert client.post(ENQUEUE, json={"triggeredBy": "admin"}, headers=with_key(API_KEY)).status_code == 400
    assert rows() == []
    assert of_address(lines) == [("warning", "stats job refused")]


def test_launches_by_cron(serve: Callable[..., Served], rows: Rows, lines: list[EventDict]) -> None:
    clubs = f"{steps.TENANT},{steps.OTHER_TENANT}"
    url = serve(CRON_SECRET=CRON_SECRET, STATS_TENANTS=clubs, FORWARDED_ALLOW_IPS="127.0.0.1").url
    headers = with_key(CRON_SECRET) | {"X-Forwarded-For": ADDRESS}
    for _ in range(2):
        answer = httpx.get(url + CRON, headers=headers, timeout=20)
        assert answer.status_code == 202
    about = f"2 jobs, the first {answer.json()['jobs'][0]['jobId']}"
    assert rows() == [("launch", "done", "cron", "cron", ADDRESS, about)]
    assert of_address(lines) == [("info", "cron jobs enqueued")] * 2


@pytest.mark.parametrize("way", ["form", "API"])
def test_a_retry(
    client: httpx.Client,
    connection: Connection[Any],
    database_url: str,
    rows: Rows,
    lines: list[EventDict],
    query: Query,
    way: str,
) -> None:
    failed = failed_job(connection, database_url)
    log_in(client)
    if way == "form":
        answer = client.post("/admin/info/retry", data={"token": token(client), "job": str(failed)})
    else:
        answer = client.post(f"{JOBS}/{failed}/retry", headers=with_key(API_KEY))
    assert answer.status_code in (202, 303)
    [job] = query("select id from public.background_job_status where retry_of = %s", failed)
    who = "admin" if way == "form" else "server"
    assert rows()[1:] == [("retry", "done", who, who, ADDRESS, f"job {job['id']}, a retry of {failed}")]
    assert of_address(lines)[1:] == [("info", "stats job retried")]


def test_an_enqueue_whose_row_cannot_be_written_enqueues_nothing(
    client: httpx.Client, connection: Connection[Any], query: Query
) -> None:
    connection.execute("alter table stats_pipeline.audit rename to audit_elsewhere")
    try:
        body = {"triggeredBy": "admin", "requestId": "1"}
        assert client.post(ENQUEUE, json=body, headers=with_key(API_KEY)).status_code == 500
    finally:
        connection.execute("alter table stats_pipeline.audit_elsewhere rename to audit")
    assert query("select * from public.background_job_status") == []


def test_no_secret_is_in_a_row_or_a_line(client: httpx.Client, lines: list[EventDict], query: Query) -> None:
    log_in(client, GUESS)
    log_in(client)
    for path in (JOBS, CRON):
        client.get(path, headers=with_key(GUESS))
        client.get(path, headers={"Authorization": f"Basic {GUESS}"})
    client.get(CRON, headers=with_key(CRON_SECRET))
    cookie = next(iter(client.cookies.values()))
    client.post("/logout", data={"token": token(client)})
    everything = str(query("select a::text from stats_pipeline.audit as a")) + str(lines)
    assert "wrong password" in everything
    for secret in (GUESS, PASSWORD, API_KEY, CRON_SECRET, cookie, cookie.partition(".")[0]):
        assert secret not in everything


def test_an_address_that_is_none_is_readable(served: Served, rows: Rows) -> None:
    """A trusted proxy may report anything."""
    hostile = {"X-Forwarded-For": "<b>\x1b[31m" + "x" * 300}
    assert httpx.post(f"{served.url}/login", data={"password": GUESS}, headers=hostile).status_code == 401
    [(*_, address, _)] = rows()
    assert address.isprintable()
    assert len(address) == audit.MAX_TEXT


@pytest.mark.parametrize(("password", "status"), [(GUESS, 401), (PASSWORD, 303)])
def test_a_login_has_the_same_answer_without_the_database(
    serve: Callable[..., Served],
    create_database: Callable[..., str],
    template: str,
    lines: list[EventDict],
    password: str,
    status: int,
) -> None:
    url = create_database(template)
    served = serve(url, ADMIN_PASSWORD=PASSWORD, FORWARDED_ALLOW_IPS="127.0.0.1")
    with psycopg.connect(make_conninfo(url, dbname="template1"), autocommit=True) as elsewhere:
        elsewhere.execute(f"drop database {conninfo_to_dict(url)['dbname']} with (force)".encode())
    answer = httpx.post(
        f"{served.url}/login", data={"password": password}, headers={"X-Forwarded-For": ADDRESS}, timeout=20
    )
    assert answer.status_code == status
    [line] = [line for line in lines if line.get("address") == ADDRESS]
    assert unsure([line]) != [None]


@pytest.mark.parametrize("kind", ["held row", "table"])
def test_a_login_does_not_wait_long_for_a_lock(
    client: httpx.Client, database_url: str, lines: list[EventDict], rows: Rows, kind: str
) -> None:
    log_in(client, GUESS)
    with psycopg.connect(database_url) as holder:
        holder.execute("lock table stats_pipeline.audit" if kind == "table" else "select 1")
        if kind == "held row":  # a refused try of the same address, whose transaction stays open
            audit.record(holder, action="login", outcome="refused", who="x", role="x", address=ADDRESS)
        began = time.monotonic()
        assert log_in(client, GUESS) == 401
        assert time.monotonic() - began < 4
        assert unsure(lines) == [None, "perhaps_recorded"]
        assert log_in(client) == 303
        assert unsure(lines)[2:] == ["not_recorded"]
    await_rows(rows, 2)  # without the third; the held row counts two tries


def test_what_finds_no_turn_is_never_recorded_and_is_not_said_to_be(
    client: httpx.Client, database_url: str, lines: list[EventDict], rows: Rows
) -> None:
    with psycopg.connect(database_url) as holder:
        holder.execute("lock table stats_pipeline.audit")
        assert [log_in(client) for _ in range(2)] == [303, 303]
        assert unsure(lines) == ["perhaps_recorded", "not_recorded"]
    await_rows(rows, 1)
    assert log_in(client) == 303
    assert len(rows()) == 2


@pytest.fixture
def slow_refusals(connection: Connection[Any]) -> Iterator[None]:
    """A row of a refused try takes 0.3 s."""
    connection.execute(
        "create function public.be_slow() returns trigger language plpgsql as "
        "$$ begin if new.outcome = 'refused' then perform pg_sleep(0.3); end if; return new; end; $$"
    )
    connection.execute(
        "create trigger slow before insert on stats_pipeline.audit for each row execute function public.be_slow()"
    )
    yield
    connection.execute("drop function public.be_slow cascade")


@pytest.mark.usefixtures("slow_refusals")
def test_a_flood_of_strangers_does_not_keep_what_is_done_from_being_recorded(
    client: httpx.Client, lines: list[EventDict], rows: Rows
) -> None:
    is_over = threading.Event()

    def guess_on(first: int) -> int:
        number = first
        with httpx.Client(base_url=client.base_url, timeout=20) as stranger:
            while not is_over.is_set():
                headers = {"X-Forwarded-For": f"10.0.{first}.{number % 250}"}
                stranger.post("/login", data={"password": GUESS}, headers=headers)
                number += 1
        return number - first

    def said() -> list[object]:
        return [line["not_recorded"] for line in list(lines) if "not_recorded" in line]

    with ThreadPoolExecutor(2 * MAX_WAITING) as flood:
        guesses = [flood.submit(guess_on, number) for number in range(2 * MAX_WAITING)]
        try:
            until(lambda: "too many refused tries wait for their rows" in said(), "a flood")
            statuses = [log_in(client) for _ in range(5)]
        finally:
            is_over.set()
    assert statuses == [303] * 5
    mine = [line for line in lines if line.get("address") == ADDRESS]
    assert unsure(mine) == [None] * 5
    assert rows().count(("login", "done", "admin", "admin", ADDRESS, None)) == 5
    assert sum(guess.result() for guess in guesses) == len([line for line in lines if line["event"] == "login refused"])


def unsure(lines: list[EventDict]) -> list[str | None]:
    """What each line of an action says of its row, if that is not known to be there."""
    said = [line for line in lines if "address" in line]
    return [next((name for name in line if name in ("not_recorded", "perhaps_recorded")), None) for line in said]


def await_rows(rows: Rows, number: int) -> None:
    until(lambda: len(rows()) >= number, f"{number} rows")
    assert len(rows()) == number


def test_the_page_shows_the_last_of_it(
    open_page: Callable[..., Page], served: Served, connection: Connection[Any], tmp_path: Path
) -> None:
    for number in range(25):
        audit.record(
            connection, action="launch", who="server", role="server", address="2001:db8::1", about=f"job {number}"
        )
    for number in range(30):
        audit.record(
            connection,
            action="login",
            outcome="refused",
            who="<b>x</b>",
            role="none",
            address=ADDRESS if number >= 18 else f"198.51.100.{number}",
            about="<script>alert(1)</script>",
        )
    page = open_page(f"{served.url}/login", viewport={"width": 375, "height": 800}, java_script_enabled=False)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button").click()
    section = page.locator("details.activity")
    expect(section).not_to_have_attribute("open", "")
    expect(section.locator("table")).not_to_be_visible()
    section.locator("summary").click()
    shown = section.locator("tbody tr")
    expect(shown).to_have_count(20)
    expect(shown.nth(0)).to_contain_text("admin")
    expect(shown.nth(0)).to_contain_text("login")
    expect(shown.nth(1)).to_contain_text("<b>x</b> (none)")
    expect(shown.nth(1)).to_contain_text("login refused, 2 times: <script>alert(1)</script>")
    expect(shown.nth(1)).to_contain_text(ADDRESS)
    expect(shown.nth(5)).to_contain_text("login refused")
    for number in range(6, 20):
        expect(shown.nth(number)).to_contain_text(f"job {30 - number}")
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
