"""Each mismatch between queue, rows and runs alone: the decision, and that applying it repairs the mismatch, once.

The database is real; the states in Dagster are given. Random histories are in `model/`.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline.jobs import reconcile
from stats_pipeline.jobs.models import Lease, Payload
from stats_pipeline.jobs.reconcile import (
    ArchiveMessage,
    DagsterState,
    ExpireLease,
    FailInDagster,
    Limits,
    Repair,
    RequeueJob,
    RevokeLease,
    SendMessage,
    SettleLease,
)
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import TWO, claim, compute, enqueue, finish, job, lease, settle, start

Connected = Connection[Any]
Query = Callable[..., list[dict[str, Any]]]

LIMITS = Limits(dead_after=6, cache_deadline=900, cache_configured=False)
SETTINGS = Settings.model_validate({})


class Reconciler:
    """The product's own, with what Dagster says given, and what it is told remembered."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dagster: dict[str, DagsterState] = {}
        self.told: list[str] = []

    def decide(self) -> list[Repair]:
        return reconcile.decide(reconcile.read(self.database), self.dagster, LIMITS)

    def apply(self, repairs: list[Repair]) -> None:
        for repair in repairs:
            with self.database.transaction() as connection:
                reconcile.apply(connection, repair, SETTINGS, self.fail_in_dagster)

    def fail_in_dagster(self, run_id: str) -> None:
        self.told.append(run_id)
        self.dagster[run_id] = "finished"

    def repair(self) -> list[Repair]:
        """Repair, and check that this was all."""
        repairs = self.decide()
        self.apply(repairs)
        assert self.decide() == []
        return repairs


@pytest.fixture
def reconciler(opened: Database) -> Reconciler:
    return Reconciler(opened)


@pytest.fixture
def silence(query: Query) -> Callable[[str], None]:
    """A run has not been heard of for seven seconds."""
    statement = "update stats_pipeline.lease set renewed_at = now() - interval '7 seconds' where run_id = %s"

    def be_silent(run_id: str) -> None:
        query(statement, run_id)
        # A server that has just started would count from its start: this one has been up for longer.
        query("select pg_sleep(greatest(0, 7 - extract(epoch from clock_timestamp() - pg_postmaster_start_time())))")

    return be_silent


def messages(query: Query) -> list[int]:
    return [row["msg_id"] for row in query("select msg_id from pgmq.q_stats_update order by 1")]


# Sound states.


def test_nothing_to_do_is_nothing_to_repair(reconciler: Reconciler) -> None:
    assert reconciler.decide() == []


def test_a_job_at_each_step_of_an_undisturbed_life_needs_no_repair(
    connection: Connected, opened: Database, reconciler: Reconciler
) -> None:
    enqueue(connection)
    assert reconciler.decide() == []
    [leased] = lease(connection)
    assert reconciler.decide() == []
    reconciler.dagster[str(leased.lease_id)] = "live"
    assert reconciler.decide() == []
    claimed = claim(connection, leased)
    assert claimed is not None
    reconciler.dagster["run-1"] = "live"
    assert reconciler.decide() == []
    compute(opened, claimed, TWO[0])
    assert reconciler.decide() == []
    compute(opened, claimed, TWO[1])
    settle(connection)
    assert reconciler.decide() == []


# The mismatches.


def test_a_queued_row_without_a_message_gets_one(
    connection: Connected, opened: Database, reconciler: Reconciler, query: Query
) -> None:
    job_id = enqueue(connection)
    query("delete from pgmq.q_stats_update")
    assert reconciler.repair() == [SendMessage(job_id)]
    finish(connection, opened)
    assert job(connection, job_id).status == "completed"


def test_a_message_without_its_row_is_archived(connection: Connected, reconciler: Reconciler, query: Query) -> None:
    job_id = enqueue(connection)
    [msg_id] = messages(query)
    query("delete from public.background_job_status where id = %s", job_id)
    assert reconciler.repair() == [ArchiveMessage(msg_id)]
    assert messages(query) == []


def test_a_raw_message_that_nobody_has_read_is_left_to_the_sensor(reconciler: Reconciler, query: Query) -> None:
    query("""select pgmq.send('stats_update'::text, '{"triggeredBy": "admin", "requestId": "r"}'::jsonb)""")
    assert reconciler.decide() == []


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_message_of_a_job_that_is_over_is_archived(
    connection: Connected, reconciler: Reconciler, query: Query, status: str
) -> None:
    job_id = enqueue(connection)
    query("update public.background_job_status set status = %s where id = %s", status, job_id)
    assert [type(repair) for repair in reconciler.repair()] == [ArchiveMessage]
    assert messages(query) == []
    assert job(connection, job_id).status == status


