"""Takes the screenshots of the README, in `docs/pictures/`: the admin's page and a run in Dagster's UI, after two jobs
of a sample league. `make pictures` runs this.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.ports import free_port

FOLDER = PROJECT_ROOT / "docs" / "pictures"
COMMAND = [sys.executable, "-P", "-m", "stats_pipeline"]
PASSWORD = "a password for the pictures"
SECOND = 1000  # milliseconds


@contextmanager
def demo(home: Path) -> Iterator[tuple[dict[str, str], str]]:
    """The demo, up: its environment and its address."""
    environment = os.environ | {
        "STATS_HOME": str(home),
        "STATS_PORT": str(free_port()),
        "ADMIN_PASSWORD": PASSWORD,
    }
    running = subprocess.Popen(
        [*COMMAND, "demo"],
        env=environment,
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    said: list[str] = []
    try:
        for line in running.stderr:
            said.append(line)
            print(line, end="", file=sys.stderr)
            if "Ctrl-C" in "".join(said):
                break
        yield environment, f"http://127.0.0.1:{environment['STATS_PORT']}"
    finally:
        running.terminate()
        running.communicate(timeout=90)


def take_page(page: Page, address: str) -> None:
    """The jobs, with the newest one's functions."""
    page.set_viewport_size({"width": 1100, "height": 900})
    page.goto(f"{address}/admin/info")
    page.get_by_role("button", name="details").first.click()
    expect(page.get_by_text("update_power_ratings").first).to_be_visible(timeout=30 * SECOND)
    (FOLDER / "page.png").write_bytes(when_still(page))


def when_still(page: Page) -> bytes:
    """The picture of a page in which nothing moves any more."""
    before, picture = b"", page.screenshot()
    while picture != before:
        before, picture = picture, page.screenshot()
    return picture


def take_run(page: Page, address: str, run_id: str) -> None:
    """The run of a job, with its ops on a timeline."""
    page.set_viewport_size({"width": 1300, "height": 680})
    page.goto(f"{address}/dagster/runs/{run_id}")
    expect(page.get_by_text("Succeeded (10)")).to_be_visible(timeout=60 * SECOND)
    expect(page.get_by_text("Loading run logs…")).to_be_hidden(timeout=60 * SECOND)
    # The button that gives the timeline the whole page has no name.
    page.get_by_role("button", name="Re-execute all").locator("xpath=preceding::button[1]").click()
    (FOLDER / "run.png").write_bytes(when_still(page))


def main() -> None:
    """Write both pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium here: install it (Debian: apt-get install chromium)")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, demo(Path(home)) as (environment, address):

        def run(*arguments: str) -> Any:
            command = [*COMMAND, *arguments, "--json"]
            finished = subprocess.run(
                command, env=environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            return json.loads(finished.stdout)

        run("enqueue", "--wait")
        (newest, *_) = run("jobs")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"{address}/login")
            page.get_by_label("Password").fill(PASSWORD)
            page.keyboard.press("Enter")
            take_page(page, address)
            take_run(page, address, newest["run_id"])
            browser.close()


if __name__ == "__main__":
    main()
