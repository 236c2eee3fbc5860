"""The emergency path: the order of functions, waiting jobs, lost leases, resumed runs.

The user's view of it is in `acceptance/test_run_direct.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.errors import InvalidJob
from stats_pipeline.jobs import run_direct
from stats_pipeline.jobs.reconcile import apply
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT, TWO, compute, enqueue, expiry, job, start

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
    assert run_direct.run_direct(opened, settings, print) == [job_id]
    assert job(connection, job_id).status == "completed"
    recorded = query("select rpc from stats_pipeline.function_result order by recorded_at")
    assert [row["rpc"] for row in recorded] == [FIRST.rpc, SECOND.rpc]


def test_a_function_does_not_run_after_one_that_failed(
    connection: Connection[Any], opened: Database, settings: Settings, query: Query
) -> None:
    query(f"drop function public.{FIRST.rpc}(uuid)")
    job_id = enqueue(connection)
    run_direct.run_direct(opened, settings, print)
    row = job(connection, job_id)
    assert row.status == "failed"
    assert row.results is not None
    assert row.results["functions"][SECOND.rpc]["error"] == f"Not run, because {FIRST.rpc} failed"


def test_a_club_that_does_not_exist_keeps_no_other_from_its_refresh(
    connection: Connection[Any], opened: Database, settings: Settings, query: Query
) -> None:
    query("create table public.tenants (id uuid primary key)")
    query("insert into public.tenants values (%s)", TENANT)
    both = settings.model_copy(update={"tenants": (OTHER_TENANT, TENANT)})
    with pytest.raises(InvalidJob, match=str(OTHER_TENANT)):
        run_direct.run_direct(opened, both, print)
    assert query("select tenant_id, status from public.background_job_status") == [
        {"tenant_id": TENANT, "status": "completed"}
    ]


def test_a_job_that_waits_for_its_next_attempt_is_done_at_once(
    connection: Connection[Any], opened: Database, settings: Settings, query: Query
) -> None:
    job_id = enqueue(connection)
    query("update pgmq.q_stats_update set vt = now() + interval '1 minute'")
    assert run_direct.run_direct(opened, settings, print) == [job_id]
    assert job(connection, job_id).status == "completed"


def test_a_lease_that_was_lost_on_the_way_is_taken_again(
    connection: Connection[Any], opened: Database, settings: Settings, query: Query
) -> None:
    """The club before took so long that somebody else could have been given the jobs."""
    jobs = [enqueue(connection, tenant) for tenant in (TENANT, OTHER_TENANT)]
    replace_first(
        query,
        """
        update stats_pipeline.lease set ended_at = now(), outcome = 'expired' where run_id is null and ended_at is null;
        update pgmq.q_stats_update set vt = now();
        """,
    )
    assert run_direct.run_direct(opened, settings, print) == jobs
    assert {job(connection, job_id).status for job_id in jobs} == {"completed"}


def test_what_a_dead_run_has_computed_is_not_computed_again(
    connection: Connection[Any], opened: Database, settings: Settings, query: Query
) -> None:
    job_id = enqueue(connection, TENANT)
    compute(opened, start(connection), FIRST)
    apply(connection, expiry(connection), settings, lambda _: None)
    query("create table public.called ()")
    replace_first(query, "insert into public.called default values;")
    assert run_direct.run_direct(opened, settings, print) == [job_id]
    assert (job(connection, job_id).status, job(connection, job_id).attempts) == ("completed", 2)
    assert query("select count(*) as times from public.called") == [{"times": 0}]


def replace_first(query: Query, body: str) -> None:
    query(f"drop function public.{FIRST.rpc}(uuid)")
    query(f"create function public.{FIRST.rpc}(uuid) returns void language plpgsql as $$ begin {body} end $$")
