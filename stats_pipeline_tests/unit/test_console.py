"""How the command line shows values that any program may have written."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console, RenderableType

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.cli import console
from stats_pipeline.jobs.audit import Entry
from stats_pipeline.jobs.models import Job, SetAside

NASTY = "bad [/red] [bold]row[/bold] \x1b[2J\x1b]0;title\x07 end"
HARMLESS = "bad [/red] [bold]row[/bold]  [2J ]0;title  end"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job() -> Job:
    results = {"functions": {STATS_FUNCTIONS[0].rpc: {"status": "failed", "error": NASTY, "attempts": NASTY}}}
    return Job(
        id=UUID(int=1),
        job_type="stats_update",
        job_payload={"triggeredBy": NASTY, "matchId": NASTY},
        status="failed",
        error_message=NASTY,
        results=results,
        attempts=1,
        oddities=[],
        **dict.fromkeys(("started_at", "completed_at", "created_at", "updated_at"), NOW),
        **dict.fromkeys(("tenant_id", "retry_of", "run_id", "msg_id")),
    )


@pytest.mark.parametrize(
    "table",
    [
        console.jobs_table([job()]),
        console.function_table(job(), STATS_FUNCTIONS),
        console.activity_table([Entry(NOW, "key", "refused", NASTY, NASTY, NASTY, NASTY, 2)]),
        console.set_aside_table([SetAside(what="job", key=NASTY, reason=NASTY, since=NOW, tries=1, next_try_at=NOW)]),
        console.rows_table("Rows", [{"name": NASTY}]),
    ],
    ids=["jobs", "functions", "activity", "set aside", "rows"],
)
def test_what_others_wrote_is_neither_markup_nor_control(table: RenderableType) -> None:
    terminal = Console(force_terminal=True, color_system=None, width=400)
    with terminal.capture() as shown:
        terminal.print(table)
    assert "\x1b" not in shown.get()
    assert "\x07" not in shown.get()
    assert " ".join(HARMLESS.split()) in " ".join(shown.get().split())


@pytest.mark.parametrize(
    ("payload", "trigger"),
    [
        ({"triggeredBy": "post-match", "matchId": 7}, "post-match (Match 7)"),
        ({"triggeredBy": "post-match"}, "post-match (match not named)"),
        ({"triggeredBy": "post-match", "matchId": None}, "post-match (match not named)"),
        ({"triggeredBy": "admin"}, "admin"),
    ],
)
def test_what_triggered_a_job(payload: dict[str, Any], trigger: str) -> None:
    table = console.jobs_table([job().model_copy(update={"job_payload": payload})])
    [shown] = table.columns[1].cells
    assert str(shown) == trigger


def test_a_line_of_progress_with_the_words_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(NASTY)
    assert capsys.readouterr().err == f"{HARMLESS}\n"
