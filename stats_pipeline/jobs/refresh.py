"""The work of one run on the jobs of one lease: claim, heartbeat, compute, fail, deliver, settle.

Each step calls one SQL function of `sql/functions/`, which says what is atomic. Enqueuing and leasing are in
`queue.py`.
"""

import os
import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from stats_pipeline.catalog import StatsFunction, dependents
from stats_pipeline.database import Database, budget, call, call_one, run, run_one
from stats_pipeline.errors import LEASE_LOST_SQLSTATE, LeaseLost, StatsPipelineError, TenantBusy, one_line
from stats_pipeline.jobs import outbox
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Claim, Delivery, Payload
from stats_pipeline.log import Outage
from stats_pipeline.settings import Settings

log = structlog.get_logger()

HEARTBEAT_SECONDS = 1


def session_name(run_id: str) -> str:
    """The name of the database sessions of a run's process, which are ended when its lease is taken from it."""
    return f"stats-pipeline run {run_id[:8]} pid {os.getpid()}"


def open_for_computing(url: str, settings: Settings, *, application_name: str) -> Database:
    """The connections on which a run's functions are computed, one for each that is computed at the time.

    A process that holds the slots of a run gets each from the deployment's budget; any other has one for each function.
    """
    most = len(settings.functions)
    if budget.has_room():
        slots = budget.slots(settings)
        return Database(
            url, max_connections=0, slots=slots, kind="computing", shared=most, application_name=application_name
        )
    return Database(url, max_connections=most, application_name=application_name)


