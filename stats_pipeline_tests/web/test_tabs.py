"""Several tabs of one browser: they share one event stream, and hidden ones hold none.

Playwright makes every page report that it is visible. So Chromium is started here as users have it, where one tab hides
the others, and connected to without Playwright's overrides.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Error, Page, Playwright, expect
from psycopg import Connection

from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import Served

pytestmark = pytest.mark.slow

TABS = 7  # a browser allows a host six connections at a time


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def tabs(chromium: str, playwright: Playwright, tmp_path: Path) -> Iterator[BrowserContext]:
    """A browser in which one tab at a time is visible."""
    options = (
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path}",
    )
    process = subprocess.Popen([chromium, *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = next(found[1] for line in process.stderr if (found := re.search(r"listening on (ws://\S+)", line)))
        connected = playwright.chromium.connect_over_cdp(address, no_defaults=True)
        yield connected.contexts[0]
        connected.close()
    finally:
        process.terminate()
        process.communicate()


def open_tab(context: BrowserContext, served: Served) -> Page:
    name, _, value = served.session()["Cookie"].partition("=")
    context.add_cookies([{"name": name, "value": value, "url": served.url}])
    tab = context.new_page()
    tab.goto(f"{served.url}/admin/info")
    expect(tab.locator("#live")).to_have_text("Live")
    return tab


def wait_for_streams(served: Served, number: int) -> None:
    until(lambda: served.streams == number, f"{number} open streams")


def test_seven_visible_tabs_share_one_stream_and_the_button_of_the_first_works(
    open_page: Callable[..., Page], served: Served
) -> None:
    first = open_page(f"{served.url}/admin/info", session=served.session())
    tabs = [first, *(open_tab(first.context, served) for _ in range(TABS - 1))]
    assert served.streams == 1
    first.locator("#press").click()
    for tab in tabs:
        expect(tab.locator("tr[data-job] .status")).to_have_text("queued")
    assert served.streams == 1


def test_of_seven_tabs_only_the_visible_one_is_served_and_when_all_are_hidden_none_is(
    tabs: BrowserContext, served: Served, connection: Connection[Any]
) -> None:
    opened = [open_tab(tabs, served) for _ in range(TABS)]
    assert served.streams == 1
    steps.enqueue(connection)
    expect(opened[-1].locator("tr[data-job]")).to_have_count(1)
    assert opened[0].locator("tr[data-job]").count() == 0

    elsewhere = tabs.new_page()
    elsewhere.bring_to_front()
    wait_for_streams(served, 0)
    steps.start(connection)
    opened[0].bring_to_front()
    expect(opened[0].locator(".status")).to_have_text("processing")  # what happened while it was hidden
    wait_for_streams(served, 1)


@pytest.mark.parametrize("leave", [Page.close, lambda tab: tab.goto("about:blank")], ids=["close", "navigate"])
def test_when_one_visible_tab_goes_the_other_stays_live(
    open_page: Callable[..., Page],
    served: Served,
    connection: Connection[Any],
    leave: Callable[[Page], object],
) -> None:
    other = open_page(f"{served.url}/admin/info", session=served.session())
    first = open_tab(other.context, served)
    leave(first)
    steps.enqueue(connection)
    expect(other.locator("tr[data-job]")).to_have_count(1)
    assert served.streams == 1
    leave(other)
    wait_for_streams(served, 0)


def test_when_the_tab_whose_process_has_the_worker_crashes_another_starts_it_again(
    tabs: BrowserContext, served: Served, connection: Connection[Any]
) -> None:
    crashed, other = (open_tab(tabs, served) for _ in range(2))
    crashed.bring_to_front()
    wait_for_streams(served, 1)
    with crashed.expect_event("crash"), suppress(Error):
        crashed.goto("chrome://crash")
    wait_for_streams(served, 0)
    other.bring_to_front()
    wait_for_streams(served, 1)
    steps.enqueue(connection)
    expect(other.locator("tr[data-job]")).to_have_count(1)


def test_without_a_shared_worker_a_visible_tab_has_a_stream_of_its_own(
    tabs: BrowserContext, served: Served, connection: Connection[Any]
) -> None:
    tabs.add_init_script("delete window.SharedWorker")
    first = open_tab(tabs, served)
    second = open_tab(tabs, served)
    wait_for_streams(served, 1)
    steps.enqueue(connection)
    expect(second.locator("tr[data-job]")).to_have_count(1)
    assert first.locator("tr[data-job]").count() == 0
    first.bring_to_front()
    expect(first.locator("tr[data-job]")).to_have_count(1)
    wait_for_streams(served, 1)
