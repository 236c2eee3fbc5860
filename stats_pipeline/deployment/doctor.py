"""Checks everything the pipeline depends on, by trying it, and says what to do about each problem.

It leaves nothing behind. Monitoring over time is in `web/health.py` and `web/metrics.py`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

import psycopg
from croniter import croniter
from psycopg import Connection

from stats_pipeline import database
from stats_pipeline.database import allowance, budget, call, migrate, run, run_one
from stats_pipeline.deployment.up import owner
from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.jobs import health, queue, refresh
from stats_pipeline.jobs.invalidation import CacheClient, route
from stats_pipeline.settings import LEAST_CONNECTIONS, VERSION, Settings, warnings

OLDEST_SERVER = 15
_FOREIGN_KEY_SQLSTATE = "23503"
_KEEP_VISITORS_OUT = "revoke select on public.background_job_status from anon"


@dataclass(frozen=True)
class Finding:
    """`ok`; `warning`: jobs run, with a limitation; `problem`: jobs do not run."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    said: str


def examine(settings: Settings, *, trying: Callable[[str], None] | None = None) -> Iterator[Finding]:
    """All findings, in the order in which to fix them; never raises.

    With `trying`, a callback for the progress, each stats function is also called for each club, and rolled back.
    """
    yield from _examine_settings(settings)
    try:
        url = database.running_url(settings)
        with database.connect(url, autocommit=True) as connection:
            yield from _examine_database(connection, url, settings, trying)
    except DatabaseUnavailable as error:
        yield Finding("database", "problem", str(error))
    except psycopg.Error as error:
        yield Finding("database", "problem", f"STATS_DATABASE_URL: the database rejected the call: {one_line(error)}")
    yield _examine_app(settings)


def _examine_settings(settings: Settings) -> Iterator[Finding]:
    ignored = warnings()
    yield from (Finding("settings", "warning", warning) for warning in ignored)
    if not ignored:
        clubs = f"{len(settings.tenants)} in STATS_TENANTS" if settings.tenants else "the default one"
        yield Finding("settings", "ok", f"all valid; functions: {len(settings.functions)}, clubs: {clubs}")


def _examine_database(
    connection: Connection[Any], url: str, settings: Settings, trying: Callable[[str], None] | None
) -> Iterator[Finding]:
    rpcs = [function.rpc for function in settings.functions]
    found = run_one(connection, "examine_database", rpcs=rpcs, with_tenant=bool(settings.tenants))
    pgmq = "not installed" if not found["has_pgmq"] else found["pgmq_version"] or "installed from SQL"
    yield Finding(
        "database",
        "ok",
        f"connected to {database.describe(url)}: PostgreSQL {found['server']}, pgmq {pgmq}, "
        f"{found['free_connections']} of {found['max_connections']} connections free",
    )
    if found["server_version"] < OLDEST_SERVER * 10_000:
        version = found["server_version"] // 10_000
        yield Finding("database", "problem", f"PostgreSQL {version} is too old: use {OLDEST_SERVER} or newer")
    yield _examine_connections(url, settings)
    if not found["has_pgmq"]:
        yield Finding("queue", "problem", "pgmq is missing: enable Queues in the Supabase dashboard, then migrate")
    missing = sorted(set(rpcs) - set(found["callable_rpcs"]))
    if missing:
        yield Finding(
            "functions",
            "problem",
            f"this role may not call {', '.join(missing)}{' with a tenant' if settings.tenants else ''}: "
            "create them, grant execute, or install ours with `stats-pipeline migrate --reference-stats`",
        )
    else:
        yield Finding("functions", "ok", f"this role may call all {len(rpcs)}")
    pending = migrate.pending(connection) if found["is_migrated"] else ["everything"]
    if pending:
        yield Finding("schema", "problem", f"{', '.join(pending)} to apply: run `stats-pipeline migrate`")
        return
    different = list(migrate.differences(connection))
    yield from (Finding("schema", "problem", difference) for difference in different)
    if not different:
        yield Finding("schema", "ok", "up to date and complete")
    yield _rehearse(connection, rpcs)
    yield from _examine_clubs(connection, settings)
    yield from _examine_visitors(connection)
    if trying:
        yield from _try_functions(connection, settings, trying)
    yield from _examine_work(connection, settings)


