"""The rules of ordinary life: jobs are asked for, leased, claimed, computed, delivered and settled; functions fail, runs
die, are cancelled, sleep and wake up late; the app is unwell; the reconciler looks; time passes.

One club is calm: nobody touches it, its runs do not die, and it must not notice what happens to the others.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from uuid import UUID, uuid4

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from stats_pipeline import job_status, outbox, reconcile
from stats_pipeline.cache import CacheClient
from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.errors import InvalidJob, LeaseLost
from stats_pipeline.models import Lease
from stats_pipeline.reconcile import Limits, Repair
from stats_pipeline.settings import Settings
from stats_pipeline_tests.acceptance.app_server import KEY, App, Call
from stats_pipeline_tests.model.account import CACHE_DEADLINE, DEAD_AFTER, Account, Process, club_of, is_wellformed
from stats_pipeline_tests.model.world import CLUBS, DEFAULT, FUNCTIONS, UNKNOWN_CLUB, World

LEASE_SECONDS = 30
MAX_RUNS = 10  # so many that no club ever waits for another's run

WITHOUT = set(os.environ.get("MODEL_WITHOUT", "").split(","))  # HUNTING

PICK = st.integers(0, 11)
CLUB = st.sampled_from(range(len(CLUBS)))
MATCH = st.sampled_from([None, None, 1, 2])
DOOR = st.sampled_from("abc")

MALFORMED: tuple[Callable[[str], Any], ...] = (
    lambda mark: {"triggeredBy": "nobody", "requestId": mark},
    lambda mark: {"triggeredBy": "admin", "note": mark},
    lambda mark: {"triggeredBy": "admin", "requestId": mark, "tenantId": "the reds"},
    lambda mark: mark,
    lambda mark: [mark],
)
KIND = st.sampled_from(range(len(MALFORMED)))


def step(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule. After one that went wrong, nothing more is asked of the history."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @rule(**arguments)
        @functools.wraps(function)
        def run(self: "Life", **drawn: Any) -> None:
            if function.__name__ in WITHOUT or WITHOUT & {f"{function.__name__}.{k}={v}" for k, v in drawn.items()}:
                return
            try:
                function(self, **drawn)
                self.compare()
            except BaseException:
                self.is_broken = True
                raise

        return run

    return decorate


class Life(RuleBasedStateMachine):
    """What Hypothesis draws never depends on what is in the database: a rule that has nothing to do does nothing."""

    def __init__(self, world: World, app: App, cache: CacheClient) -> None:
        super().__init__()
        self.world = world
        self.database = world.database
        self.app = app
        self.cache = cache
        self.is_broken = True  # until the first step
        self.count = 0
        self.old_repairs: list[Repair] = []
        self.sleeper: tuple[Process, StatsFunction, Future[None]] | None = None
        world.empty()

    @initialize(calm=CLUB, has_app=st.booleans())
    def begin(self, calm: int, has_app: bool) -> None:
        self.account = Account(CLUBS[calm], has_app)
        self.mood = "well"
        self.app.behaviour = self._answer
        fields = {"NEXT_PUBLIC_APP_URL": self.app.url, "INTERNAL_API_KEY": KEY} if has_app else {}
        self.settings = Settings.model_validate(fields)
        self.limits = Limits(dead_after=DEAD_AFTER, cache_deadline=CACHE_DEADLINE, cache_configured=has_app)
        self.is_broken = False

    def compare(self) -> None:
        self.account.compare(self.world.look())
        self._calm_is_on_time()

    def unique(self, word: str) -> str:
        self.count += 1
        return f"{word} {self.count}."

    def is_calm(self, club: str) -> bool:
        return club == self.account.calm

    # Enqueuing.

    def payload(self, club: int | str, is_spelled: bool = True, match: int | None = None, **fields: Any) -> dict[str, Any]:
        name = CLUBS[club] if isinstance(club, int) else club
        made = {"triggeredBy": "post-match", "requestId": self.unique("request"), **fields}
        if (is_spelled and "default" not in WITHOUT) or name != DEFAULT:
            made["tenantId"] = name
        if match is not None:
            made["matchId"] = match
        return made

    def enqueue_by(self, door: str, payload: Any, column: str | None = None, tail: str = "") -> str | None:
        """Through one of the doors, as the app; the id of the job, None where there is none yet."""
        if door == "a":
            with self.world.watched(), self.database.connection() as connection:
                return str(job_status.enqueue(connection, payload).job_id)
        jsonb = psycopg.types.json.Jsonb(payload)
        if door == "b":
            with self.world.watched():
                rows = self.world.hand.execute(
                    "insert into public.background_job_status (job_payload, status, tenant_id) "
                    f"values (%s, 'queued', %s) {tail} returning id".encode(),
                    [jsonb, column],
                ).fetchall()
            return str(rows[0]["id"]) if rows else None
        msg_id = self.world.hand.execute("select pgmq.send('stats_update', %s::jsonb) as id", [jsonb]).fetchone()["id"]
        mark = payload.get("requestId", payload.get("note")) if isinstance(payload, dict) else "".join(payload)
        self.account.send(msg_id, payload, mark)
        return None

    @step(door=DOOR, club=CLUB, is_spelled=st.booleans(), match=MATCH)
    def enqueue(self, door: str, club: int, is_spelled: bool, match: int | None) -> None:
        payload = self.payload(club, is_spelled, match)
        is_refused = match in self.account.open_matches()
        try:
            job_id = self.enqueue_by(door, payload)
        except psycopg.errors.UniqueViolation as error:
            assert is_refused and "app_one_open_job_per_match" in str(error), "refused by us"
            return
        if job_id:
            self.account.accept(job_id, payload)
        elif match is not None:
            self.account.raw[-1].may_fail.add("the app's index")

    @step(club=CLUB, other=CLUB, is_named=st.booleans())
    def enqueue_with_the_column(self, club: int, other: int, is_named: bool) -> None:
        """Only the column says whose job it is, or the payload says something else."""
        payload = self.payload(other) if is_named else self.payload(DEFAULT, is_spelled=False)
        self.account.accept(self.enqueue_by("b", payload, CLUBS[club]), payload, CLUBS[club])

    @step(door=DOOR, pick=PICK, is_quiet=st.booleans())
    def repeat(self, door: str, pick: int, is_quiet: bool) -> None:
        known = [(key, job) for key, job in self.account.requests.items() if not self.account.is_touched(job)]
        known = [(key, job) for key, job in known if job not in self.held()[0]]
        if not known:
            return
        (club, request_id), first = known[pick % len(known)]
        payload = self.payload(club, requestId=request_id)
        if door == "b":
            try:
                assert self.enqueue_by("b", payload, tail="on conflict do nothing" if is_quiet else "") is None
            except psycopg.errors.UniqueViolation:
                assert not is_quiet, "`on conflict do nothing` raises"
        else:
            assert self.enqueue_by(door, payload) in (first, None)

    @step(door=DOOR, kind=KIND)
    def enqueue_malformed(self, door: str, kind: int) -> None:
        payload = MALFORMED[kind](self.unique("malformed"))
        try:
            job_id = self.enqueue_by(door, payload)
        except InvalidJob:
            assert door == "a"
            return
        assert door != "a", "accepted"
        if job_id:
            self.account.accept(job_id, payload)

    @step(door=DOOR, club=CLUB, why=st.sampled_from(["unknown club", "rolled back", "second of a match"]))
    def enqueue_in_vain(self, door: str, club: int, why: str) -> None:
        """The app's foreign key refuses it, the app rolls it back, or another job of its match waits already."""
        if why == "unknown club":
            try:
                assert self.enqueue_by(door, self.payload(UNKNOWN_CLUB)) is None
                self.account.raw[-1].may_fail.add("the app's foreign key")
            except psycopg.errors.ForeignKeyViolation:
                return
        elif why == "rolled back":
            with self.world.hand.transaction(force_rollback=True):
                if door == "a":
                    job_status.enqueue(self.world.hand, self.payload(club))
                else:
                    self.enqueue_by(door, self.payload(club))
            if door == "c":
                self.account.raw.pop()
        else:
            payload = self.payload(club, match=1)
            if job_id := self.enqueue_by("b", payload, tail="on conflict do nothing"):
                self.account.accept(job_id, payload)

    @step(pick=PICK)
    def press_retry(self, pick: int) -> None:
        jobs = list(self.account.jobs.values())
        if not jobs:
            return
        job = jobs[pick % len(jobs)]
        if job.id in self.held()[0]:
            return
        try:
            with self.world.watched(), self.database.connection() as connection:
                retried = str(job_status.retry(connection, UUID(job.id)).job_id)
        except InvalidJob:
            assert job.status != "failed" or not is_wellformed(job.payload) or job.is_touched
            return
        except psycopg.IntegrityError as error:
            assert "app_" in str(error), "refused by us"
            return
        assert job.status == "failed"
        if retried not in self.account.jobs:
            payload = {"triggeredBy": "admin", "requestId": retried, "tenantId": job.club}
            self.account.accept(retried, payload, is_request=False)

    # Runs.

    @step(is_launched=st.sampled_from([True, True, False]))
    def lease(self, is_launched: bool) -> None:
        with self.world.watched(), self.database.connection() as connection:
            leases = job_status.lease(connection, lease_seconds=LEASE_SECONDS, max_runs=MAX_RUNS)
        self._launch(leases, is_launched)

    @step()
    def nightly(self) -> None:
        payloads = [self.payload(club, is_spelled=False, triggeredBy="cron") for club in CLUBS]
        with self.world.watched(), self.database.transaction() as connection:
            ids = [job_status.enqueue(connection, payload).job_id for payload in payloads]
            leases = job_status.lease(connection, lease_seconds=LEASE_SECONDS, max_runs=MAX_RUNS)
        for job_id, payload in zip(ids, payloads, strict=True):
            self.account.accept(job_id, payload)
        self._launch(leases, True)

    def _launch(self, leases: list[Lease], is_launched: bool) -> None:
        account = self.account
        was_leased = account.calm in account.seen.leased
        self.compare()
        for lease in leases:
            club = str(lease.tenant_id or DEFAULT)
            waiting = [job for job in account.jobs.values() if job.club == club and job.status == "queued"]
            assert waiting, f"leased for nobody: {lease}"
            if self.is_calm(club):
                assert lease.jobs == len(waiting), f"{lease} does not have all of {waiting}"
            if is_launched or self.is_calm(club):
                self._start(club, lease)
        if not was_leased and account.calm not in account.seen.leased:
            waiting = [job for job in account.jobs.values() if self.is_calm(job.club) and job.status == "queued"]
            raw = [message for message in account.raw if message.is_open and self.is_calm(club_of(None, message.payload))]
            assert not waiting, f"not leased: {waiting}"
            assert not [message for message in raw if is_wellformed(message.payload) and not message.may_fail], raw

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
        """The process does the next steps of its life; whatever happens next may happen between any two."""
        if process := self._living(pick, or_calm=True):
            self._go_on(process, steps)

    @step(club=CLUB, steps=st.integers(0, 8))
    def enqueue_and_go_on(self, club: int, steps: int) -> None:
        payload = self.payload(club)
        self.account.accept(self.enqueue_by("a", payload), payload)
        self.lease(is_launched=True)
        for process in [p for p in self.account.processes.values() if p.is_alive and p.club == CLUBS[club]][-1:]:
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
                process.claimed = job_status.claim(
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
            self._note_completion(process)

    def _lose(self, process: Process) -> None:
        assert not process.is_calm, "a calm club's run has lost its lease"
        process.is_alive = False
        self._dagster_says(process, "finished")

    def _compute(self, process: Process, function: StatsFunction) -> None:
        assert process.claimed is not None
        try:
            with self.world.watched():
                job_status.compute(self.database, function, process.claimed, attempt=1)
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
        if not self.account.has_app or self._deliver(process.run_id) == outbox.NOTHING_DUE:
            self._settle(process)

    def _settle(self, process: Process) -> None:
        with self.world.watched(), self.database.connection() as connection:
            job_status.settle(
                connection,
                run_id=process.run_id,
                cache_configured=self.account.has_app,
                cache_deadline=CACHE_DEADLINE,
            )

    def _calm_is_on_time(self) -> None:
        """What a calm run has done is seen at once."""
        account = self.account
        undelivered = {run_id for run_id, _ in account.seen.due} if account.has_app else set()
        for process in account.processes.values():
            if process.is_calm and process.is_complete and not process.is_due and process.run_id not in undelivered:
                for job in account.jobs.values():
                    is_of_it = job.run_id == process.run_id and self.is_calm(job.club)
                    assert not is_of_it or job.status == "completed", f"not completed: {job}"

    @step(pick=PICK, number=st.integers(0, 1))
    def fall_asleep(self, pick: int, number: int) -> None:
        """A function takes its time, in a process that may be given up meanwhile."""
        process, function = self._living(pick, or_calm=True), FUNCTIONS[number]
        if self.sleeper or process is None or process.claimed is None or self._is_over(process, function):
            return
        claimed = process.claimed

        def compute() -> None:
            name = f"stats-pipeline run {claimed.run_id[:8]} pid {os.getpid()}"
            with Database(self.database.url, max_connections=1, application_name=name) as own:
                job_status.compute(own, function, claimed, attempt=1)

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

    @step(pick=PICK, number=st.integers(0, 1), is_final=st.booleans())
    def function_fails(self, pick: int, number: int, is_final: bool) -> None:
        process, function = self._living(pick, or_calm=False), FUNCTIONS[number]
        if process is None or process.claimed is None or self._is_over(process, function):
            return
        self.world.hand.execute("insert into public.broken (rpc) values (%s)", [function.rpc])
        try:
            with self.world.watched():
                job_status.compute(self.database, function, process.claimed, attempt=1)
            raise AssertionError("a broken function cannot be computed")
        except psycopg.errors.RaiseException as error:
            problem = str(error)
        finally:
            self.world.hand.execute("delete from public.broken")
        with self.world.watched():
            job_status.record_failed_try(
                self.database, run_id=process.run_id, rpc=function.rpc, attempt=1, duration_ms=1, problem=problem
            )
        if is_final:
            self.account.function_failed(process)
            with self.world.watched():
                process.failed |= {function.rpc} | job_status.fail(
                    self.database, process.run_id, function.rpc, FUNCTIONS, problem
                )
            self._note_completion(process)
        self._settle(process)

    @step(pick=PICK)
    def beat(self, pick: int) -> None:
        if process := self._living(pick, or_calm=True):
            self._beat(process)

    def _beat(self, process: Process) -> None:
        with self.world.watched(), self.database.connection() as connection:
            is_open = job_status.heartbeat(connection, run_id=process.run_id, lease_seconds=LEASE_SECONDS)
        if is_open:
            process.seen_at = self.account.now
        assert is_open or not process.is_calm or process.claimed is None or process.is_complete

    # How things end.

    def _dagster_says(self, process: Process, state: reconcile.DagsterState) -> None:
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

    # The app.

    @step(mood=st.sampled_from(["well", "takes some", "takes none", "unavailable", "hangs up", "takes and hangs up"]))
    def app_is(self, mood: str) -> None:
        self.mood = mood

    def _answer(self, call: Call) -> None:
        if self.mood == "unavailable":
            call.answer(503, {"success": False})
            return
        if self.mood == "hangs up":
            raise ConnectionError
        left = {"takes some": {"table"}, "takes none": set(call.tags)}.get(self.mood, set()) & set(call.tags)
        taken = set(call.tags) - left
        self.account.app_took(taken)
        if self.mood == "takes and hangs up":
            raise ConnectionError
        call.answer(
            207 if left else 200,
            {"success": not left, "invalidated_tags": sorted(taken), "failed_tags": sorted(left)},
        )

    @step(is_twice=st.booleans())
    def relay(self, is_twice: bool) -> None:
        for _ in range(1 + is_twice):
            self._deliver(None)

    def _deliver(self, run_id: str | None) -> Any:
        if not self.account.has_app:
            return None
        with self.world.watched():
            return outbox.deliver(self.database, self.cache, cache_deadline=CACHE_DEADLINE, run_id=run_id)

    # Repairing, and time.

    def _look(self) -> list[Repair]:
        with self.world.watched():
            seen = reconcile.read(self.database)
        return reconcile.decide(seen, self.account.dagster, self.limits)

    def _apply(self, repairs: list[Repair]) -> None:
        with self.world.watched():
            problems = reconcile.apply_all(self.database, repairs, self.settings, self._fail_in_dagster)
        assert not problems or self.is_disturbed(), f"repairs fail: {problems}"

    def _fail_in_dagster(self, run_id: str) -> None:
        if self.account.dagster.get(run_id) == "live":
            self.account.dagster[run_id] = "finished"

    @step(is_twice=st.booleans())
    def repair(self, is_twice: bool) -> None:
        repairs = self._look()
        self._apply(repairs)
        self.compare()
        if is_twice:
            before = self.account.seen
            self._apply(repairs)
            self.compare()
            assert self.account.seen == before or self.is_disturbed(), "repairing twice does more than once"

    @step()
    def look_and_be_held_up(self) -> None:
        self.old_repairs = self._look()

    @step()
    def apply_what_was_seen_long_ago(self) -> None:
        self._apply(self.old_repairs)

    @step(seconds=st.sampled_from([3, 11, 44, 1000]))
    def time_passes(self, seconds: int) -> None:
        self._pass(seconds)

    def _pass(self, seconds: int) -> None:
        calm = [p for p in self.account.processes.values() if p.is_calm and p.is_alive]
        for process in calm:
            if process.claimed is None and process.lease is not None:
                self._claim(process)
                self.compare()
        self.world.pass_time(seconds, self.held()[1])
        self.account.passed += seconds
        for process in calm:
            self._beat(process)

    def held(self) -> tuple[set[str], set[int]]:
        """The rows and messages that somebody else has locked."""
        return set(), set()

    def is_disturbed(self) -> bool:
        """Whether somebody refuses or holds something, so that a repair may have to wait."""
        return False

    @step()
    def somebody_looks(self) -> None:
        """The page, the API and `jobs` show every row, however odd."""
        with self.database.connection() as connection:
            listed = job_status.list_jobs(connection, limit=1000)
        assert {str(job.id) for job in listed} == self.account.jobs.keys()
