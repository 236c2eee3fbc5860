"""Two callers of one function, in a known order: the first keeps its transaction open while the second one calls.

The second may wait or return, depending on the function; it must not act on changes that it cannot see yet. Many
callers at once, in any order, are in the tests of each step.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database, call
from stats_pipeline.errors import LeaseLost
from stats_pipeline.jobs import queue, reconcile
from stats_pipeline.jobs.models import Claim
from stats_pipeline.jobs.reconcile import RequeueJob, SendMessage
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT, TWO

Connected = Connection[DictRow]
Meanwhile = Callable[[Callable[[Connected], Any]], Future[Any]]
Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]

QUEUE = "pgmq.q_stats_update"
SETTINGS = Settings.model_validate({})


def repair(connection: Connected, wanted: reconcile.Repair) -> None:
    reconcile.apply(connection, wanted, SETTINGS, lambda _: None)


def orphan(connection: Connected, query: Query) -> Any:
    """A job that a run nobody knows of is processing."""
    job_id = steps.enqueue(connection)
    query("update public.background_job_status set status = 'processing', run_id = 'gone', attempts = 1")
    return job_id


# Enqueue and retry


def test_a_second_caller_with_the_same_request_gets_the_firsts_job(
    connection: Connected, first: Connected, meanwhile: Meanwhile, count: Count
) -> None:
    payload = steps.payload()
    with first.transaction():
        job_id = queue.enqueue(first, payload).job_id
        second = meanwhile(lambda connection: queue.enqueue(connection, payload).job_id)
    assert second.result() == job_id
    assert (count("public.background_job_status"), count(QUEUE)) == (1, 1)


def test_a_second_caller_enqueues_what_the_first_one_took_back(
    connection: Connected, first: Connected, meanwhile: Meanwhile, count: Count
) -> None:
    payload = steps.payload()
    with first.transaction(force_rollback=True):
        queue.enqueue(first, payload)
        second = meanwhile(lambda connection: queue.enqueue(connection, payload).job_id)
    assert steps.job(connection, second.result()).status == "queued"
    assert (count("public.background_job_status"), count(QUEUE)) == (1, 1)


def test_a_second_press_of_retry_gets_the_firsts_job(
    connection: Connected, opened: Database, first: Connected, meanwhile: Meanwhile
) -> None:
    failed = steps.enqueue(connection)
    steps.fail(connection, opened)
    with first.transaction():
        job_id = queue.retry(first, failed).job_id
        second = meanwhile(lambda connection: queue.retry(connection, failed).job_id)
    assert second.result() == job_id


# Lease and claim


def test_a_second_sensor_is_given_nothing_of_what_the_first_one_leases(
    connection: Connected, first: Connected, meanwhile: Meanwhile
) -> None:
    steps.enqueue(connection)
    with first.transaction():
        assert len(steps.lease(first)) == 1
        second = meanwhile(steps.lease)
    assert second.result() == []


@pytest.mark.parametrize("is_leased", [True, False])
def test_the_second_op_of_a_run_gets_the_claim_of_the_first(
    connection: Connected, first: Connected, meanwhile: Meanwhile, is_leased: bool
) -> None:
    leased = None
    if is_leased:
        steps.enqueue(connection)
        [leased] = steps.lease(connection)
    with first.transaction():
        claimed = steps.claim(first, leased)
        second = meanwhile(lambda connection: steps.claim(connection, leased))
    assert claimed is not None
    assert second.result() == claimed
    assert steps.job(connection, claimed.job_ids[0]).attempts == 1


def test_a_raw_message_that_arrives_while_others_are_admitted_is_not_lost(
    connection: Connected, first: Connected, meanwhile: Meanwhile, query: Query
) -> None:
    """The sensor reads the queue more than once; what it has not made a job of, it must not throw away."""
    send = "select pgmq.send('stats_update', %s::jsonb)"
    known = steps.payload(tenantId=str(TENANT))
    query(send, Jsonb(known))
    with first.transaction(force_rollback=True):
        queue.enqueue(first, known)
        second = meanwhile(steps.lease)
        query(send, Jsonb(steps.payload(tenantId=str(OTHER_TENANT))))
    leased = [*second.result(), *steps.lease(connection)]
    assert {one.tenant_id for one in leased} == {TENANT, OTHER_TENANT}


# Record and settle


def report(connection: Connected, claimed: Claim, function: StatsFunction) -> None:
    """Record a function and settle, in the caller's transaction."""
    steps.complete(connection, function.rpc, run=claimed.lease_id)
    steps.settle(connection, claimed.lease_id)


