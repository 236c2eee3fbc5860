"""A logout ends the session: for copies of its cookie, for its event streams, at every web process."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from stats_pipeline.web.auth import COOKIE
from stats_pipeline_tests.web.conftest import JOBS, KEY, PASSWORD, Served, serving, settings
from stats_pipeline_tests.web.test_stream import reading

pytestmark = pytest.mark.slow

Query = Callable[..., list[dict[str, Any]]]
PAGES = ("/admin/info", "/admin/info/jobs", "/login", JOBS, f"{JOBS}/stream")


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve(ADMIN_PASSWORD=PASSWORD, INTERNAL_API_KEY=KEY["Authorization"].removeprefix("Bearer "))


def log_in(served: Served) -> dict[str, str]:
    """The cookie of a new session."""
    answer = httpx.post(f"{served.url}/login", data={"password": PASSWORD})
    return {"Cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}


def log_out(served: Served, cookie: dict[str, str]) -> None:
    token = re.search(r'name="token" value="([^"]+)"', httpx.get(f"{served.url}/admin/info", headers=cookie).text)
    assert token is not None
    answer = httpx.post(f"{served.url}/logout", data={"token": token[1]}, headers=cookie)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def assert_refused(served: Served, cookie: dict[str, str]) -> None:
    statuses = [httpx.get(served.url + page, headers=cookie).status_code for page in PAGES]
    assert statuses == [303, 401, 200, 401, 401]  # of the login page, 200: it does not know the session either
    for form in ("enqueue", "retry"):
        assert httpx.post(f"{served.url}/admin/info/{form}", headers=cookie).status_code == 401


def test_a_copied_cookie_is_refused_also_after_a_restart_and_another_session_is_not(
    database_url: str, query: Query
) -> None:
    chosen = settings(ADMIN_PASSWORD=PASSWORD)
    with serving(chosen, database_url) as served, serving(chosen, database_url) as elsewhere:
        copied, other = log_in(served), log_in(served)
        assert httpx.get(elsewhere.url + JOBS, headers=copied).status_code == 200
        log_out(served, copied)
        assert_refused(served, copied)
        assert_refused(elsewhere, copied)
    with serving(chosen, database_url) as restarted:
        assert_refused(restarted, copied)
        assert httpx.get(restarted.url + JOBS, headers=other).status_code == 200


def test_the_streams_of_the_session_end_and_others_do_not(served: Served) -> None:
    session, other = log_in(served), log_in(served)
    with (
        reading(served, session) as ended,
        reading(served, other),
        reading(served, KEY),
    ):
        log_out(served, session)
        ended.wait_for_end()
        assert served.streams == 2


def test_a_stream_at_another_web_process_ends_and_others_do_not(
    served: Served, serve: Callable[..., Served], query: Query
) -> None:
    query("insert into stats_pipeline.ended_session select 'gone ' || n, 'infinity' from generate_series(1, 100) as n")
    session, other = log_in(served), log_in(served)
    elsewhere = serve(ADMIN_PASSWORD=PASSWORD)
    asked: list[dict[str, Any]] = []
    look = elsewhere.app.state.web.database.run

    def listening(name: str, **arguments: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = look(name, **arguments)
        if name == "list_ended_sessions":
            asked.extend(rows)
        return rows

    elsewhere.app.state.web.database.run = listening
    with reading(elsewhere, session) as ended, reading(elsewhere, other):
        log_out(served, session)
        ended.wait_for_end()
        assert elsewhere.streams == 1
    assert len(asked) == 1  # none of those that nobody watches


def test_what_was_logged_out_is_remembered_until_the_cookie_has_expired(served: Served, query: Query) -> None:
    log_out(served, log_in(served))
    query("update stats_pipeline.ended_session set expires_at = now() - interval '1 s'")
    log_out(served, log_in(served))
    (row,) = query(
        "select count(*) as n, min(expires_at - now()) > interval '12 hours' as long from stats_pipeline.ended_session"
    )
    assert row == {"n": 1, "long": True}


def test_the_other_tabs_go_to_the_login(open_page: Callable[..., Page], served: Served) -> None:
    first = open_page(f"{served.url}/login")
    first.get_by_label("Password").fill(PASSWORD)
    first.keyboard.press("Enter")
    expect(first.locator("#live")).to_have_text("Live")
    second = first.context.new_page()
    second.goto(f"{served.url}/admin/info")
    expect(second.locator("#live")).to_have_text("Live")
    first.get_by_role("button", name="Log out").click()
    expect(second.get_by_role("heading", name="Log in")).to_be_visible(timeout=10_000)