def _examine_connections(url: str, settings: Settings) -> Finding:
    most = settings.max_connections
    if not budget.is_kept(settings):
        return Finding("connections", "warning", "STATS_RUNTIME=stock: STATS_MAX_CONNECTIONS does not limit them")
    if not database.can_listen(url):
        return Finding(
            "connections",
            "ok",
            "a transaction pooler: jobs are picked up within a second or two, not at once",
        )
    is_up = owner(settings) is not None
    with ExitStack() as taken:
        free = most - 1  # without this command's own
        if is_up and (slots := budget.slots(settings)) is not None:
            free = 0
            while held := slots.try_to_take("computing"):
                taken.enter_context(held)
                free += 1
        allowed = allowance.count_allowed(url, free)
    if not allowed.reason:
        beside = "beside those of the running deployment" if is_up else "at the same time"
        count = allowed.count + (0 if is_up else 1)
        return Finding("connections", "ok", f"{count} can be opened {beside}, of STATS_MAX_CONNECTIONS={most}")
    there_are = most - free + allowed.count
    is_enough = there_are >= LEAST_CONNECTIONS
    fewer = f", or set STATS_MAX_CONNECTIONS to {there_are}" if is_enough else ""
    return Finding(
        "connections",
        "warning" if is_enough else "problem",
        f"only {there_are} of STATS_MAX_CONNECTIONS={most} can be opened ({allowed.reason}): another deployment may "
        f"hold the others; otherwise let the pooler have more{fewer}",
    )


def _rehearse(connection: Connection[Any], rpcs: Sequence[str]) -> Finding:
    (failed,) = call(connection, "rehearse", functions=list(rpcs))
    if failed["step"] is None:
        return Finding(
            "jobs",
            "ok",
            "a trial job of a club that does not exist went from enqueued to completed, and was rolled back",
        )
    where = f"{failed['step']}: {' '.join(failed['problem'].split())} (SQLSTATE {failed['state']})"
    if failed["state"] == _FOREIGN_KEY_SQLSTATE:
        return Finding("jobs", "warning", f"no trial: the app's schema rejects a club that does not exist at {where}")
    return Finding("jobs", "problem", f"no job can run: the trial job fails at {where}")


def _try_functions(connection: Connection[Any], settings: Settings, say: Callable[[str], None]) -> Iterator[Finding]:
    for tenant in settings.tenants or (None,):
        club = f"club {tenant or 'default'}"
        began = time.monotonic()
        broken = 0
        for function in settings.functions:
            say(f"Trying {function.rpc} for {club} …")
            called = time.monotonic()
            try:
                milliseconds = refresh.try_function(connection, function, tenant, timezone=settings.timezone)
            except psycopg.Error as error:
                if connection.closed:
                    raise
                broken += 1
                took = f"{time.monotonic() - called:.1f} s"
                yield Finding("trial", "problem", f"{function.rpc} fails for {club} after {took}: {one_line(error)}")
                continue
            if milliseconds is None:
                yield Finding(
                    "trial",
                    "warning",
                    f"{club} has an open run: {function.rpc} and the functions after it were not tried",
                )
                break
        else:
            yield Finding(
                "trial",
                "problem" if broken else "ok",
                f"{len(settings.functions) - broken} of {len(settings.functions)} functions work for {club}: "
                f"tried in {time.monotonic() - began:.1f} s, and rolled back",
            )


def _examine_clubs(connection: Connection[Any], settings: Settings) -> Iterator[Finding]:
    found = run_one(connection, "examine_clubs", tenants=list(settings.tenants))
    if found["are_known"] is None:
        return
    if not found["are_known"]:
        yield Finding(
            "clubs",
            "warning",
            "this role does not see every row of public.tenants (grant select, row security): "
            "jobs of a club that does not exist are not refused",
        )
    elif found["unknown"]:
        unknown = ", ".join(str(tenant) for tenant in found["unknown"])
        yield Finding(
            "clubs", "problem", f"STATS_TENANTS: {unknown} is not in public.tenants: its nightly job is refused"
        )
    else:
        yield Finding("clubs", "ok", "jobs of a club that is not in public.tenants are refused")


