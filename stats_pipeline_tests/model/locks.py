"""The rules of locks: one transaction of the app's that holds rows, messages and requests until it ends, steps later.

No rule is disabled during that time. Only steps that need a locked row leave it alone.
"""

from typing import Any

from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from stats_pipeline.jobs import queue
from stats_pipeline_tests.model.account import Job
from stats_pipeline_tests.model.base import CLUB, PICK, step
from stats_pipeline_tests.model.damage import STATUS, Damage
from stats_pipeline_tests.model.world import CLUBS


class Locks(Damage):
    """Only the row, message or request that is held waits."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows_held: set[str] = set()
        self.messages_held: set[int] = set()
        self.jobs_held: list[tuple[str, Any]] = []  # enqueued and not committed, each with its payload
        self.changes_held: list[dict[str, Any]] = []  # not committed either

    def held(self) -> tuple[set[str], set[int]]:
        return self.rows_held, self.messages_held

    def is_held(self) -> bool:
        return bool(self.rows_held or self.messages_held or self.jobs_held)

    @step(pick=PICK, strength=st.sampled_from(["for update", "for no key update", "for share"]))
    def hold_row(self, pick: int, strength: str) -> None:
        if job := self._victim(pick):
            self.world.holder.execute(
                f"select from public.background_job_status where id = %s {strength}".encode(), [job.id]
            )
            self._hold(job)

    @step(pick=PICK, status=STATUS)
    def hold_changed_row(self, pick: int, status: str) -> None:
        """The change is there for everybody else when it is committed."""
        if (job := self._victim(pick)) and not self.has_refusals and "matchId" not in str(job.payload):
            row = self.world.holder.execute(
                "update public.background_job_status as j set status = %s where id = %s returning to_jsonb(j) as row",
                [status, job.id],
            ).fetchone()
            assert row is not None
            self.changes_held.append(row["row"])
            self._hold(job)

    def _hold(self, job: Job) -> None:
        job.is_hindered = True
        self.rows_held.add(job.id)

    @step(pick=PICK)
    def hold_message(self, pick: int) -> None:
        if msg_id := self._message(pick):
            self.world.holder.execute("select from pgmq.q_stats_update where msg_id = %s for update", [msg_id])
            self.messages_held.add(msg_id)

    @step(club=CLUB, door=st.sampled_from("ab"), is_raw_too=st.booleans())
    def hold_request(self, club: int, door: str, is_raw_too: bool) -> None:
        """An enqueue that is not committed yet; the same request may come as a raw message."""
        if self.is_calm(CLUBS[club]):
            return
        payload = self.payload(club)
        if door == "a":
            job_id = str(queue.enqueue(self.world.holder, payload).job_id)
        else:
            row = self.world.holder.execute(
                "insert into public.background_job_status (job_payload, status) values (%s, 'queued') returning id",
                [Jsonb(payload)],
            ).fetchone()
            assert row is not None
            job_id = str(row["id"])
        self.jobs_held.append((job_id, payload))
        if is_raw_too:
            self.enqueue_by("c", payload)

    @step(is_committed=st.booleans())
    def release(self, is_committed: bool) -> None:
        self.let_go(is_committed=is_committed)

    def let_go(self, *, is_committed: bool) -> None:
        if is_committed:
            self.world.holder.commit()
            for job_id, payload in self.jobs_held:
                self.account.accept(job_id, payload)
            for row in self.changes_held:
                self.account.touch(row)
        else:
            self.world.holder.rollback()
        for held in (self.rows_held, self.messages_held, self.jobs_held, self.changes_held):
            held.clear()
