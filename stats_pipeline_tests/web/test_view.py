"""What the page computes from rows: durations, estimates, bars, and results in a foreign format."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.jobs.models import Job
from stats_pipeline.web import view

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
USUAL = view.Overview(waiting=0, oldest_wait=None, usual_wait=2.0, usual_run=10.0, is_experience=True)


def job(**columns: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": uuid4(),
        "job_type": "stats_update",
        "job_payload": {"triggeredBy": "admin", "requestId": "1"},
        "status": "queued",
        "created_at": NOW,
        "updated_at": NOW,
        "attempts": 0,
    }
    optional = ("started_at", "completed_at", "error_message", "results", "tenant_id", "retry_of", "run_id", "msg_id")
    return Job(**{**dict.fromkeys(optional), **defaults, **columns})


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "N/A"),
        ({"status": "failed", "completed_at": NOW}, "N/A"),  # refused before it started
        ({"status": "processing", "started_at": ago(5)}, "In progress..."),
        ({"status": "completed", "started_at": ago(4.25), "completed_at": NOW}, "4.2s"),
        ({"status": "completed", "started_at": ago(44.6), "completed_at": NOW}, "45s"),
    ],
)
def test_duration(columns: dict[str, Any], expected: str) -> None:
    assert view.duration(job(**columns)) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"created_at": NOW}, 12),
        ({"created_at": ago(5)}, 7),
        ({"created_at": ago(3), "status": "processing", "started_at": ago(1)}, 9),
        ({"created_at": ago(99), "status": "processing", "started_at": ago(98)}, 0),
        ({"status": "completed", "started_at": ago(9), "completed_at": NOW}, None),
        ({"status": "failed"}, None),
    ],
)
def test_seconds_left(columns: dict[str, Any], expected: int | None) -> None:
    assert view.seconds_left(job(**columns), USUAL, NOW) == expected


def test_without_experience_a_refresh_takes_a_minute() -> None:
    row = {"waiting": 2, "oldest_wait_seconds": 61.0, "usual_wait_seconds": None, "usual_run_seconds": None}
    found = view.overview(row)
    assert (found.usual_total, found.is_experience, found.oldest_wait) == (60, False, "1 min")


def test_bars_are_relative_to_the_longest_function() -> None:
    rpcs = [function.rpc for function in STATS_FUNCTIONS]
    results = {
        "functions": {
            rpcs[0]: {"status": "success", "duration_ms": 50, "attempts": 1},
            rpcs[1]: {"status": "failed", "duration_ms": 200, "attempts": 3, "error": "no"},
            "a_function_of_old": {"status": "success", "duration_ms": 100, "attempts": 1},
        }
    }
    rows = view.function_rows(job(status="failed", results=results), STATS_FUNCTIONS)
    assert [row.rpc for row in rows] == [*rpcs, "a_function_of_old"]
    assert [(row.share, row.status) for row in (rows[0], rows[1], rows[2], rows[-1])] == [
        (25.0, "success"),
        (100.0, "failed"),
        (0.0, "not run"),
        (50.0, "success"),
    ]


@pytest.mark.parametrize(
    "results",
    [
        None,
        {},
        {"functions": None, "cache": []},
        {"functions": {"f": "done"}, "cache": {"delivered": "all"}, "coalesced_with": 3},
        {"functions": [{"name": "call-update-hall-of-fame", "duration": 3}], "cache": {"status": None}},
        {"functions": {"f": {"duration_ms": "9", "attempts": None, "error": {"code": 1}}}},
    ],
)
def test_results_that_another_program_wrote_are_shown_as_far_as_they_go(results: Any) -> None:
    row = view.job_row(
        job(status="completed", results=results, job_payload={"matchId": {"a": 1}}),
        STATS_FUNCTIONS,
        USUAL,
        now=NOW,
        dagster_url="/dagster",
    )
    assert row.trigger == "unknown"
    assert len(row.functions) >= 10
    assert row.delivered == ()


@pytest.mark.parametrize(("dagster_url", "expected"), [("/dagster", "/dagster/runs/1-2"), (None, None)])
def test_a_row_links_to_its_run_where_there_is_a_dagster_ui(dagster_url: str | None, expected: str | None) -> None:
    row = view.job_row(job(run_id="1-2"), STATS_FUNCTIONS, USUAL, now=NOW, dagster_url=dagster_url)
    assert row.run_url == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_599, "59 min"), (7_200, "2 h"), (2e5, "2 d")],
)
def test_age(seconds: float, expected: str) -> None:
    assert view.age(seconds) == expected


def test_the_strip_leaves_even_the_shortest_job_visible() -> None:
    rows = [{"status": "completed", "started_at": NOW, "seconds": seconds} for seconds in (0.0, 1.0, 100.0)]
    assert [bar.height for bar in view.strip(rows)] == [4.0, 4.0, 100.0]
    assert view.strip([]) == ()
