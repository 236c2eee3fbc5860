"""The database fails in the middle of a run, for a moment or longer: all requested work is still done.

Dagster's storage is in the same database, so it fails as well.
"""

import time
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from stats_pipeline.database import embedded
from stats_pipeline_tests.acceptance.processes import RPCS, Pipeline, running, until
from stats_pipeline_tests.acceptance.soundness import assert_sound

OUTAGE = 5  # seconds; longer than the three tries of a function that finds its connection closed


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    home = tmp_path_factory.mktemp("database")
    with running(home, STATS_DEAD_AFTER_SECONDS="3", STATS_LEASE_SECONDS="8") as started:
        yield started


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def some_functions_are_done(pipeline: Pipeline) -> bool:
    count = pipeline.value(
        "select count(*) from stats_pipeline.function_result as f join stats_pipeline.lease as l "
        "on l.id = f.lease_id where l.ended_at is null and f.status = 'success'"
    )
    return int(count) >= len(RPCS) - 1


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_restart_in_the_middle_of_a_run(pipeline: Pipeline, tenant: UUID, mode: str) -> None:
    with pipeline.gate(RPCS[0]):
        job = pipeline.enqueue(tenant)
        until(lambda: some_functions_are_done(pipeline), "nine functions")
        pipeline.control_server("restart", "-m", mode)
    assert_sound(pipeline, [job])


def test_every_connection_is_cut_in_the_middle_of_a_run(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate(RPCS[0]):
        job = pipeline.enqueue(tenant)
        until(lambda: some_functions_are_done(pipeline), "nine functions")
        pipeline.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name <> 'witness'")
    assert_sound(pipeline, [job])


def test_an_outage_with_jobs_before_during_and_after_it(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate("functions"):
        running_then = pipeline.enqueue(tenant)
        until(pipeline.waiting, "the run")
        waiting_then = pipeline.enqueue(tenant)
        with embedded.sole(pipeline.home):  # so long `up` cannot start it again
            embedded.control(pipeline.home, "stop", "-m", "immediate")
            time.sleep(OUTAGE)
    enqueued_after = until(lambda: pipeline.enqueue(uuid4()), "the database")
    assert_sound(pipeline, [running_then, waiting_then, enqueued_after])
