"""The app's cache route failing in every way: the job names the pending tags, and after recovery no page is stale."""

import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID, uuid4

import pytest

from stats_pipeline_tests.acceptance.app_server import (
    App,
    Behaviour,
    Hold,
    answer_garbage,
    close_half_way,
    leave,
    refuse,
)
from stats_pipeline_tests.acceptance.processes import RPC_OF_TAG, RPCS, Pipeline, running, until
from stats_pipeline_tests.acceptance.soundness import assert_sound

DEADLINE = 6  # seconds until a job fails because of its tags

# A tag that has just become due belongs to its own hook for three seconds.
NO_TAG_IS_LEFT_TO_ITS_HOOK = (
    "select coalesce(max(due_at), now()) < now() - interval '3 seconds' from stats_pipeline.outbox"
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    settings = {"STATS_CACHE_TIMEOUT_SECONDS": "1", "STATS_CACHE_DEADLINE_SECONDS": str(DEADLINE)}
    with running(tmp_path_factory.mktemp("app"), **settings) as started:
        yield started


@pytest.fixture
def tenant(pipeline: Pipeline) -> UUID:
    """A club of the test's own, and an app that has never failed before."""
    pipeline.query("delete from stats_pipeline.endpoint")
    return uuid4()


class Misbehaving:
    """The app behaves like this in a `with` block."""

    def __init__(self, behaviour: Behaviour | None) -> None:
        self._behaviour = behaviour

    def __call__(self, app: App) -> AbstractContextManager[None]:
        return app.down() if self._behaviour is None else app.behaving(self._behaviour)


def last_problem(pipeline: Pipeline) -> str:
    rows = pipeline.query("select last_error from stats_pipeline.endpoint")
    return rows[0]["last_error"] if rows else ""


def is_pending(pipeline: Pipeline, job_id: UUID, tags: set[str]) -> dict[str, Any] | None:
    """The job, once all its functions are done and only these tags are pending."""
    job = pipeline.job(job_id)
    results = job["results"] or {}
    is_so = results.get("successful_functions") == len(RPCS) and set(results["cache"]["pending"]) == tags
    return job if is_so else None


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        pytest.param(None, "ConnectError", id="down"),
        pytest.param(refuse(500), "the app answered 500", id="500"),
        pytest.param(refuse(401), "check NEXT_PUBLIC_APP_URL, INTERNAL_API_KEY", id="401"),
        pytest.param(Hold(), "no whole answer within", id="hangs"),
        pytest.param(close_half_way, "RemoteProtocolError", id="closes half-way"),
        pytest.param(answer_garbage, "is not its contract", id="garbage"),
    ],
)
def test_an_app_that_is_unwell_gets_the_tags_when_it_is_well(
    pipeline: Pipeline, tenant: UUID, behaviour: Behaviour | None, problem: str
) -> None:
    with Misbehaving(behaviour)(pipeline.app):
        job = pipeline.enqueue(tenant)
        until(lambda: is_pending(pipeline, job, set(RPC_OF_TAG)), "only the tags to be left")
        assert problem in until(lambda: last_problem(pipeline), "a failure of the route")
    if isinstance(behaviour, Hold):
        behaviour.released.set()
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1  # computing again would not make the app well
    assert last_problem(pipeline) == ""


def test_tags_that_the_app_leaves_are_delivered_later_and_the_others_are_not_repeated(
    pipeline: Pipeline, tenant: UUID
) -> None:
    with pipeline.app.behaving(leave("hall_of_fame", "season_stats")):
        before = len(pipeline.app.received)
        job = pipeline.enqueue(tenant)
        until(lambda: is_pending(pipeline, job, {"hall_of_fame", "season_stats"}), "two tags to be left")
        taken = set(RPC_OF_TAG) - {"hall_of_fame", "season_stats"}
    (row,) = assert_sound(pipeline, [job])
    assert row["attempts"] == 1
    told = [tag for call in pipeline.app.received[before:] for tag in call.tags]
    assert all(told.count(tag) == 1 for tag in taken), told


def test_a_dead_app_is_not_hammered_and_fails_the_job_which_completes_when_it_is_back(
    pipeline: Pipeline, tenant: UUID
) -> None:
    with pipeline.app.behaving(refuse(503)):
        before = len(pipeline.app.received)
        started = time.monotonic()
        job = pipeline.enqueue(tenant)
        until(lambda: pipeline.job(job)["status"] == "failed", "the deadline")
        seconds = time.monotonic() - started
        calls = len(pipeline.app.received) - before
        row = pipeline.job(job)
        assert "Cache tags not delivered: " in row["error_message"]
        assert all(tag in row["error_message"] for tag in RPC_OF_TAG)
    assert calls <= len(RPCS) + seconds  # the hooks of the ten functions at once, then about each second, two, four
    (row,) = assert_sound(pipeline, [job])
    assert row["error_message"] is None


def test_jobs_of_a_dead_apps_time_share_one_delivery(pipeline: Pipeline) -> None:
    with pipeline.app.behaving(refuse(500)):
        jobs = [pipeline.enqueue(uuid4()) for _ in range(2)]
        for job in jobs:
            until(functools.partial(is_pending, pipeline, job, set(RPC_OF_TAG)), "only the tags to be left")
        until(lambda: pipeline.value(NO_TAG_IS_LEFT_TO_ITS_HOOK), "the relay to take over")
    before = len(pipeline.app.received)
    assert_sound(pipeline, jobs)
    (call,) = pipeline.app.received[before:]
    assert sorted(call.tags) == sorted(RPC_OF_TAG)
