"""Kill -9 at every step of a job, with real processes: nothing is lost, nothing is done by two runs at once.

Each test pauses the pipeline at one point, kills a process there, resumes, and makes the same checks at the end.
"""

import os
import signal
import threading
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from stats_pipeline_tests.acceptance.app_server import Call, Hold
from stats_pipeline_tests.acceptance.processes import (
    CODE_SERVER,
    DAEMON,
    DOOR,
    FORK_SERVER,
    RPCS,
    Pipeline,
    is_gone,
    kill,
    running,
    until,
)
from stats_pipeline_tests.acceptance.soundness import assert_sound


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    home = tmp_path_factory.mktemp("kills")
    with running(home, STATS_DEAD_AFTER_SECONDS="3", STATS_LEASE_SECONDS="8") as started:
        yield started


@pytest.fixture
def tenant() -> UUID:
    """A club of the test's own."""
    return uuid4()


def the_waiting_run(pipeline: Pipeline, *, on_table: str | None = None) -> int:
    """The process of the run that waits at a gate or for a table, once it does."""
    return until(lambda: pipeline.waiting(on_table=on_table), "a run to wait")[0]


def successes(pipeline: Pipeline, job: UUID) -> int:
    """How many functions of the job's run have committed."""
    count = pipeline.value(
        "select count(*) from stats_pipeline.function_result as f "
        "join stats_pipeline.attempt as a using (lease_id) where a.job_id = %s and f.status = 'success'",
        job,
    )
    return int(count)


def calls(pipeline: Pipeline, tenant: UUID) -> list[str]:
    """The functions whose work for the tenant was committed, once for each time."""
    return sorted(row["rpc"] for row in pipeline.query("select rpc from witness.call where tenant = %s", tenant))


def test_an_undisturbed_run_calls_each_function_once(pipeline: Pipeline, tenant: UUID) -> None:
    job = pipeline.enqueue(tenant)
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1
    assert calls(pipeline, tenant) == RPCS


