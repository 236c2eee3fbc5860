"""The rules of what others do: rows and messages changed, deleted, restored and made up by hand, an app that refuses an
update, an app's transaction that holds rows and requests for as long as it likes. The calm club's are left alone.
"""

from typing import Any
from uuid import uuid4

from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from stats_pipeline import job_status
from stats_pipeline_tests.model.account import Job, club_of
from stats_pipeline_tests.model.life import CLUB, MALFORMED, PICK, Life, step
from stats_pipeline_tests.model.world import CLUBS

STATUS = st.sampled_from(["queued", "processing", "completed", "failed"])
TRIGGERS = st.sampled_from([True, True, False])

FAR_OFF: tuple[str | None, ...] = (None, "1900-01-01", "2200-01-01")
GARBAGE: tuple[Any, ...] = (None, 5, "text", [], {}, {"jobId": 5}, {"jobId": None}, {"jobId": "nobody"}, {"jobId": {}})

_COLUMNS = (
    "id, job_payload, status, started_at, completed_at, error_message, results, created_at, tenant_id, retry_of, attempts, "
    "run_id, msg_id"
)
_RESTORE = f"""
insert into public.background_job_status ({_COLUMNS})
select {_COLUMNS} from jsonb_populate_record(null::public.background_job_status, %s)
returning *
"""