class Refresh:
    """The work of one run on one lease, shared by the threads of its process.

    Without a lease the run was started by hand: it acquires one when it claims, with the failed jobs of the run that it
    re-executes, or else with a new job. Until then nothing is recorded.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        computing: Database | None = None,
        run_id: str,
        lease_id: UUID | None = None,
        tenant_id: UUID | None = None,
        parent_run_id: str | None = None,
        cache: CacheClient | None = None,
        busy_until: float = 0,
    ) -> None:
        """`computing` is what the functions are called on, by default the same as all else. Who computes never waits
        for another connection. `parent_run_id` is the run that this one re-executes. The claim of a run without a lease
        waits until `busy_until` (Unix time) for the tenant's open lease to end."""
        self.run_id = run_id
        self.lease_id = lease_id
        self._is_by_hand = lease_id is None
        self._busy_until = busy_until
        self._tenant_id = tenant_id
        self._parent_run_id = parent_run_id
        self._database = database
        self._computing = computing or database
        self._settings = settings
        self._cache = cache
        self._claimed: Claim | None = None
        self._claiming = threading.Lock()
        self._delivering = threading.Lock()
        self._ending = threading.Event()
        self._beats: threading.Thread | None = None

    def claim(self, functions: Sequence[str]) -> Claim:
        """Claim the lease and start the heartbeat, once per process; other threads get the first one's answer.

        Waits while another lease of the tenant is open; all threads give up at the same time. Raises `LeaseLost` if
        the lease is not this run's any more, and `TenantBusy`.
        """
        with self._claiming:
            if self._claimed is None:
                claimed = self.try_to_claim(functions) or self._wait_for_claim(functions)
                self._claimed = claimed
                self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
                self._beats.start()
            return self._claimed

    def try_to_claim(self, functions: Sequence[str]) -> Claim | None:
        """Move the leased jobs to `processing`; a repeated call returns the same. None: another lease is open.

        Raises `LeaseLost`, also if none of the leased jobs is left to do.
        """
        with self._database.connection() as connection:
            return self._try_to_claim(connection, functions)

    def _try_to_claim(self, connection: Connection[Any], functions: Sequence[str]) -> Claim | None:
        own = Payload(
            triggered_by="admin",
            request_id=self.run_id,
            user_id="dagster",
            tenant_id=str(self._tenant_id) if self._tenant_id else None,
        )
        try:
            rows = call(
                connection,
                "claim_lease",
                this_lease=None if self._is_by_hand else self.lease_id,
                dagster_run=self.run_id,
                run_functions=list(functions),
                run_tenant=self._tenant_id,
                payload=Jsonb(own.as_json()),
                parent_run=self._parent_run_id,
            )
        except psycopg.Error as error:
            raise _lease_lost(error) from None
        if not rows:
            return None
        row = rows[0]
        if row["outcome"] == "empty":
            raise LeaseLost(f"none of the jobs of lease {self.lease_id} is left to do, or to be had now")
        self.lease_id = row["id"]
        carried_over = frozenset(carried["rpc"] for carried in run(connection, "list_carried_over", lease_id=row["id"]))
        return Claim(row["id"], row["tenant_id"], tuple(row["job_ids"]), carried_over)

    def _wait_for_claim(self, functions: Sequence[str]) -> Claim:
        """Wait until the tenant's open lease ends. Only for a run that was started by hand: no other can meet one."""
        with self._database.connection() as connection:
            if self._database.can_listen:
                connection.execute("listen stats_pipeline_work")
            try:
                while (claimed := self._try_to_claim(connection, functions)) is None:
                    if time.time() > self._busy_until:
                        raise TenantBusy("another run of this club was open for too long: start this one again later")
                    for _ in connection.notifies(timeout=1, stop_after=1):
                        pass
                return claimed
            finally:
                if self._database.can_listen and not connection.closed:
                    connection.execute("unlisten stats_pipeline_work")

    def renew(self, *, silent_for: int = 0) -> bool:
        """Send a heartbeat and keep the run's messages leased; the next one may take `silent_for` seconds longer.

        False if the lease has ended.
        """
        with self._database.connection() as connection:
            return bool(
                call_one(
                    connection,
                    "renew_lease",
                    this_lease=self.lease_id,
                    lease_seconds=self._settings.lease_seconds,
                    silent_for=silent_for,
                )
            )

    def _beat(self) -> None:
        """Each second until the end. A failed heartbeat is skipped; the next one may succeed."""
        silence = Outage(f"run {self.run_id} could not say that it is alive", f"run {self.run_id} is heard again")
        # The first heartbeat at once: a process that runs one function may live for less than a second.
        while not self._ending.is_set():
            try:
                self.renew()
                silence.is_over()
            except (psycopg.Error, StatsPipelineError) as error:
                silence.begins(one_line(error))
            self._ending.wait(HEARTBEAT_SECONDS)

    def end(self, *, goes_on: bool = False) -> None:
        """Stop the heartbeat. With `goes_on`, another process of the same run is about to start: no heartbeat is sent
        until it has imported everything, which may take many seconds."""
        self._ending.set()
        if self._beats is None:
            return
        self._beats.join()
        if goes_on:
            try:
                self.renew(silent_for=self._settings.lease_seconds)
            except (psycopg.Error, StatsPipelineError) as error:
                log.warning("a run could not say that it goes on", run_id=self.run_id, reason=one_line(error))

    def compute(self, function: StatsFunction, claimed: Claim, *, tries: int) -> tuple[int, dict[str, int]]:
        """Call the stats function and make its tags due, in one transaction; returns milliseconds, and rows per table.

        `tries` includes this one. A failed try leaves nothing behind. Raises the error of the database, or `LeaseLost`.
        """
        started = time.monotonic()
        try:
            with self._computing.transaction() as connection:
                _call(connection, function, claimed.tenant_id, self._settings.timezone)
                duration_ms = round((time.monotonic() - started) * 1000)
                rows = {
                    row["table_name"]: row["row_count"]
                    for row in run(connection, "count_rows", tables=list(function.tables), tenant_id=claimed.tenant_id)
                }
                call(
                    connection,
                    "complete_function",
                    this_lease=claimed.lease_id,
                    rpc=function.rpc,
                    tags=list(function.cache_tags),
                    tries=tries,
                    duration_ms=duration_ms,
                )
            return duration_ms, rows
        except psycopg.Error as error:
            raise _lease_lost(error) from error

    def record_failed_try(self, rpc: str, *, tries: int, duration_ms: int, problem: str) -> None:
        """Record a failed try that may be followed by another one, and show it in the job's row."""
        if self.lease_id is None:
            return
        self._database.call(
            "record_function",
            this_lease=self.lease_id,
            rpc=rpc,
            status="retrying",
            tries=tries,
            duration_ms=duration_ms,
            problem=problem,
        )
        self.settle()

    def fail(self, rpc: str, problem: str) -> set[str]:
        """Record that a function has failed for good, and the functions after it with it; returns their names."""
        skipped = dependents(rpc, self._settings.functions)
        if self.lease_id is None:
            return skipped
        self._database.call("fail_function", this_lease=self.lease_id, rpc=rpc, problem=problem)
        for later in skipped:
            because = f"Not run, because {rpc} failed"
            self._database.call("fail_function", this_lease=self.lease_id, rpc=later, problem=because)
        self.settle()
        return skipped

    def deliver(self) -> Delivery:
        """Deliver the run's due tags to the app, then settle, whatever the app answers.

        One call at a time: functions that end during a call share the next one, so a run of ten makes about four calls.
        """
        delivery = outbox.NOTHING_DUE
        if self._cache is not None and self.lease_id is not None:
            with self._delivering:
                delivery = outbox.deliver(
                    self._database,
                    self._cache,
                    cache_deadline=self._settings.cache_deadline,
                    lease_id=self.lease_id,
                )
        if delivery == outbox.NOTHING_DUE:
            self.settle()
        return delivery

    def settle(self) -> None:
        """Update the jobs from the recorded results; ends them when nothing is left to do. Idempotent."""
        if self.lease_id is not None:
            self._database.call(
                "settle_lease",
                this_lease=self.lease_id,
                cache_configured=self._cache is not None,
                cache_deadline=self._settings.cache_deadline,
            )


def _call(connection: Connection[Any], function: StatsFunction, tenant_id: UUID | None, timezone: str) -> None:
    """The current day is that of `timezone`, unless the app has a time zone for the club."""
    run(connection, "begin_computing", milliseconds=function.timeout_seconds * 1000, timezone=timezone)
    argument = sql.SQL("") if tenant_id is None else sql.Literal(tenant_id)
    connection.execute(sql.SQL("select public.{}({})").format(sql.Identifier(function.rpc), argument))


def try_function(
    connection: Connection[Any], function: StatsFunction, tenant_id: UUID | None, *, timezone: str
) -> int | None:
    """Call the stats function as a run does and roll back; returns milliseconds. None: the club has an open lease.

    Waits at most a second for a lock. Raises the error of the database, including those of deferred constraints. Leaves
    only gaps in sequences. The caller must not have a transaction open.
    """
    with connection.transaction(force_rollback=True):
        if run_one(connection, "begin_trying", tenant_id=tenant_id)["is_busy"]:
            return None
        started = time.monotonic()
        _call(connection, function, tenant_id, timezone)
        connection.execute("set constraints all immediate")
        return round((time.monotonic() - started) * 1000)


def _lease_lost(error: psycopg.Error) -> Exception:
    return LeaseLost(error.diag.message_primary) if error.sqlstate == LEASE_LOST_SQLSTATE else error
