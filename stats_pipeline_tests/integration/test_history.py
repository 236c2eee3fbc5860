"""No statement of the protocol reads history: with 100 000 finished jobs, each call reads a few rows of each table.

The server itself counts the rows, in any function that reads them, for the calls that `benchmarks/history.py` measures.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from benchmarks import history
from stats_pipeline import database
from stats_pipeline.database import connection
from stats_pipeline.jobs import queue, reconcile, retention
from stats_pipeline.settings import SQL_ROOT, Settings

pytestmark = pytest.mark.slow

JOBS = 100_000
MOST = 1_000  # rows of a table
MOST_OF_A_BATCH = 5 * retention.BATCH

# Of the tables of the app, of migrating, of the demo, and of somebody who types the beginning of an id.
NOT_OF_THE_PROTOCOL = {
    "beat",
    "begin_computing",
    "begin_trying",
    "clear_demo_league",
    "count_rows",
    "describe_functions",
    "describe_schema",
    "end_session",
    "ensure_migration_ledger",
    "examine_clubs",
    "examine_database",
    "examine_visitors",
    "find_jobs",
    "find_queue_extension",
    "list_app_objects",
    "list_foreign_columns",
    "list_migrations",
    "is_session_ended",
    "limit_lock_wait",
    "list_ended_sessions",
    "list_repeated_requests",
    "list_strange_functions",
    "lock_migrations",
    "note_failed_start",
    "pin_search_path",
    "read_demo_state",
    "record_migration",
    "show_all_time",
    "show_hall_of_fame",
    "rehearse",
}


@pytest.fixture(scope="module")
def work(create_database: Callable[..., str], template: str) -> Iterator[history.Work]:
    url = create_database(template)
    history.load(url, JOBS)
    with history.work_on(url) as work:
        yield work


@pytest.mark.parametrize("generic_plans", [False, True], ids=["custom", "generic"])
@pytest.mark.parametrize("name", history.STATEMENTS)
def test_no_statement_reads_history(work: history.Work, name: str, generic_plans: bool) -> None:
    read = work.rows_read(history.STATEMENTS[name], generic_plans=generic_plans)
    most = MOST_OF_A_BATCH if name.startswith("prune_") else MOST
    assert {table: rows for table, rows in read.items() if rows > most} == {}


@pytest.mark.parametrize(
    "scan",
    [
        "select count(*) from public.background_job_status",
        "select count(*) from (select id from public.background_job_status order by id) as sorted",
        "select stats_pipeline.count_rows('background_job_status', gen_random_uuid())",
    ],
)
def test_a_scan_is_seen(work: history.Work, scan: str) -> None:
    statement = history.Statement(
        lambda work: work.connection.execute(scan.encode()),
        lambda work: work.connection.execute("set local enable_seqscan = off"),
    )
    assert work.rows_read(statement)["background_job_status"] >= JOBS


def test_what_metrics_read_is_seen(work: history.Work) -> None:
    assert work.rows_read(history.STATEMENTS["GET /metrics"]) != {}


def test_every_query_is_watched(work: history.Work, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()
    named_query = connection.named_query

    def record(name: str) -> str:
        called.add(name)
        return named_query(name)

    monkeypatch.setattr(connection, "named_query", record)
    for statement in history.STATEMENTS.values():
        work.seconds(statement)
    there_are = {path.stem for path in (SQL_ROOT / "queries").glob("*.sql")}
    assert there_are - NOT_OF_THE_PROTOCOL == called - NOT_OF_THE_PROTOCOL


def test_the_history_is_one_that_the_product_could_have_made(database_url: str) -> None:
    history.load(database_url, 1_000)
    with database.Database(database_url) as opened:
        found = reconcile.read(opened)
        limits = reconcile.limits_of(Settings(_env_file=None))
        assert reconcile.decide(found, None, limits) == []
        with opened.connection() as connection:
            jobs = queue.list_jobs(connection, limit=1_000)
        assert len(jobs) == 1_000
        assert all(job.is_over and job.created_at and job.created_at < datetime.now(UTC) for job in jobs)
        assert retention.prune(opened, days=history.OLD_DAYS)["jobs"] == 500
