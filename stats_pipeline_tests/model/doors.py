"""The rules of enqueuing: in each of the three ways, repeated, malformed, without success; and the retry button."""

from typing import Any
from uuid import UUID

import psycopg
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from stats_pipeline.errors import InvalidJob
from stats_pipeline.jobs import queue
from stats_pipeline_tests.model.account import is_wellformed
from stats_pipeline_tests.model.base import CLUB, KIND, MALFORMED, PICK, Base, step
from stats_pipeline_tests.model.world import CLUBS, DEFAULT, UNKNOWN_CLUB

DOOR = st.sampled_from("abc")
MATCH = st.sampled_from([None, None, 1, 2])

_INSERT = """
insert into public.background_job_status (job_payload, status, tenant_id) values (%s, 'queued', %s) {tail}
returning id::text
"""


class Doors(Base):
    """Each is asked as the app asks it."""

    def enqueue_by(self, door: str, payload: Any, column: str | None = None, tail: str = "") -> str | None:
        """The id of the job; None where there is none, or not yet."""
        if door == "a":
            with self.world.watched(), self.database.connection() as connection:
                return str(queue.enqueue(connection, payload).job_id)
        if door == "b":
            with self.world.watched():
                job_id = self.world.ask(_INSERT.format(tail=tail), Jsonb(payload), column)
                return None if job_id is None else str(job_id)
        mark = payload.get("requestId", payload.get("note")) if isinstance(payload, dict) else "".join(payload)
        msg_id = self.world.ask("select pgmq.send('stats_update', %s::jsonb)", Jsonb(payload))
        self.account.send(msg_id, payload, mark)
        return None

    def enqueue_for(self, club: int | str) -> None:
        """A job of this club's, by the function."""
        payload = self.payload(club)
        self.account.accept(self.enqueue_by("a", payload), payload)

    @step(door=DOOR, club=CLUB, is_spelled=st.booleans(), match=MATCH)
    def enqueue(self, door: str, club: int, is_spelled: bool, match: int | None) -> None:
        """Of two open jobs for one match, an index of the app's refuses the second."""
        payload = self.payload(club, is_spelled=is_spelled, **({} if match is None else {"matchId": match}))
        is_second = match in self.account.open_matches()
        try:
            job_id = self.enqueue_by(door, payload)
        except psycopg.errors.UniqueViolation as error:
            if is_second and error.diag.constraint_name == "app_one_open_job_per_match":
                return
            raise
        if job_id:
            self.account.accept(job_id, payload)
        elif match is not None:
            self.account.raw[-1].may_fail.add("the app's index")

    @step(column=CLUB, club=st.none() | CLUB)
    def enqueue_with_the_column(self, column: int, club: int | None) -> None:
        """The column says whose job it is, whatever the payload says."""
        payload = self.payload(DEFAULT if club is None else club, is_spelled=club is not None)
        self.account.accept(self.enqueue_by("b", payload, CLUBS[column]), payload, CLUBS[column])

    @step(door=DOOR, pick=PICK, is_quiet=st.booleans())
    def repeat(self, door: str, pick: int, is_quiet: bool) -> None:
        """A request that has been made before; of a job that was deleted it is a new one."""
        account = self.account
        known = [(key, first) for key, first in account.requests.items() if first not in self.held()[0]]
        if not known:
            return
        (club, request_id), first = known[pick % len(known)]
        is_free = first not in account.jobs
        if not is_free and account.jobs[first].is_touched:
            return
        payload = self.payload(club, requestId=request_id)
        try:
            job_id = self.enqueue_by(door, payload, tail="on conflict do nothing" if is_quiet else "")
        except psycopg.errors.UniqueViolation:
            if is_free or is_quiet or door != "b":
                raise
            return
        assert is_free or job_id == (first if door == "a" else None), f"one request, two jobs: {job_id} and {first}"
        if job_id and is_free:
            account.accept(job_id, payload)

    @step(door=DOOR, kind=KIND)
    def enqueue_malformed(self, door: str, kind: int) -> None:
        payload = MALFORMED[kind](self.unique("malformed"))
        try:
            job_id = self.enqueue_by(door, payload)
        except InvalidJob:
            if door == "a":
                return
            raise
        assert door != "a", f"accepted: {payload}"
        if job_id:
            self.account.accept(job_id, payload)

    @step(door=DOOR)
    def enqueue_for_an_unknown_club(self, door: str) -> None:
        """A foreign key of the app's refuses it."""
        payload = self.payload(UNKNOWN_CLUB)
        try:
            job_id = self.enqueue_by(door, payload)
        except psycopg.errors.ForeignKeyViolation:
            return
        assert job_id is None, f"accepted: {payload}"
        self.account.raw[-1].may_fail.add("the app's foreign key")

    @step(door=DOOR, club=CLUB)
    def enqueue_and_roll_back(self, door: str, club: int) -> None:
        payload = self.payload(club)
        with self.world.hand.transaction(force_rollback=True):
            if door == "a":
                queue.enqueue(self.world.hand, payload)
            else:
                self.enqueue_by(door, payload)
        if door == "c":
            self.account.raw.pop()

    @step(match=st.sampled_from([1, 2]), club=CLUB)
    def enqueue_once_per_match(self, match: int, club: int) -> None:
        """What the app's index refuses is left out, and the app's transaction goes on."""
        payload = self.payload(club, matchId=match)
        if job_id := self.enqueue_by("b", payload, tail="on conflict do nothing"):
            self.account.accept(job_id, payload)

    @step(pick=PICK)
    def press_retry(self, pick: int) -> None:
        jobs = [job for job in self.account.jobs.values() if job.id not in self.held()[0]]
        if not jobs:
            return
        job = jobs[pick % len(jobs)]
        is_sound = job.status == "failed" and is_wellformed(job.payload)
        try:
            with self.world.watched(), self.database.connection() as connection:
                retried = str(queue.retry(connection, UUID(job.id)).job_id)
        except InvalidJob:
            assert not is_sound or job.is_touched, f"cannot be retried: {job}"
            return
        except psycopg.IntegrityError as error:
            if (error.diag.constraint_name or "").startswith("app_"):
                return
            raise
        assert job.status == "failed", f"retried: {job}"
        if retried not in self.account.jobs:
            payload = {"triggeredBy": "admin", "requestId": retried, "tenantId": job.club}
            self.account.accept(retried, payload, is_request=False)
