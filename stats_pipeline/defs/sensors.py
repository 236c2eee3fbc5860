"""The sensors: the queue sensor launches runs, the upkeep sensor repairs, the relay redelivers cache tags.

They wait for work inside a tick, and keep their connections from tick to tick: the queue sensor has one that listens,
the others and the schedules share one (`pool`). `stop` ends all waiting ticks, at the end of their process.

The database decides which jobs are leased to which run (`acquire_leases`); Dagster launches the runs. A sensor that
has found work is evaluated again in the daemon's next round, which `runtime/daemon.py` makes begin soon. Each sensor
records a sign of life, its beat, about once a second; `jobs/health.py` explains what its absence means.

Each second the upkeep sensor checks every open run, in our tables and in Dagster's, so it does the work of sensors
for failed, cancelled and succeeded runs. The mismatches and their repairs are in `reconcile.py`.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from math import inf
from multiprocessing.connection import wait
from typing import Any

import dagster as dg
import psycopg
from psycopg import Connection

from stats_pipeline import database
from stats_pipeline.database import budget
from stats_pipeline.defs.jobs import JOB_NAME
from stats_pipeline.defs.resources import LEASE_TAG, TENANT_TAG
from stats_pipeline.defs.runs import repair_all
from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.jobs import health, outbox, queue
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Lease
from stats_pipeline.jobs.outbound import tls
from stats_pipeline.log import Outage
from stats_pipeline.settings import Settings

# A tick blocks for at most this many seconds: well below the 60 of the daemon's call.
TICK_SECONDS = 20
# Besides the notifications: for lost ones, and for leases that expire, of which there is no notification.
POLL_SECONDS = 1
BEAT_SECONDS = 0.9  # at least, between two beats: one with each poll
WORK_CHANNEL = "stats_pipeline_work"


class Stop:
    """Whether this process is to end: may be set in a signal handler, and be waited for like a socket."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        # Never read from: once something was written, everybody who waits for it goes on.
        self._reading, self._writing = os.pipe()

    def set(self) -> None:
        os.write(self._writing, b"!")

    def fileno(self) -> int:
        return self._reading

    def wait(self, seconds: float) -> bool:
        """Whether it was set, after this time at most."""
        return bool(wait([self.fileno()], seconds))


stop = Stop()


class _Kept:
    """A connection or a pool of this process, for one database at a time, opened when it is first used."""

    def __init__(self, open_one: Callable[[str], Any]) -> None:
        self._open = open_one
        self._lock = threading.Lock()
        self._url = ""
        self._kept: Any = None

    def get(self, url: str) -> Any:
        with self._lock:
            if self._url != url or getattr(self._kept, "closed", False):
                if self._kept is not None:
                    self._kept.__exit__(None, None, None)
                self._kept = None
                self._kept, self._url = self._open(url), url
            return self._kept


def _open_listener(url: str) -> Connection[Any]:
    connection = database.connect(url, autocommit=True)
    if database.can_listen(url):
        connection.execute(f"listen {WORK_CHANNEL}".encode())
    return connection


_listener = _Kept(_open_listener)
_listening = threading.Lock()  # a tick that Dagster has given up may still be waiting
_pool = _Kept(lambda url: database.Database(url, max_connections=1, turn=TICK_SECONDS))


def pool(settings: Settings) -> database.Database:
    """The connection of upkeep, relay and schedules in this process, for one of them at a time."""
    opened: database.Database = _pool.get(database.database_url(settings))
    return opened


