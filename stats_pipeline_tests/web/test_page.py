"""The admin's page in a real browser. Jobs advance by the product's own steps, without Dagster.

The same with Dagster is in `test_live.py`.
"""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from playwright.sync_api import Locator, Page, Route, expect
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import Database
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import PASSWORD, Served

pytestmark = pytest.mark.slow

Query = Callable[..., list[dict[str, Any]]]
Open = Callable[..., Page]
PHONE = {"width": 375, "height": 800}


@pytest.fixture
def page(open_page: Open, local: Served, database_url: str) -> Page:
    """The admin's page, its stream connected."""
    return opened(open_page, local)


def opened(open_page: Open, served: Served, **context: Any) -> Page:
    page = open_page(f"{served.url}/admin/info", session=served.session(), **context)
    expect(page.locator("#live")).to_have_text("Live")
    page.evaluate("window.isSamePage = true")
    return page


def row(page: Page, job_id: object) -> Locator:
    return page.locator(f"tr[data-job='{job_id}']")


def newest(query: Query) -> UUID:
    (found,) = query("select id from public.background_job_status order by created_at desc limit 1")
    return UUID(str(found["id"]))


def test_the_button_and_the_row_follow_the_job_without_a_reload(
    page: Page, query: Query, connection: Connection[Any], database_url: str
) -> None:
    button = page.locator("#press")
    expect(button).to_have_text("Enqueue Stats Job")
    button.click()
    expect(button).to_have_text("Job Queued...")
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(page.locator("tr[data-job]")).to_have_count(1)
    job = newest(query)
    expect(row(page, job).locator(".status")).to_have_text("queued")
    expect(row(page, job)).to_contain_text(re.compile(r"about (60|[3-5]\d) s left"))

    claimed = steps.start(connection)
    expect(button).to_have_text("Processing...")
    expect(row(page, job).locator(".status")).to_have_text("processing")
    expect(row(page, job)).to_contain_text("In progress...")

    row(page, job).get_by_role("button").click()
    details = page.locator(f"#details-{job}")
    expect(details.locator(".mark.running")).to_have_count(len(STATS_FUNCTIONS))
    with Database(database_url) as database:
        steps.compute(database, claimed, steps.TWO[0])
        steps.settle(connection)
        expect(details.locator(".mark.success")).to_have_count(1)  # and the row is still open
        steps.compute(database, claimed, steps.TWO[1])
    steps.settle(connection)

    expect(button).to_have_text("Completed")
    expect(row(page, job).locator(".status")).to_have_text("completed")
    expect(row(page, job)).to_contain_text(re.compile(r"\d\.\ds"))
    expect(page.locator("#announce")).to_have_text("admin: completed")
    expect(button).to_have_text("Enqueue Stats Job", timeout=10_000)
    assert page.evaluate("window.isSamePage")


def test_a_job_after_a_match_that_has_no_id_yet(page: Page, connection: Connection[Any]) -> None:
    job = steps.enqueue(connection, triggeredBy="post-match")
    expect(row(page, job).locator("th")).to_contain_text("(match not named)")


def test_a_failed_job_shows_why_and_retry_makes_a_new_one(
    page: Page, query: Query, connection: Connection[Any], database_url: str
) -> None:
    failed = steps.enqueue(connection, triggeredBy="post-match", matchId=123)
    with Database(database_url) as database:
        steps.fail(connection, database)
    expect(row(page, failed).locator(".status")).to_have_text("failed")
    expect(row(page, failed)).to_contain_text("(Match 123)")
    row(page, failed).get_by_role("button", name="post-match").click()
    details = page.locator(f"#details-{failed}")
    expect(details).to_contain_text(f"Failed functions: {steps.TWO[1].rpc}")
    expect(details).to_contain_text("no such table")

    row(page, failed).get_by_role("button", name="Retry").click()
    expect(page.locator("#toasts")).to_contain_text("Job retry queued successfully")
    expect(page.locator("tr[data-job]")).to_have_count(2)
    retried = newest(query)
    assert retried != failed
    expect(row(page, retried).locator(".status")).to_have_text("queued")
    with Database(database_url) as database:
        steps.finish(connection, database, "run-2")
    expect(row(page, retried).locator(".status")).to_have_text("completed")
    expect(row(page, failed).locator(".status")).to_have_text("failed")
    expect(row(page, retried).get_by_role("button", name="Retry")).to_have_count(0)
    assert page.evaluate("window.isSamePage")


