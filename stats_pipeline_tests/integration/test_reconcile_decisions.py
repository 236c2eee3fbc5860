"""Random histories of jobs, runs, deaths and damage against the real SQL functions: whatever happened, repairing leads
to a sound state in which every job has ended, and nothing was done that had to be done again.

Single mismatches and their repairs are in `test_reconcile.py`.
"""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from stats_pipeline import job_status, reconcile
from stats_pipeline.database import Database
from stats_pipeline.errors import LEASE_LOST_SQLSTATE, LeaseLost
from stats_pipeline.models import Claim, Lease
from stats_pipeline.reconcile import DagsterState, Limits, Repair, Snapshot
from stats_pipeline.settings import Settings
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT, TWO, payload

ROUTE = "http://app/route"
RPCS = tuple(function.rpc for function in TWO)
LIMITS = Limits(dead_after=6, cache_deadline=900, cache_configured=True)
CONFIGURED = Settings.model_validate({"NEXT_PUBLIC_APP_URL": "http://app", "INTERNAL_API_KEY": "0123456789abcdef"})

EMPTY = """
truncate public.background_job_status, stats_pipeline.job_request, stats_pipeline.run, stats_pipeline.attempt,
    stats_pipeline.function_result, stats_pipeline.outbox, stats_pipeline.endpoint, pgmq.q_stats_update,
    pgmq.a_stats_update
"""

# All there is, but for times.
STATE = """
select
    (select jsonb_agg(jsonb_build_array(j.id, j.status, j.run_id, j.attempts, j.error_message, j.msg_id) order by j.id)
        from public.background_job_status as j) as jobs,
    (select jsonb_agg(jsonb_build_array(r.id, r.run_id, r.outcome) order by r.id) from stats_pipeline.run as r) as runs,
    (select jsonb_agg(jsonb_build_array(a.job_id, a.attempt, a.outcome) order by a.job_id, a.attempt)
        from stats_pipeline.attempt as a) as attempts,
    (select jsonb_agg(q.msg_id order by q.msg_id) from pgmq.q_stats_update as q) as messages
"""


PICK = st.integers(0, 11)


@dataclass
class Process:
    """A run's process, as the test plays it."""

    lease: Lease
    run_id: str = field(default_factory=lambda: str(uuid4()))
    is_alive: bool = True
    claimed: Claim | None = None
    done: set[str] = field(default_factory=set)


