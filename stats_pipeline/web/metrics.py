"""`GET /metrics`: Prometheus text, generated from the database on request.

Counters are kept in the database (`stats_pipeline.counters`): all web processes agree, neither a restart nor pruning
changes them, and the cost does not grow with the history.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from stats_pipeline.database import Database
from stats_pipeline.web.context import web_of
from stats_pipeline.web.sessions import Caller


def metrics(request: Request, _: Caller) -> Response:
    """Prometheus metrics, as they are now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_JobCollector(web_of(request).database))
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _JobCollector(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterable[Metric]:
        """All metrics; four queries."""
        yield from self._jobs()
        yield from self._queue()
        yield from self._sensors()
        yield from self._counters()

    def _jobs(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily(
            "stats_pipeline_jobs", "Jobs that are not over, by status and trigger.", labels=["status", "trigger"]
        )
        for row in self._database.run("measure_jobs"):
            jobs.add_metric([row["status"], row["trigger"]], row["jobs"])
        yield jobs

    def _queue(self) -> Iterable[Metric]:
        (row,) = self._database.run("measure_queue")
        for name, text, column in (
            ("queue_messages", "Messages in the queue: of waiting jobs and of those in progress.", "messages"),
            ("queue_waiting_jobs", "Jobs that no run has started.", "waiting"),
            ("queue_oldest_wait_seconds", "How long the oldest of them has waited.", "oldest_wait_seconds"),
            ("undelivered_tags", "Cache tags that are due and that the app has not taken.", "undelivered_tags"),
            ("set_aside", "What could not be done and is tried again, while the rest goes on.", "set_aside"),
        ):
            yield GaugeMetricFamily(f"stats_pipeline_{name}", text, value=row[column])

    def _sensors(self) -> Iterable[Metric]:
        silence = GaugeMetricFamily(
            "stats_pipeline_sensor_silence_seconds",
            "Since the last sign of life of a sensor, on any host; while it works, about one.",
            labels=["sensor"],
        )
        since: dict[str, float] = {}
        for row in self._database.run("list_beats"):
            since.setdefault(row["sensor"], row["seconds_since"])  # the newest one comes first
        for sensor, seconds in sorted(since.items()):
            silence.add_metric([sensor], seconds)
        yield silence

    def _counters(self) -> Iterable[Metric]:
        found: defaultdict[str, list[Any]] = defaultdict(list)
        for row in self._database.run("measure_counters"):
            found[row["metric"]].append(row)
        yield _counter(
            "jobs_ended",
            "Ends of jobs, by status and trigger.",
            found["jobs"],
            {"status": "label", "trigger": "detail"},
        )
        yield _counter("job_retries", "Attempts of jobs after the first.", found["job retries"], {})
        yield _counter(
            "function_retries",
            "Tries of a stats function after the first.",
            found["function retries"],
            {"function": "label"},
        )
        yield _histogram(
            "job_duration_seconds", "From a job's start to its end, by how it ended.", "status", found["job seconds"]
        )
        yield _histogram(
            "function_duration_seconds",
            "The last try of a stats function in a run.",
            "function",
            found["function seconds"],
        )


def _counter(name: str, text: str, rows: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> Metric:
    """One value per combination of labels, each label taken from a column of the rows."""
    family = CounterMetricFamily(f"stats_pipeline_{name}", text, labels=list(labels))
    totals: defaultdict[tuple[str, ...], float] = defaultdict(float, {} if labels else {(): 0.0})
    for row in rows:
        totals[tuple(row[column] for column in labels.values())] += row["total"]
    for values, total in sorted(totals.items()):
        family.add_metric(values, total)
    return family


def _histogram(name: str, text: str, label: str, rows: Iterable[Mapping[str, Any]]) -> Metric:
    """Bucket counts per label value, cumulative as Prometheus requires."""
    family = HistogramMetricFamily(f"stats_pipeline_{name}", text, labels=[label])
    by_label: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append(row)
    for value, measured in sorted(by_label.items()):
        counts = {row["le"]: row["observations"] for row in measured}
        reached = 0.0
        buckets = []
        for bound in sorted({*measured[0]["bounds"], *counts}):
            reached += counts.get(bound, 0)
            buckets.append(("+Inf" if bound == inf else str(bound), reached))
        family.add_metric([value], buckets, sum(row["total"] for row in measured))
    return family
