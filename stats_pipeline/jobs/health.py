"""Whether the sensors are running, as far as the database knows: used by `/health`, `/metrics` and `doctor`.

Each sensor records a beat, its sign of life, about once a second, also while it waits. Why one is silent (the daemon is
down, or the sensor was stopped in Dagster's UI) is not known here, nor whether a schedule was stopped: only Dagster's
own tables hold that.
"""

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import Connection

from stats_pipeline.database import run
from stats_pipeline.settings import VERSION, Settings

QUEUE_SENSOR, UPKEEP_SENSOR, RELAY_SENSOR = "stats_queue", "stats_upkeep", "stats_relay"
# A sensor is late after this silence. Two ticks are up to 2 seconds apart, 5 with Dagster's own daemon.
LATE_SECONDS = 10


@dataclass(frozen=True)
class Beat:
    """The last beat of one sensor on one host."""

    sensor: str
    host: str
    version: str
    seconds_since: float


@dataclass(frozen=True)
class Sensors:
    """The sensors that some settings need: their last beat on each host, which are silent, and who runs the others."""

    needed: tuple[str, ...]
    beats: tuple[Beat, ...]
    silent: tuple[str, ...]
    versions: dict[str, str]  # of this project, by host

    @property
    def status(self) -> Literal["ok", "late", "never"]:
        """`late` if any sensor is silent, `never` if none has ever had a beat."""
        return "never" if not self.beats else "late" if self.silent else "ok"

    def seconds_since(self, sensor: str) -> float | None:
        """Seconds since the last beat of the sensor on any host; None if it never had one."""
        return min((beat.seconds_since for beat in self.beats if beat.sensor == sensor), default=None)


def beat(connection: Connection[Any], sensor: str) -> None:
    """Record that this host and version is evaluating the sensor."""
    run(connection, "beat", sensor=sensor, host=platform.node(), version=VERSION)


def judge(rows: Iterable[dict[str, Any]], settings: Settings) -> Sensors:
    """The state of the sensors that these settings need, from the rows of `list_beats`."""
    patience: dict[str, float] = {QUEUE_SENSOR: LATE_SECONDS, UPKEEP_SENSOR: LATE_SECONDS}
    if settings.app_url is not None:
        patience[RELAY_SENSOR] = LATE_SECONDS + settings.cache_timeout  # it may be waiting for an app that hangs
    beats = tuple(Beat(**row) for row in rows if row["sensor"] in patience)
    heard = [beat for beat in beats if beat.seconds_since <= patience[beat.sensor]]
    return Sensors(
        needed=tuple(patience),
        beats=beats,
        silent=tuple(sensor for sensor in patience if sensor not in {beat.sensor for beat in heard}),
        versions={beat.host: beat.version for beat in reversed(heard)},  # the newest beat of a host counts
    )
