"""How foreign values and things set aside are shown: on the page, by the API, `/health` and `jobs`."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from psycopg import Connection

from stats_pipeline.cli import console
from stats_pipeline.database import Database
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import API_KEY, Served

Query = Callable[..., list[dict[str, Any]]]
Open = Callable[..., Page]

ODD = "created_at = null, results = '[1]', attempts = -1, started_at = now(), completed_at = now() - interval '90 s'"


@pytest.fixture
def refused(connection: Connection[Any], database_url: str, query: Query) -> str:
    """The id of a job whose row refuses to be completed, until the test is over."""
    job_id = steps.enqueue(connection, userId="mallory")
    query(
        "create function public.refuse() returns trigger language plpgsql as "
        "$$ begin raise exception 'not in <b>my</b> app'; end $$"
    )
    query(
        "create trigger refuse before update on public.background_job_status for each row "
        "when (new.status = 'completed') execute function public.refuse()"
    )
    with Database(database_url) as opened:
        steps.finish(connection, opened)
    query("drop function public.refuse cascade")
    return str(job_id)


def test_an_odd_row_keeps_none_of_the_others_from_being_shown(
    local: Served, open_page: Open, connection: Connection[Any], query: Query, database_url: str
) -> None:
    others = [str(steps.enqueue(connection)) for _ in range(2)]
    odd = str(steps.enqueue(connection))
    query(f"update public.background_job_status set {ODD} where id = %s", odd)

    listed = {
        job["id"]: job for job in httpx.get(f"{local.url}/api/admin/background-jobs", headers=local.session()).json()
    }
    assert listed.keys() == {odd, *others}
    assert listed[odd]["created_at"] is None
    assert listed[odd]["oddities"] == [
        "created_at is no usable time",
        "it ended before it started",
        "results is no object",
        "attempts is negative",
    ]
    assert httpx.get(f"{local.url}/api/admin/background-jobs/{odd}", headers=local.session()).json()["attempts"] == -1

    page = open_page(f"{local.url}/admin/info?open={odd}", session=local.session())
    expect(page.locator("tr[data-job]")).to_have_count(3)
    expect(page.locator(f"tr[data-job='{odd}'] .odd")).to_have_text("odd")
    expect(page.locator(f"tr[data-job='{odd}']")).to_contain_text("0.0s")
    expect(page.locator(f"#details-{odd}")).to_contain_text("Odd: created_at is no usable time; it ended before")

    with console.out.capture() as shown:
        console.out.print(console.jobs_table(queue.list_jobs(connection, limit=10)))
    assert "odd: " in shown.get()


def test_what_was_set_aside_is_shown_until_it_is_done(
    local: Served, open_page: Open, connection: Connection[Any], database_url: str, refused: str, query: Query
) -> None:
    health = httpx.get(f"{local.url}/health").json()
    assert (health["status"], health["set_aside"]) == ("degraded", 1)
    page = open_page(f"{local.url}/admin/info", session=local.session())
    expect(page.locator(".set-aside li")).to_contain_text(f"job {refused}: not in <b>my</b> app")
    with console.out.capture() as shown:
        console.out.print(console.set_aside_table(queue.list_set_aside(connection)))
    assert f"job {refused}" in shown.get()
    assert "stats_pipeline_set_aside 1.0" in httpx.get(f"{local.url}/metrics", headers=local.session()).text

    query("update stats_pipeline.set_aside set next_try_at = now()")
    with Database(database_url) as opened:
        steps.reconcile(opened)
    assert httpx.get(f"{local.url}/health").json()["set_aside"] == 0
    page.reload()
    expect(page.locator(f"tr[data-job='{refused}'] .status")).to_have_text("completed")
    expect(page.locator(".set-aside")).to_have_count(0)


def test_the_failures_of_an_address_that_the_app_had_before_are_over(
    serve: Callable[..., Served], query: Query
) -> None:
    served = serve(NEXT_PUBLIC_APP_URL="https://new.example.com", INTERNAL_API_KEY=API_KEY)
    query(
        "insert into stats_pipeline.endpoint (url, failures, next_try_at, last_error) "
        "values ('https://old.example.com/api/internal/cache/invalidate', 3, now(), 'gone')"
    )
    assert httpx.get(f"{served.url}/health").json()["app"] == {
        "status": "ok",
        "failing_since": None,
        "undelivered_tags": 0,
    }
