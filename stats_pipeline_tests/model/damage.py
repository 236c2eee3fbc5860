"""The rules of foreign changes: rows and messages changed, deleted, restored and invented by hand, and an app that
rejects an update. Those of the calm club are left alone.
"""

from typing import Any
from uuid import uuid4

from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from stats_pipeline_tests.model.account import Job, club_of
from stats_pipeline_tests.model.base import CLUB, KIND, MALFORMED, PICK, step
from stats_pipeline_tests.model.upkeep import SPANS, Upkeep
from stats_pipeline_tests.model.world import CLUBS, DEFAULT, FUNCTIONS

STATUS = st.sampled_from(["queued", "processing", "completed", "failed"])
TRIGGERS = st.sampled_from([True, True, False])
# To the jobs of a run that has died, before another run takes them.
MEANWHILE = st.sampled_from(["nothing", "another joins", "done again"])
ATTEMPTS = st.sampled_from([0, None, -1, 99])

ODD = st.sampled_from(
    [
        *(("attempts", attempts) for attempts in (0, None, -1, 99)),
        *(
            (f"{what}_at", time)
            for what in ("created", "started", "completed", "updated")
            for time in (None, "1900-01-01", "2200-01-01")
        ),
        *(("results", results) for results in (None, 5, "text", [1], {}, {"functions": 5})),
        *(("msg_id", msg_id) for msg_id in (None, 0, 1, 2, 10**15)),
        *(("error_message", text) for text in (None, "looked at")),
    ]
)
GARBAGE: tuple[Any, ...] = (None, 5, "text", [], {}, {"jobId": 5}, {"jobId": None}, {"jobId": "nobody"}, {"jobId": {}})

_COLUMNS = (
    "id, job_payload, status, started_at, completed_at, error_message, results, created_at, tenant_id, retry_of, "
    "attempts, run_id, msg_id"
)
_INSERT = f"""
insert into public.background_job_status as j ({_COLUMNS})
select {_COLUMNS} from jsonb_populate_record(null::public.background_job_status, %s)
returning to_jsonb(j)
"""