def test_of_the_last_two_functions_the_second_ends_the_job(
    connection: Connected, first: Connected, meanwhile: Meanwhile
) -> None:
    job_id = steps.enqueue(connection)
    claimed = steps.start(connection)
    with first.transaction():
        report(first, claimed, TWO[0])
        second = meanwhile(lambda connection: report(connection, claimed, TWO[1]))
    second.result()
    job = steps.job(connection, job_id)
    assert job.status == "completed"
    assert job.results is not None
    assert job.results["successful_functions"] == 2


def test_of_the_last_two_deliveries_the_second_ends_the_job(
    connection: Connected, opened: Database, first: Connected, meanwhile: Meanwhile, query: Query
) -> None:
    job_id = steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    steps.settle(connection, app=True)
    one, other = query("select id, tag from stats_pipeline.outbox order by id")

    def take(connection: Connected, due: dict[str, Any]) -> None:
        what = {"asked": [due["id"]], "taken": [due["tag"]], "problem": None}
        call(connection, "record_delivery", route="http://app", cache_deadline=900, **what)

    with first.transaction():
        take(first, one)
        second = meanwhile(lambda connection: take(connection, other))
    second.result()
    job = steps.job(connection, job_id)
    assert job.status == "completed"
    assert job.results is not None
    assert job.results["cache"]["pending"] == []


# A dead run that is not quite dead


WORK = StatsFunction("Work", "work", ("tag",), (), (), "")


@pytest.fixture
def claimed(connection: Connected, query: Query) -> Claim:
    """A run whose function leaves a row."""
    query("create table public.done (by_run text)")
    query("create function public.work() returns void language sql as $$ insert into public.done values ('it') $$")
    steps.enqueue(connection)
    return steps.start(connection, functions=(WORK,))


def test_a_function_that_ends_while_its_run_is_given_up_is_undone(
    claimed: Claim, opened: Database, first: Connected, meanwhile: Meanwhile, query: Query
) -> None:
    with first.transaction():
        repair(first, steps.expiry(first, claimed.lease_id))
        late = meanwhile(lambda _: steps.compute(opened, claimed, WORK))
    with pytest.raises(LeaseLost):
        late.result()
    assert query("select * from public.done") == []
    assert query("select * from stats_pipeline.outbox") == []


def test_nobody_is_given_the_jobs_of_a_run_whose_function_may_still_commit(
    claimed: Claim, connection: Connected, first: Connected, meanwhile: Meanwhile, query: Query
) -> None:
    """Or its work, done before the heir was asked, would come after the heir's."""
    with first.transaction():
        first.execute("select public.work()")
        steps.complete(first, WORK.rpc, "tag", run=claimed.lease_id)
        death = steps.expiry(connection, claimed.lease_id)
        given_up = meanwhile(lambda connection: repair(connection, death))
        query("update pgmq.q_stats_update set vt = now()")
        assert steps.lease(connection) == []
    given_up.result()
    assert len(query("select * from public.done")) == 1


def test_an_orphan_that_has_found_a_run_meanwhile_is_left_to_it(
    connection: Connected, first: Connected, meanwhile: Meanwhile, query: Query
) -> None:
    job_id = orphan(connection, query)
    with first.transaction():
        repair(first, RequeueJob(job_id))
        steps.start(first, "run-2")
        second = meanwhile(lambda connection: repair(connection, RequeueJob(job_id)))
    second.result()
    job = steps.job(connection, job_id)
    assert (job.status, job.run_id) == ("processing", "run-2")


def test_a_job_without_a_message_is_sent_one(
    connection: Connected, first: Connected, meanwhile: Meanwhile, query: Query, count: Count
) -> None:
    job_id = steps.enqueue(connection)
    query(f"delete from {QUEUE}")
    with first.transaction():
        repair(first, SendMessage(job_id))
        second = meanwhile(lambda connection: repair(connection, SendMessage(job_id)))
    second.result()
    assert count(QUEUE) == 1
    assert [leased.jobs for leased in steps.lease(connection)] == [1]


def test_a_run_by_hand_waits_for_the_lease_that_is_being_taken(
    connection: Connected, first: Connected, meanwhile: Meanwhile
) -> None:
    steps.enqueue(connection, TENANT)
    with first.transaction():
        assert len(steps.lease(first)) == 1
        second = meanwhile(lambda connection: steps.claim(connection, None, "by-hand", tenant=TENANT))
    assert second.result() is None
