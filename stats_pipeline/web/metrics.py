"""`GET /metrics`: Prometheus text, counted in the database when it is asked for.

So all web processes agree and a restart resets nothing. A counter only falls when old rows are deleted, which
Prometheus reads as a reset.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from stats_pipeline.database import Database
from stats_pipeline.web.auth import Caller
from stats_pipeline.web.context import web_of

JOB_BOUNDS = (
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    30.0,
    45.0,
    60.0,
    120.0,
    300.0,
    900.0,
)  # seconds; the whole refresh took 45 before
FUNCTION_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 45.0)  # 45 is a function's timeout


def metrics(request: Request, _: Caller) -> Response:
    """Prometheus metrics, as they are now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_JobCollector(web_of(request).database))
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _JobCollector(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterable[Metric]:
        """All metrics; a handful of aggregate queries."""
        yield from self._jobs()
        yield from self._queue()
        yield _histogram(
            "stats_pipeline_job_duration_seconds",
            "From a job's start to its end, by how it ended.",
            "status",
            JOB_BOUNDS,
            self._database.run("measure_job_durations", bounds=list(JOB_BOUNDS)),
        )
        functions = self._database.run("measure_function_durations", bounds=list(FUNCTION_BOUNDS))
        yield _histogram(
            "stats_pipeline_function_duration_seconds",
            "The last try of a stats function in a run, by RPC.",
            "function",
            FUNCTION_BOUNDS,
            functions,
        )
        retries = CounterMetricFamily(
            "stats_pipeline_function_retries", "Tries of a stats function after the first.", labels=["function"]
        )
        extra: defaultdict[str, int] = defaultdict(int)
        for row in functions:
            extra[row["label"]] += row["extra_tries"]
        for rpc, tries in sorted(extra.items()):
            retries.add_metric([rpc], tries)
        yield retries

    def _jobs(self) -> Iterable[Metric]:
        rows = self._database.run("measure_jobs")
        jobs = GaugeMetricFamily("stats_pipeline_jobs", "Jobs, by status and trigger.", labels=["status", "trigger"])
        for row in rows:
            jobs.add_metric([row["status"], row["trigger"]], row["jobs"])
        yield jobs
        yield CounterMetricFamily(
            "stats_pipeline_job_retries",
            "Attempts of jobs after the first.",
            value=sum(row["extra_attempts"] for row in rows),
        )

    def _queue(self) -> Iterable[Metric]:
        (row,) = self._database.run("measure_queue")
        for name, text, column in (
            ("queue_messages", "Messages in the queue: of waiting jobs and of those in progress.", "messages"),
            ("queue_waiting_jobs", "Jobs that no run has started.", "waiting"),
            ("queue_oldest_wait_seconds", "How long the oldest of them has waited.", "oldest_wait_seconds"),
            ("undelivered_tags", "Cache tags that are due and that the app has not taken.", "undelivered_tags"),
        ):
            yield GaugeMetricFamily(f"stats_pipeline_{name}", text, value=row[column])


def _histogram(name: str, text: str, label: str, bounds: Sequence[float], rows: Iterable[dict[str, Any]]) -> Metric:
    """Bucket counts per label value, added up as Prometheus wants them."""
    family = HistogramMetricFamily(name, text, labels=[label])
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
    sums: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        counts[row["label"]][row["bucket"]] += row["observations"]
        sums[row["label"]] += row["seconds"]
    for value, per_bucket in sorted(counts.items()):
        total = 0
        buckets = []
        for bound, count in zip([*bounds, float("inf")], per_bucket, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        family.add_metric([value], buckets, sums[value])
    return family
