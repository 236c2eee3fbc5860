"""Records who did what from where, as a log line and a row: for handlers, and for whatever guards them.

A job is recorded in the transaction that enqueues it (`record_job`). A login, a logout or a refusal is recorded on its
own (`Audit.note`).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypedDict
from uuid import UUID

import psycopg
import structlog
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.jobs import audit
from stats_pipeline.jobs.models import Enqueued
from stats_pipeline.web.sessions import Caller

PATIENCE = 1  # seconds that an answer waits for its row
MAX_WAITING = 5  # refused tries that wait for their rows
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


def log_retry(source: Mapping[str, Any], caller: Caller, failed: UUID, job: Enqueued) -> None:
    """The line about a job that was retried, once that is committed."""
    structlog.get_logger().info(
        "stats job retried",
        caller=caller.name,
        address=address_of(source),
        retry_of=str(failed),
        job_id=str(job.job_id),
    )


class Audit:
    """Records what has no transaction of its own. One per process.

    Rows are written one at a time, by one thread, those of what was done before those of refused tries: so a flood of
    tries takes neither the connections nor the threads that others need, nor the turn of what was done.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = ThreadPoolExecutor(1, "audit")
        self._done: deque[_Row] = deque()
        self._refused: deque[_Row] = deque()

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

        Raises nothing. If there will be no row, the log line has `not_recorded`; if it is being written for longer than
        PATIENCE seconds, and may yet fail, `perhaps_recorded`. A refused try has no row while MAX_WAITING others wait.
        """
        words = by(source, caller)

        def write() -> None:
            with self._database.connection() as connection:
                audit.record(connection, action=action, about=about, outcome=outcome, **words)

        context: dict[str, Any] = {**words} if about is None else {**words, "about": audit.readable(about)}
        if outcome == "refused" and len(self._refused) >= MAX_WAITING:
            context["not_recorded"] = "too many refused tries wait for their rows"
        else:
            row = _Row(write)
            (self._done if outcome == "done" else self._refused).append(row)
            self._writer.submit(self._write_next)
            context |= await _written(row.future)
        log = structlog.get_logger()
        (log.warning if outcome == "refused" else log.info)(f"{action} {outcome}", **context)

    def _write_next(self) -> None:
        row = (self._done or self._refused).popleft()
        if row.future.set_running_or_notify_cancel():
            try:
                row.write()
                row.future.set_result(None)
            except Exception as error:
                row.future.set_exception(error)


@dataclass
class _Row:
    write: Callable[[], None]
    future: Future[None] = field(default_factory=Future)


async def _written(row: Future[None]) -> dict[str, str]:
    """Wait for a row; what the log line says if it is not there. One whose turn has not come by then is dropped."""
    try:
        await asyncio.wait_for(asyncio.wrap_future(row), PATIENCE)
    except TimeoutError:
        late = f"not within {PATIENCE} s"
        return {"not_recorded": late} if row.cancel() else {"perhaps_recorded": late}
    except (DatabaseUnavailable, psycopg.Error) as error:
        return {"not_recorded": one_line(error)}
    return {}
