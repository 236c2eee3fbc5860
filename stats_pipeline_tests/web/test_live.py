"""The complete path in a real browser: `stats-pipeline up`, its Dagster, and the admin, who never sees Dagster.

A function is paused or removed in the database (`acceptance/processes.py`), so that each state can be checked.
"""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline_tests.acceptance.processes import PASSWORD, Pipeline, running

pytestmark = pytest.mark.slow

PATIENCE = 60_000  # milliseconds; a job takes a few seconds
RPC = "update_power_ratings"
TAGS = {tag for function in STATS_FUNCTIONS for tag in function.cache_tags}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with running(tmp_path_factory.mktemp("up")) as started:
        yield started
    assert "Traceback" not in started.log.read_text()


@pytest.fixture
def page(pipeline: Pipeline, open_page: Callable[..., Page]) -> Page:
    page = open_page(f"{pipeline.door}/admin/info")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_have_text("Live")
    page.evaluate("window.isSamePage = true")
    return page


def test_press_and_watch_it_complete(pipeline: Pipeline, page: Page) -> None:
    button = page.locator("#press")
    row = page.locator("tr[data-job]").first
    with pipeline.gate(RPC):
        with pipeline.gate("claim"):
            button.click()
            expect(row.locator(".status")).to_have_text("queued")
            expect(button).to_have_text("Job Queued...")
        expect(row.locator(".status")).to_have_text("processing", timeout=PATIENCE)
        expect(button).to_have_text("Processing...")
        row.get_by_role("button").click()
        details = page.locator("tr.details").first
        expect(details.locator(".mark.success")).to_have_count(len(STATS_FUNCTIONS) - 1, timeout=PATIENCE)
        expect(details.get_by_role("row", name=RPC)).to_contain_text("running")
        expect(details.locator(".tag.delivered")).to_have_count(len(TAGS) - 1, timeout=PATIENCE)
    expect(row.locator(".status")).to_have_text("completed", timeout=PATIENCE)
    expect(button).to_have_text("Completed")
    expect(details.locator(".mark.success")).to_have_count(len(STATS_FUNCTIONS))
    expect(details.locator(".tag.delivered")).to_have_count(len(TAGS))
    expect(details.get_by_role("link")).to_have_attribute("href", re.compile(r"^/dagster/runs/[0-9a-f-]{36}$"))
    assert page.evaluate("window.isSamePage")
    assert page.request.get(page.url.replace("/admin/info", "/health")).json()["status"] == "ok"


def test_a_function_fails_and_retry_completes(pipeline: Pipeline, page: Page) -> None:
    pipeline.query(f"alter function original.{RPC}(uuid) rename to mislaid")
    page.locator("#press").click()
    failed = page.locator("tr[data-job]").first
    expect(failed.locator(".status")).to_have_text("failed", timeout=PATIENCE)
    expect(page.locator("#press")).to_have_text("Failed")
    failed.get_by_role("button", name="admin").click()
    expect(page.locator("tr.details").first).to_contain_text(f"function original.{RPC}(uuid) does not exist")
    expect(page.locator("tr.details").first.locator(".mark.success")).to_have_count(9)

    pipeline.query(f"alter function original.mislaid(uuid) rename to {RPC}")
    failed.get_by_role("button", name="Retry").click()
    expect(page.locator("#toasts")).to_contain_text("Job retry queued successfully")
    expect(page.locator("tr[data-job] .status").first).to_have_text("completed", timeout=PATIENCE)
    expect(page.locator("tr[data-job] .status").nth(1)).to_have_text("failed")
    assert page.evaluate("window.isSamePage")
