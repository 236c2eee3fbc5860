"""The rules of runs: jobs are leased, claimed, computed, delivered and settled; functions fail, or take so long that
the run counts as dead in the meantime; processes die, are cancelled, wake up late, or are started by hand.
"""

from concurrent.futures import Future
from typing import Any
from uuid import UUID, uuid4

import psycopg
from hypothesis import strategies as st

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.errors import LeaseLost
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Lease, Payload
from stats_pipeline.jobs.reconcile import DagsterState
from stats_pipeline.jobs.refresh import Refresh, session_name
from stats_pipeline_tests.model.account import Process
from stats_pipeline_tests.model.base import CLUB, PICK, step
from stats_pipeline_tests.model.doors import Doors
from stats_pipeline_tests.model.world import CLUBS, DEFAULT, FUNCTIONS, RPCS

MAX_RUNS = 10  # so many that no club ever waits for another's run

# How many leases a run has.
LEASES = st.sampled_from([1, 2, len(CLUBS)])
NUMBER = st.sampled_from(range(len(FUNCTIONS)))


class Runs(Doors):
    """A process does what an op and its hook do, in their order; anything may happen between two of its steps."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sleeper: tuple[Process, StatsFunction, Future[None]] | None = None

    @step(is_launched=st.sampled_from([True, True, False]), per_run=LEASES)
    def lease(self, is_launched: bool, per_run: int) -> None:
        with self.world.watched(), self.database.connection() as connection:
            leases = queue.lease(connection, lease_seconds=self.settings.lease_seconds, max_runs=MAX_RUNS)
        self._launch(leases, is_launched, per_run)

    @step(per_run=LEASES)
    def nightly(self, per_run: int) -> None:
        payloads = [self.payload(club, is_spelled=False, triggeredBy="cron") for club in CLUBS]
        with self.world.watched(), self.database.transaction() as connection:
            answers = queue.enqueue_each(connection, map(Payload.model_validate, payloads))
            leases = queue.lease(connection, lease_seconds=self.settings.lease_seconds, max_runs=MAX_RUNS)
        for answer, payload in zip(answers, payloads, strict=True):
            self.account.accept(answer.job_id, payload)
        self._launch(leases, True, per_run)

    def _launch(self, leases: list[Lease], is_launched: bool, per_run: int) -> None:
        account = self.account
        was_leased = account.calm in account.seen.leased
        self.compare()
        for lease in leases:
            club = str(lease.tenant_id or DEFAULT)
            waiting = account.waiting(club)
            assert waiting, f"leased for nobody: {lease}"
            if self.is_calm(club):
                assert lease.jobs == len(waiting), f"{lease} does not have all of {waiting}"
        launched = [lease for lease in leases if is_launched or self.is_calm(str(lease.tenant_id or DEFAULT))]
        for first in range(0, len(launched), per_run):
            run_id = str(uuid4())
            for lease in launched[first : first + per_run]:
                self._start(run_id, str(lease.tenant_id or DEFAULT), lease)
        is_leased = was_leased or account.calm in account.seen.leased
        assert is_leased or not account.waiting(account.calm), f"not leased: {account.waiting(account.calm)}"

    def _start(self, run_id: str, club: str, lease: Lease | None) -> Process:
        refresh = Refresh(
            self.database,
            self.settings,
            run_id=run_id,
            lease_id=lease.lease_id if lease else None,
            tenant_id=UUID(club) if club != DEFAULT else None,
            cache=self.cache if self.account.has_app else None,
        )
        process = Process(refresh, club, lease, self.account.number, self.is_calm(club))
        self.account.processes.append(process)
        self._dagster_says(run_id, "live")
        return process

    @step(club=CLUB)
    def run_by_hand(self, club: int) -> None:
        self._claim(self._start(str(uuid4()), CLUBS[club], None))

    def _living(self, pick: int, *, or_calm: bool) -> Process | None:
        """One of those that live, the newest first."""
        living = [p for p in self.account.processes if p.is_alive and (or_calm or not p.is_calm)][::-1]
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
        self.lease(is_launched=True, per_run=1)
        for process in [p for p in self.account.processes if p.is_alive and p.club == club][-1:]:
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
            with self.world.watched():
                process.refresh.settle()
            self._end(process)

    def _claim(self, process: Process) -> None:
        try:
            with self.world.watched():
                process.claimed = process.refresh.try_to_claim(RPCS)
        except LeaseLost:
            self._lose(process)
            return
        if process.claimed is not None:
            assert str(process.claimed.tenant_id or DEFAULT) == process.club
            self.account.holders[str(process.claimed.lease_id)] = process
            process.seen_at = self.account.now
            process.done |= process.claimed.carried_over
            process.is_due = process.is_complete
            self._note_completion(process)

    def _lose(self, process: Process) -> None:
        assert not process.is_calm, "a calm club's run has lost its lease"
        self._end(process)

    def _end(self, process: Process) -> None:
        """The run goes on as long as there is something left of it."""
        process.is_alive = False
        if not any(other.is_alive for other in self.account.of_run(process.run_id)):
            self._dagster_says(process.run_id, "finished")

    def _compute(self, process: Process, function: StatsFunction) -> None:
        assert process.claimed is not None
        try:
            with self.world.watched():
                process.refresh.compute(function, process.claimed, tries=1)
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
        with self.world.watched():
            process.refresh.deliver()

    def compare(self) -> None:
        """What a run has done is seen at once, whatever is the matter with other rows."""
        super().compare()
        account = self.account
        undelivered = {lease_id for lease_id, _ in account.seen.due} if account.has_app else set()
        over = {
            (process.run_id, process.club)
            for lease_id, process in account.holders.items()
            if process.is_complete and not process.is_due and lease_id not in undelivered
        }
        for job in account.jobs.values():
            if (job.run_id, job.club) in over and not job.is_touched and not job.is_hindered:
                assert job.status in ("completed", "failed"), f"not over: {job}"

    @step(pick=PICK, number=NUMBER)
    def fall_asleep(self, pick: int, number: int) -> None:
        """A function takes its time, in a process that may be given up meanwhile."""
        if process := self._living(pick, or_calm=True):
            self._fall_asleep(process, FUNCTIONS[number])

    def _fall_asleep(self, process: Process, function: StatsFunction) -> None:
        if self.sleeper or process.claimed is None or self._is_over(process, function):
            return
        claimed = process.claimed

        def compute() -> None:
            name = session_name(process.run_id)
            with Database(self.database.url, max_connections=1, application_name=name) as own:
                Refresh(own, self.settings, run_id=process.run_id).compute(function, claimed, tries=1)

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
                process.refresh.compute(function, process.claimed, tries=1)
            raise AssertionError("a broken function cannot be computed")
        except psycopg.errors.RaiseException as error:
            problem = str(error)
        finally:
            self.world.hand.execute("delete from public.broken")
        with self.world.watched():
            process.refresh.record_failed_try(function.rpc, tries=1, duration_ms=1, problem=problem)
        if is_final:
            self.account.function_failed(process)
            with self.world.watched():
                process.failed |= {function.rpc} | process.refresh.fail(function.rpc, problem)
            self._note_completion(process)

    @step(pick=PICK)
    def beat(self, pick: int) -> None:
        if process := self._living(pick, or_calm=True):
            self._beat(process)

    def _beat(self, process: Process) -> bool:
        with self.world.watched():
            is_open = process.refresh.renew()
        if is_open:
            process.seen_at = self.account.now
        may_be_over = not process.is_calm or process.claimed is None or process.is_complete
        assert is_open or may_be_over, "a calm club's run has lost its lease"
        return is_open

    def _dagster_says(self, run_id: str, state: DagsterState) -> None:
        for process in self.account.of_run(run_id):
            self.account.dagster[process.run_id] = self.account.dagster[process.key] = state

    @step(pick=PICK, is_noticed=st.booleans())
    def die(self, pick: int, is_noticed: bool) -> None:
        """With all that has its run; a calm club's part stays, and so the run."""
        if process := self._living(pick, or_calm=False):
            run = self.account.of_run(process.run_id)
            for other in run:
                other.is_alive = other.is_alive and other.is_calm
            if is_noticed and not any(other.is_alive for other in run):
                self._dagster_says(process.run_id, "finished")

    @step(pick=PICK)
    def die_in_part(self, pick: int) -> None:
        """What works on one of a run's leases, while the others go on."""
        process = self._living(pick, or_calm=False)
        if process and any(other.is_alive for other in self.account.of_run(process.run_id) if other is not process):
            process.is_alive = False

    @step(pick=PICK)
    def cancel(self, pick: int) -> None:
        process = self._living(pick, or_calm=False)
        run = self.account.of_run(process.run_id) if process else []
        if process and not any(other.is_calm for other in run):
            for other in run:
                other.is_alive = False
                self.account.cancel(other)
            self._dagster_says(process.run_id, "canceled")