class Damage(Life):
    """Nothing of it may block a club, mix up two, or make a repair fail for ever."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows_held: set[str] = set()
        self.messages_held: set[int] = set()
        self.requests_held: list[tuple[str, Any]] = []  # uncommitted jobs, each with its payload
        self.deleted: list[dict[str, Any]] = []

    # Rows.

    def _victim(self, pick: int) -> Job | None:
        jobs = [j for j in self.account.jobs.values() if not self.is_calm(j.club) and j.id not in self.rows_held]
        return jobs[pick % len(jobs)] if jobs else None

    def _update(self, pick: int, column: str, value: Any, triggers: bool) -> None:
        """Whatever this makes of a row, it does not become the calm club's."""
        if job := self._victim(pick):
            rows = self.world.by_hand(
                f"update public.background_job_status set {column} = %s where id = %s returning *",
                value,
                job.id,
                triggers=triggers,
                unless=self._is_the_calm_clubs,
            )
            if rows:
                self.account.touch(rows[0])

    def _is_the_calm_clubs(self, row: dict[str, Any]) -> bool:
        column = row["tenant_id"]
        return self.is_calm(club_of(None if column is None else str(column), row["job_payload"]))

    @step(pick=PICK, status=STATUS, triggers=TRIGGERS)
    def set_status(self, pick: int, status: str, triggers: bool) -> None:
        self._update(pick, "status", status, triggers)

    @step(pick=PICK, attempts=st.sampled_from([0, None, -1, 99]))
    def set_attempts(self, pick: int, attempts: int | None) -> None:
        self._update(pick, "attempts", attempts, True)

    @step(pick=PICK, triggers=TRIGGERS)
    def set_queued_anew(self, pick: int, triggers: bool) -> None:
        """What an admin writes who wants a job done again."""
        self._update(pick, "status = 'queued', attempts", 0, triggers)

    @step(pick=PICK, club=st.none() | CLUB)
    def set_club(self, pick: int, club: int | None) -> None:
        self._update(pick, "tenant_id", None if club is None else CLUBS[club], True)

    @step(pick=PICK, club=CLUB)
    def set_payload(self, pick: int, club: int) -> None:
        self._update(pick, "job_payload", Jsonb(self.payload(club)), True)

    @step(pick=PICK, kind=st.sampled_from(range(len(MALFORMED))))
    def set_payload_malformed(self, pick: int, kind: int) -> None:
        self._update(pick, "job_payload", Jsonb(MALFORMED[kind](self.unique("malformed"))), True)

    @step(
        pick=PICK,
        column=st.sampled_from(["created_at", "started_at", "completed_at", "updated_at"]),
        time=st.sampled_from(FAR_OFF),
        triggers=st.booleans(),
    )
    def set_time(self, pick: int, column: str, time: str | None, triggers: bool) -> None:
        self._update(pick, column, time, triggers)

    @step(pick=PICK, results=st.sampled_from([None, 5, "text", [1], {}, {"functions": 5}]))
    def set_results(self, pick: int, results: Any) -> None:
        self._update(pick, "results", None if results is None else Jsonb(results), True)

    @step(pick=PICK, msg_id=st.sampled_from([None, 0, 1, 2, 10**15]))
    def set_message(self, pick: int, msg_id: int | None) -> None:
        self._update(pick, "msg_id", msg_id, True)

    @step(pick=PICK, run=PICK)
    def set_run(self, pick: int, run: int) -> None:
        names = [None, "nobody", *self.account.processes]
        self._update(pick, "run_id", names[run % len(names)], True)

    @step(pick=PICK, triggers=TRIGGERS)
    def delete(self, pick: int, triggers: bool) -> None:
        if job := self._victim(pick):
            rows = self.world.by_hand(
                "delete from public.background_job_status as j where id = %s returning to_jsonb(j) as row",
                job.id,
                triggers=triggers,
            )
            if rows:
                self.account.delete(job.id)
                self.deleted.append(rows[0]["row"])

    @step(pick=PICK, status=st.none() | STATUS, triggers=TRIGGERS)
    def insert_again(self, pick: int, status: str | None, triggers: bool) -> None:
        """A deleted row, as it was or with another status."""
        if not self.deleted:
            return
        row = self.deleted.pop(pick % len(self.deleted))
        if status is not None:
            row["status"] = status
        self._insert(row, triggers)

    @step(
        status=STATUS, club=CLUB, has_column=st.booleans(), is_named=st.booleans(), attempts=st.sampled_from([0, None, 99, -1]),
        triggers=TRIGGERS,
    )
    def insert_by_hand(
        self, status: str, club: int, has_column: bool, is_named: bool, attempts: int | None, triggers: bool
    ) -> None:
        payload = self.payload(CLUBS[club] if is_named else CLUBS[0], is_spelled=is_named)
        row = {
            "id": str(uuid4()),
            "job_payload": payload,
            "status": status,
            "tenant_id": CLUBS[club] if has_column else None,
            "attempts": attempts,
        }
        self._insert(row, triggers)

    def _insert(self, row: dict[str, Any], triggers: bool) -> None:
        old = self.account.deleted.get(row["id"])
        rows = self.world.by_hand(_RESTORE, Jsonb(row), triggers=triggers, unless=self._is_the_calm_clubs)
        if not rows:
            return
        status = row["status"]
        is_request = triggers and status == "queued"
        job = self.account.accept(
            row["id"], row["job_payload"], row["tenant_id"], status=status, is_request=is_request
        )
        self.account.touch(rows[0])
        job.is_over = status in ("completed", "failed")
        if old is not None and status != "queued":
            job.since = old.since
            job.may_fail |= old.may_fail

    # Messages.

    def _messages(self) -> list[int]:
        """The messages that stand for nothing of the calm club's."""
        calm = {row["msg_id"] for row in self.account.seen.jobs if self.is_calm(self.account.jobs[row["id"]].club)}
        calm |= {
            m.msg_id
            for m in self.account.raw
            if isinstance(m.payload, dict) and m.payload.get("tenantId", CLUBS[0]) == self.account.calm
        }
        return [m for m in sorted(self.account.seen.messages) if m not in calm | self.messages_held]

    def _message(self, pick: int) -> int | None:
        messages = self._messages()
        return messages[pick % len(messages)] if messages else None

    @step(pick=PICK, seconds=st.sampled_from([-60, 30, 3600]))
    def message_is_read(self, pick: int, seconds: int) -> None:
        if msg_id := self._message(pick):
            self.world.by_hand("select pgmq.set_vt('stats_update'::text, %s, %s)", msg_id, seconds)

    @step(pick=PICK, how=st.sampled_from(["archive", "delete"]))
    def message_is_removed(self, pick: int, how: str) -> None:
        if msg_id := self._message(pick):
            self.world.by_hand(f"select pgmq.{how}('stats_update'::text, %s)", msg_id)
            self.account.remove(msg_id)

    @step(kind=st.sampled_from(range(len(GARBAGE))))
    def message_is_garbage(self, kind: int) -> None:
        garbage = GARBAGE[kind]
        rows = self.world.by_hand(
            "select pgmq.send('stats_update', %s::jsonb) as id", None if garbage is None else Jsonb(garbage)
        )
        self.account.send(rows[0]["id"], garbage, None)

    @step(pick=PICK)
    def message_names_a_job(self, pick: int) -> None:
        """Of a job that waits, works, is over, was deleted, or never was."""
        jobs = [job.id for job in (*self.account.jobs.values(), *self.account.deleted.values())] or [str(uuid4())]
        self.world.by_hand("select pgmq.send('stats_update', %s::jsonb)", Jsonb({"jobId": jobs[pick % len(jobs)]}))

    @step()
    def queue_is_made_anew(self) -> None:
        """Its message ids start at 1 again."""
        if self.messages_held or self.requests_held or len(self._messages()) < len(self.account.seen.messages):
            return
        for message in self.account.raw:
            message.is_open = False
        self.world.by_hand("delete from pgmq.q_stats_update")
        self.world.by_hand("delete from pgmq.a_stats_update")
        self.world.by_hand("select setval(pg_get_serial_sequence('pgmq.q_stats_update', 'msg_id'), 1, false)")

    # The app.

    @step(pick=PICK, status=STATUS)
    def app_refuses(self, pick: int, status: str) -> None:
        """A trigger of the app's refuses every update of a row to this status."""
        if job := self._victim(pick):
            job.may_fail.add("the app's trigger")
            self.world.by_hand("insert into public.refusal values (%s, %s) on conflict do nothing", job.id, status)

    @step()
    def app_refuses_no_more(self) -> None:
        self.world.by_hand("delete from public.refusal")

    # Locks: one transaction of the app's, that ends when it ends.

    def locked(self) -> tuple[set[str], set[int]]:
        return self.rows_held, self.messages_held

    def is_locked(self, job_id: str) -> bool:
        return job_id in self.rows_held

    @step(pick=PICK, strength=st.sampled_from(["for update", "for no key update", "for share"]))
    def lock_row(self, pick: int, strength: str) -> None:
        if job := self._victim(pick):
            self.world.holder.execute(
                f"select from public.background_job_status where id = %s {strength}".encode(), [job.id]
            )
            self.rows_held.add(job.id)

    @step(pick=PICK)
    def lock_message(self, pick: int) -> None:
        if msg_id := self._message(pick):
            self.world.holder.execute("select from pgmq.q_stats_update where msg_id = %s for update", [msg_id])
            self.messages_held.add(msg_id)

    @step(club=CLUB, door=st.sampled_from("ab"), is_sent_raw_too=st.booleans())
    def lock_request(self, club: int, door: str, is_sent_raw_too: bool) -> None:
        """An enqueue that is not committed yet; the same request comes as a raw message."""
        if self.is_calm(CLUBS[club]):
            return
        payload = self.payload(club)
        if door == "a":
            job_id = str(job_status.enqueue(self.world.holder, payload).job_id)
        else:
            row = self.world.holder.execute(
                "insert into public.background_job_status (job_payload, status) values (%s, 'queued') returning id",
                [Jsonb(payload)],
            ).fetchone()
            assert row is not None
            job_id = str(row["id"])
        self.requests_held.append((job_id, payload))
        if is_sent_raw_too:
            self.enqueue_by("c", payload)

    @step(is_committed=st.booleans())
    def release(self, is_committed: bool) -> None:
        self.let_go(is_committed=is_committed)

    def let_go(self, *, is_committed: bool) -> None:
        if is_committed:
            self.world.holder.commit()
            for job_id, payload in self.requests_held:
                self.account.accept(job_id, payload)
        else:
            self.world.holder.rollback()
        self.rows_held.clear()
        self.messages_held.clear()
        self.requests_held.clear()

