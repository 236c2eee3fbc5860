"""The emergency path: this process runs the waiting jobs itself, without Dagster.

It leases, claims, computes, delivers and settles with the SQL functions that a Dagster run uses. So it may run beside
Dagster: nothing is done twice or undone, and the jobs end in the table like any other. There are no retries.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from uuid import UUID, uuid4

import psycopg

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database, budget
from stats_pipeline.errors import InvalidJob, LeaseLost, StatsPipelineError, one_line
from stats_pipeline.jobs import outbox, queue, reconcile
from stats_pipeline.jobs.invalidation import open_client
from stats_pipeline.jobs.models import Claim, Delivery, Lease, Payload
from stats_pipeline.jobs.refresh import Refresh, open_for_computing, session_name
from stats_pipeline.settings import Settings


def run_direct(opened: Database, settings: Settings, say: Callable[[str], None]) -> list[UUID]:
    """Run every waiting job, or refresh every tenant if there is none; returns the ids of the processed jobs.

    The jobs of crashed runs are queued again first. A tenant whose run is alive is left to that run. If this process
    dies, its jobs are requeued like those of any run. Raises `InvalidJob` at the end if a tenant was rejected.
    """
    _repair(opened, settings, say)
    opened.run("make_jobs_visible")
    done: list[UUID] = []
    while leases := _lease(opened, settings):
        for lease in leases:
            done += _work_on(lease, opened, settings, say)
    if not done:
        refused: list[InvalidJob] = []
        for tenant in settings.tenants or (None,):
            try:
                leases = _enqueue_and_lease(opened, tenant, settings)
            except InvalidJob as error:  # a club that does not exist must not stop the others
                refused.append(error)
                continue
            for lease in leases:
                done += _work_on(lease, opened, settings, say)
        if refused:
            raise refused[0]
    return done


def _repair(opened: Database, settings: Settings, say: Callable[[str], None]) -> None:
    """Requeue the jobs of crashed runs, and deliver the tags that other runs have left due."""
    repairs = reconcile.decide(reconcile.read(opened), None, reconcile.limits_of(settings))
    for repair in repairs:
        say(f"Repairing: {repair}")
    for problem in reconcile.apply_all(opened, repairs, settings, fail_in_dagster=lambda _: None):
        say(f"Not repaired: {problem}")
    with open_client(settings) as cache:
        if cache is not None:
            _say_what_is_due(outbox.deliver(opened, cache, cache_deadline=settings.cache_deadline), say)


def _lease(opened: Database, settings: Settings) -> list[Lease]:
    with opened.connection() as connection:
        return queue.lease(connection, lease_seconds=settings.lease_seconds, max_runs=budget.runs_at_a_time(settings))


def _enqueue_and_lease(opened: Database, tenant: UUID | None, settings: Settings) -> list[Lease]:
    """In one transaction: otherwise a sensor could lease the job first. A job that cannot be leased is not enqueued."""
    payload = Payload(
        triggered_by="admin",
        request_id=str(uuid4()),
        user_id="run-direct",
        tenant_id=str(tenant) if tenant else None,
    )
    leases: list[Lease] = []
    with opened.transaction() as connection:
        queue.enqueue(connection, payload.as_json())
        leases = queue.lease(connection, lease_seconds=settings.lease_seconds, max_runs=budget.runs_at_a_time(settings))
        if not leases:
            raise psycopg.Rollback
    return leases


def _work_on(lease: Lease, opened: Database, settings: Settings, say: Callable[[str], None]) -> tuple[UUID, ...]:
    """One run: its functions, in parallel as far as their order allows; then the delivery of their tags.

    Its own sessions end with its lease; `opened` is for what comes after that.
    """
    run_id = str(uuid4())
    functions = sorted(function.rpc for function in settings.functions)
    name = session_name(run_id)
    with (
        Database(opened.url, max_connections=1, application_name=name) as its_own,
        open_for_computing(opened.url, settings, application_name=name) as computing,
        open_client(settings) as cache,
    ):
        refresh = Refresh(
            its_own,
            settings,
            computing=computing,
            run_id=run_id,
            lease_id=lease.lease_id,
            tenant_id=lease.tenant_id,
            cache=cache,
        )
        try:
            claimed = refresh.claim(functions)
            jobs = f"{count} jobs" if (count := len(claimed.job_ids)) != 1 else "1 job"
            say(f"Club {lease.tenant_id or 'default'}: {jobs}, {len(functions)} functions …")
            _compute_all(refresh, claimed, opened, settings, say)
            _say_what_is_due(refresh.deliver(), say)
        except LeaseLost:
            return ()  # the previous run took so long that the lease expired and another run got the jobs
        finally:
            refresh.end()
    return claimed.job_ids


def _compute_all(
    refresh: Refresh, claimed: Claim, opened: Database, settings: Settings, say: Callable[[str], None]
) -> None:
    functions = {function.rpc: function for function in settings.functions}
    order = TopologicalSorter({rpc: functions.keys() & set(function.after) for rpc, function in functions.items()})
    order.prepare()
    left_out = set(claimed.carried_over)
    computing: dict[Future[str | None], str] = {}
    threads = ThreadPoolExecutor(len(functions))
    try:
        while order.is_active():
            for rpc in order.get_ready():
                if rpc in left_out:
                    order.done(rpc)
                else:
                    computing[threads.submit(_compute, refresh, functions[rpc], claimed)] = rpc
            for future in wait(computing, return_when=FIRST_COMPLETED).done:
                rpc = computing.pop(future)
                order.done(rpc)
                if problem := future.result():
                    say(f"{rpc} failed: {problem}")
                    left_out |= refresh.fail(rpc, problem)
    except KeyboardInterrupt:
        _give_up(opened, claimed.lease_id, settings.max_attempts)
        raise
    finally:
        threads.shutdown(cancel_futures=True)


def _compute(refresh: Refresh, function: StatsFunction, claimed: Claim) -> str | None:
    """The reason if it failed."""
    try:
        refresh.compute(function, claimed, tries=1)
    except (psycopg.Error, StatsPipelineError) as error:
        return one_line(error)
    return None


def _give_up(opened: Database, lease_id: UUID, max_attempts: int) -> None:
    """Requeue the run's jobs, and end its statements, which would otherwise continue until their timeout."""
    opened.call(
        "expire_lease",
        this_lease=lease_id,
        not_renewed_since=datetime.max.replace(tzinfo=UTC),
        max_attempts=max_attempts,
        reason="run-direct was interrupted",
    )


def _say_what_is_due(delivery: Delivery, say: Callable[[str], None]) -> None:
    if delivery.problem:
        say(f"Cache tags not delivered yet: {delivery.problem}")
