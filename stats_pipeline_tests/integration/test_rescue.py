"""The jobs of a run that dies: another attempt, resumed or from the beginning, or failed in the end.

Also a run that was declared dead but is still alive. How a death is detected is in `test_reconcile.py`.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.errors import LeaseLost
from stats_pipeline.jobs import reconcile
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import TWO, claim, compute, enqueue, job, lease, settle, start

Connected = Connection[Any]
Query = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def abandon(opened: Database, query: Query) -> Callable[..., bool]:
    def abandon(run_id: str = "run-1", *, max_attempts: int = 3) -> bool:
        query("update pgmq.q_stats_update set vt = now()")
        is_expired = steps.expire(opened, run_id, max_attempts=max_attempts, reason="It stopped answering")
        query("update pgmq.q_stats_update set vt = now()")  # the wait before the next attempt
        return is_expired

    return abandon


def attempts(query: Query, job_id: UUID) -> list[tuple[int, str, str | None, str | None]]:
    rows = query(
        "select a.*, l.run_id from stats_pipeline.attempt as a join stats_pipeline.lease as l on l.id = a.lease_id "
        "where a.job_id = %s order by a.attempt",
        job_id,
    )
    return [(row["attempt"], row["run_id"], row["outcome"], row["error"]) for row in rows]


def test_every_attempt_is_kept_when_the_job_succeeds(
    connection: Connected, opened: Database, abandon: Callable[..., bool], query: Query
) -> None:
    job_id = enqueue(connection)
    start(connection, "run-1")
    assert abandon("run-1")
    assert (job(connection, job_id).status, job(connection, job_id).run_id) == ("queued", None)
    compute(opened, start(connection, "run-2"))
    settle(connection, "run-2")
    assert job(connection, job_id).status == "completed"
    assert attempts(query, job_id) == [
        (1, "run-1", "died", "It stopped answering"),
        (2, "run-2", "completed", None),
    ]


def test_a_job_started_when_its_first_attempt_did(
    connection: Connected, abandon: Callable[..., bool], query: Query
) -> None:
    job_id = enqueue(connection)
    start(connection, "run-1")
    first = job(connection, job_id).started_at
    abandon("run-1")
    start(connection, "run-2")
    assert first is not None
    assert job(connection, job_id).started_at == first
    [one, other] = query("select started_at from stats_pipeline.attempt order by attempt")
    assert one["started_at"] < other["started_at"]  # each attempt has its own


def test_the_third_death_fails_the_job_with_the_last_error(
    connection: Connected, opened: Database, abandon: Callable[..., bool], query: Query, count: Callable[[str], int]
) -> None:
    job_id = enqueue(connection)
    for number in (1, 2, 3):
        start(connection, f"run-{number}")
        steps.fail_try(opened, TWO[0].rpc, f"lost {number}", f"run-{number}")
        assert abandon(f"run-{number}")
    row = job(connection, job_id)
    assert (row.status, row.attempts) == ("failed", 3)
    assert row.error_message == "It stopped answering: lost 3 (attempt 3 of 3)"
    assert [outcome for _, _, outcome, _ in attempts(query, job_id)] == ["died"] * 3
    assert count("pgmq.q_stats_update") == 0
    assert count("pgmq.a_stats_update") == 1
    assert lease(connection) == []


def test_of_several_errors_the_last_one_is_told(
    connection: Connected, opened: Database, abandon: Callable[..., bool]
) -> None:
    job_id = enqueue(connection)
    start(connection)
    for function, problem in zip(TWO, ("first", "last"), strict=True):
        steps.fail_try(opened, function.rpc, problem)
    abandon(max_attempts=0)
    assert job(connection, job_id).error_message == "It stopped answering: last"


def test_each_attempt_keeps_its_own_reason(
    connection: Connected, opened: Database, abandon: Callable[..., bool], query: Query
) -> None:
    job_id = enqueue(connection)
    for number in (1, 2):
        start(connection, f"run-{number}")
        steps.fail_try(opened, TWO[0].rpc, f"lost {number}", f"run-{number}")
        abandon(f"run-{number}")
    assert attempts(query, job_id) == [
        (1, "run-1", "died", "It stopped answering: lost 1"),
        (2, "run-2", "died", "It stopped answering: lost 2"),
    ]


def test_a_job_that_waits_again_shows_nothing_of_the_run_that_died(
    connection: Connected, opened: Database, abandon: Callable[..., bool]
) -> None:
    job_id = enqueue(connection)
    compute(opened, start(connection), TWO[0])
    settle(connection)
    assert job(connection, job_id).results is not None
    abandon()
    row = job(connection, job_id)
    assert (row.status, row.run_id, row.results, row.error_message) == ("queued", None, None, None)


def test_a_cancelled_run_fails_its_jobs_at_once(connection: Connected, abandon: Callable[..., bool]) -> None:
    job_id = enqueue(connection)
    start(connection)
    abandon(max_attempts=0)
    row = job(connection, job_id)
    assert (row.status, row.error_message) == ("failed", "It stopped answering")


def test_later_attempts_wait_longer(connection: Connected, opened: Database, query: Query) -> None:
    enqueue(connection)
    waits = []
    for number in (1, 2, 3):
        start(connection, f"run-{number}")
        steps.expire(opened, f"run-{number}", max_attempts=9)
        [row] = query("select round(extract(epoch from vt - clock_timestamp()))::int as wait from pgmq.q_stats_update")
        waits.append(row["wait"])
        query("update pgmq.q_stats_update set vt = now()")
    assert waits == [0, 2, 4]


# Resuming.


def test_the_next_run_of_the_same_jobs_goes_on_where_the_dead_one_stopped(
    connection: Connected, opened: Database, abandon: Callable[..., bool], query: Query
) -> None:
    job_id = enqueue(connection)
    compute(opened, start(connection, "run-1"), TWO[0])
    abandon("run-1")
    second = start(connection, "run-2")
    assert second.carried_over == {TWO[0].rpc}
    compute(opened, second, TWO[1])
    settle(connection, "run-2")
    row = job(connection, job_id)
    assert row.status == "completed"
    assert row.results is not None
    assert row.results["successful_functions"] == 2
    tags = query("select lease_id, tag from stats_pipeline.outbox order by id")
    assert {tag["lease_id"] for tag in tags} == {
        steps.lease_of(connection, "run-2")
    }  # and they are this job's to wait for
    assert {tag["tag"] for tag in tags} == {*TWO[0].cache_tags, *TWO[1].cache_tags}


def test_each_op_of_the_next_run_hears_of_what_is_done(
    connection: Connected, opened: Database, abandon: Callable[..., bool]
) -> None:
    enqueue(connection)
    compute(opened, start(connection, "run-1"), TWO[0])
    abandon("run-1")
    [leased] = lease(connection)
    answers = [claim(connection, leased, "run-2") for _ in range(3)]
    assert [answer and answer.carried_over for answer in answers] == [frozenset({TWO[0].rpc})] * 3


def test_a_try_that_was_recorded_before_the_claim_does_not_stop_the_resumption(
    connection: Connected, opened: Database, abandon: Callable[..., bool]
) -> None:
    enqueue(connection)
    compute(opened, start(connection, "run-1"), TWO[0])
    abandon("run-1")
    [leased] = lease(connection)
    steps.fail_try(opened, TWO[0].rpc, "no connection", leased.lease_id)
    claimed = claim(connection, leased, "run-2")
    assert claimed is not None
    assert claimed.carried_over == {TWO[0].rpc}


def test_another_job_in_the_set_means_newer_data_and_everything_is_computed_again(
    connection: Connected, opened: Database, abandon: Callable[..., bool]
) -> None:
    enqueue(connection)
    compute(opened, start(connection, "run-1"), TWO[0])
    enqueue(connection)
    abandon("run-1")
    assert start(connection, "run-2").carried_over == frozenset()


def test_what_failed_is_tried_again(connection: Connected, opened: Database, abandon: Callable[..., bool]) -> None:
    enqueue(connection)
    start(connection, "run-1")
    steps.fail_function(opened, TWO[0].rpc, "deadlock")
    abandon("run-1")
    assert start(connection, "run-2").carried_over == frozenset()


def test_a_run_that_ended_well_is_not_resumed_by_the_tenants_next_job(connection: Connected, opened: Database) -> None:
    enqueue(connection)
    compute(opened, start(connection, "run-1"))
    settle(connection, "run-1")
    enqueue(connection)
    assert start(connection, "run-2").carried_over == frozenset()


# Not quite dead.


def test_a_run_that_wakes_up_late_cannot_commit_its_work(
    connection: Connected, opened: Database, abandon: Callable[..., bool], query: Query
) -> None:
    job_id = enqueue(connection)
    query("create table public.work (what text)")
    query(
        "create function public.late_work() returns void language sql as $$ insert into public.work values ('late') $$"
    )
    late = StatsFunction("late", "late_work", ("tag",), (), (), "")
    [leased] = lease(connection)
    first = claim(connection, leased, "run-1", (late,))
    assert first is not None
    abandon("run-1")
    with pytest.raises(LeaseLost, match="was taken from its run"):
        compute(opened, first, late)
    assert query("select * from public.work") == []
    assert query("select * from stats_pipeline.outbox") == []
    with pytest.raises(LeaseLost):
        claim(connection, leased, "run-1", (late,))
    assert job(connection, job_id).status == "queued"


def test_a_late_report_changes_nothing(connection: Connected, opened: Database, abandon: Callable[..., bool]) -> None:
    job_id = enqueue(connection)
    start(connection, "run-1")
    abandon("run-1")
    start(connection, "run-2")
    before = job(connection, job_id)
    for rpc in (function.rpc for function in TWO):
        steps.fail_function(opened, rpc, "too late")
    settle(connection, "run-1")
    assert not steps.renew(opened)
    assert job(connection, job_id) == before


def test_a_run_that_goes_on_in_another_process_may_be_silent_until_that_one_beats(
    connection: Connected, opened: Database
) -> None:
    enqueue(connection)
    start(connection, "run-1")
    steps.renew(opened, silent_for=30)
    assert -30 <= silence(opened) < -20
    steps.renew(opened)
    assert 0 <= silence(opened) < 10


def silence(opened: Database) -> float:
    [row] = reconcile.read(opened).leases
    assert row.silent_seconds is not None
    return row.silent_seconds


def test_a_frozen_run_is_cut_off_and_its_locks_are_free(
    connection: Connected, database_url: str, abandon: Callable[..., bool]
) -> None:
    enqueue(connection)
    run_id = "11111111-0000-0000-0000-000000000000"
    start(connection, run_id)
    frozen = psycopg.connect(database_url, application_name=f"stats-pipeline run {run_id[:8]} pid 1")
    frozen.execute("select * from stats_pipeline.lease for update")
    assert abandon(run_id)
    with pytest.raises(psycopg.OperationalError):
        frozen.execute("select 1")


def test_a_run_that_has_beaten_since_the_decision_keeps_its_sessions(
    connection: Connected, opened: Database, database_url: str, query: Query
) -> None:
    enqueue(connection)
    run_id = "11111111-0000-0000-0000-000000000000"
    start(connection, run_id)
    decision = steps.expiry(opened, run_id)
    steps.renew(opened, run_id)
    with psycopg.connect(database_url, application_name=f"stats-pipeline run {run_id[:8]} pid 1") as slow:
        reconcile.apply(connection, decision, Settings.model_validate({}), lambda _: None)
        assert slow.execute("select 1").fetchone() == (1,)


def test_a_run_that_is_cut_off_is_the_only_one(
    connection: Connected, create_database: Callable[[], str], database_url: str, abandon: Callable[..., bool]
) -> None:
    """Others may have names alike: another run, or the same in another database of this server."""
    enqueue(connection)
    run_id = "11111111-0000-0000-0000-000000000000"
    start(connection, run_id)
    name = f"stats-pipeline run {run_id[:8]} pid 1"
    with (
        psycopg.connect(database_url, application_name=name.replace("1111", "1112")) as sibling,
        psycopg.connect(create_database(), application_name=name) as stranger,
    ):
        assert abandon(run_id)
        for other in (sibling, stranger):
            assert other.execute("select 1").fetchone() == (1,)


def test_abandoning_and_completing_at_once_never_loses_or_doubles(
    connection: Connected, opened: Database, query: Query, at_once: Callable[..., list[Any]]
) -> None:
    """Either the function's work counts for the dead run and is resumed, or it is undone and done again."""
    outcomes = set()
    for number in range(20):
        enqueue(connection)
        claimed = start(connection, f"dying-{number}")

        def act(which: int, claimed: Any = claimed) -> None:
            if which == 0:
                compute(opened, claimed, TWO[0])
            else:
                steps.expire(opened, claimed.lease_id)

        completed, abandoned = at_once(2, act)
        assert abandoned is None
        assert completed is None or isinstance(completed, LeaseLost)
        query("update pgmq.q_stats_update set vt = now()")
        heir = start(connection, f"heir-{number}")
        assert heir.carried_over == ({TWO[0].rpc} if completed is None else frozenset())
        outcomes.add(completed is None)
        compute(opened, heir, *(function for function in TWO if function.rpc not in heir.carried_over))
        settle(connection, heir.lease_id)
        assert job(connection, heir.job_ids[0]).status == "completed"
    assert outcomes, "at least one race was run"


def test_leases_taken_at_once_are_of_different_jobs(
    connection: Connected, opened: Database, at_once: Callable[..., list[Any]]
) -> None:
    for number in range(3):
        enqueue(connection, UUID(int=number + 11))

    def take(_: int) -> list[Any]:
        with opened.connection() as own:
            return lease(own)

    taken = [leased.tenant_id for leases in at_once(6, take) for leased in leases]
    assert sorted(taken) == [UUID(int=number + 11) for number in range(3)]


def test_two_runs_that_claim_one_lease_at_once_are_one(
    connection: Connected, opened: Database, query: Query, at_once: Callable[..., list[Any]]
) -> None:
    job_id = enqueue(connection)
    [leased] = lease(connection)

    def take(number: int) -> Any:
        with opened.connection() as own:
            return claim(own, leased, f"run-{number}")

    outcomes = at_once(5, take)
    assert sum(isinstance(outcome, LeaseLost) for outcome in outcomes) == 4
    assert len(attempts(query, job_id)) == 1
