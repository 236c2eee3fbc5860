"""The output of the command line: a job followed live, the table of jobs, the tables of statistics.

A command's result goes to standard output, everything else to standard error. Nothing here changes anything.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.deployment.doctor import Finding
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.audit import Entry
from stats_pipeline.jobs.models import Enqueued, Job, SetAside

# Tables are fitted to the width of a terminal; without one (pipe, log) they are printed in full.
_PIPE_WIDTH = 160
# Without markup: the text often comes from other programs, and their brackets are literal.
out = Console(markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(markup=False, stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH)

_COLORS = {"queued": "yellow", "processing": "blue", "completed": "green", "failed": "red"}
_MARKS = {"success": ("✓", "green"), "failed": ("✗", "red"), "retrying": ("↻", "yellow")}
# Each column with the console width from which it is shown.
_JOB_COLUMNS = {"Job": 0, "Trigger": 0, "Status": 0, "Started": 0, "Duration": 80, "Attempts": 90, "Error": 150}
_FUNCTION_COLUMNS = {"": 0, "Function": 0, "Took": 0, "Tries": 70, "Fills": 120}
_SHORT_ID = 8
_MAX_WIDTHS = {"Trigger": 24, "Took": 12, "Tries": 12, "Duration": 12, "Attempts": 12}  # all but "Error" fit 60 columns
_UNKNOWN_MARK = ("·", "dim")
_FINDING_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
_LOOK_SECONDS = 0.1


def plain(value: object) -> Text:
    """Text from other programs, unchanged except that characters that would control the terminal are removed."""
    return Text("".join(character if character.isprintable() or character == "\n" else " " for character in str(value)))


def say(message: str | Text) -> None:
    """Print a line of progress; only our own text is a `Text`, which is printed with its colors."""
    err.print(message if isinstance(message, Text) else plain(message), soft_wrap=True)


@contextmanager
def live(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """Show one thing after the other in the same place; without a terminal only the last one, at the end."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as shown:
            yield lambda renderable: shown.update(renderable, refresh=True)
        return
    last: deque[RenderableType] = deque(maxlen=1)
    try:
        yield last.append
    finally:
        console.print(*last)


def follow_job(
    database: Database, job_id: UUID, functions: Sequence[StatsFunction], *, timeout: float, shown: bool = True
) -> Job:
    """Wait until a job has ended or `timeout` seconds have passed, showing its functions; returns the job."""
    deadline = time.monotonic() + timeout
    with live(err if shown else Console(quiet=True)) as show:
        while True:
            job = _get(database, job_id)
            show(function_table(job, functions, err.width))
            if job.is_over or time.monotonic() > deadline:
                return job
            time.sleep(_LOOK_SECONDS)


def _get(database: Database, job_id: UUID) -> Job:
    with database.connection() as connection:
        return queue.get_job(connection, job_id)


def _fitted(columns: Mapping[str, int], width: int, title: Text | None = None) -> tuple[Table, list[str]]:
    """A table of the columns that fit this width, and their names."""
    names = [name for name, needed in columns.items() if width >= needed]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for name in names:
        is_number = name in ("Took", "Tries", "Duration", "Attempts")
        is_long = name in ("Error", "Fills")
        table.add_column(
            name,
            justify="right" if is_number else "left",
            overflow="fold" if is_long else "ellipsis",
            no_wrap=not is_long,
            max_width=_MAX_WIDTHS.get(name),
        )
    return table, names


def function_table(job: Job, functions: Iterable[StatsFunction], width: int = _PIPE_WIDTH) -> Group:
    """The state of each function of a job, and its error. Any program may write `results`, so its shape is not
    relied on."""
    title = Text.assemble("Job ", str(job.id), "  ", (job.status, _COLORS[job.status]))
    table, names = _fitted(_FUNCTION_COLUMNS, width, title)
    results = _mapping((job.results or {}).get("functions"))
    problems = []
    for function in functions:
        result = _mapping(results.get(function.rpc))
        mark, color = _MARKS.get(str(result.get("status")), _UNKNOWN_MARK)
        cells: dict[str, str | Text] = {
            "": Text(mark, style=color),
            "Function": function.rpc,
            "Took": plain(f"{result.get('duration_ms')} ms" if result else ""),
            "Tries": plain(result.get("attempts", "")),
            "Fills": ", ".join(function.tables),
        }
        table.add_row(*(cells[name] for name in names))
        if error := result.get("error"):
            problems.append(plain(f"{function.rpc}: {error}"))
    return Group(table, *problems)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def enqueued(answer: Enqueued) -> str:
    """The result of a request, with the times of its job if that existed already."""
    times = {"enqueued": answer.created_at, "ended": answer.completed_at} if answer.repeated else {}
    shown = ", ".join([answer.status, *(f"{what} {_clock(moment)}" for what, moment in times.items() if moment)])
    return f"{answer.message}: {answer.job_id} ({shown})"


