"""Adding a stats function as `docs/stats-functions.md` says: two places, no test fails, and the demo runs it.

The entry and the SQL file are those of the page, put into a copy of the project.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.ports import free_port

PAGE = (PROJECT_ROOT / "docs" / "stats-functions.md").read_text()
RPC = "update_aggregated_clean_sheets"
EVERY_FUNCTION = "stats_pipeline_tests/sql/test_every_function.py"
# What looks at the catalog as a whole, or at the files of all functions.
TESTS = (
    *("stats_pipeline_tests/unit/test_catalog.py", "stats_pipeline_tests/unit/test_definitions.py"),
    *("stats_pipeline_tests/unit/test_settings.py", "stats_pipeline_tests/sql/test_catalog.py", EVERY_FUNCTION),
)


def block(language: str) -> str:
    """The only block of the page in a language."""
    [found] = re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project with the function of the page."""
    for name in ("stats_pipeline", "stats_pipeline_tests", "sql"):
        shutil.copytree(PROJECT_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dagster.yaml", "pyproject.toml", ".env.example"):
        shutil.copy(PROJECT_ROOT / name, tmp_path)
    with (tmp_path / "stats_pipeline" / "catalog.toml").open("a") as catalog:
        catalog.write("\n" + block("toml"))
    (tmp_path / "sql" / "stats" / f"{RPC}.sql").write_text(block("sql"))
    return tmp_path


def run(copy: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def pytest_in(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = copy / "t"
    return run(copy, "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}", *arguments)


def test_no_test_turns_red(copy: Path) -> None:
    finished = pytest_in(copy, *TESTS)
    assert finished.returncode == 0, finished.stdout
    assert f"test_the_app_may_call_it_and_nobody_else[{RPC}]" in pytest_in(copy, "--co", EVERY_FUNCTION).stdout


FORGOTTEN = {
    f"revoke all on function public.{RPC}(uuid) from public, anon, authenticated;": (
        "test_the_app_may_call_it_and_nobody_else"
    ),
    "set search_path = pg_catalog, pg_temp": "test_its_search_path_is_pinned",
    f"perform stats_pipeline.lock_refresh('{RPC}', target_tenant_id);": (
        "test_calls_for_one_tenant_take_turns_on_its_own_lock"
    ),
    "alter table public.aggregated_clean_sheets enable row level security;": (
        "test_its_tables_are_the_apps_and_nobody_elses"
    ),
    "Not checked independently:": "test_what_it_stores_is_computed_independently_or_its_file_says_why_not",
}


def test_what_was_forgotten_is_said(copy: Path) -> None:
    file = copy / "sql" / "stats" / f"{RPC}.sql"
    for forgotten in FORGOTTEN:
        assert forgotten in file.read_text()
        file.write_text(file.read_text().replace(forgotten, ""))
    finished = pytest_in(copy, EVERY_FUNCTION)
    failed = re.findall(r"^FAILED \S+::(\w+\[\w+\])", finished.stdout, re.MULTILINE)
    assert sorted(failed) == sorted(f"{test}[{RPC}]" for test in FORGOTTEN.values()), finished.stdout


def test_the_demo_runs_it(copy: Path) -> None:
    port = {"STATS_PORT": str(free_port())}
    finished = run(copy, "stats_pipeline", "demo", "--exit", "--json", STATS_HOME=str(copy / "h"), **port)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert len(result["functions"]) == len(STATS_FUNCTIONS) + 1
    assert result["functions"][RPC]["status"] == "success"
    assert "clean_sheets" in result["delivered_tags"]
