"""Records who did what from where, as a log line and a row: for handlers, and for whatever guards them.

A job is recorded in the transaction that enqueues it (`record_job`). A login, a logout or a refusal is recorded on its
own (`Audit.note`).
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import psycopg
import structlog
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.jobs import audit
from stats_pipeline.jobs.models import Enqueued
from stats_pipeline.web.sessions import Caller

PATIENCE = 1  # seconds that an answer waits for its row
STRANGER = "unknown"


class By(TypedDict):
    """Who is behind a request, and where it comes from."""

    who: str
    role: str
    address: str


def address_of(source: Mapping[str, Any]) -> str:
    """The client's address, from a request or an ASGI scope: behind a trusted proxy, the one that it reports."""
    client = source.get("client")
    return audit.readable(client[0]) if client else "unknown"


def by(source: Mapping[str, Any], caller: Caller | None) -> By:
    """The caller of a request or an ASGI scope, in the words of the audit; None is a stranger."""
    if caller is None:
        return By(who=STRANGER, role=STRANGER, address=address_of(source))
    role = caller.name if caller.session is None else caller.role.value  # a key is no person's
    return By(who=caller.name, role=role, address=address_of(source))


def record_job(
    connection: Connection[Any],
    source: Mapping[str, Any],
    caller: Caller,
    action: audit.Action,
    *jobs: Enqueued,
    about: str = "",
) -> None:
    """Add one row for the jobs that this caller has enqueued, in the same transaction.

    None if nothing was enqueued because all of them were there before.
    """
    if new := [job for job in jobs if not job.repeated]:
        what = f"job {new[0].job_id}" if len(new) == 1 else f"{len(new)} jobs, the first {new[0].job_id}"
        audit.record(connection, action=action, about=what + about, **by(source, caller))


class Audit:
    """Records what has no transaction of its own. One per process.

    Rows are written one at a time, by one thread, so that a flood of refused tries takes neither the connections nor
    the threads that other requests need.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = ThreadPoolExecutor(1, "audit")

    async def note(
        self,
        source: Mapping[str, Any],
        action: audit.Action,
        caller: Caller | None,
        *,
        about: str | None = None,
        outcome: audit.Outcome = "done",
    ) -> None:
        """Record an action of this caller, or of a stranger (None), as a row of its own, then as a log line.

        Raises nothing: if there is no row after PATIENCE seconds, the log line says so.
        """
        words = by(source, caller)

        def write() -> None:
            with self._database.connection() as connection:
                audit.record(connection, action=action, about=about, outcome=outcome, **words)

        context: dict[str, Any] = {**words} if about is None else {**words, "about": audit.readable(about)}
        try:
            # A row whose turn has not come by then is dropped: a flood must not leave a queue behind.
            await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._writer, write), PATIENCE)
        except (TimeoutError, DatabaseUnavailable, psycopg.Error) as error:
            context["not_recorded"] = one_line(error)
        log = structlog.get_logger()
        (log.warning if outcome == "refused" else log.info)(f"{action} {outcome}", **context)