def overview(jobs: Sequence[Job], set_aside: Sequence[SetAside] = (), width: int | None = None) -> Group:
    """Jobs and everything set aside, as tables. Reasons that do not fit in the table follow it in full."""
    width = width or out.width
    if not jobs:
        parts: list[RenderableType] = ["No background jobs found"]
    else:
        parts = [jobs_table(jobs, width)]
        if width < _JOB_COLUMNS["Error"]:
            parts += [plain(f"{_short(job.id)} {problem}") for job in jobs if (problem := _problem(job))]
    if set_aside:
        parts += ["", set_aside_table(set_aside)]
    return Group(*parts)


def jobs_table(jobs: Iterable[Job], width: int = _PIPE_WIDTH) -> Table:
    """One line per job, with those columns of the app's admin page that fit."""
    table, names = _fitted(_JOB_COLUMNS, width)
    is_wide = width >= _JOB_COLUMNS["Error"]
    for job in jobs:
        cells: dict[str, str | Text] = {
            "Job": str(job.id) if is_wide else _short(job.id),
            "Trigger": plain(f"{job.job_payload.get('triggeredBy', '?')}{f' ({job.match})' if job.match else ''}"),
            "Status": Text(job.status, style=_COLORS[job.status]),
            "Started": _clock(job.started_at) if is_wide else _clock(job.started_at)[5:16] or "N/A",
            "Duration": duration(job),
            "Attempts": str(job.attempts),
            "Error": plain(_problem(job)),
        }
        table.add_row(*(cells[name] for name in names))
    return table


def _short(job_id: UUID) -> str:
    return f"{str(job_id)[:_SHORT_ID]}…"


def _problem(job: Job) -> str:
    return "; ".join(filter(None, [job.error_message, *(f"odd: {oddity}" for oddity in job.oddities)]))


def job_in_full(job: Job, functions: Iterable[StatsFunction], width: int | None = None) -> Group:
    """Everything known about one job."""
    results = job.results or {}
    cache = _mapping(results.get("cache"))
    facts = {
        "Reason": _problem(job),
        "Trigger": " ".join(filter(None, [str(job.job_payload.get("triggeredBy", "?")), job.match])),
        "Club": job.tenant_id or "default",
        "Retry of": job.retry_of,
        "Enqueued": _clock(job.created_at),
        "Started": _clock(job.started_at),
        "Completed": _clock(job.completed_at),
        "Duration": duration(job),
        "Attempts": job.attempts,
        "Run": job.run_id,
        "Cache tags": cache.get("status"),
        "Delivered": _listed(cache.get("delivered")),
        "Pending": _listed(cache.get("pending")),
        "Payload": json.dumps(job.job_payload, ensure_ascii=False),
    }
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, ""):
            table.add_row(name, plain(value))
    return Group(function_table(job, functions, width or out.width), "", table)


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else ""


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
    """Everything that was set aside and is retried."""
    table = Table(title="Set aside, and tried again", title_justify="left", box=None, pad_edge=False)
    for name in ("What", "Reason", "Since", "Tries"):
        table.add_column(name, overflow="fold", min_width=4, justify="right" if name == "Tries" else "left")
    for one in set_aside:
        table.add_row(plain(f"{one.what} {one.key}"), plain(one.reason), _clock(one.since), str(one.tries))
    return table


def activity_table(entries: Iterable[Entry]) -> Table:
    """Who did what, and from where."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("Time", "Who", "What", "From"):
        table.add_column(name, overflow="fold", no_wrap=name == "Time")
    for entry in entries:
        what = entry.action if entry.outcome == "done" else f"{entry.action} {entry.outcome}"
        times = f", {entry.times} times" if entry.times > 1 else ""
        who = entry.who if entry.role == entry.who else f"{entry.who} ({entry.role})"
        about = f": {entry.about}" if entry.about else ""
        table.add_row(_clock(entry.at), plain(who), plain(what + times + about), plain(entry.address))
    return table


def findings_table(findings: Iterable[Finding]) -> Table:
    """The findings of `doctor`."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, color = _FINDING_MARKS[finding.state]
        table.add_row(Text(mark, style=color), finding.subject, plain(finding.said))
    return table


def rows_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Any rows, with their column names as the header; numbers are right-aligned, without trailing zeros."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, value in (rows[0] if rows else {}).items():
        is_number = isinstance(value, int | float | Decimal)
        table.add_column(column.replace("_", " "), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(plain(_number(value) if isinstance(value, Decimal) else value) for value in row.values()))
    return table


def _number(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
