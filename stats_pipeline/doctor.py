"""Looks at everything the pipeline depends on, tries it, and says what to do about what is wrong.

It leaves nothing behind, and asks once, from outside. What happens over time is in `web/health.py` and
`web/metrics.py`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import Connection

from stats_pipeline import database, job_status, migrate
from stats_pipeline.cache import CacheClient, route
from stats_pipeline.database import run, run_one
from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.settings import Settings

OLDEST_SERVER = 15
_FOREIGN_KEY_SQLSTATE = "23503"
_KEEP_VISITORS_OUT = "revoke select on public.background_job_status from anon"
LATE_TICK_SECONDS = 90  # a tick waits up to 20 s for work, and the next one follows within a few


@dataclass(frozen=True)
class Finding:
    """What was found of one subject: well, or a warning (jobs are done, but), or a problem (they are not)."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    said: str


def examine(settings: Settings, *, trying: Callable[[str], None] | None = None) -> Iterator[Finding]:
    """Every finding, the first ones first to be put right; never raises.

    With `trying`, which is told the progress, each stats function is called for each club too, and taken back.
    """
    try:
        url = database.database_url(settings)
        with database.connect(url, autocommit=True) as connection:
            yield Finding("database", "ok", f"{database.describe(url)} lets us in")
            yield from _examine_database(connection, url, settings, trying)
    except DatabaseUnavailable as error:
        yield Finding("database", "problem", str(error))
    except psycopg.Error as error:
        yield Finding("database", "problem", f"STATS_DATABASE_URL: the database refused: {one_line(error)}")
    yield _examine_app(settings)


def _examine_database(
    connection: Connection[Any], url: str, settings: Settings, trying: Callable[[str], None] | None
) -> Iterator[Finding]:
    rpcs = [function.rpc for function in settings.functions]
    found = run_one(connection, "examine_database", rpcs=rpcs, with_tenant=bool(settings.tenants))
    if found["server_version"] < OLDEST_SERVER * 10_000:
        version = found["server_version"] // 10_000
        yield Finding("database", "problem", f"PostgreSQL {version} is too old: use {OLDEST_SERVER} or newer")
    if not database.can_listen(url):
        yield Finding(
            "database",
            "problem",
            f"port {database.TRANSACTION_POOLER_PORT} is the transaction pooler, on which Dagster's storage does not "
            "work: give the direct connection or the session pooler in STATS_DATABASE_URL",
        )
    if not found["has_pgmq"]:
        yield Finding("queue", "problem", "pgmq is missing: enable Queues in the Supabase dashboard, then migrate")
    missing = sorted(set(rpcs) - set(found["callable_rpcs"]))
    if missing:
        yield Finding(
            "functions",
            "problem",
            f"{', '.join(missing)} cannot be called as this role{' with a tenant' if settings.tenants else ''}: "
            "create them, grant execute, or install ours with `stats-pipeline migrate --reference-stats`",
        )
    else:
        yield Finding("functions", "ok", f"all {len(rpcs)} can be called")
    pending = migrate.pending(connection) if found["is_migrated"] else ["everything"]
    if pending:
        yield Finding("schema", "problem", f"{', '.join(pending)} to apply: run `stats-pipeline migrate`")
        return
    different = list(migrate.differences(connection))
    yield from (Finding("schema", "problem", difference) for difference in different)
    if not different:
        yield Finding("schema", "ok", "at this version, and all there")
    yield _rehearse(connection, rpcs)
    yield from _examine_clubs(connection, settings)
    yield from _examine_visitors(connection)
    if trying:
        yield from _try_functions(connection, settings, trying)
    yield from _examine_work(connection, settings)


def _rehearse(connection: Connection[Any], rpcs: Sequence[str]) -> Finding:
    failed = run_one(connection, "rehearse", functions=list(rpcs))
    if failed["step"] is None:
        return Finding("jobs", "ok", "one of a made-up club went from enqueue to completed, and was taken back")
    where = f"{failed['step']}: {' '.join(failed['problem'].split())} (SQLSTATE {failed['state']})"
    if failed["state"] == _FOREIGN_KEY_SQLSTATE:
        return Finding("jobs", "warning", f"could not be tried with a made-up club, which the app refuses at {where}")
    return Finding("jobs", "problem", f"none would be done, as it fails at {where}")


