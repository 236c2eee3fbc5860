"""Repairs applied after the state has changed since the decision: old decisions, locks, rows changed by hand.

The repair for each mismatch is in `test_reconcile.py`.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline.jobs import reconcile
from stats_pipeline.jobs.reconcile import ArchiveMessage, DagsterState, Limits, Repair, SendMessage
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]

LIMITS = Limits(dead_after=6, cache_deadline=900, cache_configured=False)
SETTINGS = Settings.model_validate({})
PATIENCE = 20  # seconds; less than the half minute that a session of ours waits for a lock


def decide(opened: Database, dagster: dict[str, DagsterState] | None = None) -> list[Repair]:
    return reconcile.decide(reconcile.read(opened), dagster or {}, LIMITS)


def apply(opened: Database, repairs: list[Repair]) -> None:
    assert reconcile.apply_all(opened, repairs, SETTINGS, lambda _: None) == []


def test_an_old_decision_about_a_message_archives_no_other_that_has_its_number_now(
    connection: Connected, opened: Database, query: Query
) -> None:
    """The queue was dropped and made anew meanwhile: its numbers start again."""
    steps.enqueue(connection)
    query("delete from public.background_job_status")
    old = decide(opened)
    assert [type(repair) for repair in old] == [ArchiveMessage]
    query("select pgmq.drop_queue('stats_update')")
    query("select pgmq.create('stats_update')")
    query("select pgmq.send('stats_update', %s::jsonb)", Jsonb(steps.payload()))
    apply(opened, old)
    assert [leased.jobs for leased in steps.lease(connection)] == [1]


def test_an_old_decision_about_a_message_archives_none_that_is_waited_for(
    connection: Connected, opened: Database, query: Query
) -> None:
    steps.enqueue(connection)
    query("update public.background_job_status set status = 'failed'")
    old = decide(opened)
    query("update public.background_job_status set status = 'queued'")
    apply(opened, old)
    assert [leased.jobs for leased in steps.lease(connection)] == [1]


def test_a_job_of_a_dead_run_is_an_orphan(connection: Connected, opened: Database, query: Query) -> None:
    """Whoever set it to processing again: the run it names will do nothing more."""
    job_id = steps.enqueue(connection)
    steps.start(connection)
    apply(opened, [steps.expiry(opened)])
    query("update public.background_job_status set status = 'processing', run_id = 'run-1'")
    apply(opened, decide(opened))
    query("update pgmq.q_stats_update set vt = now()")
    steps.finish(connection, opened, "run-2")
    assert steps.job(connection, job_id).status == "completed"


@pytest.mark.parametrize("status", ["queued", "processing"])
def test_jobs_of_another_kind_are_not_ours_to_repair(opened: Database, query: Query, status: str) -> None:
    query("insert into public.background_job_status (job_type, job_payload, status) "
        "values ('newsletter', '{}', %s)", status)  # fmt: skip
    assert decide(opened) == []


def test_a_row_that_somebody_holds_delays_no_other_repair(
    connection: Connected, opened: Database, first: Connected, query: Query
) -> None:
    held, other = steps.enqueue(connection, TENANT), steps.enqueue(connection, OTHER_TENANT)
    query("delete from pgmq.q_stats_update")

    repairing = threading.Thread(target=apply, args=(opened, [SendMessage(held), SendMessage(other)]))
    with first.transaction():
        first.execute("select from public.background_job_status where id = %s for update", (held,))
        repairing.start()
        repairing.join(PATIENCE)
        assert not repairing.is_alive()
        assert query("select message from pgmq.q_stats_update") == [{"message": {"jobId": str(other)}}]
    apply(opened, decide(opened))
    assert {leased.tenant_id for leased in steps.lease(connection)} == {TENANT, OTHER_TENANT}


def test_a_repair_that_fails_is_named_and_stops_no_other(connection: Connected, opened: Database) -> None:
    job_id = steps.enqueue(connection)
    connection.execute("delete from pgmq.q_stats_update")

    def refuse(_: str) -> None:
        raise RuntimeError("Dagster does not answer")

    repairs: list[Repair] = [reconcile.FailInDagster("run-1"), SendMessage(job_id)]
    problems = reconcile.apply_all(opened, repairs, SETTINGS, refuse)
    assert problems == ["FailInDagster run-1: Dagster does not answer"]
    assert [leased.jobs for leased in steps.lease(connection)] == [1]