def _examine_visitors(connection: Connection[Any]) -> Iterator[Finding]:
    for found in run(connection, "examine_visitors"):
        whose = f"of rows where {found['conditions']}" if found["conditions"] else "of every club"
        yield Finding(
            "visitors",
            "warning",
            f"anyone with the app's public key (role anon) may read {' and '.join(found['columns'])} {whose} in "
            "background_job_status, with userId, requestId and the text of errors. If no page of the app needs that: "
            + _KEEP_VISITORS_OUT,
        )


def _examine_work(connection: Connection[Any], settings: Settings) -> Iterator[Finding]:
    work = run_one(connection, "check_health", route=route(settings))
    yield from _examine_sensors(health.judge(run(connection, "list_beats"), settings), work["waiting"])
    yield Finding(
        "nightly refresh",
        "ok",
        f"next {_next_night(settings)}, while Dagster is running and its schedule was not stopped in its UI",
    )
    if work["has_queue"]:
        yield Finding("queue", "ok", f"jobs waiting: {work['waiting']}")
    else:
        yield Finding("queue", "problem", "the queue stats_update is missing: run `stats-pipeline migrate`")
    if work["undelivered_tags"]:
        yield Finding("cache tags", "warning", f"not confirmed by the app yet: {work['undelivered_tags']}")
    for repeated in run(connection, "list_repeated_requests"):
        yield Finding(
            "requests",
            "warning",
            f"requestId {repeated['request_id']!r} of club {repeated['club']} was used again on {repeated['times']} "
            f"days of the last week, most recently at {repeated['last_at']:%Y-%m-%d %H:%M} UTC: each time the answer "
            f"was its old job {repeated['job_id']}, and nothing was computed. Give each call its own requestId, "
            "such as gen_random_uuid()",
        )
    for aside in queue.list_set_aside(connection):
        tried = f"tried {aside.tries} times since {aside.since:%Y-%m-%d %H:%M:%S} UTC"
        yield Finding(
            "set aside", "warning", f"{aside.what} {aside.key}: {aside.reason} ({tried}; retried automatically)"
        )


def _examine_sensors(sensors: health.Sensors, waiting: int) -> Iterator[Finding]:
    if len(sensors.silent) == len(sensors.needed):
        last = min((beat.seconds_since for beat in sensors.beats), default=None)
        said = "no sensor has ever run" if last is None else f"last sign of a sensor {last:.0f} seconds ago"
        yield Finding(
            "Dagster",
            "problem",
            f"not running ({said}); jobs waiting: {waiting}. Start `stats-pipeline up`; "
            "until then `stats-pipeline run-direct` processes them",
        )
        return
    hosts = ", ".join(f"version {version} on {host}" for host, version in sensors.versions.items())
    if sensors.silent:
        yield Finding(
            "Dagster",
            "problem",
            f"{hosts}; jobs waiting: {waiting}. Silent are the sensors {', '.join(sensors.silent)}: if they were "
            "stopped in Dagster's UI, start them there, or start `stats-pipeline up` again",
        )
    elif any(version != VERSION for version in sensors.versions.values()):
        yield Finding(
            "Dagster",
            "warning",
            f"sensors are running: {hosts}, but this is {VERSION}: start `stats-pipeline up` again there",
        )
    else:
        yield Finding("Dagster", "ok", f"sensors are running: {hosts}")


def _next_night(settings: Settings) -> str:
    now = datetime.now(ZoneInfo(settings.timezone))
    return f"{croniter(settings.cron, now).get_next(datetime):%Y-%m-%d %H:%M} {settings.timezone}"


def _examine_app(settings: Settings) -> Finding:
    if settings.app_url is None:
        return Finding("app", "warning", "no cache tag is delivered: set NEXT_PUBLIC_APP_URL and INTERNAL_API_KEY")
    with closing(CacheClient(settings)) as cache:
        problem = cache.invalidate((), request_id="doctor").problem
        said = problem or "reachable, accepts INTERNAL_API_KEY"
        return Finding("app", "problem" if problem else "ok", f"{cache.url}: {said}")
