"""The monitoring: `/health` and `/metrics`, with rows written by the product's own steps."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import Connection

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import Database
from stats_pipeline.jobs import queue, retention
from stats_pipeline.web import trial
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import API_KEY, Served

Query = Callable[..., list[dict[str, Any]]]
APP = {"NEXT_PUBLIC_APP_URL": "https://app.example.com", "INTERNAL_API_KEY": API_KEY}


Beats = Callable[..., None]


@pytest.fixture
def beats(query: Query) -> Beats:
    """Sensors whose last sign of life is of the given age."""

    def beat(age: str, *sensors: str, host: str = "here") -> None:
        for sensor in sensors or ("stats_queue", "stats_upkeep", "stats_relay"):
            query(
                "insert into stats_pipeline.sensor_beat values (%s, %s, '0.1.0', clock_timestamp() - %s::interval)",
                sensor,
                host,
                age,
            )

    return beat


def health(served: Served) -> tuple[int, dict[str, Any]]:
    response = httpx.get(f"{served.url}/health")
    return response.status_code, response.json()


def test_all_is_well(local: Served, beats: Beats) -> None:
    beats("3 seconds")
    status, found = health(local)
    assert status == 200
    assert found["status"] == "ok"
    assert found["database"] == {"status": "ok"}
    assert found["queue"] == {"status": "ok", "waiting": 0}
    assert found["sensor"]["status"] == "ok"
    assert 3 <= found["sensor"]["seconds_since_tick"] < 10
    assert found["sensor"]["silent"] == []
    assert found["app"]["status"] == "not configured"


def test_a_daemon_that_has_stopped_is_late(local: Served, beats: Beats) -> None:
    beats("11 seconds")
    status, found = health(local)
    assert (status, found["status"], found["sensor"]["status"]) == (200, "degraded", "late")
    assert found["sensor"]["silent"] == ["stats_queue", "stats_upkeep"]


def test_a_database_without_a_daemon_has_never_had_a_beat(local: Served) -> None:
    never = {"status": "never", "seconds_since_tick": None, "silent": ["stats_queue", "stats_upkeep"]}
    assert health(local)[1]["sensor"] == never


def test_a_single_sensor_that_is_silent_is_named(local: Served, beats: Beats) -> None:
    beats("1 second", "stats_queue")
    beats("1 hour", "stats_upkeep")
    status, found = health(local)
    assert (status, found["status"]) == (200, "degraded")
    assert (found["sensor"]["status"], found["sensor"]["silent"]) == ("late", ["stats_upkeep"])


def test_a_sensor_that_has_moved_to_another_host_is_well(local: Served, beats: Beats) -> None:
    beats("1 hour", host="there")
    beats("1 second")
    assert health(local)[1]["status"] == "ok"


def test_the_relay_is_needed_where_there_is_an_app_and_may_wait_for_it(
    serve: Callable[..., Served], beats: Beats, query: Query
) -> None:
    served = serve(**APP, STATS_CACHE_TIMEOUT_SECONDS=60)
    beats("1 second", "stats_queue", "stats_upkeep")
    assert health(served)[1]["sensor"]["silent"] == ["stats_relay"]
    beats("40 seconds", "stats_relay")
    assert health(served)[1]["status"] == "ok"
    query("update stats_pipeline.sensor_beat set beaten_at = now() - interval '71 s' where sensor = 'stats_relay'")
    assert health(served)[1]["sensor"]["silent"] == ["stats_relay"]


def test_the_silence_of_each_sensor_is_measured(local: Served, beats: Beats) -> None:
    beats("2 minutes", host="there")
    beats("1 minute", "stats_queue")
    found = samples(local)
    silence = "stats_pipeline_sensor_silence_seconds"
    assert 60 <= found[silence, (("sensor", "stats_queue"),)] < 70
    assert 120 <= found[silence, (("sensor", "stats_upkeep"),)] < 130


def test_an_app_that_takes_no_tags_is_failing(serve: Callable[..., Served], beats: Beats, query: Query) -> None:
    beats("1 second")
    served = serve(**APP)
    assert health(served)[1]["app"]["status"] == "ok"
    query("insert into stats_pipeline.outbox (lease_id, rpc, tag) values (gen_random_uuid(), 'f', 'season_stats')")
    query(
        "insert into stats_pipeline.endpoint (url, failures, next_try_at, last_error) values (%s, 3, now(), 'secret')",
        f"{APP['NEXT_PUBLIC_APP_URL']}/api/internal/cache/invalidate",
    )
    status, found = health(served)
    assert (status, found["status"]) == (200, "degraded")
    assert found["app"]["status"] == "failing"
    assert found["app"]["failing_since"]
    assert found["app"]["undelivered_tags"] == 1
    assert "secret" not in str(found)


def test_a_missing_queue_is_down(local: Served, query: Query, database_url: str) -> None:
    query("alter table pgmq.q_stats_update rename to q_elsewhere")
    try:
        status, found = health(local)
        assert (status, found["status"], found["queue"]["status"]) == (503, "down", "missing")
        assert httpx.get(f"{local.url}/api/admin/enqueue-stats-job").status_code == 503
    finally:
        query("alter table pgmq.q_elsewhere rename to q_stats_update")


def samples(served: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples by name and labels."""
    response = httpx.get(f"{served.url}/metrics", headers=served.session())
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_count_what_has_happened(local: Served, connection: Connection[Any], database_url: str) -> None:
    with Database(database_url) as database:
        steps.enqueue(connection)
        steps.finish(connection, database, "run-1")
        steps.enqueue(connection, triggeredBy="post-match", matchId=1)
        claimed = steps.start(connection, "run-2")
        steps.compute(database, claimed, steps.TWO[0], tries=3)
        steps.fail_function(database, steps.TWO[1].rpc, "no such table", "run-2")
        steps.settle(connection, "run-2")
    waiting = steps.enqueue(connection, triggeredBy="cron")
    connection.execute(
        "update public.background_job_status set created_at = now() - interval '90 s' where id = %s", (waiting,)
    )
    connection.execute(
        "insert into public.background_job_status (job_payload, status) values ('{\"triggeredBy\": \"x\"}', 'failed')"
    )

    found = samples(local)
    prefix = "stats_pipeline_"
    assert found[f"{prefix}jobs", (("status", "queued"), ("trigger", "cron"))] == 1
    for status, trigger in (("completed", "admin"), ("failed", "post-match"), ("failed", "other")):
        assert found[f"{prefix}jobs_ended_total", (("status", status), ("trigger", trigger))] == 1
    assert found[f"{prefix}queue_messages", ()] == 1
    assert found[f"{prefix}queue_waiting_jobs", ()] == 1
    assert 90 <= found[f"{prefix}queue_oldest_wait_seconds", ()] < 200
    assert found[f"{prefix}undelivered_tags", ()] == sum(
        len(function.cache_tags) for function in (*steps.TWO, steps.TWO[0])
    )
    rpc = steps.TWO[0].rpc
    assert found[f"{prefix}function_retries_total", (("function", rpc),)] == 2
    assert found[f"{prefix}function_duration_seconds_count", (("function", rpc),)] == 2
    assert found[f"{prefix}job_duration_seconds_count", (("status", "completed"),)] == 1
    buckets = [
        value
        for (name, labels), value in found.items()
        if name == f"{prefix}function_duration_seconds_bucket" and ("function", rpc) in labels
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 2


def test_a_duration_is_counted_in_its_bucket(local: Served, connection: Connection[Any]) -> None:
    for milliseconds in (5, 30, 60_000):
        connection.execute("select stats_pipeline.measure_function(%s, %s, 1)", (STATS_FUNCTIONS[0].rpc, milliseconds))
    found = samples(local)
    counts = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "stats_pipeline_function_duration_seconds_bucket"
    }
    assert (counts["0.01"], counts["0.025"], counts["0.05"], counts["45.0"], counts["+Inf"]) == (1, 1, 2, 2, 3)
    (total,) = (value for (name, _), value in found.items() if name == "stats_pipeline_function_duration_seconds_sum")
    assert total == pytest.approx(60.035)


