"""`GET /health` and the health of the enqueue endpoint, for load balancers and operators.

Numbers over time are in `metrics.py`.
"""

from datetime import UTC, datetime
from http import HTTPStatus

import psycopg
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.jobs.health import QUEUE_SENSOR, judge
from stats_pipeline.jobs.invalidation import route
from stats_pipeline.web.context import Web, answer, web_of
from stats_pipeline.web.schemas import Alive, AppHealth, DatabaseHealth, Health, QueueHealth, SensorHealth


def health(request: Request) -> Response:
    """The state of what this process depends on; 503 if nothing can be enqueued."""
    found = check(web_of(request))
    return answer(found, HTTPStatus.SERVICE_UNAVAILABLE if found.status == "down" else HTTPStatus.OK)


def alive(request: Request) -> Response:
    """Whether an enqueue would be taken; 503 if not."""
    if check(web_of(request)).status == "down":
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "nothing can be enqueued now; see /health")
    return answer(Alive(message="The enqueue endpoint is ready", timestamp=datetime.now(UTC)))


def check(web: Web) -> Health:
    """Read the state from the database."""
    try:
        (row,) = web.database.run("check_health", route=route(web.settings))
        sensors = judge(web.database.run("list_beats"), web.settings)
        problem = None if web.settings.read_only or not row["has_queue"] else web.trial.problem()
    except (DatabaseUnavailable, psycopg.Error) as error:
        structlog.get_logger().debug("the database fails the health check", reason=one_line(error))
        return Health(status="down", database=DatabaseHealth(status="down"))
    queue = QueueHealth(status="ok" if row["has_queue"] else "missing", waiting=row["waiting"])
    sensor = SensorHealth(
        status=sensors.status, seconds_since_tick=sensors.seconds_since(QUEUE_SENSOR), silent=list(sensors.silent)
    )
    app = AppHealth(
        status="not configured" if web.settings.app_url is None else "failing" if row["app_failing_since"] else "ok",
        failing_since=row["app_failing_since"],
        undelivered_tags=row["undelivered_tags"],
    )
    is_fine = sensor.status == "ok" and app.status != "failing" and not row["set_aside"]
    return Health(
        status="down" if problem or queue.status == "missing" else "ok" if is_fine else "degraded",
        database=DatabaseHealth(status="refusing" if problem else "ok", problem=problem),
        queue=queue,
        sensor=sensor,
        app=app,
        set_aside=row["set_aside"],
    )
