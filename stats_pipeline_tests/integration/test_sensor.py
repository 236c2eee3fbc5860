"""The sensors' beats, the queue sensor and the nightly schedule, one tick at a time, on a real database.

The upkeep sensor is in `test_upkeep.py`.
"""

import platform
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline.database import Database
from stats_pipeline.defs import sensors
from stats_pipeline.defs.resources import LEASE_TAG, TENANT_TAG
from stats_pipeline.defs.schedules import build_nightly_schedule
from stats_pipeline.jobs import health
from stats_pipeline.jobs.reconcile import apply
from stats_pipeline.settings import VERSION, Settings
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, TENANT

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]
Tick = Callable[[], dg.SensorResult | dg.SkipReason]

PATIENCE = 30
NEVER = 600  # seconds, for a tick or a poll that shall not be what finds the work
MIDNIGHT = datetime(2025, 6, 27, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def settings_for(database_url: str, **more: str) -> Settings:
    return Settings.model_validate({"STATS_DATABASE_URL": database_url, **more})


@pytest.fixture
def tick(database_url: str, instance: dg.DagsterInstance) -> Tick:
    """Evaluate the sensor once, as the daemon does."""
    return lambda: evaluate(instance, database_url)


def evaluate(instance: dg.DagsterInstance, database_url: str) -> dg.SensorResult | dg.SkipReason:
    sensor = sensors.build_queue_sensor(settings_for(database_url))
    with dg.build_sensor_context(instance=instance) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


@pytest.fixture(autouse=True)
def not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is not to end, until the test says so."""
    monkeypatch.setattr(sensors, "stop", sensors.Stop())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that looks once."""
    monkeypatch.setattr(sensors, "TICK_SECONDS", 0)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that does not end by itself: its last look finds nothing that was missed before."""
    monkeypatch.setattr(sensors, "TICK_SECONDS", NEVER)


@pytest.fixture
def unpolled(endless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that only a notification wakes."""
    monkeypatch.setattr(sensors, "POLL_SECONDS", NEVER)


def requests(result: dg.SensorResult | dg.SkipReason) -> list[dg.RunRequest]:
    assert isinstance(result, dg.SensorResult)
    assert result.run_requests is not None
    return list(result.run_requests)


def reason(result: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(result, dg.SkipReason)
    return result.skip_message or ""


class Waiting:
    """A tick in a thread, known to be waiting for work."""

    def __init__(self, tick: Tick, query: Query) -> None:
        self.result: dg.SensorResult | dg.SkipReason | None = None
        self._thread = threading.Thread(target=self._run, args=(tick,), daemon=True)
        self._thread.start()
        polling = threading.Event()
        while not query(
            "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
            "and state = 'idle' and query ~ 'acquire_leases'"
        ):
            assert self._thread.is_alive(), self.result
            polling.wait(0.02)

    def _run(self, tick: Tick) -> None:
        self.result = tick()

    def end(self) -> dg.SensorResult | dg.SkipReason:
        self._thread.join(PATIENCE)
        assert self.result is not None
        return self.result


# The sensor


def test_one_run_is_requested_per_tenant(connection: Connected, tick: Tick) -> None:
    for tenant in (None, TENANT, TENANT):
        steps.enqueue(connection, tenant)
    first, second = requests(tick())
    assert (first.tags["stats/jobs"], first.tags.get(TENANT_TAG)) == ("1", None)
    assert (second.tags["stats/jobs"], second.tags.get(TENANT_TAG)) == ("2", str(TENANT))
    assert first.run_key == first.tags[LEASE_TAG]


def test_a_runs_tags_say_what_people_know_it_by(connection: Connected, tick: Tick) -> None:
    job_id = steps.enqueue(connection, TENANT, triggeredBy="post-match", matchId=201)
    steps.enqueue(connection, TENANT)  # joins
    [request] = requests(tick())
    assert request.tags == {
        LEASE_TAG: request.run_key,
        "stats/tenant": str(TENANT),
        "stats/job": str(job_id),
        "stats/jobs": "2",
        "stats/trigger": "post-match",
        "stats/match": "201",
    }


def test_a_tick_that_is_repeated_asks_for_nothing_twice(connection: Connected, tick: Tick, impatient: None) -> None:
    steps.enqueue(connection)
    assert len(requests(tick())) == 1
    assert reason(tick()) == "The queue holds nothing that can start"


def test_a_tick_whose_runs_were_never_launched_is_made_up_for(connection: Connected, tick: Tick) -> None:
    """The daemon may die between a tick's end and its runs; another run key, or Dagster would skip it."""
    steps.enqueue(connection)
    [lost] = requests(tick())
    connection.execute("update stats_pipeline.lease set claim_until = now()")
    connection.execute("update pgmq.q_stats_update set vt = now()")
    [again] = requests(tick())
    assert again.run_key != lost.run_key


@pytest.mark.usefixtures("unpolled")
def test_an_enqueue_ends_the_wait(connection: Connected, tick: Tick, query: Query) -> None:
    waiting = Waiting(tick, query)
    steps.enqueue(connection)
    assert len(requests(waiting.end())) == 1


@pytest.mark.usefixtures("unpolled")
def test_the_end_of_a_run_ends_the_wait_of_the_job_behind_it(
    connection: Connected, opened: Database, tick: Tick, query: Query
) -> None:
    steps.enqueue(connection)
    steps.compute(opened, steps.start(connection))
    steps.enqueue(connection)
    waiting = Waiting(tick, query)
    steps.settle(connection)
    assert len(requests(waiting.end())) == 1


@pytest.mark.usefixtures("unpolled")
def test_a_job_that_is_queued_again_ends_the_wait(
    connection: Connected, database_url: str, tick: Tick, query: Query
) -> None:
    steps.enqueue(connection)
    steps.start(connection)
    waiting = Waiting(tick, query)
    dead = steps.expiry(connection)
    with connection.transaction():
        apply(connection, dead, settings_for(database_url), lambda _: None)
    assert len(requests(waiting.end())) == 1


@pytest.mark.usefixtures("endless")
def test_a_raw_message_is_found_without_a_notification(connection: Connected, tick: Tick, query: Query) -> None:
    waiting = Waiting(tick, query)
    connection.execute("select pgmq.send('stats_update', %s)", (psycopg.types.json.Jsonb(steps.payload()),))
    assert len(requests(waiting.end())) == 1


@pytest.mark.usefixtures("endless")
def test_a_lease_that_expires_is_found_without_a_notification(connection: Connected, tick: Tick, query: Query) -> None:
    steps.enqueue(connection)
    steps.lease(connection)
    waiting = Waiting(tick, query)
    connection.execute("update stats_pipeline.lease set claim_until = now()")
    connection.execute("update pgmq.q_stats_update set vt = now()")
    assert len(requests(waiting.end())) == 1


@pytest.mark.usefixtures("unpolled")
def test_a_shutdown_ends_the_tick(tick: Tick, query: Query) -> None:
    waiting = Waiting(tick, query)
    sensors.stop.set()
    assert reason(waiting.end()) == "Shutting down"


def test_a_malformed_message_is_no_crash_loop(connection: Connected, tick: Tick, impatient: None) -> None:
    connection.execute("select pgmq.send('stats_update', '\"no object\"'::jsonb)")
    assert reason(tick()) == "The queue holds nothing that can start"


def test_a_database_that_is_down_is_a_reason_to_skip(instance: dg.DagsterInstance) -> None:
    skipped = reason(evaluate(instance, "postgresql://me:hunter2@127.0.0.1:1/app"))
    assert skipped.startswith("The database is out of reach: STATS_DATABASE_URL: cannot connect to 127.0.0.1:1/app")
    assert "hunter2" not in skipped


def test_a_connection_that_is_lost_in_the_tick_is_a_reason_to_skip(tick: Tick, query: Query) -> None:
    waiting = Waiting(tick, query)
    query(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid() and query ~ 'acquire_leases'"
    )
    assert reason(waiting.end()).startswith("The database is out of reach: ")


def test_sensors_that_wait_together_start_a_job_once(
    connection: Connected, tick: Tick, query: Query, impatient: None, at_once: Callable[..., list[Any]]
) -> None:
    steps.enqueue(connection)
    results = at_once(3, lambda _: tick())
    assert sorted(type(result).__name__ for result in results) == ["SensorResult", "SkipReason", "SkipReason"]


# The beats


def last_beat(query: Query) -> datetime:
    [row] = query("select beaten_at from stats_pipeline.sensor_beat where sensor = 'stats_queue'")
    beaten_at: datetime = row["beaten_at"]
    return beaten_at


@pytest.mark.usefixtures("impatient")
def test_each_sensor_says_where_it_runs_and_as_which_version(
    database_url: str, instance: dg.DagsterInstance, query: Query
) -> None:
    settings = settings_for(
        database_url, NEXT_PUBLIC_APP_URL="http://127.0.0.1:1", INTERNAL_API_KEY="a key of some length"
    )
    for sensor in (sensors.build_queue_sensor(settings), *sensors.build_upkeep_sensors(settings)):
        with dg.build_sensor_context(instance=instance) as context:
            sensor(context)
    rows = query("select sensor, host, version from stats_pipeline.sensor_beat order by sensor")
    assert [tuple(row.values()) for row in rows] == [
        (sensor, platform.node(), VERSION) for sensor in ("stats_queue", "stats_relay", "stats_upkeep")
    ]


@pytest.mark.usefixtures("endless")
def test_a_sensor_that_waits_beats_each_second(tick: Tick, query: Query) -> None:
    waiting = Waiting(tick, query)
    first, polling = last_beat(query), threading.Event()
    while (second := last_beat(query)) == first:
        polling.wait(0.02)
    assert 0.9 <= (second - first).total_seconds() < 5
    sensors.stop.set()
    waiting.end()


@pytest.mark.usefixtures("unpolled")
def test_many_notifications_are_no_reason_for_many_beats(
    tick: Tick, connection: Connected, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "BEAT_SECONDS", NEVER)
    waiting = Waiting(tick, query)
    first = last_beat(query)
    steps.enqueue(connection)  # which notifies, so the sensor comes past the place where it would beat
    waiting.end()
    assert last_beat(query) == first


def test_beats_take_no_room(connection: Connected, query: Query) -> None:
    for _ in range(500):
        health.beat(connection, health.QUEUE_SENSOR)
    [row] = query(
        "select pg_relation_size('stats_pipeline.sensor_beat') as rows, "
        "pg_relation_size('stats_pipeline.sensor_beat_pkey') as index"
    )
    assert row == {"rows": 8192, "index": 16384}  # a page, and for the index another one that says where it begins


def test_a_beat_does_not_wait_for_the_disk_and_what_follows_does(connection: Connected) -> None:
    with connection.transaction():
        health.beat(connection, health.QUEUE_SENSOR)
        assert connection.execute("show synchronous_commit").fetchone() == {"synchronous_commit": "off"}
    assert connection.execute("show synchronous_commit").fetchone() == {"synchronous_commit": "on"}


def test_a_host_that_is_silent_for_a_day_is_forgotten_by_the_next_beat(connection: Connected, query: Query) -> None:
    query(
        "insert into stats_pipeline.sensor_beat values "
        "('stats_queue', 'long ago', '0.0.1', now() - interval '2 days'), "
        "('stats_queue', 'another', '0.0.1', now() - interval '2 hours'), "
        "('stats_queue', %s, '0.0.1', now() - interval '2 days'), "
        "('stats_relay', 'long ago', '0.0.1', now() - interval '2 days')",
        platform.node(),
    )
    health.beat(connection, health.QUEUE_SENSOR)
    rows = query("select sensor, host from stats_pipeline.sensor_beat order by sensor, host = 'another' desc")
    assert [tuple(row.values()) for row in rows] == [
        ("stats_queue", "another"),
        ("stats_queue", platform.node()),
        ("stats_relay", "long ago"),
    ]


# The schedule


def nightly(
    instance: dg.DagsterInstance, settings: Settings, at: datetime = MIDNIGHT
) -> list[dg.RunRequest] | dg.SkipReason:
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=at) as context:
        result = build_nightly_schedule(settings)(context)
    assert isinstance(result, list | dg.SkipReason)
    return result


def test_every_night_every_tenant_is_refreshed_once(
    connection: Connected, instance: dg.DagsterInstance, database_url: str, query: Query
) -> None:
    settings = settings_for(database_url, STATS_TENANTS=f"{TENANT},{OTHER_TENANT}")
    launched = nightly(instance, settings)
    assert isinstance(launched, list)
    assert [request.tags[TENANT_TAG] for request in launched] == [str(TENANT), str(OTHER_TENANT)]

    assert isinstance(nightly(instance, settings), dg.SkipReason)  # the same night, evaluated again
    jobs = query("select job_payload, tenant_id from public.background_job_status order by msg_id")
    assert [job["tenant_id"] for job in jobs] == [TENANT, OTHER_TENANT]
    assert {job["job_payload"]["triggeredBy"] for job in jobs} == {"cron"}
    assert {job["job_payload"]["requestId"] for job in jobs} == {"nightly-2025-06-27T02:00Z"}

    nightly(instance, settings, at=MIDNIGHT.replace(day=28))
    assert len(query("select id from public.background_job_status")) == 4


def test_an_hour_that_the_clock_strikes_twice_is_two_nights(
    instance: dg.DagsterInstance, database_url: str, query: Query
) -> None:
    settings = settings_for(database_url, STATS_TIMEZONE="Europe/London", STATS_CRON="30 1 * * *")
    night = datetime(2025, 10, 26, 1, 30, tzinfo=ZoneInfo("Europe/London"))
    for at in (night, night.replace(fold=1)):
        nightly(instance, settings, at)
    rows = query("select job_payload ->> 'requestId' as request from public.background_job_status")
    assert {row["request"] for row in rows} == {"nightly-2025-10-26T00:30Z", "nightly-2025-10-26T01:30Z"}


def test_without_tenants_the_default_one_is_refreshed(instance: dg.DagsterInstance, database_url: str) -> None:
    launched = nightly(instance, settings_for(database_url))
    assert isinstance(launched, list)
    [request] = launched
    assert TENANT_TAG not in request.tags


def test_the_nights_run_can_be_claimed(
    connection: Connected, instance: dg.DagsterInstance, database_url: str, query: Query
) -> None:
    launched = nightly(instance, settings_for(database_url))
    assert isinstance(launched, list)
    [row] = query("select id, job_ids from stats_pipeline.lease")
    assert launched[0].tags[LEASE_TAG] == str(row["id"])
    assert len(row["job_ids"]) == 1


def test_while_a_run_is_open_the_night_waits_in_the_queue(
    connection: Connected, instance: dg.DagsterInstance, database_url: str
) -> None:
    steps.enqueue(connection)
    steps.start(connection)
    skipped = nightly(instance, settings_for(database_url))
    assert isinstance(skipped, dg.SkipReason)
    assert "the queue sensor launches it" in (skipped.skip_message or "")
