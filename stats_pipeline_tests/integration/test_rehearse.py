"""The rehearsal that `doctor` makes: it waits for no lock, touches nothing of another club, and leaves nothing."""

from collections.abc import Callable
from typing import Any

from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import Database, call
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Query = Callable[..., list[dict[str, Any]]]
Connected = Connection[DictRow]

GAPS = {"pgmq.q_stats_update_msg_id_seq", "stats_pipeline.measurement_id_seq"}
WELL = {"step": None, "problem": None, "state": None}


def rehearse(connection: Connected) -> dict[str, str | None]:
    return dict(*call(connection, "rehearse", functions=[function.rpc for function in STATS_FUNCTIONS]))


def work(connection: Connected, opened: Database) -> None:
    """A job of each kind: waiting, at work, over, rejected."""
    steps.enqueue(connection, TENANT)
    steps.finish(connection, opened, "run 1")
    steps.enqueue(connection, TENANT)
    steps.start(connection, "run 2")
    steps.enqueue(connection)
    steps.lease(connection)
    steps.enqueue(connection, OTHER_TENANT)
    connection.execute("select pgmq.send('stats_update', '{}')")


def names(query: Query, kind: str) -> list[str]:
    found = query(
        "select c.oid::regclass::text as name from pg_class as c where c.relkind = %s and c.relnamespace in "
        "('public'::regnamespace, 'stats_pipeline'::regnamespace, 'pgmq'::regnamespace) order by 1",
        kind,
    )
    return [row["name"] for row in found]


def test_it_waits_for_nobody(connection: Connected, opened: Database, first: Connected, query: Query) -> None:
    work(connection, opened)
    with first.transaction():
        for table in names(query, "r"):
            first.execute(f"select from {table} for update".encode())
        first.execute("select pg_advisory_xact_lock(hashtextextended('stats_pipeline.acquire_leases', 0))")
        connection.execute("set statement_timeout = '900ms'")
        assert rehearse(connection) == WELL


def test_it_neither_locks_nor_leaves_anything(
    connection: Connected, opened: Database, first: Connected, query: Query
) -> None:
    work(connection, opened)
    first.execute("listen stats_pipeline_jobs")
    first.execute("listen stats_pipeline_work")
    # A lock leaves its transaction in a row's xmax, also when it was taken back.
    looks = {
        table: f"select t.xmin::text, t.xmax::text, t::text as row from {table} as t" for table in names(query, "r")
    }
    before = {table: query(look) for table, look in looks.items()}
    sequences = {name: query(f"select last_value from {name}") for name in names(query, "S")}

    assert rehearse(connection) == WELL

    assert {table: query(look) for table, look in looks.items()} == before
    moved = {name for name, was in sequences.items() if query(f"select last_value from {name}") != was}
    assert moved <= GAPS
    assert list(first.notifies(timeout=0)) == []