def build_queue_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that runs by default. While it waits it reacts to an enqueue within milliseconds."""

    @dg.sensor(
        name=health.QUEUE_SENSOR,
        job_name=JOB_NAME,
        minimum_interval_seconds=1,  # 0 would mean Dagster's default of 30
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Launches one run per club with waiting jobs.",
    )
    def stats_queue(_: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if not _listening.acquire(timeout=TICK_SECONDS):
            return dg.SkipReason("The previous tick is still waiting")
        try:
            return _wait_for_work(_listener.get(database.database_url(settings)), settings)
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            return dg.SkipReason(f"The database is out of reach: {one_line(error)}")
        finally:
            _listening.release()

    return stats_queue


def _wait_for_work(connection: Connection[Any], settings: Settings) -> dg.SensorResult | dg.SkipReason:
    deadline = time.monotonic() + TICK_SECONDS
    beat_at = -inf
    while True:
        if time.monotonic() >= beat_at + BEAT_SECONDS:  # not one beat per notification
            health.beat(connection, health.QUEUE_SENSOR)
            beat_at = time.monotonic()
        leases = queue.lease(connection, lease_seconds=settings.lease_seconds, max_runs=budget.runs_at_a_time(settings))
        if leases:
            return dg.SensorResult(run_requests=list(run_requests(leases)))
        left = deadline - time.monotonic()
        if left <= 0:
            return dg.SkipReason("The queue holds nothing that can start")
        if not any(connection.notifies(timeout=0)):  # none has come with the answer to the last statement
            waited_for = [connection.fileno(), stop.fileno()]
            if stop.fileno() in wait(waited_for, min(left, POLL_SECONDS)):
                return dg.SkipReason("Shutting down")


def run_requests(leases: Iterable[Lease]) -> Iterable[dg.RunRequest]:
    """One request per lease. A lease is never handed out twice, so its id can serve as the run key."""
    for lease in leases:
        tags = {
            LEASE_TAG: lease.lease_id,
            TENANT_TAG: lease.tenant_id,
            "stats/job": lease.job_id,
            "stats/jobs": lease.jobs,
            "stats/trigger": lease.triggered_by,
            "stats/match": lease.match_id,
        }
        known = {name: str(value) for name, value in tags.items() if value is not None}
        yield dg.RunRequest(run_key=str(lease.lease_id), tags=known)


def build_upkeep_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Sensors that run by default and launch nothing; their ticks list what they did.

    There are two, so that an app that hangs delays no repair.
    """

    starting = Outage("runs do not start", "runs start again")

    def rescue(context: dg.SensorEvaluationContext) -> Iterator[str]:
        opened = pool(settings)
        for _ in _each_second(opened, health.UPKEEP_SENSOR):
            repairs, problems = repair_all(opened, settings, context.instance, starting=starting)
            yield from (type(repair).__name__ for repair in repairs)
            yield from problems

    app = Outage("the app is out of reach", "the app is back")

    def relay(_context: dg.SensorEvaluationContext) -> Iterator[str]:
        opened = pool(settings)
        with closing(CacheClient(settings)) as cache:
            for _ in _each_second(opened, health.RELAY_SENSOR):
                delivery = outbox.deliver(opened, cache, cache_deadline=settings.cache_deadline)
                if delivery.route_failed:
                    app.begins(delivery.problem or "")
                elif delivery.taken:
                    app.is_over()
                yield from ["tag redelivered"] * len(delivery.taken)
                if delivery.problem:
                    yield delivery.problem

    upkeep = _build_sensor(
        health.UPKEEP_SENSOR,
        "Requeues jobs of crashed runs and repairs inconsistencies between queue, rows and runs.",
        rescue,
    )
    if settings.app_url is None:
        return [upkeep]
    tls(settings.ca_file)
    return [upkeep, _build_sensor(health.RELAY_SENSOR, "Redelivers cache tags until the app takes them.", relay)]


def _build_sensor(
    name: str, description: str, work: Callable[[dg.SensorEvaluationContext], Iterator[str]]
) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )
    def keep_up(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        done: Counter[str] = Counter()
        try:
            for what in work(context):
                done[what] += 1
        except (psycopg.OperationalError, DatabaseUnavailable) as error:
            done[f"interrupted: {one_line(error)}"] += 1
        return dg.SkipReason(", ".join(f"{text} ({count})" for text, count in done.items()) or "All is well")

    return keep_up


def _each_second(opened: database.Database, sensor: str) -> Iterator[None]:
    """Yields once a second for the length of a tick, or until a shutdown ends it; records a beat each time."""
    deadline = time.monotonic() + TICK_SECONDS
    while True:
        with opened.connection() as connection:
            health.beat(connection, sensor)
        yield
        left = deadline - time.monotonic()
        if left <= 0 or stop.wait(min(left, POLL_SECONDS)):
            return
