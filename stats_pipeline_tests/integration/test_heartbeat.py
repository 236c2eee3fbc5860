"""The heartbeat of a run: what it keeps, when it ends, and that it resumes after any interruption."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
import pytest
import structlog
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow
from structlog.typing import EventDict

from stats_pipeline.database import Database
from stats_pipeline.jobs import refresh
from stats_pipeline_tests.integration import steps

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]

PATIENCE = 20  # seconds until a beat that should come at once counts as never coming
HEARTBEAT = "stats_pipeline.renew_lease(uuid, integer, integer)"


@pytest.fixture
def missing() -> threading.Event:
    """Set when a beat could not be sent."""
    missed = threading.Event()

    def listen(_: object, __: str, event: EventDict) -> EventDict:
        if "could not say that it is alive" in event["event"]:
            missed.set()
        raise structlog.DropEvent

    structlog.configure(processors=[listen])
    return missed


def last_beat(query: Query) -> datetime:
    [row] = query("select renewed_at from stats_pipeline.lease")
    return datetime.fromisoformat(str(row["renewed_at"]))


def until_it_beats(query: Query, after: datetime) -> None:
    polling = threading.Event()
    for _ in range(PATIENCE * 50):
        if last_beat(query) > after:
            return
        polling.wait(0.02)
    raise AssertionError("the run fell silent")


@contextmanager
def no_function(query: Query, _: str) -> Iterator[None]:
    query(f"alter function {HEARTBEAT} rename to mislaid")
    yield
    query("alter function stats_pipeline.mislaid(uuid, integer, integer) rename to renew_lease")


@contextmanager
def beating(database: Database) -> Iterator[None]:
    """A process of the claimed run, for the length of the block."""
    process = steps.run(database, lease_id=steps.lease_of(database))
    process.claim([function.rpc for function in steps.TWO])
    try:
        yield
    finally:
        process.end()


@contextmanager
def no_database(_: Query, url: str) -> Iterator[None]:
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(make_conninfo(url, dbname="template1"), autocommit=True) as server:
        server.execute(f"alter database {name} allow_connections false".encode())
        cut = (
            "select pg_terminate_backend(pid) from pg_stat_activity where (datname, application_name) = (%s, 'beating')"
        )
        server.execute(cut, (name,))
        yield
        server.execute(f"alter database {name} allow_connections true".encode())


@pytest.mark.parametrize("outage", [no_function, no_database])
def test_a_run_goes_on_beating_after_an_outage(
    connection: Connected, database_url: str, query: Query, missing: threading.Event, outage: Any
) -> None:
    steps.enqueue(connection)
    steps.start(connection)
    with (
        Database(database_url, application_name="beating", patience=0.5) as database,
        beating(database),
    ):
        until_it_beats(query, last_beat(query))
        with outage(query, database_url):
            assert missing.wait(PATIENCE)
            silent_since = last_beat(query)
        until_it_beats(query, silent_since)


def test_the_first_beat_comes_at_once_and_none_after_the_block(
    connection: Connected, opened: Database, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "HEARTBEAT_SECONDS", 600)
    steps.enqueue(connection)
    steps.start(connection)
    claimed_at = last_beat(query)
    with beating(opened):
        until_it_beats(query, claimed_at)
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def wait_of(query: Query) -> float:
    [row] = query("select extract(epoch from vt - clock_timestamp())::float as wait from pgmq.q_stats_update")
    return float(row["wait"])


def test_a_beat_keeps_the_message_from_being_read_by_others(
    connection: Connected, opened: Database, query: Query
) -> None:
    steps.enqueue(connection)
    steps.start(connection)
    query("update pgmq.q_stats_update set vt = now()")
    assert steps.renew(opened)
    assert 25 < wait_of(query) <= 30


def test_a_run_that_has_ended_keeps_nothing(connection: Connected, opened: Database, query: Query) -> None:
    steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    steps.settle(connection, app=True)  # whose tags are still due
    query("update pgmq.q_stats_update set vt = now()")
    before = last_beat(query)
    assert not steps.renew(opened)
    assert last_beat(query) == before
    assert wait_of(query) <= 0


def test_a_beat_is_for_its_own_run(connection: Connected, opened: Database, query: Query) -> None:
    for number, tenant in enumerate((steps.TENANT, steps.OTHER_TENANT)):
        steps.enqueue(connection, tenant)
        steps.start(connection, f"run-{number}")
    query("update pgmq.q_stats_update set vt = now()")
    query("update stats_pipeline.lease set renewed_at = '2025-06-27 02:00+00'")
    steps.renew(opened)
    assert query("select run_id from stats_pipeline.lease where renewed_at > '2025-06-28'") == [{"run_id": "run-1"}]
    assert query("select j.run_id from pgmq.q_stats_update join public.background_job_status as j using (msg_id) "
        "where vt > now() + interval '20 seconds'") == [{"run_id": "run-1"}]  # fmt: skip
