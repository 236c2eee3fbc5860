"""Dagster's newer command line, `dg`, finds the project by `[tool.dg]` in pyproject.toml.

It requires one exact release of every Dagster package and includes a client of Dagster's cloud, so it is not a
dependency: `make test-dagster` installs it into a separate environment.
"""

from pathlib import Path

import pytest

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.acceptance.test_stock_dagster import BIN, Clone, answer
from stats_pipeline_tests.ports import free_port

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (BIN / "dg").exists(), reason="dg is not installed here: `make test-dagster` runs this"),
]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_dg_checks_and_lists_the_definitions(clone: Clone) -> None:
    checked = clone.run("dg", "check", "defs")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    listed = clone.run("dg", "list", "defs", "--json")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    expected = {"stats_update", "prune", "nightly_stats", "stats_upkeep"}
    expected |= {table for function in STATS_FUNCTIONS for table in function.tables}
    assert [name for name in expected if f'"{name}"' not in listed.stdout] == []
    assert not clone.state.exists()


def test_dg_dev_serves_the_ui_and_starts_the_embedded_server(clone: Clone) -> None:
    port = str(free_port())
    with clone.running("dg", "dev", "--port", port):
        assert answer(f"http://127.0.0.1:{port}/server_info")["dagster_version"]
        until(lambda: not clone.is_idle, "the embedded server, started by the first sensor", patience=120)
    until(lambda: clone.is_idle, "the end of the embedded server")
