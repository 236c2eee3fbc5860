"""Every page, in every state, through axe: names, roles, contrast, structure; in light and dark, wide and narrow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.jobs import audit
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import Served

pytestmark = pytest.mark.slow

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

Open = Callable[..., Page]
SIZES = {"wide": {"width": 1200, "height": 900}, "phone": {"width": 375, "height": 800}}


def problems(page: Page) -> list[str]:
    """What axe finds, one line per element, once the style sheet is there."""
    page.wait_for_load_state("load")
    found = axe.Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    return [
        f"{violation['id']}: {node['html'][:120]}: {node['failureSummary']}"
        for violation in found.response["violations"]
        for node in violation["nodes"]
    ]


@pytest.fixture
def jobs_in_every_state(connection: Connection[Any], database_url: str) -> None:
    with Database(database_url) as database:
        for run_id, end in (("run-1", steps.finish), ("run-2", steps.fail)):
            steps.enqueue(connection, triggeredBy="post-match", matchId=12)
            end(connection, database, run_id)
        steps.enqueue(connection, steps.TENANT)
        steps.compute(database, steps.start(connection, "run-3"), steps.TWO[0])
        steps.settle(connection, "run-3", app=True)
    steps.enqueue(connection)
    audit.record(connection, action="launch", who="server", role="server", address="2001:db8::1", about="job 1")
    audit.record(connection, action="login", who="unknown", role="unknown", address="192.0.2.1", outcome="refused")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("jobs_in_every_state")
def test_the_page_with_everything_open(open_page: Open, local: Served, scheme: str, size: str, tmp_path: Path) -> None:
    page = open_page(f"{local.url}/admin/info", session=local.session(), viewport=SIZES[size], color_scheme=scheme)
    expect(page.locator("#live")).to_have_text("Live")
    for toggle in page.locator(".toggle").all():
        toggle.click()
    page.locator(".activity summary").click()
    expect(page.locator(".activity tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Retry").first.click()
    expect(page.locator(".toast")).to_be_visible()
    page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)
    assert problems(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/admin/info", "/docs", "/nowhere"])
def test_the_other_pages(open_page: Open, local: Served, database_url: str, path: str, scheme: str) -> None:
    assert problems(open_page(local.url + path, session=local.session(), color_scheme=scheme)) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_login_after_a_wrong_password(open_page: Open, guarded: Served, scheme: str) -> None:
    page = open_page(f"{guarded.url}/login", color_scheme=scheme)
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    assert problems(page) == []