class Damage(Upkeep):
    """Nothing of it may block a club, mix up two, or make a repair fail for ever."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.has_refusals = False
        self.deleted: list[dict[str, Any]] = []

    # Rows.

    def _victim(self, pick: int) -> Job | None:
        """Any job but the calm club's, one that is being processed twice as often as the others."""
        jobs = [j for j in self.account.jobs.values() if not self.is_calm(j.club) and j.id not in self.held()[0]]
        jobs += [job for job in jobs if job.status == "processing"]
        return jobs[pick % len(jobs)] if jobs else None

    def _update(self, pick: int, changes: dict[str, Any], triggers: bool) -> None:
        if job := self._victim(pick):
            self._write(job, changes, triggers)

    def _write(self, job: Job, changes: dict[str, Any], triggers: bool = True) -> None:
        """Whatever this makes of a row, it does not become the calm club's."""
        row = self.world.by_hand(
            f"update public.background_job_status as j set {', '.join(f'{c} = %s' for c in changes)} "
            "where id = %s returning to_jsonb(j)",
            *changes.values(),
            job.id,
            triggers=triggers,
            unless=self._is_the_calm_clubs,
        )
        if row:
            self.account.touch(row)

    def _is_the_calm_clubs(self, row: dict[str, Any]) -> bool:
        return self.is_calm(club_of(row["tenant_id"], row["job_payload"]))

    @step(pick=PICK, status=STATUS, triggers=TRIGGERS)
    def set_status(self, pick: int, status: str, triggers: bool) -> None:
        self._update(pick, {"status": status}, triggers)

    @step(pick=PICK, triggers=TRIGGERS)
    def queue_anew(self, pick: int, triggers: bool) -> None:
        """What an admin writes who wants a job done again."""
        self._update(pick, {"status": "queued", "attempts": 0}, triggers)

    @step(pick=PICK, club=st.none() | CLUB, triggers=TRIGGERS)
    def set_club(self, pick: int, club: int | None, triggers: bool) -> None:
        self._update(pick, {"tenant_id": None if club is None else CLUBS[club]}, triggers)

    @step(pick=PICK, club=CLUB, malformed=st.none() | KIND)
    def set_payload(self, pick: int, club: int, malformed: int | None) -> None:
        payload = self.payload(club) if malformed is None else MALFORMED[malformed](self.unique("malformed"))
        self._update(pick, {"job_payload": Jsonb(payload)}, True)

    @step(pick=PICK, what=ODD, triggers=TRIGGERS)
    def set_odd(self, pick: int, what: tuple[str, Any], triggers: bool) -> None:
        column, value = what
        self._update(pick, {column: Jsonb(value) if column == "results" and value is not None else value}, triggers)

    @step(pick=PICK, run=PICK)
    def set_run(self, pick: int, run: int) -> None:
        runs = [None, "nobody", *dict.fromkeys(process.run_id for process in self.account.processes)]
        self._update(pick, {"run_id": runs[run % len(runs)]}, True)

    @step(pick=PICK, triggers=TRIGGERS)
    def delete(self, pick: int, triggers: bool) -> None:
        if job := self._victim(pick):
            row = self.world.by_hand(
                "delete from public.background_job_status as j where id = %s returning to_jsonb(j)",
                job.id,
                triggers=triggers,
            )
            if row:
                self.account.delete(job.id, is_forgotten=triggers)
                self.deleted.append(row)

    @step(pick=PICK, status=st.none() | STATUS, triggers=TRIGGERS)
    def insert_again(self, pick: int, status: str | None, triggers: bool) -> None:
        """A deleted row, as it was or with another status."""
        if self.deleted:
            row = self.deleted.pop(pick % len(self.deleted))
            self._insert(row if status is None else {**row, "status": status}, triggers)

    @step(
        status=STATUS,
        column=st.none() | CLUB,
        club=st.none() | CLUB,
        attempts=ATTEMPTS,
        triggers=TRIGGERS,
    )
    def insert_by_hand(
        self, status: str, column: int | None, club: int | None, attempts: int | None, triggers: bool
    ) -> None:
        row = {
            "id": str(uuid4()),
            "job_payload": self.payload(DEFAULT, is_spelled=False) if club is None else self.payload(club),
            "status": status,
            "tenant_id": None if column is None else CLUBS[column],
            "attempts": attempts,
        }
        self._insert(row, triggers)

    def _insert(self, row: dict[str, Any], triggers: bool) -> None:
        old = self.account.deleted.get(row["id"])
        made = self.world.by_hand(_INSERT, Jsonb(row), triggers=triggers, unless=self._is_the_calm_clubs)
        if made is None:
            return
        status = row["status"]
        is_request = triggers and status == "queued"
        job = self.account.accept(row["id"], row["job_payload"], row["tenant_id"], status=status, is_request=is_request)
        self.account.touch(made)
        job.is_over = status in ("completed", "failed")
        if old is not None:
            job.asked = old.asked
            if status != "queued":
                job.since = old.asked
                job.may_fail |= old.may_fail

    # Runs meanwhile.

    @step(pick=PICK, meanwhile=MEANWHILE, steps=st.integers(1, 4))
    def die_and_be_rescued(self, pick: int, meanwhile: str, steps: int) -> None:
        if process := self._living(pick, or_calm=False):
            self.die(pick=pick, is_noticed=True)
            self.repair(is_twice=False)
            if meanwhile == "another joins":
                self.enqueue_for(process.club)
            elif meanwhile == "done again":
                for job in self._waiting(process.club):
                    self._write(job, {"status": "failed"})
                    self._write(job, {"status": "queued"})
                self.repair(is_twice=False)
            self._pass(SPANS[1])
            self._lease_and_go_on(process.club, steps)

    @step(club=CLUB, status=STATUS)
    def work_with_one_refused(self, club: int, status: str) -> None:
        """Of the jobs that one run does together, the app refuses one."""
        if not self.is_calm(CLUBS[club]):
            for _ in range(2):
                self.enqueue_for(club)
            self._refuse(self._waiting(CLUBS[club])[0], status)
            self._lease_and_go_on(CLUBS[club], 2 + 2 * len(FUNCTIONS))

    def _waiting(self, club: str) -> list[Job]:
        jobs = self.account.jobs.values()
        return [j for j in jobs if j.club == club and j.status == "queued" and j.id not in self.held()[0]]

    # Messages.

    def _messages(self) -> list[int]:
        """The messages that stand for nothing of the calm club's, and that nobody holds."""
        account = self.account
        calm = {row["msg_id"] for row in account.seen.jobs if self.is_calm(account.jobs[row["id"]].club)}
        calm |= {message.msg_id for message in account.raw if self.is_calm(club_of(None, message.payload))}
        return [msg_id for msg_id in account.seen.messages if msg_id not in calm | self.held()[1]]

    def _message(self, pick: int) -> int | None:
        messages = self._messages()
        return messages[pick % len(messages)] if messages else None

    @step(pick=PICK, what=st.sampled_from(["set_vt", "archive", "delete"]), seconds=st.sampled_from([-60, 30, 3600]))
    def take_message(self, pick: int, what: str, seconds: int) -> None:
        """Somebody else reads, archives or deletes it."""
        if msg_id := self._message(pick):
            if what == "set_vt":
                self.world.by_hand("select pgmq.set_vt('stats_update'::text, %s, %s)", msg_id, seconds)
            else:
                self.world.by_hand(f"select pgmq.{what}('stats_update'::text, %s)", msg_id)
                self.account.remove(msg_id)

    @step(kind=st.sampled_from(range(len(GARBAGE))))
    def send_garbage(self, kind: int) -> None:
        garbage = GARBAGE[kind]
        jsonb = None if garbage is None else Jsonb(garbage)
        self.account.send(self.world.by_hand("select pgmq.send('stats_update', %s::jsonb)", jsonb), garbage, None)

    @step(pick=PICK)
    def send_name(self, pick: int) -> None:
        """Of a job that waits, works, is over, was deleted, or never was."""
        jobs = [job.id for job in (*self.account.jobs.values(), *self.account.deleted.values())] or [str(uuid4())]
        self.world.by_hand("select pgmq.send('stats_update', %s::jsonb)", Jsonb({"jobId": jobs[pick % len(jobs)]}))

    @step(pick=PICK, requests=st.integers(0, 6))
    def make_queue_anew(self, pick: int, requests: int) -> None:
        """Its message ids start at 1 again: raw messages get those of jobs that a run is ending meanwhile."""
        if self.is_held() or len(self._messages()) < len(self.account.seen.messages):
            return
        for message in self.account.raw:
            message.is_open = False
        self.world.by_hand("delete from pgmq.q_stats_update")
        self.world.by_hand("delete from pgmq.a_stats_update")
        self.world.by_hand("select setval(pg_get_serial_sequence('pgmq.q_stats_update', 'msg_id'), 1, false)")
        for number in range(requests):
            self.enqueue_by("c", self.payload(number % len(CLUBS)))
        if requests and (process := self._living(pick, or_calm=True)):
            self._go_on(process, 2 + 2 * len(FUNCTIONS))

    # The app's trigger.

    @step(pick=PICK, status=STATUS)
    def refuse(self, pick: int, status: str) -> None:
        """A trigger of the app's refuses every update of a row to this status."""
        if job := self._victim(pick):
            self._refuse(job, status)

    def _refuse(self, job: Job, status: str) -> None:
        self.account.refuse(job)
        self.has_refusals = True
        self.world.by_hand("insert into public.refusal values (%s, %s) on conflict do nothing", job.id, status)

    @step()
    def refuse_no_more(self) -> None:
        self.has_refusals = False
        self.world.by_hand("delete from public.refusal")

    def is_disturbed(self) -> bool:
        return self.has_refusals or self.is_held()
