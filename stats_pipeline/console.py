"""What the command line shows: a job followed live, the table of jobs, the tables of statistics.

Everything is written to standard error or, as the command's result, to standard output; nothing here changes anything.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stats_pipeline import job_status
from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.doctor import Finding
from stats_pipeline.models import Enqueued, Job, SetAside

# Where there is no terminal there is no width to keep to: tables are cut for people, logs and pipes take them whole.
_PIPE_WIDTH = 160
# Without markup: what is shown was often written by others, and a bracket of theirs is a bracket.
out = Console(markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(markup=False, stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH)

_COLORS = {"queued": "yellow", "processing": "blue", "completed": "green", "failed": "red"}
_MARKS = {"success": ("✓", "green"), "failed": ("✗", "red"), "retrying": ("↻", "yellow")}
_UNKNOWN_MARK = ("·", "dim")
_FINDING_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
_LOOK_SECONDS = 0.1


def plain(value: object) -> Text:
    """What others wrote, to be shown as it is, without what would reach the terminal's controls."""
    return Text("".join(character if character.isprintable() or character == "\n" else " " for character in str(value)))


def say(message: str | Text) -> None:
    """A line of progress; a text is taken to be ours."""
    err.print(message if isinstance(message, Text) else plain(message))


def follow_job(database: Database, job_id: UUID, functions: Sequence[StatsFunction], *, timeout: float) -> Job:
    """Show a job's functions live until it is over or `timeout` seconds have passed; the job as it then is."""
    deadline = time.monotonic() + timeout
    job = _get(database, job_id)
    with Live(function_table(job, functions), console=err, refresh_per_second=10, transient=False) as live:
        while not job.is_over and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            job = _get(database, job_id)
            live.update(function_table(job, functions))
    return job


def _get(database: Database, job_id: UUID) -> Job:
    with database.connection() as connection:
        return job_status.get_job(connection, job_id)


def function_table(job: Job, functions: Iterable[StatsFunction]) -> Table:
    """The state of each function of a job. Anybody may write to `results`: its shape is not taken for granted."""
    table = Table(
        title=Text.assemble("Job ", str(job.id), "  ", (job.status, _COLORS[job.status])), title_justify="left"
    )
    for column in ("", "Function", "Took", "Tries", "Fills"):
        table.add_column(column, justify="right" if column in ("Took", "Tries") else "left")
    results = _mapping((job.results or {}).get("functions"))
    for function in functions:
        result = _mapping(results.get(function.rpc))
        mark, color = _MARKS.get(str(result.get("status")), _UNKNOWN_MARK)
        table.add_row(
            Text(mark, style=color),
            function.rpc,
            plain(f"{result.get('duration_ms')} ms" if result else ""),
            plain(result.get("attempts", "")),
            plain(result.get("error") or ", ".join(function.tables)),
        )
    return table


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def enqueued(answer: Enqueued) -> str:
    """What became of a request; of one that was made before, when that was."""
    times = {"enqueued": answer.created_at, "ended": answer.completed_at} if answer.repeated else {}
    shown = ", ".join([answer.status, *(f"{what} {_clock(moment)}" for what, moment in times.items() if moment)])
    return f"{answer.message}: {answer.job_id} ({shown})"


def jobs_table(jobs: Iterable[Job]) -> Table:
    """The job table, with the columns of the app's admin page."""
    table = Table()
    for column in ("Job", "Trigger", "Status", "Started", "Duration", "Tries", "Error"):
        table.add_column(column, overflow="fold", no_wrap=column in ("Job", "Status"))
    for job in jobs:
        table.add_row(
            str(job.id),
            plain(f"{job.job_payload.get('triggeredBy', '?')}{f' ({job.match})' if job.match else ''}"),
            Text(job.status, style=_COLORS[job.status]),
            _clock(job.started_at),
            duration(job),
            str(job.attempts),
            plain("; ".join(filter(None, [job.error_message, *(f"odd: {oddity}" for oddity in job.oddities)]))),
        )
    return table


def duration(job: Job) -> str:
    """From start to end, in seconds, as the app's admin page shows it."""
    if job.started_at is None:
        return "N/A"
    if job.completed_at is None:
        return "In progress…"
    return f"{max(0.0, (job.completed_at - job.started_at).total_seconds()):.1f} s"


def _clock(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else "N/A"


def set_aside_table(set_aside: Iterable[SetAside]) -> Table:
    """What could not be done and is tried again."""
    table = Table("What", "Reason", "Since", "Tries", title="Set aside, and tried again", title_justify="left")
    for one in set_aside:
        table.add_row(plain(f"{one.what} {one.key}"), plain(one.reason), _clock(one.since), str(one.tries))
    return table


def findings_table(findings: Iterable[Finding]) -> Table:
    """What `doctor` has found."""
    table = Table("", "Subject", "Finding")
    for finding in findings:
        mark, color = _FINDING_MARKS[finding.state]
        table.add_row(Text(mark, style=color), finding.subject, plain(finding.said))
    return table


def rows_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Any rows, under the names of their columns."""
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(plain(value) for value in row.values()))
    return table
