"""The order of functions on the emergency path. What its user meets is in `acceptance/test_run_direct.py`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline import direct
from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration.steps import TWO, enqueue, job

Query = Callable[..., list[dict[str, Any]]]

FIRST, SECOND = TWO[0], replace(TWO[1], after=(TWO[0].rpc,))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two functions, the second of which reads what the first has written; they are listed the other way round."""
    functions: tuple[StatsFunction, ...] = (SECOND, FIRST)
    monkeypatch.setattr(Settings, "functions", functions)
    return Settings.model_validate({})


def test_a_function_runs_after_those_it_reads_from(
    connection: Connection[Any], opened: Database, settings: Settings, query: Query
) -> None:
    job_id = enqueue(connection)
    assert direct.run_direct(opened, settings, print) == [job_id]
    assert job(connection, job_id).status == "completed"
    recorded = query("select rpc from stats_pipeline.function_result order by recorded_at")
    assert [row["rpc"] for row in recorded] == [FIRST.rpc, SECOND.rpc]


def test_a_function_does_not_run_after_one_that_failed(
    connection: Connection[Any], opened: Database, settings: Settings, query: Query
) -> None:
    query(f"drop function public.{FIRST.rpc}(uuid)")
    job_id = enqueue(connection)
    direct.run_direct(opened, settings, print)
    row = job(connection, job_id)
    assert row.status == "failed"
    assert row.results is not None
    assert row.results["functions"][SECOND.rpc]["error"] == f"Not run, because {FIRST.rpc} failed"
