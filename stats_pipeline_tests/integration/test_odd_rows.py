"""How rows are shown that no program of ours would have written."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline import database
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Job
from stats_pipeline_tests.integration import steps

Query = Callable[..., list[dict[str, Any]]]
Connected = Connection[DictRow]

JOBS = "public.background_job_status"


def change(connection: Connected, job_id: UUID, assignments: str) -> None:
    """What somebody does in the SQL editor."""
    connection.execute(f"update {JOBS} set {assignments} where id = %s".encode(), (job_id,))


ODD = {
    "created_at = null": "created_at is no usable time",
    "created_at = 'infinity'": "created_at is no usable time",
    "started_at = '-infinity', completed_at = now()": "started_at is no usable time",
    "updated_at = null, completed_at = '0044-03-15 BC'": "completed_at is no usable time",
    "started_at = now(), completed_at = now() - interval '90 s'": "it ended before it started",
    "results = '[1]'": "results is no object",
    "results = '7'": "results is no object",
    "job_payload = '\"text\"'": "job_payload is no object",
    "attempts = -4": "attempts is negative",
}


@pytest.mark.parametrize("assignments", ODD)
def test_an_odd_row_is_shown_as_such_and_the_others_as_always(connection: Connected, assignments: str) -> None:
    others = [steps.enqueue(connection) for _ in range(2)]
    odd = steps.enqueue(connection)
    change(connection, odd, assignments)
    listed = {job.id: job for job in queue.list_jobs(connection, limit=10)}
    assert listed.keys() == {odd, *others}
    assert ODD[assignments] in listed[odd].oddities
    assert [listed[other].oddities for other in others] == [[], []]
    assert isinstance(queue.get_job(connection, odd), Job)


def test_a_later_state_has_a_later_version_though_its_transaction_began_earlier(
    connection: Connected, database_url: str, query: Query
) -> None:
    job_id = steps.enqueue(connection)
    version = "select stats_pipeline.job_version(j) as version from public.background_job_status as j where id = %s"
    with database.connect(database_url) as early:
        early.execute("select now()")
        change(connection, job_id, "results = '{}'")
        [before] = query(version, job_id)
        early.execute("update public.background_job_status set status = 'failed' where id = %s", (job_id,))
        early.commit()
    change_of_clock = "updated_at = now() - interval '1 hour'"
    [after] = query(version, job_id)
    assert after["version"] > before["version"]
    change(connection, job_id, change_of_clock)
    assert query(version, job_id)[0]["version"] > after["version"]
