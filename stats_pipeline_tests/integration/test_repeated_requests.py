"""A requestId that is a constant: used again on later days, it is recorded for `doctor`, without waiting."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline.database import Database
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps

Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]
Connected = Connection[DictRow]

NOTED = "stats_pipeline.repeated_request"
NIGHTLY = steps.payload(triggeredBy="cron", requestId="nightly")


def ask(connection: Connected) -> None:
    queue.enqueue(connection, NIGHTLY)


def insert_quietly(connection: Connected) -> None:
    connection.execute(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued') on conflict do nothing",
        (Jsonb(NIGHTLY),),
    )


def send(connection: Connected) -> None:
    connection.execute("select pgmq.send('stats_update', %s::jsonb)", (Jsonb(NIGHTLY),))
    steps.lease(connection)


@pytest.fixture
def yesterdays(connection: Connected, opened: Database, query: Query) -> None:
    ask(connection)
    steps.finish(connection, opened)
    query("update public.background_job_status set completed_at = now() - interval '1 day'")


@pytest.mark.usefixtures("yesterdays")
@pytest.mark.parametrize("door", [ask, insert_quietly, send], ids=["function", "row", "message"])
def test_each_later_day_is_noted_once(
    connection: Connected, count: Count, query: Query, door: Callable[[Connected], None]
) -> None:
    for _ in range(3):
        door(connection)
    assert count(NOTED) == 1
    query(f"update {NOTED} set repeated_at = repeated_at - interval '1 day'")
    door(connection)
    assert count(NOTED) == 2
    query("delete from public.background_job_status")
    assert count(NOTED) == 0


def test_a_first_request_and_one_whose_answer_was_lost_are_not(
    connection: Connected, opened: Database, count: Count
) -> None:
    ask(connection)
    ask(connection)
    steps.finish(connection, opened)
    ask(connection)
    insert_quietly(connection)
    assert count(NOTED) == 0


@pytest.mark.usefixtures("yesterdays")
def test_who_asks_again_holds_nobody_up(connection: Connected, first: Connected, count: Count) -> None:
    connection.execute("set lock_timeout = '50ms'")
    with first.transaction():
        ask(first)
        ask(connection)
        insert_quietly(connection)
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(
                "insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
                (Jsonb(NIGHTLY),),
            )
        connection.execute("delete from public.background_job_status")
        ask(connection)
    assert count("public.background_job_status") == 1
