"""The machine: all rules, and the end, where the faults stop and everything must recover."""

from stats_pipeline_tests.model.locks import Locks

ROUNDS = 30
A_WHILE = 400  # seconds: longer than any wait of ours


class Machine(Locks):
    """One history."""

    def teardown(self) -> None:
        """Locks and refusals end, the app is well, every process that is left dies: all must come right by itself."""
        if self.is_broken:
            return
        self.wake_up()
        self.let_go(is_committed=True)
        self.refuse_no_more()
        self.mood = "well"
        for process in self.account.processes:
            process.is_alive = process.is_calm and process.is_alive
        self.compare()
        left: dict[str, object] = {"all": None}
        for _ in range(ROUNDS):
            self._round()
            left = {name: what for name, what in self._left().items() if what}
            if not left:
                return
        raise AssertionError(f"after {ROUNDS} rounds there is still {left}")

    def _round(self) -> None:
        self._pass(A_WHILE)
        self.relay(is_twice=False)
        self.repair(is_twice=False)
        self.lease(is_launched=True, per_run=1)
        for process in list(self.account.processes):
            while process.is_alive and (process.lease is not None or process.claimed is not None):
                self._advance(process)
                self.compare()
        self.relay(is_twice=False)

    def _left(self) -> dict[str, object]:
        seen = self.account.seen
        return {
            "jobs": [job for job in seen.jobs if job["status"] in ("queued", "processing")],
            "leases": seen.leased,
            "messages": seen.messages,
            "tags": seen.due if self.account.has_app else [],
            "attempts": [attempt for attempt in seen.attempts if attempt[2]],
            "repairs": self._look(),
            "set aside": seen.set_aside,
        }
