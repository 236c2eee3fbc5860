"""Retry while the first retry is running, and what a retry copies from the job it repeats.

The plain cases are in `test_retrying_jobs.py`, two retries at once in `test_races.py`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.database import Database
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps

Connected = Connection[DictRow]


@pytest.fixture
def failed(connection: Connected, opened: Database) -> UUID:
    job_id = steps.enqueue(connection, steps.TENANT, note="the app's own", timestamp="2025-06-26T21:00Z")
    steps.fail(connection, opened)
    return job_id


def test_a_retry_that_is_at_work_is_the_one_that_a_second_press_gets(connection: Connected, failed: UUID) -> None:
    retry = queue.retry(connection, failed)
    steps.start(connection, "again")
    second = queue.retry(connection, failed)
    assert (second.job_id, second.status) == (retry.job_id, "processing")


def test_a_retry_is_asked_for_now_and_keeps_what_the_app_has_said(connection: Connected, failed: UUID) -> None:
    old, new = (steps.job(connection, job_id) for job_id in (failed, queue.retry(connection, failed).job_id))
    assert new.job_payload["note"] == "the app's own"
    assert new.created_at is not None
    assert old.created_at is not None
    assert datetime.fromisoformat(new.job_payload["timestamp"]) == new.created_at > old.created_at


def test_each_failed_job_has_a_retry_of_its_own(connection: Connected, opened: Database) -> None:
    both = [steps.enqueue(connection) for _ in range(2)]
    steps.fail(connection, opened)
    retries = {queue.retry(connection, job_id).job_id for job_id in both}
    assert len(retries) == 2


def test_a_retry_that_failed_can_be_retried_itself(connection: Connected, opened: Database, failed: UUID) -> None:
    first = queue.retry(connection, failed).job_id
    steps.fail(connection, opened, "again")
    second = steps.job(connection, queue.retry(connection, first).job_id)
    assert second.retry_of == first
    assert second.tenant_id == steps.TENANT


def test_two_requests_that_repeat_one_job_are_one_retry(
    connection: Connected, failed: UUID, count: Callable[[str], int]
) -> None:
    """Whoever asks: the button, or an app that names the job itself."""
    first = steps.enqueue(connection, steps.TENANT, retryOf=str(failed))
    assert queue.retry(connection, failed).job_id == first
    payload: dict[str, Any] = steps.payload(retryOf=str(failed), tenantId=str(steps.TENANT))
    assert queue.enqueue(connection, payload).job_id == first
    assert count("public.background_job_status") == 2