class History(RuleBasedStateMachine):
    """The rules are everything that can happen, in any order, between any two steps."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.processes: list[Process] = []
        self.leases: list[Lease] = []
        self.dagster: dict[str, DagsterState] = {}
        self.jobs: list[UUID] = []
        self.old_repairs: list[Repair] = []
        self.query(EMPTY)

    def query(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        with self.database.connection() as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    # What the app, the daemon and the runs do.

    @rule(tenant=st.sampled_from([None, TENANT, OTHER_TENANT]))
    def enqueue(self, tenant: UUID | None) -> None:
        fields = {"tenantId": str(tenant)} if tenant else {}
        with self.database.connection() as connection:
            self.jobs.append(job_status.enqueue(connection, payload(**fields)).job_id)

    @rule()
    def lease(self) -> None:
        with self.database.connection() as connection:
            self.leases += job_status.lease(connection, lease_seconds=30, max_runs=4)

    @rule()
    def launch(self) -> None:
        if not self.leases:
            return
        lease = self.leases.pop(0)
        process = Process(lease)
        self.processes.append(process)
        self.dagster[process.run_id] = self.dagster[str(lease.lease_id)] = "live"

    @rule()
    def daemon_dies_before_the_launch(self) -> None:
        self.leases.clear()

    def living(self, pick: int) -> Process | None:
        """One of the living, if there is one.

        What there is to pick from depends on the clock, but hypothesis must draw the same when it runs a history again:
        so it draws a number, and a rule that has nothing to do does nothing.
        """
        living = [process for process in self.processes if process.is_alive]
        return living[pick % len(living)] if living else None

    @rule(pick=PICK)
    def claim(self, pick: int) -> None:
        if process := self.living(pick):
            self._claim(process)

    def _claim(self, process: Process) -> None:
        try:
            with self.database.connection() as connection:
                process.claimed = job_status.claim(
                    connection,
                    run_id=process.run_id,
                    lease_id=process.lease.lease_id,
                    functions=RPCS,
                    tenant_id=process.lease.tenant_id,
                    payload={},
                )
        except LeaseLost:
            process.is_alive = False
            self._dagster_says(process, "finished")
        else:
            assert process.claimed is not None
            process.done |= process.claimed.carried_over

    @rule(pick=PICK, rpc=st.sampled_from(RPCS), succeeds=st.sampled_from([True, True, True, False]))
    def compute(self, pick: int, rpc: str, succeeds: bool) -> None:
        if process := self.living(pick):
            self._compute(process, rpc, succeeds)

    def _compute(self, process: Process, rpc: str, succeeds: bool = True) -> None:
        if process.claimed is None:
            self._claim(process)
        if process.claimed is None or rpc in process.done:
            return
        process.done.add(rpc)
        if not succeeds:
            self.database.run("fail_function", run_id=process.run_id, rpc=rpc, error="no such column")
            return
        tags = [tag for function in TWO if function.rpc == rpc for tag in function.cache_tags]
        is_dead = self._outcome(process) == "died"
        try:
            self.database.run("complete_function", run_id=process.run_id, rpc=rpc, tags=tags, attempts=1, duration_ms=1)
        except psycopg.Error as error:
            if error.sqlstate != LEASE_LOST_SQLSTATE or not is_dead:
                raise

    def _outcome(self, process: Process) -> str | None:
        rows = self.query("select outcome from stats_pipeline.run where run_id = %(run_id)s", run_id=process.run_id)
        return rows[0]["outcome"] if rows else None

    @rule(pick=PICK)
    def settle(self, pick: int) -> None:
        if process := self.living(pick):
            self._settle(process)

    def _settle(self, process: Process) -> None:
        with self.database.connection() as connection:
            job_status.settle(connection, run_id=process.run_id, cache_configured=True, cache_deadline=900)

    @rule(is_up=st.booleans())
    def deliver(self, is_up: bool) -> None:
        due = self.query("select id, tag from stats_pipeline.outbox where delivered_at is null order by id")
        if due:
            self.database.run(
                "record_delivery",
                route=ROUTE,
                asked=[row["id"] for row in due],
                taken=sorted({row["tag"] for row in due}) if is_up else [],
                problem=None if is_up else "the app is down",
                deadline=900,
            )

    @rule(pick=PICK)
    def beat(self, pick: int) -> None:
        if process := self.living(pick):
            self.database.run("heartbeat", run_id=process.run_id, lease_seconds=30)

    # How things end.

    def _dagster_says(self, process: Process, state: DagsterState) -> None:
        self.dagster[process.run_id] = self.dagster[str(process.lease.lease_id)] = state

    @rule(pick=PICK, is_noticed=st.booleans())
    def killed(self, pick: int, is_noticed: bool) -> None:
        if process := self.living(pick):
            process.is_alive = False
            if is_noticed:
                self._dagster_says(process, "finished")

    @rule(pick=PICK)
    def cancelled(self, pick: int) -> None:
        if process := self.living(pick):
            process.is_alive = False
            self._dagster_says(process, "canceled")

    @rule(pick=PICK)
    def frozen_for_a_while(self, pick: int) -> None:
        """It will go on later, and not know."""
        if process := self.living(pick):
            self._be_silent(process.run_id)

    def _be_silent(self, run_id: str) -> None:
        self.query(
            "update stats_pipeline.run set seen_at = seen_at - interval '7 seconds' where run_id = %(run_id)s",
            run_id=run_id,
        )

    @rule()
    def leases_expire(self) -> None:
        self.query("update stats_pipeline.run set lease_until = now() where run_id is null")
        self.query("update pgmq.q_stats_update set vt = now()")

    @rule()
    def launches_are_overdue(self) -> None:
        self.query("update stats_pipeline.run set leased_at = leased_at - interval '10 seconds' where run_id is null")

    # What nobody should do.

    @rule()
    def somebody_purges_the_queue(self) -> None:
        self.query("delete from pgmq.q_stats_update")

    @rule(pick=PICK)
    def somebody_deletes_a_row(self, pick: int) -> None:
        if not self.jobs:
            return
        job_id = self.jobs.pop(pick % len(self.jobs))
        self.query("delete from public.background_job_status where id = %(id)s", id=job_id)

    @rule(pick=PICK, status=st.sampled_from(["processing", "failed"]))
    def somebody_sets_a_status(self, pick: int, status: str) -> None:
        if self.jobs:
            self.query(
                "update public.background_job_status set status = %(status)s, run_id = 'nobody' "
                "where id = %(id)s and status = 'queued'",
                id=self.jobs[pick % len(self.jobs)],
                status=status,
            )

    # Repairing.

    def _look(self) -> tuple[Snapshot, list[Repair]]:
        seen = reconcile.read(self.database)
        return seen, reconcile.decide(seen.jobs, seen.messages, seen.runs, self.dagster, LIMITS)

    def _apply(self, repairs: list[Repair]) -> None:
        for repair in repairs:
            with self.database.transaction() as connection:
                reconcile.apply(connection, repair, CONFIGURED, self._fail_in_dagster)

    def _fail_in_dagster(self, run_id: str) -> None:
        if self.dagster.get(run_id) == "live":
            self.dagster[run_id] = "finished"

    @rule()
    def reconcile(self) -> None:
        self._apply(self._look()[1])

    @rule()
    def reconcile_twice_as_once(self) -> None:
        _, repairs = self._look()
        self._apply(repairs)
        after = self.query(STATE)
        self._apply(repairs)
        assert self.query(STATE) == after

    @rule()
    def look_and_be_held_up(self) -> None:
        _, self.old_repairs = self._look()

    @rule()
    def apply_what_was_seen_long_ago(self) -> None:
        """A run that lives and beats, and that nobody cancelled, keeps its jobs."""
        silent = {r.run_id for r in self._look()[0].runs if (r.silent_seconds or 0) > LIMITS.dead_after}
        well = [p.run_id for p in self.processes if p.is_alive and p.run_id not in silent]
        before = self._jobs_of(well)
        self._apply(self.old_repairs)
        assert self._jobs_of(well) == before

    def _jobs_of(self, run_ids: list[str]) -> list[dict[str, Any]]:
        return self.query(
            "select id, run_id from public.background_job_status where run_id = any(%(run_ids)s) order by id",
            run_ids=run_ids,
        )

    @invariant()
    def no_job_has_had_more_attempts_than_allowed(self) -> None:
        assert not self.query("select id from public.background_job_status where attempts > 3")

    @invariant()
    def no_attempt_is_open_that_nobody_works_on(self) -> None:
        assert not self.query(
            "select a.* from stats_pipeline.attempt as a join stats_pipeline.run as r using (run_id) "
            "where a.ended_at is null and r.outcome = 'died'"
        )

    def teardown(self) -> None:
        """Every process that is left dies, nobody does any damage any more: all must come right."""
        for process in self.processes:
            process.is_alive = False
            self._be_silent(process.run_id)
        self.leases.clear()
        for _ in range(10):
            self.leases_expire()
            self._apply(self._look()[1])
            self.query("update pgmq.q_stats_update set vt = now()")  # the waits between attempts
            self.lease()
            while self.leases:
                self.launch()
                process = self.processes[-1]
                for rpc in RPCS:
                    self._compute(process, rpc)
                self._settle(process)
                self._dagster_says(process, "finished")
            self.deliver(is_up=True)
        assert self._look()[1] == []
        rows = self.query("select id, status, results, created_at from public.background_job_status")
        assert {row["id"] for row in rows} == set(self.jobs)
        assert {row["status"] for row in rows} <= {"completed", "failed"}
        assert self.query("select * from pgmq.q_stats_update") == []
        assert self.query("select * from stats_pipeline.run where ended_at is null") == []
        assert self.query("select * from stats_pipeline.outbox where delivered_at is null") == []
        assert self.query("select * from stats_pipeline.attempt where ended_at is null") == []
        for row in rows:
            if row["status"] == "completed":
                assert {rpc: f["status"] for rpc, f in row["results"]["functions"].items()} == dict.fromkeys(
                    RPCS, "success"
                )
        # What a completed job rests on was computed after it was asked for.
        assert not self.query(
            "select j.id from public.background_job_status as j join stats_pipeline.outbox as o using (run_id) "
            "where j.status = 'completed' and o.due_at < j.created_at"
        )


@pytest.mark.timeout(300)
def test_every_history_ends_well(opened: Database) -> None:
    with opened.connection() as connection:  # silence counts from the server's start: let it be old enough
        connection.execute("select pg_sleep(7 - extract(epoch from clock_timestamp() - pg_postmaster_start_time()))")
    run_state_machine_as_test(
        lambda: History(opened),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
