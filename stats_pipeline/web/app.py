"""Assembles the app: its routes, their access, and the form of errors.

The handlers are in `api.py`, `health.py`, `metrics.py` and `page.py`.
"""

import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import psycopg
import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from stats_pipeline.database import APPLICATION_NAME, Database, budget
from stats_pipeline.errors import DatabaseUnavailable, InvalidJob, one_line
from stats_pipeline.jobs.models import Enqueued, Job
from stats_pipeline.settings import Settings
from stats_pipeline.web import api, health, metrics, openapi, page
from stats_pipeline.web.address import DAGSTER
from stats_pipeline.web.audit import Audit
from stats_pipeline.web.auth import Guard, require_admin
from stats_pipeline.web.context import Web, answer, web_of
from stats_pipeline.web.dagster_ui import DagsterUI
from stats_pipeline.web.door import Door
from stats_pipeline.web.headers import SecurityHeaders
from stats_pipeline.web.openapi import Access, Operation
from stats_pipeline.web.schemas import Alive, CronAnswer, EnqueueRequest, Health, Problem
from stats_pipeline.web.sessions import Caller
from stats_pipeline.web.stream import JobChanges
from stats_pipeline.web.trial import Trial

OK, ACCEPTED = HTTPStatus.OK, HTTPStatus.ACCEPTED
PATIENCE = 3  # seconds that a request waits for a database that does not answer
TURN = 10  # seconds that a request waits for its turn at the connection
_STATIC = Path(__file__).parent / "static"
_JOBS = "/api/admin/background-jobs"
_CRON = "/api/admin/trigger-stats-update"

OPERATIONS = (
    Operation("POST", api.ENQUEUE, api.enqueue, Access.ADMIN, {ACCEPTED: Enqueued}, body=EnqueueRequest),
    Operation("GET", api.ENQUEUE, health.alive, Access.OPEN, {OK: Alive}),
    Operation("GET", _CRON, api.cron, Access.CRON, {ACCEPTED: CronAnswer}),
    Operation("POST", _CRON, api.cron_moved, Access.OPEN, {HTTPStatus.GONE: Problem}),
    Operation(
        "GET",
        _JOBS,
        api.list_jobs,
        Access.VIEWER,
        {OK: list[Job]},
        query={"limit": {"type": "integer", "minimum": 1, "maximum": api.MAX_LIMIT, "default": 10}},
    ),
    Operation("GET", f"{_JOBS}/stream", api.stream, Access.VIEWER, {OK: "text/event-stream"}),
    Operation("GET", f"{_JOBS}/{openapi.JOB_ID}", api.get_job, Access.VIEWER, {OK: Job}),
    Operation(
        "POST",
        f"{_JOBS}/{openapi.JOB_ID}/retry",
        api.retry,
        Access.ADMIN,
        {ACCEPTED: Enqueued, HTTPStatus.CONFLICT: Problem},
    ),
    Operation("GET", "/health", health.health, Access.OPEN, {OK: Health, HTTPStatus.SERVICE_UNAVAILABLE: Health}),
    Operation("GET", "/metrics", metrics.metrics, Access.VIEWER, {OK: "text/plain"}),
)


