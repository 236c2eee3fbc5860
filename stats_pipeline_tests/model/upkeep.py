"""The rules of upkeep: the app works or fails, the relay delivers, the reconciler compares and repairs, at once or much
later, users read, and time passes.
"""

from typing import Any

from hypothesis import strategies as st

from stats_pipeline.jobs import outbox, queue, reconcile
from stats_pipeline.jobs.reconcile import Limits, Repair, SettleLease
from stats_pipeline_tests.acceptance.app_server import Call
from stats_pipeline_tests.model.account import CACHE_DEADLINE, DEAD_AFTER
from stats_pipeline_tests.model.base import PICK, step
from stats_pipeline_tests.model.runs import NUMBER, Runs
from stats_pipeline_tests.model.world import FUNCTIONS

MOODS = ("well", "takes some", "takes none", "unavailable", "hangs up", "takes and hangs up")
# Seconds: between two waits of ours that double from one second on, give or take a quarter.
SPANS = (3, 11, 44, 1000)


class Upkeep(Runs):
    """Dagster is a dictionary of states."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.mood = "well"
        self.app.behaviour = self._answer
        self.old_repairs: list[Repair] = []

    @step(mood=st.sampled_from(MOODS))
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
            self._relay()

    def _relay(self) -> None:
        if self.account.has_app:
            with self.world.watched():
                outbox.deliver(self.database, self.cache, cache_deadline=CACHE_DEADLINE)

    def _look(self) -> list[Repair]:
        with self.world.watched():
            seen = reconcile.read(self.database)
        has_app = self.account.has_app
        limits = Limits(dead_after=DEAD_AFTER, cache_deadline=CACHE_DEADLINE, cache_configured=has_app)
        repairs = reconcile.decide(seen, self.account.dagster, limits)
        for repair in repairs:
            if isinstance(repair, SettleLease) and (process := self.account.holders[str(repair.lease_id)]).is_calm:
                of_lease = (process.run_id, process.club)
                left = [
                    j for j in self.account.jobs.values() if (j.run_id, j.club, j.status) == (*of_lease, "processing")
                ]
                assert left, f"a repair for nothing: {repair}"
        return repairs

    def _apply(self, repairs: list[Repair]) -> None:
        with self.world.watched():
            problems = reconcile.apply_all(self.database, repairs, self.settings, self._fail_in_dagster)
        assert not problems or self.is_disturbed(), f"repairs fail: {problems}"

    def _fail_in_dagster(self, run_id: str) -> None:
        if self.account.dagster.get(run_id) == "live":
            self._dagster_says(run_id, "finished")

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

    @step(pick=PICK, steps=st.integers(1, 4))
    def be_given_up_and_go_on(self, pick: int, steps: int) -> None:
        """A process that has been silent for so long that another is given its jobs."""
        if process := self._living(pick, or_calm=False):
            self._pass(SPANS[1])
            self.repair(is_twice=False)
            self._go_on(process, steps)

    @step(number=NUMBER)
    def be_heard_of_one_lease(self, number: int) -> None:
        """The calm club's run computes, and its other leases are given up meanwhile."""
        for process in [p for p in self.account.processes if p.is_calm and p.is_alive]:
            for one in self.account.of_run(process.run_id):
                if one.is_alive and one.claimed is None:
                    self._claim(one)
                    self.compare()
            self._fall_asleep(process, FUNCTIONS[number])
        self._pass(SPANS[1])
        self.repair(is_twice=False)
        self.wake_up()

    @step(pick=PICK)
    def be_seen_before_being_given_up(self, pick: int) -> None:
        """Somebody has looked while the process was silent, and acts after it has been heard of again."""
        process = self._living(pick, or_calm=False)
        if process is None or process.is_complete:
            return
        self._pass(SPANS[1])
        repairs = self._look()
        if self._beat(process):
            self._apply(repairs)
            assert self._beat(process), f"given up though it had been seen: {process}"

    @step()
    def look_and_be_held_up(self) -> None:
        self.old_repairs = self._look()

    @step()
    def apply_what_was_seen_long_ago(self) -> None:
        self._apply(self.old_repairs)

    @step(seconds=st.sampled_from(SPANS))
    def time_passes(self, seconds: int) -> None:
        self._pass(seconds)

    def _pass(self, seconds: int) -> None:
        calm = [p for p in self.account.processes if p.is_calm and p.is_alive]
        for process in calm:
            if process.claimed is None and process.lease is not None:
                self._claim(process)
                self.compare()
        self.world.pass_time(seconds, self.held()[1])
        self.account.passed += seconds
        for process in calm:
            self._beat(process)

    @step()
    def somebody_looks(self) -> None:
        """The page, the API and `jobs` show every row, however odd."""
        with self.database.connection() as connection:
            listed = queue.list_jobs(connection, limit=1000)
        assert {str(job.id) for job in listed} == self.account.jobs.keys()