def test_a_job_that_fails_is_said_on_the_button(page: Page, connection: Connection[Any], database_url: str) -> None:
    page.locator("#press").click()
    expect(page.locator("#press")).to_have_text("Job Queued...")
    expect(page.locator("tr[data-job]")).to_have_count(1)
    with Database(database_url) as database:
        steps.fail(connection, database)
    expect(page.locator("#press")).to_have_text("Failed")
    expect(page.locator("#press")).to_have_text("Enqueue Stats Job", timeout=10_000)


def test_a_row_opens_to_its_ten_functions_and_its_tags(
    open_page: Open, local: Served, connection: Connection[Any], database_url: str
) -> None:
    job = steps.enqueue(connection)
    with Database(database_url) as database:
        claimed = steps.start(connection, "0123456789abcdef")
        steps.compute(database, claimed)
    steps.settle(connection, "0123456789abcdef", app=True)
    page = opened(open_page, local)
    row(page, job).get_by_role("button").click()
    details = page.locator(f"#details-{job}")
    for function in STATS_FUNCTIONS:
        expect(details.get_by_role("row", name=function.rpc)).to_have_count(1)
    expect(details.locator(".bar rect")).to_have_count(2)
    expect(details.locator(".tag.pending")).to_have_text(["all_time_stats pending", "hall_of_fame pending"])
    expect(details.get_by_role("link")).to_have_count(0)  # there is no Dagster UI here


def test_experience_replaces_the_guess_and_fills_the_strip(open_page: Open, local: Served, query: Query) -> None:
    query(
        """
        insert into public.background_job_status (job_payload, status, created_at, started_at, completed_at)
        select '{"triggeredBy": "cron"}', case when n % 10 = 0 then 'failed' else 'completed' end,
            now() - interval '1 day' * n, now() - interval '1 day' * n + interval '2 s',
            now() - interval '1 day' * n + interval '14 s'
        from generate_series(1, 60) as n
        """
    )
    page = opened(open_page, local)
    expect(page.locator(".figures")).to_contain_text("about 14 seconds")
    expect(page.locator(".strip rect")).to_have_count(50)
    expect(page.locator(".strip rect.failed")).to_have_count(5)
    expect(page.locator("tr[data-job]")).to_have_count(10)
    page.locator("#press").click()
    expect(page.locator("[data-left]")).to_have_text(re.compile(r"about 1\d s left"))
    expect(page.locator("[data-left]")).to_have_text("about 12 s left")  # it counts down


def test_no_jobs_and_a_slow_answer(page: Page) -> None:
    expect(page.locator("#jobs")).to_contain_text("No jobs yet")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/admin/info/jobs", hold, times=1)
    page.locator("#press").click()
    expect(page.locator("#loading")).to_be_visible()
    expect(page.locator("#loading")).to_have_text("Loading job status...")
    held[0].continue_()
    expect(page.locator("#loading")).to_be_hidden()
    expect(page.locator(".status")).to_have_text("queued")


def test_an_outage_is_an_error_on_the_page_and_its_end_is_seen(
    page: Page, connection: Connection[Any], database_url: str
) -> None:
    steps.enqueue(connection)
    expect(page.locator("tr[data-job]")).to_have_count(1)
    name = conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(make_conninfo(database_url, dbname="template1"), autocommit=True) as elsewhere:
        elsewhere.execute(f"alter database {name} allow_connections false")
        elsewhere.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        page.evaluate("document.getElementById('again').click()")
        expect(page.locator("#problem")).to_contain_text(
            "Error loading jobs: the database is out of reach", timeout=20_000
        )
        expect(page.locator("tr[data-job]")).to_have_count(1)  # what was known stays
        elsewhere.execute(f"alter database {name} allow_connections true")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#problem")).to_be_hidden(timeout=20_000)
    with psycopg.connect(database_url, autocommit=True) as again:
        again.execute("update public.background_job_status set status = 'failed'")
    expect(page.locator(".status")).to_have_text("failed", timeout=10_000)  # the stream is back too


