"""Takes the pictures of the README, in `docs/pictures/`: the admin's page and a run in Dagster's UI, after two jobs of
a sample league. `make pictures` runs this.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.ports import free_port

FOLDER = PROJECT_ROOT / "docs" / "pictures"
COMMAND = [sys.executable, "-P", "-m", "stats_pipeline"]
SECOND = 1000  # milliseconds


@contextmanager
def demo(home: Path) -> Iterator[tuple[dict[str, str], str, str]]:
    """The demo, up: its environment, and the addresses of page and UI."""
    environment = os.environ | {
        "STATS_HOME": str(home),
        "STATS_WEB_PORT": str(free_port()),
        "STATS_UI_PORT": str(free_port()),
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
            addresses = re.findall(r"http://[\w.:]+", "".join(said))
            if "Ctrl-C" in line and len(addresses) >= 2:
                break
        page, ui = (f"http://127.0.0.1:{environment[port]}" for port in ("STATS_WEB_PORT", "STATS_UI_PORT"))
        yield environment, page, ui
    finally:
        running.terminate()
        running.communicate(timeout=90)


def take_page(page: Page, address: str) -> None:
    """The jobs, with the newest one's functions."""
    page.set_viewport_size({"width": 1100, "height": 900})
    page.goto(f"{address}/admin/info")
    page.locator("tbody tr").first.click()
    expect(page.get_by_text("update_power_ratings").first).to_be_visible(timeout=30 * SECOND)
    page.screenshot(path=FOLDER / "page.png")


def take_run(page: Page, address: str, run_id: str) -> None:
    """The run of a job, with its ops on a timeline."""
    page.set_viewport_size({"width": 1300, "height": 800})
    page.goto(f"{address}/runs/{run_id}")
    expect(page.get_by_text("update_power_ratings").first).to_be_visible(timeout=60 * SECOND)
    expect(page.get_by_text("RUN_SUCCESS").first).to_be_visible(timeout=60 * SECOND)
    page.screenshot(path=FOLDER / "run.png")


def main() -> None:
    """Write both pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium here: install it (Debian: apt-get install chromium)")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, demo(Path(home)) as (environment, web, ui):
        enqueued = [*COMMAND, "enqueue", "--wait", "--json"]
        finished = subprocess.run(
            enqueued, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
        )
        job = json.loads(finished.stdout)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            take_page(browser.new_page(), web)
            take_run(browser.new_page(), ui, job["run_id"])
            browser.close()


if __name__ == "__main__":
    main()