def test_a_processing_row_without_a_run_is_queued_again(
    connection: Connected, opened: Database, reconciler: Reconciler, query: Query
) -> None:
    job_id = enqueue(connection)
    query(
        "update public.background_job_status set status = 'processing', run_id = 'gone', attempts = 1 where id = %s",
        job_id,
    )
    assert reconciler.repair() == [RequeueJob(job_id)]
    assert job(connection, job_id).status == "queued"
    finish(connection, opened)
    assert job(connection, job_id).status == "completed"


def test_a_run_that_dagster_believes_in_but_is_silent_is_dead(
    connection: Connected, reconciler: Reconciler, silence: Callable[[str], None]
) -> None:
    job_id = enqueue(connection)
    start(connection)
    reconciler.dagster["run-1"] = "live"
    silence("run-1")
    assert [type(repair) for repair in reconciler.repair()] == [ExpireLease, FailInDagster]
    assert reconciler.told == ["run-1"]
    assert job(connection, job_id).status == "queued"


@pytest.mark.parametrize("state", ["finished", "canceled"])
def test_a_finished_run_with_an_open_job(connection: Connected, reconciler: Reconciler, state: DagsterState) -> None:
    job_id = enqueue(connection)
    start(connection)
    reconciler.dagster["run-1"] = state
    assert [type(repair) for repair in reconciler.repair()] == [ExpireLease if state == "finished" else RevokeLease]
    row = job(connection, job_id)
    if state == "finished":
        assert (row.status, row.error_message) == ("queued", None)
    else:
        assert (row.status, row.error_message) == ("failed", "The run was cancelled")


def test_a_run_that_has_recorded_everything_is_settled_and_not_repeated(
    connection: Connected, opened: Database, reconciler: Reconciler
) -> None:
    job_id = enqueue(connection)
    compute(opened, start(connection))
    reconciler.dagster["run-1"] = "finished"  # and its hooks raised
    assert reconciler.repair() == [SettleLease(steps.lease_of(connection))]
    row = job(connection, job_id)
    assert (row.status, row.attempts) == ("completed", 1)


@pytest.mark.parametrize("state", ["finished", "canceled", "unknown", "live"])
def test_a_lease_that_no_run_will_claim(
    connection: Connected, reconciler: Reconciler, query: Query, state: DagsterState
) -> None:
    job_id = enqueue(connection)
    [leased] = lease(connection)
    if state == "unknown":  # for ten seconds of thirty
        query(
            "update stats_pipeline.lease "
            "set acquired_at = now() - interval '10 seconds', claim_until = now() + interval '20 seconds'"
        )
    if state == "live":
        query("update stats_pipeline.lease set claim_until = now()")
    reconciler.dagster[str(leased.lease_id)] = state
    [repair] = reconciler.repair()
    assert isinstance(repair, RevokeLease if state == "canceled" else ExpireLease)
    if state == "canceled":
        assert job(connection, job_id).error_message == "The run was cancelled before it started"
        assert messages(query) == []
    else:
        assert job(connection, job_id).status == "queued"
        query("update pgmq.q_stats_update set vt = now()")  # a second later
        assert len(lease(connection)) == 1


@pytest.mark.parametrize("state", ["unknown", "live"])
def test_a_lease_is_given_time_to_be_claimed(
    connection: Connected, reconciler: Reconciler, query: Query, state: DagsterState
) -> None:
    enqueue(connection)
    [leased] = lease(connection)
    ago = timedelta(seconds=9 if state == "unknown" else 29)
    query("update stats_pipeline.lease set acquired_at = acquired_at - %s, claim_until = claim_until - %s", ago, ago)
    reconciler.dagster[str(leased.lease_id)] = state
    assert reconciler.repair() == []


def test_runs_that_cannot_start_are_tried_less_and_less_often(
    connection: Connected, reconciler: Reconciler, query: Query
) -> None:
    enqueue(connection)
    waits = []
    for _ in range(6):
        [leased] = lease(connection)
        reconciler.dagster[str(leased.lease_id)] = "finished"
        reconciler.repair()
        [row] = query("select extract(epoch from vt - clock_timestamp())::float as wait from pgmq.q_stats_update")
        waits.append(row["wait"])
        query("update pgmq.q_stats_update set vt = now()")
    assert waits[0] < 2.5
    assert 20 < waits[-1] < 42  # 32 seconds, give or take a quarter


