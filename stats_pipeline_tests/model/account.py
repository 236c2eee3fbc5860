"""The expected outcome, from a separate account: which job was requested for which club and when, and what has been
computed for which club since. It reads the database to compare, never to learn what is right.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from stats_pipeline.jobs.models import Claim, Lease
from stats_pipeline.jobs.reconcile import DagsterState
from stats_pipeline.jobs.refresh import Refresh
from stats_pipeline_tests.model.world import DEFAULT, RPCS, TAGS, Seen

MAX_ATTEMPTS = 3
DEAD_AFTER = 6
CACHE_DEADLINE = 900


def named_club(payload: Any) -> str | None:
    """The club that a payload names, if it names one."""
    try:
        return str(UUID(payload["tenantId"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def club_of(column: str | None, payload: Any) -> str:
    """Whose job a row is: what its column says, else what its payload says, else the default club's."""
    return column or named_club(payload) or DEFAULT


def is_wellformed(payload: Any) -> bool:
    return (
        isinstance(payload, dict)
        and payload.get("triggeredBy") in ("post-match", "admin", "cron")
        and isinstance(payload.get("requestId"), str)
        and ("tenantId" not in payload or named_club(payload) is not None)
    )


@dataclass
class Process:
    """What works on one lease, as the machine plays it: a run's process, or a part of one that has several leases."""

    refresh: Refresh
    club: str
    lease: Lease | None
    number: int  # of jobs there were when it was leased
    is_calm: bool
    is_alive: bool = True
    claimed: Claim | None = None
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    asleep: str | None = None  # the function that it is in the midst of
    is_due: bool = False  # its hook has something to do
    seen_at: float = 0
    complete_at: float | None = None
    is_replaced: bool = False
    is_cancelled: bool = False

    @property
    def run_id(self) -> str:
        return self.refresh.run_id

    @property
    def is_complete(self) -> bool:
        return self.done | self.failed >= set(RPCS)

    @property
    def key(self) -> str:
        """What Dagster knows it by until it is claimed."""
        return str(self.lease.lease_id) if self.lease else self.run_id


@dataclass
class Job:
    """An accepted job, or a row that somebody has put there."""

    id: str
    number: int
    club: str
    payload: Any
    status: str
    since: int  # what was computed later counts
    asked: int = 0  # the same, before somebody queued it again while it waited or was being worked on
    run_id: str | None = None
    claims: int = 0  # since somebody last wrote the row
    spent: int = 0  # attempts that he left in it
    may_fail: set[str] = field(default_factory=set)  # why
    may_not_complete: str | None = None  # why
    is_over: bool = False  # because a person wrote so
    is_touched: bool = False  # by a person
    is_hindered: bool = False  # the app refuses or holds its row, or has


@dataclass
class Message:
    """A raw message that waits to become a job."""

    msg_id: int
    payload: Any
    mark: str | None  # in its row; None for garbage, which has none
    since: int
    may_fail: set[str]
    is_open: bool = True

    def became(self, payload: Any) -> bool:
        """Whether a row with this payload was made of it."""
        if self.mark is None:
            return payload in (self.payload, {"message": self.payload})
        return self.mark in str(payload)

    @property
    def names_a_job(self) -> bool:
        return isinstance(self.payload, dict) and "jobId" in self.payload


