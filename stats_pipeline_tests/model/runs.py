"""The rules of runs: jobs are leased, claimed, computed, delivered and settled; functions fail, or take so long that
the run is given up meanwhile; processes die, are cancelled, wake up late, or are started by hand.
"""

import os
from concurrent.futures import Future
from typing import Any
from uuid import UUID, uuid4

import psycopg
from hypothesis import strategies as st

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.errors import LeaseLost
from stats_pipeline.jobs import outbox, queue, refresh
from stats_pipeline.jobs.models import Delivery, Lease, Payload
from stats_pipeline.jobs.reconcile import DagsterState
from stats_pipeline_tests.model.account import CACHE_DEADLINE, Process
from stats_pipeline_tests.model.base import CLUB, PICK, step
from stats_pipeline_tests.model.doors import Doors
from stats_pipeline_tests.model.world import CLUBS, DEFAULT, FUNCTIONS

LEASE_SECONDS = 30
MAX_RUNS = 10  # so many that no club ever waits for another's run

NUMBER = st.sampled_from(range(len(FUNCTIONS)))


class Runs(Doors):
    """A process does what an op and its hook do, in their order; anything may happen between two of its steps."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sleeper: tuple[Process, StatsFunction, Future[None]] | None = None

    @step(is_launched=st.sampled_from([True, True, False]))
    def lease(self, is_launched: bool) -> None:
        with self.world.watched(), self.database.connection() as connection:
            leases = queue.lease(connection, lease_seconds=LEASE_SECONDS, max_runs=MAX_RUNS)
        self._launch(leases, is_launched)

    @step()
    def nightly(self) -> None:
        payloads = [self.payload(club, is_spelled=False, triggeredBy="cron") for club in CLUBS]
        with self.world.watched(), self.database.transaction() as connection:
            answers = queue.enqueue_each(connection, map(Payload.model_validate, payloads))
            leases = queue.lease(connection, lease_seconds=LEASE_SECONDS, max_runs=MAX_RUNS)
        for answer, payload in zip(answers, payloads, strict=True):
            self.account.accept(answer.job_id, payload)
        self._launch(leases, True)

    def _launch(self, leases: list[Lease], is_launched: bool) -> None:
        account = self.account
        was_leased = account.calm in account.seen.leased
        self.compare()
        for lease in leases:
            club = str(lease.tenant_id or DEFAULT)
            waiting = account.waiting(club)
            assert waiting, f"leased for nobody: {lease}"
            if self.is_calm(club):
                assert lease.jobs == len(waiting), f"{lease} does not have all of {waiting}"
            if is_launched or self.is_calm(club):
                self._start(club, lease)
        is_leased = was_leased or account.calm in account.seen.leased
        assert is_leased or not account.waiting(account.calm), f"not leased: {account.waiting(account.calm)}"

    def _start(self, club: str, lease: Lease | None) -> Process:
        process = Process(str(uuid4()), club, lease, self.account.number, self.is_calm(club))
        self.account.processes[process.run_id] = process
        self._dagster_says(process, "live")
        return process

    @step(club=CLUB)
    def run_by_hand(self, club: int) -> None:
        self._claim(self._start(CLUBS[club], None))

    def _living(self, pick: int, *, or_calm: bool) -> Process | None:
        """One of those that live, the newest first."""
        living = [p for p in self.account.processes.values() if p.is_alive and (or_calm or not p.is_calm)][::-1]
        return living[pick % len(living)] if living else None

    @step(pick=PICK, steps=st.integers(1, 8))
    def go_on(self, pick: int, steps: int) -> None:
        """The process does the next steps of its life."""
        if process := self._living(pick, or_calm=True):
            self._go_on(process, steps)

    @step(club=CLUB, steps=st.integers(0, 8))
    def enqueue_and_go_on(self, club: int, steps: int) -> None:
        self.enqueue_for(club)
        self._lease_and_go_on(CLUBS[club], steps)

    def _lease_and_go_on(self, club: str, steps: int) -> None:
        """What waits is leased, and the club's newest process does the next steps of its life."""
        self.lease(is_launched=True)
        for process in [p for p in self.account.processes.values() if p.is_alive and p.club == club][-1:]:
            self._go_on(process, steps)

    def _go_on(self, process: Process, steps: int) -> None:
        for _ in range(steps):
            if process.is_alive:
                self._advance(process)
                self.compare()

    def _advance(self, process: Process) -> None:
        if process.claimed is None:
            self._claim(process)
        elif process.is_due:
            self._hook(process)
        elif missing := [f for f in FUNCTIONS if f.rpc not in process.done | process.failed | {process.asleep}]:
            self._compute(process, missing[0])
        elif process.asleep is None:
            self._settle(process)
            process.is_alive = False
            self._dagster_says(process, "finished")

    def _claim(self, process: Process) -> None:
        is_named = process.club != DEFAULT
        try:
            with self.world.watched(), self.database.connection() as connection:
                process.claimed = refresh.claim(
                    connection,
                    run_id=process.run_id,
                    lease_id=process.lease.lease_id if process.lease else None,
                    functions=[function.rpc for function in FUNCTIONS],
                    tenant_id=UUID(process.club) if is_named else None,
                    payload=self.payload(process.club, is_spelled=False, triggeredBy="admin", requestId=process.run_id),
                )
        except LeaseLost:
            self._lose(process)
            return
        if process.claimed is not None:
            assert str(process.claimed.tenant_id or DEFAULT) == process.club
            process.seen_at = self.account.now
            process.done |= process.claimed.carried_over
            process.is_due = process.is_complete
            self._note_completion(process)

    def _lose(self, process: Process) -> None:
        assert not process.is_calm, "a calm club's run has lost its lease"
        process.is_alive = False
        self._dagster_says(process, "finished")

    def _compute(self, process: Process, function: StatsFunction) -> None:
        assert process.claimed is not None
        try:
            with self.world.watched():
                refresh.compute(self.database, function, process.claimed, attempt=1)
        except LeaseLost:
            self._lose(process)
        else:
            self._note_computed(process, function)

    def _note_computed(self, process: Process, function: StatsFunction) -> None:
        assert not process.is_replaced, f"a run that has been replaced could commit: {process}"
        process.done.add(function.rpc)
        process.is_due = True
        self._note_completion(process)

    def _note_completion(self, process: Process) -> None:
        if process.is_complete and process.complete_at is None:
            process.complete_at = self.account.now

    def _hook(self, process: Process) -> None:
        process.is_due = False
        if self._deliver(process.run_id) == outbox.NOTHING_DUE:
            self._settle(process)

    def _deliver(self, run_id: str | None) -> Delivery:
        if not self.account.has_app:
            return outbox.NOTHING_DUE
        with self.world.watched():
            return outbox.deliver(self.database, self.cache, cache_deadline=CACHE_DEADLINE, run_id=run_id)

    def _settle(self, process: Process) -> None:
        with self.world.watched(), self.database.connection() as connection:
            refresh.settle(
                connection,
                run_id=process.run_id,
                cache_configured=self.account.has_app,
                cache_deadline=CACHE_DEADLINE,
            )

    def compare(self) -> None:
        """What a run has done is seen at once, whatever is the matter with other rows."""
        super().compare()
        account = self.account
        undelivered = {run_id for run_id, _ in account.seen.due} if account.has_app else set()
        for job in account.jobs.values():
            process = account.processes.get(job.run_id or "")
            if process is None or not process.is_complete or process.is_due or process.run_id in undelivered:
                continue
            assert job.is_touched or job.is_hindered or job.status in ("completed", "failed"), f"not over: {job}"

    @step(pick=PICK, number=NUMBER)
    def fall_asleep(self, pick: int, number: int) -> None:
        """A function takes its time, in a process that may be given up meanwhile."""
        process, function = self._living(pick, or_calm=True), FUNCTIONS[number]
        if self.sleeper or process is None or process.claimed is None or self._is_over(process, function):
            return
        claimed = process.claimed

        def compute() -> None:
            name = f"stats-pipeline run {claimed.run_id[:8]} pid {os.getpid()}"
            with Database(self.database.url, max_connections=1, application_name=name) as own:
                refresh.compute(own, function, claimed, attempt=1)

        process.asleep = function.rpc
        self.sleeper = process, function, self.world.put_to_sleep(function.rpc, compute)

    @step()
    def wake_up(self) -> None:
        if self.sleeper is None:
            return
        process, function, sleeping = self.sleeper
        self.sleeper = process.asleep = None
        self.world.wake()
        try:
            with self.world.watched():
                sleeping.result()
        except LeaseLost:
            self._lose(process)
        except psycopg.errors.AdminShutdown:
            assert not process.is_calm, "a calm club's run has been cut off"
        else:
            self._note_computed(process, function)

    def _is_over(self, process: Process, function: StatsFunction) -> bool:
        return function.rpc in process.done | process.failed | {process.asleep}

    @step(pick=PICK, number=NUMBER, is_final=st.booleans())
    def function_fails(self, pick: int, number: int, is_final: bool) -> None:
        process, function = self._living(pick, or_calm=False), FUNCTIONS[number]
        if process is None or process.claimed is None or self._is_over(process, function):
            return
        self.world.hand.execute("insert into public.broken (rpc) values (%s)", [function.rpc])
        try:
            with self.world.watched():
                refresh.compute(self.database, function, process.claimed, attempt=1)
            raise AssertionError("a broken function cannot be computed")
        except psycopg.errors.RaiseException as error:
            problem = str(error)
        finally:
            self.world.hand.execute("delete from public.broken")
        with self.world.watched():
            refresh.record_failed_try(
                self.database, run_id=process.run_id, rpc=function.rpc, attempt=1, duration_ms=1, problem=problem
            )
        if is_final:
            self.account.function_failed(process)
            with self.world.watched():
                process.failed |= {function.rpc} | refresh.fail(
                    self.database, process.run_id, function.rpc, FUNCTIONS, problem
                )
            self._note_completion(process)
        self._settle(process)

    @step(pick=PICK)
    def beat(self, pick: int) -> None:
        if process := self._living(pick, or_calm=True):
            self._beat(process)

    def _beat(self, process: Process) -> bool:
        with self.world.watched(), self.database.connection() as connection:
            is_open = refresh.renew()  # to adapt
        if is_open:
            process.seen_at = self.account.now
        assert is_open or not process.is_calm or process.claimed is None or process.is_complete
        return is_open

    def _dagster_says(self, process: Process, state: DagsterState) -> None:
        self.account.dagster[process.run_id] = self.account.dagster[process.key] = state

    @step(pick=PICK, is_noticed=st.booleans())
    def die(self, pick: int, is_noticed: bool) -> None:
        if process := self._living(pick, or_calm=False):
            process.is_alive = False
            if is_noticed:
                self._dagster_says(process, "finished")

    @step(pick=PICK)
    def cancel(self, pick: int) -> None:
        if process := self._living(pick, or_calm=False):
            process.is_alive = False
            self.account.cancel(process)
            self._dagster_says(process, "canceled")