def _try_functions(connection: Connection[Any], settings: Settings, say: Callable[[str], None]) -> Iterator[Finding]:
    for tenant in settings.tenants or (None,):
        club = f"club {tenant or 'default'}"
        began = time.monotonic()
        broken = 0
        for function in settings.functions:
            say(f"Trying {function.rpc} for {club} …")
            called = time.monotonic()
            try:
                milliseconds = job_status.try_function(connection, function, tenant, timezone=settings.timezone)
            except psycopg.Error as error:
                if connection.closed:
                    raise
                broken += 1
                took = f"{time.monotonic() - called:.1f} s"
                yield Finding("trial", "problem", f"{function.rpc} fails for {club} after {took}: {one_line(error)}")
                continue
            if milliseconds is None:
                yield Finding("trial", "warning", f"{club} has an open run: {function.rpc} and the rest were not tried")
                break
        else:
            yield Finding(
                "trial",
                "problem" if broken else "ok",
                f"{len(settings.functions) - broken} of {len(settings.functions)} functions work for {club}: "
                f"tried in {time.monotonic() - began:.1f} s, nothing was kept",
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
            "a job of a club that does not exist is not refused",
        )
    elif found["unknown"]:
        unknown = ", ".join(str(tenant) for tenant in found["unknown"])
        yield Finding(
            "clubs", "problem", f"STATS_TENANTS: {unknown} is not in public.tenants: its nightly job is refused"
        )
    else:
        yield Finding("clubs", "ok", "a job of a club that is not in public.tenants is refused")


def _examine_visitors(connection: Connection[Any]) -> Iterator[Finding]:
    for found in run(connection, "examine_visitors"):
        whose = f"of rows where {found['conditions']}" if found["conditions"] else "of every club"
        yield Finding(
            "visitors",
            "warning",
            f"anybody with the app's public key (role anon) may read {' and '.join(found['columns'])} {whose} in "
            "background_job_status, with userId, requestId and the text of errors. If no page of the app needs that: "
            + _KEEP_VISITORS_OUT,
        )


def _examine_work(connection: Connection[Any], settings: Settings) -> Iterator[Finding]:
    work = run_one(connection, "check_health", route=route(settings))
    since = work["seconds_since_tick"]
    if since is None or since > LATE_TICK_SECONDS:
        last = "never" if since is None else f"{since:.0f} seconds ago"
        yield Finding(
            "Dagster",
            "problem",
            f"no sensor is at work (the last one: {last}), {work['waiting']} jobs wait: start `stats-pipeline up`; "
            "until then `stats-pipeline run-direct` does them",
        )
    else:
        yield Finding("Dagster", "ok", f"sensors are at work, {work['waiting']} jobs wait")
    for kind in ("sensors", "schedules"):
        if names := work[f"stopped_{kind}"]:
            yield Finding(
                "Dagster",
                "problem" if kind == "sensors" else "warning",
                f"somebody has stopped the {kind} {', '.join(names)}: start them in Dagster's UI"
                + (", or start `stats-pipeline up` again" if kind == "sensors" else ""),
            )
    if work["undelivered_tags"]:
        yield Finding("cache tags", "warning", f"{work['undelivered_tags']} wait for the app to take them")
    for repeated in run(connection, "list_repeated_requests"):
        yield Finding(
            "requests",
            "warning",
            f"requestId {repeated['request_id']!r} of club {repeated['club']} was used again on {repeated['times']} "
            f"days of the last week, most recently at {repeated['last_at']:%Y-%m-%d %H:%M} UTC: each time the answer "
            f"was its old job {repeated['job_id']}, and nothing was computed. Give each call a requestId of its own, "
            "such as gen_random_uuid()",
        )
    for aside in job_status.list_set_aside(connection):
        tried = f"tried {aside.tries} times since {aside.since:%Y-%m-%d %H:%M:%S} UTC"
        yield Finding(
            "set aside", "warning", f"{aside.what} {aside.key}: {aside.reason} ({tried}; tried again by itself)"
        )


def _examine_app(settings: Settings) -> Finding:
    if settings.app_url is None:
        return Finding("app", "warning", "no cache tag is delivered: set NEXT_PUBLIC_APP_URL and INTERNAL_API_KEY")
    with closing(CacheClient(settings)) as cache:
        problem = cache.invalidate((), request_id="doctor").problem
        said = problem or "takes our key"
        return Finding("app", "problem" if problem else "ok", f"{cache.url}: {said}")
