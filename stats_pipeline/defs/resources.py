"""The one resource: a run's refresh, with its connections to the database and the app's cache route.

Connections are opened when they are used, not when Dagster loads the definitions, and shared by the threads of a run.
Settings are read here, in the process that runs, so that none of them passes through run config.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import dagster as dg

from stats_pipeline import database, settings
from stats_pipeline.jobs.invalidation import open_client
from stats_pipeline.jobs.refresh import Refresh, open_for_computing, session_name

LEASE_TAG = "stats/lease"
TENANT_TAG = "stats/tenant"

# A run that was started by hand waits this many seconds, from its start, for the tenant's open lease to end.
BUSY_TIMEOUT = 600


@dg.resource(description="Claims, computes, records and delivers for one run.")
def refresh_resource(context: dg.InitResourceContext) -> Iterator[Refresh]:
    """The refresh of this run, for as long as its process needs it."""
    run = context.run
    if run is None:
        raise dg.DagsterInvariantViolationError("the resource `refresh` belongs to a run")
    given = settings.load().for_dagster()
    with ExitStack() as stack:
        url, name = database.database_url(given), session_name(run.run_id)
        opened = stack.enter_context(database.Database(url, max_connections=1, ahead=True, application_name=name))
        computing = stack.enter_context(open_for_computing(url, given, application_name=name))
        cache = stack.enter_context(open_client(given))
        # A re-execution copies its parent's tags, but the lease was the parent's.
        lease = run.tags.get(LEASE_TAG) if run.parent_run_id is None else None
        tenant = run.tags.get(TENANT_TAG)
        refresh = Refresh(
            opened,
            given,
            computing=computing,
            run_id=run.run_id,
            lease_id=UUID(lease) if lease else None,
            tenant_id=UUID(tenant) if tenant else None,
            parent_run_id=run.parent_run_id,
            cache=cache,
            busy_until=0 if lease else _started_at(context, run.run_id) + BUSY_TIMEOUT,
        )
        try:
            yield refresh
        finally:
            refresh.end(goes_on=_has_process_per_op(run, given.runtime or "stock"))


def _started_at(context: dg.InitResourceContext, run_id: str) -> float:
    """Start of the run, not of this process: otherwise, with a process per op, each would wait the full time."""
    record = context.instance.get_run_record_by_id(run_id) if context.instance else None
    return record.start_time if record and record.start_time else time.time()


def _has_process_per_op(run: dg.DagsterRun, runtime: settings.Runtime) -> bool:
    """Whether Dagster's multiprocess executor runs the ops: only in `stock`, where it is the default."""
    run_config: Mapping[str, Any] = run.run_config
    selected = run_config.get("execution", {}).get("config", {})
    return runtime == "stock" and (not selected or "multiprocess" in selected)