class Account:
    """Kept by the machine's rules, and compared with the database after every step."""

    def __init__(self, calm: str, has_app: bool) -> None:
        self.calm = calm
        self.has_app = has_app
        self.jobs: dict[str, Job] = {}
        self.deleted: dict[str, Job] = {}
        self.raw: list[Message] = []
        self.requests: dict[tuple[str, str], str] = {}  # club and requestId, and their first job
        self.processes: list[Process] = []
        self.holders: dict[str, Process] = {}  # by the leases that they have claimed
        self.at_work: dict[str, str] = {}  # jobs, and the lease that each has been claimed with
        self.dagster: dict[str, DagsterState] = {}
        self.position = 0
        self.computed: list[tuple[int, str, str]] = []
        self.version: dict[str, int] = {}
        self.shown: dict[str, int] = {}
        self.passed = 0
        self.number = 0
        self.seen = Seen([], [], 0, [], [], [], [], [])

    @property
    def now(self) -> float:
        return time.monotonic() + self.passed

    def waiting(self, club: str) -> list[Job | Message]:
        """What is to be done for a club, as far as nobody has begun."""
        return [job for job in self.jobs.values() if job.club == club and job.status == "queued"] + [
            message
            for message in self.raw
            if message.is_open
            and is_wellformed(message.payload)
            and club_of(None, message.payload) == club
            and not message.may_fail
        ]

    def of_run(self, run_id: str | None) -> list[Process]:
        """Each has a lease of another club."""
        return [process for process in self.processes if process.run_id == run_id]

    def _at_work_on(self, job: Job) -> list[Process]:
        """Of a row that a person has written, only the run is known."""
        return [p for p in self.of_run(job.run_id) if p.club == job.club or job.is_touched]

    # What happened.

    def accept(
        self,
        job_id: object,
        payload: Any,
        column: str | None = None,
        *,
        status: str = "queued",
        is_request: bool = True,
    ) -> Job:
        """A job, or a row that somebody has put there: it counts from now. `is_request` if it is known by its id."""
        self.number += 1
        job = Job(str(job_id), self.number, club_of(column, payload), payload, status, self.position, self.position)
        if not is_wellformed(payload):
            job.may_fail.add("malformed")
            job.may_not_complete = "malformed"
        elif is_request:
            self.requests[job.club, payload["requestId"]] = job.id
        self.jobs[job.id] = job
        self.deleted.pop(job.id, None)
        return job

    def touch(self, row: dict[str, Any]) -> Job:
        """Somebody has written this row: from now on it is what he made of it."""
        job = self.jobs[str(row["id"])]
        job.is_touched = True
        job.claims, job.spent = 0, max(row["attempts"] or 0, 0)
        job.club = club_of(row["tenant_id"], row["job_payload"])
        job.payload = row["job_payload"]
        job.run_id = row["run_id"]
        if row["status"] != job.status:
            if job.status in ("completed", "failed") and not job.is_over:
                job.asked = self.position  # it was done: whatever he wants is to be done anew
            job.is_over = row["status"] in ("completed", "failed")
            if row["status"] == "queued":
                job.since = self.position
                job.may_fail &= {"the app's trigger"}
            elif row["status"] == "processing":  # as if it had not been touched
                job.since = job.asked
        job.status = row["status"]
        job.may_not_complete = None
        if not is_wellformed(job.payload):
            job.may_fail.add("malformed")
        if (row["attempts"] or 0) >= MAX_ATTEMPTS:
            job.may_fail.add("attempts spent")
        return job

    def delete(self, job_id: str, *, is_forgotten: bool) -> None:
        """A job is gone; with triggers on its request is free, even if the row is put back."""
        self.deleted[job_id] = self.jobs.pop(job_id)
        if is_forgotten:
            self.requests = {key: "" if job == job_id else job for key, job in self.requests.items()}

    def send(self, msg_id: int, payload: Any, mark: str | None, *, may_fail: str | None = None) -> None:
        self.raw.append(Message(msg_id, payload, mark, self.position, {may_fail} if may_fail else set()))

    def remove(self, msg_id: int) -> None:
        """Somebody has taken a message away."""
        for message in self.raw:
            if message.msg_id == msg_id:
                message.is_open = False

    def refuse(self, job: Job) -> None:
        """From now on the app may refuse what is done with the job's row."""
        job.is_hindered = True
        job.may_fail.add("the app's trigger")

    def cancel(self, process: Process) -> None:
        process.is_cancelled = True
        for job in self.jobs.values():
            is_leased = job.club == process.club and job.number <= process.number and process.claimed is None
            if is_leased or process in self._at_work_on(job):
                job.may_fail.add("cancelled")

    def function_failed(self, process: Process) -> None:
        for job in self.jobs.values():
            if process in self._at_work_on(job):
                job.may_fail.add("a function failed")

    def tags_are_late(self) -> None:
        for job in self.jobs.values():
            complete_at = [p.complete_at for p in self._at_work_on(job) if p.complete_at is not None]
            if complete_at and self.now - min(complete_at) >= CACHE_DEADLINE:
                job.may_fail.add("tags late")

    def app_took(self, tags: set[str]) -> None:
        self.shown |= {tag: self.version[tag] for tag in tags if tag in self.version}

    def open_matches(self) -> list[Any]:
        """What the app's own index refuses a second job for."""
        return [
            row["job_payload"]["matchId"]
            for row in self.seen.jobs
            if isinstance(row["job_payload"], dict)
            and "matchId" in row["job_payload"]
            and row["status"] in ("queued", "processing")
        ]

    def _first(self, payload: Any) -> str | None:
        """The job that this request has been given first."""
        return self.requests.get((club_of(None, payload), payload["requestId"]))

    # What there is.

    def compare(self, seen: Seen) -> None:
        """After every call of the product's and every step: nothing has happened that may not."""
        self.computed, self.position = seen.computed, seen.position
        self.at_work = {job_id: lease_id for job_id, lease_id, is_open in seen.attempts if is_open}
        self.version = dict(Counter(tag for _, _, rpc in seen.computed for tag in TAGS[rpc]))
        self.tags_are_late()
        rows = {row["id"]: row for row in seen.jobs}
        for job in self.jobs.values():
            assert job.id in rows, f"lost: {job}"
        for row in rows.values():
            self._compare_row(row, seen)
        self._compare_messages(seen)
        self.seen = seen

        assert len(set(seen.leased)) == len(seen.leased), f"two open leases of one club: {seen.leased}"
        due = {tag for _, tag in seen.due}
        stale = {tag for tag, version in self.version.items() if self.shown.get(tag, 0) < version}
        assert stale <= due, f"stale and not due: {stale - due}"
        attempts = Counter(job_id for job_id, _, _ in seen.attempts)
        for job in self.jobs.values():
            assert job.is_touched or attempts[job.id] == job.claims, f"attempts miscounted: {job}"
        for job_id, lease_id, is_open in seen.attempts:
            process, its_job = self.holders.get(lease_id), self.jobs.get(job_id)
            if is_open and process is not None and process.is_replaced:
                assert its_job is None or its_job.is_hindered, (
                    f"attempt open, its run is replaced: {its_job}, {process}"
                )

    def _compare_row(self, row: dict[str, Any], seen: Seen) -> None:
        job = self.jobs.get(row["id"]) or self._explain(row, seen)
        assert club_of(row["tenant_id"], row["job_payload"]) == job.club, f"another club's now: {row}, {job}"
        before, after = job.status, row["status"]
        if before != after:
            assert not job.is_over, f"a person wrote {before}, now it is {after}: {job}"
            change = getattr(self, f"_{before}_{after}", None)
            assert change is not None, f"{before} became {after}: {row}, {job}"
            change(job, row)
        elif before == "processing" and not job.is_touched:
            assert row["run_id"] == job.run_id, f"changed hands: {row}, {job}"
        job.status, job.run_id = after, row["run_id"]
        if not job.is_touched:
            assert (row["attempts"] or 0) == job.claims <= MAX_ATTEMPTS, f"attempts miscounted: {row}, {job}"

    def _explain(self, row: dict[str, Any], seen: Seen) -> Job:
        """Whose a row is that no rule has put there."""
        assert row["id"] not in self.deleted, f"deleted, and there again: {row}"
        for process in self.processes:
            if process.claimed and process.lease is None and UUID(row["id"]) in process.claimed.job_ids:
                job = self.accept(
                    row["id"], row["job_payload"], row["tenant_id"], status="processing", is_request=False
                )
                assert job.club == process.club, f"a run of {process.club} made a job of {job.club}"
                job.run_id, job.claims = process.run_id, 1
                return job
        made_of = [message for message in self.raw if message.is_open and message.became(row["job_payload"])]
        assert made_of, f"nobody asked for this: {row}"
        message = min(made_of, key=lambda one: one.msg_id in seen.messages)  # of two alike, the one that is gone
        message.is_open = False
        if is_wellformed(message.payload):
            assert self._first(message.payload) not in self.jobs, f"one request, two jobs: {row}"
        payload = message.payload if is_wellformed(message.payload) else row["job_payload"]
        job = self.accept(row["id"], payload, is_request=row["status"] == "queued")
        job.since = job.asked = message.since
        job.may_fail |= message.may_fail
        return job

    def _compare_messages(self, seen: Seen) -> None:
        for message in self.raw:
            if message.is_open and message.msg_id not in seen.messages:
                is_repeated = is_wellformed(message.payload) and self._first(message.payload) in self.jobs
                assert is_repeated or message.names_a_job, f"a message is gone and no row has it: {message}"
                message.is_open = False

    # Each change of a status that is none of a person's.

    def _queued_processing(self, job: Job, row: dict[str, Any]) -> None:
        process = self.holders.get(self.at_work.get(row["id"], ""))
        assert process is not None, f"claimed by nobody: {row}"
        assert process.run_id == row["run_id"], f"claimed by {process.run_id}: {row}"
        assert process.club == job.club, f"claimed for {process.club}: {row}, {job}"
        job.claims += 1
        assert job.claims <= MAX_ATTEMPTS, f"one attempt too many: {row}, {job}"

    def _processing_completed(self, job: Job, row: dict[str, Any]) -> None:
        assert job.may_not_complete is None, f"{job.may_not_complete}: {row}"
        done = {rpc for position, club, rpc in self.computed if club == job.club and position > job.since}
        assert done == set(RPCS), f"completed with no more than {done}: {row}, {job}"
        told = {rpc: result["status"] for rpc, result in row["results"]["functions"].items()}
        assert told == dict.fromkeys(RPCS, "success"), f"completed: {told}"

    def _processing_failed(self, job: Job, row: dict[str, Any]) -> None:
        if job.spent + job.claims < MAX_ATTEMPTS:
            self._queued_failed(job, row)
        assert row["error_message"], f"failed and does not say why: {row}"

    def _queued_failed(self, job: Job, row: dict[str, Any]) -> None:
        # Whoever put the row into a lease or a run that somebody else cancels has to expect that.
        was_cancelled = job.is_touched and any(
            process.is_cancelled and (process.club == job.club or process.run_id == job.run_id)
            for process in self.processes
        )
        assert job.may_fail or was_cancelled, f"failed for no reason: {row}, {job}"
        assert row["error_message"], f"failed and does not say why: {row}"

    def _processing_queued(self, job: Job, row: dict[str, Any]) -> None:
        if job.is_touched or job.may_fail:
            return
        process = next(iter(self._at_work_on(job)), None)
        assert process is not None, f"processed by nobody: {row}, {job}"
        assert not process.is_complete, f"its run has done its work: {row}, {job}"
        is_silent = self.now - process.seen_at >= DEAD_AFTER
        is_over = self.dagster.get(process.run_id) in ("finished", "canceled")
        assert is_silent or is_over, f"its run is alive: {row}, {job}"
        process.is_replaced = True

    def _failed_completed(self, job: Job, row: dict[str, Any]) -> None:
        assert "tags late" in job.may_fail, f"had failed: {row}, {job}"
        self._processing_completed(job, row)