def test_killed_before_the_claim(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate("claim"):
        job = pipeline.enqueue(tenant)
        pipeline.kill_run(the_waiting_run(pipeline))
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1  # the run that was killed had not begun one
    assert calls(pipeline, tenant) == RPCS


def test_killed_after_the_claim(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate("functions"):
        job = pipeline.enqueue(tenant)
        pipeline.kill_run(the_waiting_run(pipeline))
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 2
    assert calls(pipeline, tenant) == RPCS


def test_killed_in_the_middle_of_a_function(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate(RPCS[3]):
        job = pipeline.enqueue(tenant)
        until(lambda: successes(pipeline, job) == len(RPCS) - 1, "the other nine")
        pipeline.kill_run(the_waiting_run(pipeline))
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 2
    assert calls(pipeline, tenant) == RPCS  # the nine were not repeated, and of the tenth only one call counts


def test_killed_between_the_commit_and_the_hook(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.locked("stats_pipeline.endpoint"):  # the hook's first look is at the route
        job = pipeline.enqueue(tenant)
        until(lambda: successes(pipeline, job) == len(RPCS), "all ten")
        pipeline.kill_run(the_waiting_run(pipeline, on_table="stats_pipeline.endpoint"))
    assert_sound(pipeline, [job])
    assert calls(pipeline, tenant) == RPCS


def test_killed_while_the_app_has_not_read_the_call(pipeline: Pipeline, tenant: UUID) -> None:
    accepted, killed = threading.Event(), threading.Event()

    def drop() -> None:
        accepted.set()
        killed.wait(60)
        raise ConnectionAbortedError

    pipeline.app.on_accept = drop
    try:
        job = pipeline.enqueue(tenant)
        assert accepted.wait(60)
        pipeline.kill_run(pipeline.run_pids()[0])
    finally:
        pipeline.app.on_accept = lambda: None
        killed.set()
    assert_sound(pipeline, [job])


def test_killed_when_the_app_has_taken_the_tags(pipeline: Pipeline, tenant: UUID) -> None:
    def take(call: Call) -> None:
        call.take(call.tags)

    hold = Hold(first=take, then=lambda _: None)
    with pipeline.app.behaving(hold):
        job = pipeline.enqueue(tenant)
        assert hold.arrived.wait(60)
        pipeline.kill_run(pipeline.run_pids()[0])
    hold.released.set()
    assert_sound(pipeline, [job])


def test_killed_before_the_finish(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate("finish"):
        job = pipeline.enqueue(tenant)
        pipeline.kill_run(the_waiting_run(pipeline))
    assert_sound(pipeline, [job])
    assert calls(pipeline, tenant) == RPCS


def test_killed_together_with_the_server_that_would_report_it(pipeline: Pipeline, tenant: UUID) -> None:
    """Nobody tells Dagster: the silence of the run must do."""
    with pipeline.gate("functions"):
        job = pipeline.enqueue(tenant)
        run = the_waiting_run(pipeline)
        for server in pipeline.launchers_of(run):
            kill(server)
        pipeline.kill_run(run)
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 2


def test_a_job_that_joins_a_dead_runs_jobs_gets_everything_computed_again(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate(RPCS[0]):
        first = pipeline.enqueue(tenant)
        until(lambda: successes(pipeline, first) == len(RPCS) - 1, "the other nine")
        second = pipeline.enqueue(tenant)
        pipeline.kill_run(the_waiting_run(pipeline))
    rows = assert_sound(pipeline, [first, second])
    assert rows[0]["run_id"] == rows[1]["run_id"]
    assert [row["attempts"] for row in rows] == [2, 1]
    assert calls(pipeline, tenant) == sorted(RPCS + RPCS[1:])


def test_a_run_that_wakes_up_late_changes_nothing(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate(RPCS[0]):
        job = pipeline.enqueue(tenant)
        until(lambda: successes(pipeline, job) == len(RPCS) - 1, "the other nine")
        sleeper = the_waiting_run(pipeline)
        os.kill(sleeper, signal.SIGSTOP)
        until(lambda: pipeline.job(job)["attempts"] == 2, "another run")
    try:
        (row,) = assert_sound(pipeline, [job])
        assert calls(pipeline, tenant) == RPCS
    finally:
        os.kill(sleeper, signal.SIGCONT)
    # Its sessions were ended while it slept: only the process itself says when it is through.
    until(lambda: is_gone(sleeper), "the sleeper to end")
    assert assert_sound(pipeline, [job]) == [row]
    assert calls(pipeline, tenant) == RPCS


def test_a_job_whose_runs_die_three_times_fails_and_says_why(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate("functions"):
        job = pipeline.enqueue(tenant)
        killed: set[int] = set()
        while len(killed) < 3:
            run = until(lambda: set(pipeline.waiting()) - killed, "a run to wait").pop()
            pipeline.kill_run(run)
            killed.add(run)
        until(lambda: pipeline.job(job)["status"] == "failed", "the job to fail")
    (row,) = assert_sound(pipeline, [job], status="failed")
    assert "attempt 3 of 3" in row["error_message"]
    assert calls(pipeline, tenant) == []


def test_the_daemon_is_killed_between_the_queue_and_the_launch(pipeline: Pipeline, tenant: UUID) -> None:
    leased = "select count(*) from stats_pipeline.lease where tenant_id = %s"
    with pipeline.locked("dagster.runs"):  # the daemon looks there before it launches
        job = pipeline.enqueue(tenant)
        until(lambda: pipeline.value(leased, tenant), "the lease")
        pipeline.kill_child(DAEMON)
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1
    assert calls(pipeline, tenant) == RPCS


def test_the_daemon_is_killed_while_a_run_is_in_flight(pipeline: Pipeline, tenant: UUID) -> None:
    with pipeline.gate("functions"):
        job = pipeline.enqueue(tenant)
        the_waiting_run(pipeline)
        pipeline.kill_child(DAEMON)
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1  # the run outlived the daemon
    assert calls(pipeline, tenant) == RPCS


@pytest.mark.parametrize("name", [CODE_SERVER, FORK_SERVER, DOOR])
def test_a_process_is_killed_while_a_run_is_in_flight(name: str, pipeline: Pipeline, tenant: UUID) -> None:
    """The run goes on, and the next job finds a new process."""
    with pipeline.gate("functions"):
        job = pipeline.enqueue(tenant)
        the_waiting_run(pipeline)
        pipeline.kill_child(name)
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1
    assert_sound(pipeline, [pipeline.enqueue(tenant)])
    assert calls(pipeline, tenant) == sorted(RPCS * 2)


def test_the_fork_server_is_killed_before_the_launch(pipeline: Pipeline, tenant: UUID) -> None:
    kill(until(lambda: pipeline.child_pid(FORK_SERVER), "a fork server"))
    (row,) = assert_sound(pipeline, [pipeline.enqueue(tenant)])
    assert row["attempts"] == 1