def test_without_the_stream_the_page_asks_every_half_minute_while_jobs_are_active(
    open_page: Open, local: Served, connection: Connection[Any], database_url: str
) -> None:
    job = steps.enqueue(connection)
    page = open_page("about:blank", session=local.session())
    page.add_init_script("delete window.SharedWorker")
    page.route("**/stream", lambda route: route.abort())
    page.clock.install()
    page.goto(f"{local.url}/admin/info")
    expect(page.locator("#live")).to_have_text("Reconnecting...")
    with Database(database_url) as database:
        steps.finish(connection, database)
    expect(row(page, job).locator(".status")).to_have_text("queued")
    page.clock.fast_forward(31_000)
    expect(row(page, job).locator(".status")).to_have_text("completed")


def test_everything_can_be_done_by_keyboard_and_focus_survives_an_update(
    page: Page, query: Query, connection: Connection[Any]
) -> None:
    page.locator("#press").focus()
    page.keyboard.press("Enter")
    expect(page.locator("tr[data-job]")).to_have_count(1)
    page.keyboard.press("Tab")
    job = newest(query)
    focused = page.locator(f"#toggle-{job}")
    expect(focused).to_be_focused()
    page.keyboard.press("Space")
    expect(focused).to_have_attribute("aria-expanded", "true")
    steps.start(connection)
    expect(row(page, job).locator(".status")).to_have_text("processing")
    expect(focused).to_be_focused()
    expect(page.locator(f"#details-{job}")).to_be_visible()


def test_without_javascript_the_page_works_by_its_forms(open_page: Open, local: Served, query: Query) -> None:
    page = open_page(f"{local.url}/admin/info", session=local.session(), java_script_enabled=False)
    page.get_by_role("button", name="Enqueue Stats Job").click()
    expect(page.locator("#press")).to_have_text("Job Queued...")
    job = newest(query)
    row(page, job).get_by_role("button").click()
    expect(page.locator(f"#details-{job}")).to_be_visible()
    query("update public.background_job_status set status = 'failed'")
    page.reload()
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("tr[data-job]")).to_have_count(2)


def test_the_admin_logs_in_and_out(open_page: Open, guarded: Served, database_url: str) -> None:
    page = open_page(f"{guarded.url}/admin/info")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("Wrong password.")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_text("Live")
    page.get_by_role("button", name="Enqueue Stats Job").click()
    expect(page.locator("tr[data-job]")).to_have_count(1)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading")).to_have_text("Log in")
    page.go_back()
    expect(page.get_by_role("heading")).to_have_text("Log in")


def test_a_club_can_be_chosen_where_there_are_several(
    open_page: Open, serve: Callable[..., Served], query: Query
) -> None:
    served = serve(STATS_TENANTS=f"{steps.TENANT},{steps.OTHER_TENANT}")
    page = opened(open_page, served)
    page.get_by_label("Club").select_option(str(steps.OTHER_TENANT))
    page.locator("#press").click()
    expect(page.locator("tr[data-job]")).to_have_count(1)
    assert query("select tenant_id from public.background_job_status") == [{"tenant_id": steps.OTHER_TENANT}]


def test_a_phone_shows_it_all_without_scrolling_sideways(
    open_page: Open, local: Served, connection: Connection[Any], database_url: str
) -> None:
    job = steps.enqueue(connection, triggeredBy="post-match", matchId=1234)
    with Database(database_url) as database:
        steps.fail(connection, database)
    page = opened(open_page, local, viewport=PHONE, has_touch=True)
    row(page, job).get_by_role("button", name="post-match").tap()
    for name in ("Retry", "Enqueue Stats Job"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate("document.getElementById('jobs').scrollWidth <= document.getElementById('jobs').clientWidth")
