"""From version 0.1.0 to this one: its database, with rows in every table, is migrated, and its jobs continue.

`version_0_1_0.sql` holds the objects that its `migrate` created, and the rows that its processes wrote.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline import database
from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import Database, migrate
from stats_pipeline.errors import MigrationError
from stats_pipeline_tests.integration import steps

SQL = Path(__file__).with_name("version_0_1_0.sql").read_text()
TABLES = ("lease", "attempt", "function_result", "outbox", "job_request", "endpoint")


@pytest.fixture
def old_url(create_database: Callable[..., str]) -> str:
    return create_database()


@pytest.fixture
def old(old_url: str) -> Iterator[Connection[Any]]:
    with database.connect(old_url, autocommit=True) as connection:
        connection.execute(SQL.encode())
        yield connection


def test_every_row_is_kept_and_every_job_goes_on(old: Connection[Any], old_url: str) -> None:
    def rows(table: str) -> int:
        return len(old.execute(f"select from stats_pipeline.{table}".encode()).fetchall())

    before = {table: rows("run" if table == "lease" else table) for table in TABLES}
    assert all(before.values()), before
    migrate.migrate(old, reference_stats=True)
    assert {table: rows(table) for table in TABLES} == before
    assert list(migrate.differences(old)) == []
    old.execute("update stats_pipeline.set_aside set next_try_at = now()")
    ends = {row["run_id"]: row["outcome"] for row in old.execute("select * from stats_pipeline.lease").fetchall()}
    assert ends == {"run 1": "succeeded", "run 2": "failed", "run 3": None, "run 4": "expired", None: None}

    with Database(old_url) as opened:
        assert steps.expire(opened, "run 3")
        old.execute("update pgmq.q_stats_update set vt = now()")
        old.execute("update stats_pipeline.lease set claim_until = now() where run_id is null")
        carried_over = {}
        for number in range(3):
            old.execute("update pgmq.q_stats_update set vt = now()")
            for leased in steps.lease(old, max_runs=10):
                claimed = steps.claim(old, leased, f"new {number} {leased.tenant_id}")
                assert claimed is not None
                carried_over[str(leased.tenant_id)[-1]] = claimed.carried_over
                todo = [function for function in steps.TWO if function.rpc not in claimed.carried_over]
                steps.compute(opened, claimed, *todo)
                steps.settle(old, claimed.lease_id)
    # What a run that dies after the migration had computed is not computed again.
    assert carried_over["3"] == {STATS_FUNCTIONS[1].rpc}
    jobs = {
        row["job_payload"]["requestId"]: row["status"]
        for row in old.execute("select * from public.background_job_status").fetchall()
    }
    assert jobs == {
        **{f"of {club}": "completed" for club in (1, 3, 4, 5)},
        "of 2": "failed",
        "nightly": "completed",
        "raw": "completed",
    }


@pytest.mark.parametrize("name", ["stats-pipeline", "stats-pipeline-web", "stats-pipeline run 0a1b2c3d pid 7"])
def test_a_process_of_the_old_version_keeps_the_database_as_it_is(
    old: Connection[Any], old_url: str, name: str
) -> None:
    with psycopg.connect(old_url, application_name=name) as at_work:
        with pytest.raises(MigrationError) as refused:
            migrate.migrate(old)
        assert f"version 0.1.0 is still at work here, process {at_work.info.backend_pid} ({name})" in str(refused.value)
    assert old.execute("select to_regclass('stats_pipeline.run') as there").fetchall() != [{"there": None}]


def test_a_run_that_beats_keeps_it_too(old: Connection[Any]) -> None:
    """Behind a pooler, sessions may have other names."""
    old.execute("update stats_pipeline.run set seen_at = clock_timestamp() where run_id = 'run 3'")
    with pytest.raises(MigrationError, match=r"version 0\.1\.0 is still at work here, run run 3 beats: stop it"):
        migrate.migrate(old)
