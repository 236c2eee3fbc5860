"""The outside world of a run: its database and the app's cache route.

Both open connections when they are used, not when Dagster loads the definitions, and both are shared by the threads
of a run. Settings are read here, in the process that runs, so that none of them passes through run config.
"""

import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from uuid import UUID

import dagster as dg
import psycopg
import structlog
from psycopg import Connection
from pydantic import PrivateAttr

from stats_pipeline import database, settings
from stats_pipeline.catalog import StatsFunction
from stats_pipeline.errors import StatsPipelineError, one_line
from stats_pipeline.jobs import outbox, refresh
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Claim, Delivery, Payload

log = structlog.get_logger()

LEASE_TAG = "stats/lease"
TENANT_TAG = "stats/tenant"
JOBS_TAG = "stats/jobs"

# A run that was launched by hand waits this many seconds for the tenant's open run to end.
BUSY_TIMEOUT = 600


class Refresh(dg.ConfigurableResource[Any]):
    """What the ops and hooks of one run do, each by one call: claim, compute, record, deliver."""

    _settings: settings.Settings = PrivateAttr()
    _database: database.Database = PrivateAttr()
    _cache: CacheClient | None = PrivateAttr(default=None)
    _claim: Claim | None = PrivateAttr(default=None)
    _claiming: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _delivering: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _beating: ExitStack = PrivateAttr(default_factory=ExitStack)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Self, None, None]:
        """Hold the connections for as long as the run's process needs the resource."""
        self._settings = settings.load()
        name = f"stats-pipeline run {context.run_id[:8]} pid {os.getpid()}" if context.run_id else "stats-pipeline"
        # One for each op that computes, one for a hook that settles meanwhile, one for the heartbeat.
        connections = len(self._settings.functions) + 2
        url = database.database_url(self._settings)
        pool = database.Database(url, max_connections=connections, ahead=2, application_name=name)
        with pool as self._database:
            self._cache = CacheClient(self._settings) if self._settings.app_url else None
            try:
                yield self
            finally:
                self._beating.close()
                runtime = self._settings.runtime or "stock"
                if self._claim is not None and context.run is not None and _has_process_per_op(context.run, runtime):
                    self._leave_to_next_process(self._claim.run_id)
                if self._cache is not None:
                    self._cache.close()

    def claim(self, run: dg.DagsterRun, functions: list[str]) -> Claim:
        """Claim the run's jobs, once per process; its other ops get the first one's answer.

        Waits while another run of the tenant is open. Raises `LeaseLost` if this run is no longer wanted, and
        `TimeoutError` after ten minutes of waiting.
        """
        # Each op takes the connection it will compute on before its turn, so that all of them are opened meanwhile.
        with self._database.connection() as connection, self._claiming:
            if self._claim is None and (claimed := self._try_to_claim(connection, run, functions)) is not None:
                self._claim = self._begin(claimed)
        with self._claiming:
            if self._claim is None:
                self._claim = self._begin(self._wait_for_claim(run, functions))
            return self._claim

    def _begin(self, claimed: Claim) -> Claim:
        self._beating.enter_context(
            refresh.beating(self._database, run_id=claimed.run_id, lease_seconds=self._settings.lease)
        )
        return claimed

    def _leave_to_next_process(self, run_id: str) -> None:
        """Nobody beats until the process of the run's next op has imported everything, which may take many seconds."""
        try:
            self._database.run("pause_run", run_id=run_id, seconds=self._settings.lease)
        except (psycopg.Error, StatsPipelineError) as error:
            log.warning("a run could not say that it goes on", run_id=run_id, reason=one_line(error))

    def _try_to_claim(self, connection: Connection[Any], run: dg.DagsterRun, functions: list[str]) -> Claim | None:
        # A re-execution copies its parent's tags, but the lease was the parent's.
        lease = run.tags.get(LEASE_TAG) if run.parent_run_id is None else None
        tenant = run.tags.get(TENANT_TAG)
        payload = Payload(triggered_by="admin", request_id=run.run_id, user_id="dagster", tenant_id=tenant)
        return refresh.claim(
            connection,
            run_id=run.run_id,
            lease_id=UUID(lease) if lease else None,
            functions=functions,
            tenant_id=UUID(tenant) if tenant else None,
            payload=payload.as_json(),
        )

    def _wait_for_claim(self, run: dg.DagsterRun, functions: list[str]) -> Claim:
        """Another run of the tenant is open, which a run with a lease never meets: only this one needs to listen."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        with self._database.dedicated_connection() as connection:
            if self._database.can_listen:
                connection.execute("listen stats_pipeline_work")
            while (claimed := self._try_to_claim(connection, run, functions)) is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another run of this tenant has been open for {BUSY_TIMEOUT} seconds")
                for _ in connection.notifies(timeout=1, stop_after=1):
                    pass
            return claimed

    def compute(self, function: StatsFunction, claimed: Claim, *, attempt: int) -> tuple[int, dict[str, int]]:
        """Call one stats function; milliseconds and rows per table."""
        return refresh.compute(self._database, function, claimed, attempt=attempt, timezone=self._settings.timezone)

    def record_failed_try(self, run_id: str, rpc: str, *, attempt: int, duration_ms: int, problem: str) -> None:
        """Note a failed try, and show it in the job's row."""
        refresh.record_failed_try(
            self._database, run_id=run_id, rpc=rpc, attempt=attempt, duration_ms=duration_ms, problem=problem
        )
        self.settle(run_id)

    def leave_open(self, run_id: str, rpc: str, problem: str) -> None:
        """Note what kept a function from its work, through no fault of its own: the job's next run does it."""
        self.record_failed_try(run_id, rpc, attempt=1, duration_ms=0, problem=problem)

    def fail(self, run_id: str, rpc: str, problem: str) -> None:
        """Note that a function has failed for good, and with it those that come after it, and settle."""
        refresh.fail(self._database, run_id, rpc, self._settings.functions, problem)
        self.settle(run_id)

    def deliver(self, run_id: str) -> Delivery:
        """Hand the run's due tags to the app, and settle, whatever the app said.

        One call at a time: functions that end while it is under way share the next one, so a run of ten makes about
        four calls.
        """
        delivery = outbox.NOTHING_DUE
        if self._cache is not None:
            deadline = self._settings.cache_deadline
            with self._delivering:
                delivery = outbox.deliver(self._database, self._cache, cache_deadline=deadline, run_id=run_id)
        if delivery == outbox.NOTHING_DUE:
            self.settle(run_id)
        return delivery

    def settle(self, run_id: str) -> None:
        """End the run's jobs if nothing is left to do."""
        with self._database.connection() as connection:
            refresh.settle(
                connection,
                run_id=run_id,
                cache_configured=self._cache is not None,
                cache_deadline=self._settings.cache_deadline,
            )


def _has_process_per_op(run: dg.DagsterRun, runtime: settings.Runtime) -> bool:
    """Whether Dagster's multiprocess executor is at work: selected by run config, or because none was in `stock`."""
    run_config: Mapping[str, Any] = run.run_config
    selected = run_config.get("execution", {}).get("config", {})
    return "multiprocess" in selected or (runtime == "stock" and "in_process" not in selected)