def build_app(settings: Settings, database_url: str, *, start_key: bytes, ui: DagsterUI | None = None) -> Starlette:
    """The ASGI app, with the Dagster UI if there is one. It opens its connections at startup, and needs a migrated
    database.

    Without passwords, logins and sessions are those of the `start_key`, a secret.
    """
    slots = budget.slots(settings)
    # Without the Dagster UI it is not the door of `up`, and may work beside one: it has no connection of its own.
    own, shared = (budget.DOOR, 1) if ui is not None or slots is None else (0, 1 + budget.DOOR)
    database = Database(
        database_url,
        max_connections=own,
        slots=slots,
        shared=shared,
        application_name=f"{APPLICATION_NAME} web",
        patience=PATIENCE,
        turn=TURN,
    )
    web = Web(
        settings=settings,
        database=database,
        guard=Guard(settings, database, start_key),
        audit=Audit(database),
        changes=JobChanges(database, slots),
        trial=Trial(database),
        templates=page.templates(),
        document=openapi.document(OPERATIONS),
        dagster_url=DAGSTER if ui is not None else None,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with database:
            async with web.changes:
                yield
            if ui is not None:
                # Here, as the server ends the process with the signal that it was told to stop by.
                await run_in_threadpool(ui.close)

    out_of_reach = _unavailable("the database is out of reach", retry_after=5)
    app = Starlette(
        routes=[
            *_api_routes(),
            *page.ROUTES,
            Route("/openapi.json", _openapi),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[
            Middleware(Door, settings=settings, guard=web.guard, audit=web.audit, ui=ui),
            Middleware(SecurityHeaders, app_url=settings.app_url),
        ],
        exception_handlers={
            HTTPException: _refused,
            InvalidJob: _invalid,
            DatabaseUnavailable: out_of_reach,
            psycopg.OperationalError: out_of_reach,
            psycopg.errors.ReadOnlySqlTransaction: _unavailable("the database is read-only", retry_after=30),
            Exception: _broken,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # such a redirect would lead to any host that the request names
    app.state.web = web
    return app


def _api_routes() -> list[Route]:
    by_path: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in OPERATIONS:
        by_path[operation.path].append(operation)
    return [_route(path, operations) for path, operations in by_path.items()]


def _route(path: str, operations: Sequence[Operation]) -> Route:
    """One route per path, so that the answer to a wrong method lists the allowed ones."""
    by_method = {operation.method: operation for operation in operations}

    async def dispatch(request: Request) -> Response:
        operation = by_method["GET" if request.method == "HEAD" else request.method]
        arguments: list[object] = [request]
        if operation.access is not Access.OPEN:
            arguments.append(await _let_in(request, operation.access))
        if inspect.iscoroutinefunction(operation.endpoint):
            response: Response = await operation.endpoint(*arguments)
            return response
        return await run_in_threadpool(operation.endpoint, *arguments)

    route = Route(path.replace(openapi.JOB_ID, "{job_id:uuid}"), dispatch, methods=list(by_method))
    if route.methods is not None and any(operation.access is Access.CRON for operation in operations):
        route.methods.discard("HEAD")  # that GET changes something, so HEAD is rejected
    return route


async def _let_in(request: Request, access: Access) -> Caller:
    """The caller, if this access allows it. A refused key is recorded; raises what the guard raises."""
    web = web_of(request)
    try:
        caller = web.guard.server(request) if access is Access.CRON else await web.guard.server_or_person(request)
    except HTTPException as error:
        is_of_key = error.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)
        if is_of_key and "authorization" in request.headers:
            about = f"{error.detail}, {request.method} {request.url.path}"
            await web.audit.note(request, "key", None, outcome="refused", about=about)
        raise
    if access is Access.ADMIN:
        require_admin(caller)
    return caller


def _openapi(request: Request) -> Response:
    return JSONResponse(web_of(request).document)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # Starlette's handler type is the base class
    return _problem(request, HTTPStatus(error.status_code), error.detail, error.headers)


def _invalid(request: Request, error: Exception) -> Response:
    return _problem(request, HTTPStatus.BAD_REQUEST, str(error))


def _unavailable(reason: str, *, retry_after: int) -> Callable[[Request, Exception], Response]:
    """The handler of errors after which a caller may try again, in `retry_after` seconds."""

    def handle(request: Request, error: Exception) -> Response:
        structlog.get_logger().debug(reason, path=request.url.path, reason=one_line(error))
        return _problem(request, HTTPStatus.SERVICE_UNAVAILABLE, reason, {"Retry-After": str(retry_after)})

    return handle


def _broken(request: Request, _: Exception) -> Response:
    """Starlette raises the error again after this answer, so the server logs it."""
    return _problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, "something is wrong here; see the server's log")


def _problem(request: Request, status: HTTPStatus, reason: str, headers: object = None) -> Response:
    if page.is_for_people(request):
        response = page.problem(request, status, reason)
    else:
        response = answer(Problem(error=reason), status)
    response.headers.update(dict(headers or {}))  # type: ignore[call-overload]
    return response