def test_counters_stay_when_what_they_counted_is_added_up_and_pruned(
    local: Served, connection: Connection[Any], database_url: str
) -> None:
    with Database(database_url) as database:
        steps.enqueue(connection)
        steps.finish(connection, database, "run-1")
        before = samples(local)
        database.run("tidy_up")
        connection.execute("update public.background_job_status set completed_at = now() - interval '2 days'")
        connection.execute("update stats_pipeline.lease set ended_at = now() - interval '2 days'")
        assert retention.prune(database, days=1)["jobs"] == 1
        after = samples(local)
        steps.enqueue(connection)
        steps.finish(connection, database, "run-2")
    counters = {key: value for key, value in before.items() if key[0].endswith(("_total", "_bucket", "_sum", "_count"))}
    assert counters
    assert {key: after[key] for key in counters} == pytest.approx(counters)
    ended = ("stats_pipeline_jobs_ended_total", (("status", "completed"), ("trigger", "admin")))
    assert samples(local)[ended] == before[ended] + 1


def test_a_database_that_can_only_be_read_is_down_until_it_takes_jobs_again(
    local: Served, beats: Beats, connection: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    beats("3 seconds")
    monkeypatch.setattr(trial, "TRY_SECONDS", 0)
    (row,) = connection.execute("select current_database() as name").fetchall()
    everybody_else = (
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()"
    )

    def set_read_only(state: str) -> None:
        connection.execute(f'alter database "{row["name"]}" set default_transaction_read_only = {state}'.encode())
        connection.execute(everybody_else, [row["name"]])

    set_read_only("on")
    try:
        status, found = health(local)
        assert (status, found["status"], found["database"]["status"]) == (503, "down", "refusing")
        assert "read-only" in found["database"]["problem"]
        refused = httpx.post(f"{local.url}/api/admin/enqueue-stats-job", json=steps.payload(), headers=local.session())
        assert (refused.status_code, refused.json()["error"]) == (503, "the database is read-only")
    finally:
        set_read_only("off")
    status, found = health(local)
    assert (status, found["status"], found["database"]) == (200, "ok", {"status": "ok"})


def test_asking_whether_a_job_could_be_enqueued_leaves_none_and_is_done_once_in_a_while(
    serve: Callable[..., Served], beats: Beats, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats("3 seconds")
    try_to_enqueue = queue.try_to_enqueue
    tried = []

    def count_and_try(connection: Connection[Any]) -> None:
        try_to_enqueue(connection)
        tried.append(connection)

    monkeypatch.setattr(queue, "try_to_enqueue", count_and_try)
    served = serve()
    for _ in range(3):
        assert health(served)[1]["queue"]["waiting"] == 0
    assert len(tried) == 1
    for table in ("public.background_job_status", "stats_pipeline.job_request", "pgmq.q_stats_update"):
        assert query(f"select count(*) from {table}") == [{"count": 0}]