def test_outbox_rows_of_a_vanished_job_are_still_delivered(
    connection: Connected, opened: Database, reconciler: Reconciler, query: Query
) -> None:
    """Its work was committed, so its tags are stale, whoever asked for it."""
    job_id = enqueue(connection)
    compute(opened, start(connection))
    query("delete from public.background_job_status where id = %s", job_id)
    reconciler.dagster["run-1"] = "finished"
    reconciler.repair()
    query("update stats_pipeline.outbox set due_at = due_at - interval '3 seconds'")
    due = opened.run("list_due_tags", route="http://app", lease_id=None)
    assert {row["tag"] for row in due} == {tag for function in TWO for tag in function.cache_tags}


# Applying.


def broken_in_every_way(connection: Connected, opened: Database, query: Query, reconciler: Reconciler) -> None:
    """One of each mismatch, each for a tenant of its own."""
    for run_id, state in (
        ("silent", "live"),
        ("ended", "finished"),
        ("cancelled", "canceled"),
        ("recorded", "finished"),
    ):
        enqueue(connection, uuid4())
        claimed = start(connection, run_id)
        reconciler.dagster[run_id] = state  # type: ignore[assignment]
        if run_id == "recorded":
            compute(opened, claimed)
    enqueue(connection, uuid4())
    [leased] = lease(connection, max_runs=10)
    reconciler.dagster[str(leased.lease_id)] = "finished"
    orphan, unsent, vanished = (enqueue(connection, uuid4()) for _ in range(3))
    query("update public.background_job_status set status = 'processing', run_id = 'gone' where id = %s", orphan)
    query("delete from pgmq.q_stats_update as q using public.background_job_status as j "
        "where j.msg_id = q.msg_id and j.id = %s", unsent)  # fmt: skip
    query("delete from public.background_job_status where id = %s", vanished)
    nightly = Payload(triggered_by="cron", request_id="nightly", tenant_id=str(uuid4()))
    query("select stats_pipeline.put_aside('enqueue', %s, 'not now', 'P0001', %s)",
        nightly.tenant_id, Jsonb(nightly.as_json()))  # fmt: skip
    query("update stats_pipeline.set_aside set next_try_at = now()")


STATE = """
select j.id, j.status, j.run_id, j.attempts, j.error_message, j.msg_id, a.outcome, a.error, r.outcome as run_outcome,
    (select count(*) from pgmq.q_stats_update) as messages
from public.background_job_status as j
left join stats_pipeline.attempt as a on a.job_id = j.id
left join stats_pipeline.lease as r on r.id = a.lease_id
order by j.id, a.attempt
"""


def test_applying_twice_is_applying_once(
    connection: Connected, opened: Database, query: Query, reconciler: Reconciler, silence: Callable[[str], None]
) -> None:
    broken_in_every_way(connection, opened, query, reconciler)
    silence("silent")
    repairs = reconciler.decide()
    assert {type(repair) for repair in repairs} == set(Repair.__args__)
    reconciler.apply(repairs)
    once = query(STATE)
    reconciler.apply(repairs)
    assert query(STATE) == once
    assert reconciler.decide() == []


def test_two_reconcilers_at_once_are_one(
    connection: Connected,
    opened: Database,
    query: Query,
    reconciler: Reconciler,
    silence: Callable[[str], None],
    at_once: Callable[..., list[Any]],
) -> None:
    broken_in_every_way(connection, opened, query, reconciler)
    silence("silent")
    repairs = reconciler.decide()
    assert at_once(4, lambda _: reconciler.apply(repairs)) == [None] * 4
    assert reconciler.decide() == []
    [row] = query("select count(*) as messages, count(distinct msg_id) as jobs from pgmq.q_stats_update")
    assert row["messages"] == len(query("select 1 from public.background_job_status where status = 'queued'"))


def test_an_old_decision_takes_no_job_from_the_run_that_has_it_now(
    connection: Connected, opened: Database, query: Query, reconciler: Reconciler
) -> None:
    job_id = enqueue(connection)
    query("update public.background_job_status set status = 'processing', run_id = 'gone' where id = %s", job_id)
    old = reconciler.decide()
    reconciler.apply(old)
    start(connection, "run-2")
    reconciler.apply(old)
    row = job(connection, job_id)
    assert (row.status, row.run_id) == ("processing", "run-2")


def test_a_run_that_was_only_slow_to_answer_is_left_alone(
    connection: Connected, opened: Database, reconciler: Reconciler, silence: Callable[[str], None]
) -> None:
    job_id = enqueue(connection)
    start(connection)
    silence("run-1")
    repairs = reconciler.decide()
    steps.renew(opened)
    reconciler.apply(repairs)
    assert job(connection, job_id).status == "processing"


def test_a_lease_carries_no_word_of_a_run_it_does_not_belong_to(connection: Connected, reconciler: Reconciler) -> None:
    enqueue(connection)
    [leased] = lease(connection)
    assert isinstance(leased, Lease)
    reconciler.dagster[str(uuid4())] = "finished"
    assert reconciler.decide() == []
