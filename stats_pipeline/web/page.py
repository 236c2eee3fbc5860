"""The HTML pages: login, the admin's page and its live part, its forms, the API's description, errors.

Every form works without JavaScript; with it, the page calls the JSON API and updates automatically (`static/info.js`).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from psycopg import Connection
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from stats_pipeline.database import run, run_one
from stats_pipeline.errors import DatabaseUnavailable, InvalidJob, one_line
from stats_pipeline.jobs import audit, queue
from stats_pipeline.jobs.models import Enqueued, Payload
from stats_pipeline.web import view
from stats_pipeline.web.address import DAGSTER, INFO, LOGIN
from stats_pipeline.web.audit import address_of, log_retry, record_job
from stats_pipeline.web.auth import COOKIE, require_admin
from stats_pipeline.web.context import Web, read_form, web_of
from stats_pipeline.web.sessions import Caller, Role

_SHOWN_JOBS = 10
_SHOWN_DONE, _SHOWN_REFUSED = 15, 5
_SHOWN_ERROR = "the database is out of reach"


def templates() -> Jinja2Templates:
    """The templates beside this module; an undefined name in one is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["took"] = view.took
    return Jinja2Templates(env=environment)


def is_for_people(request: Request) -> bool:
    """Whether the request asks for a page, as browsers do, rather than for data."""
    return "text/html" in request.headers.get("accept", "")


def problem(request: Request, status: HTTPStatus, reason: str) -> Response:
    """An error as a page."""
    return _render(request, "problem.html", status=status, reason=reason, status_code=status)


async def info(request: Request) -> Response:
    """The whole page. If the database is out of reach it says so, and recovers when the database does."""
    guard = web_of(request).guard
    to_login = RedirectResponse(LOGIN, HTTPStatus.SEE_OTHER)
    caller = guard.signed(request)
    if caller is None:
        return to_login
    status = HTTPStatus.OK
    try:
        if await guard.sessions.is_over(caller):
            return to_login
        content = await run_in_threadpool(_content, request, caller) | {"error": None}
        content["activity"] = await run_in_threadpool(_activity, request, caller)
    except (DatabaseUnavailable, psycopg.OperationalError) as error:
        structlog.get_logger().debug(_SHOWN_ERROR, path=request.url.path, reason=one_line(error))
        content = _frame(request, caller) | {"error": _SHOWN_ERROR, "jobs": [], "activity": None}
        status = HTTPStatus.SERVICE_UNAVAILABLE
    return await run_in_threadpool(_render, request, "info.html", **content, status_code=status)


async def jobs(request: Request) -> Response:
    """Only the live part of the page."""
    caller = await web_of(request).guard.person(request)
    if caller is None:
        raise HTTPException(HTTPStatus.UNAUTHORIZED, "the session is over: log in again")
    content = await run_in_threadpool(_content, request, caller)
    return await run_in_threadpool(_render, request, "jobs.html", **content)


def _frame(request: Request, caller: Caller) -> dict[str, Any]:
    web = web_of(request)
    return {
        "token": web.guard.sessions.form_token(caller),
        "role": caller.role.value,
        "read_only": web.settings.read_only or caller.role is not Role.ADMIN,
        "tenants": web.settings.tenants,
        "request_id": uuid4(),
        "pressed": request.query_params.get("job"),  # the job that the button was last pressed for
        "pressed_status": None,
        "dagster_url": web.dagster_url,
    }


def _content(request: Request, caller: Caller) -> dict[str, Any]:
    web = web_of(request)
    with web.database.connection() as connection:
        found = queue.list_jobs(connection, limit=_SHOWN_JOBS)
        usual = view.overview(run_one(connection, "read_overview"))
        durations = run(connection, "list_durations")
        set_aside = queue.list_set_aside(connection)
    now = datetime.now(UTC)
    frame = _frame(request, caller)
    return frame | {
        "pressed_status": next((job.status for job in found if str(job.id) == frame["pressed"]), None),
        "jobs": [
            view.job_row(job, web.settings.functions, usual, now=now, dagster_url=web.dagster_url) for job in found
        ],
        "overview": usual,
        "set_aside": set_aside,
        "strip": view.strip(durations),
        "is_open": set(request.query_params.getlist("open")),
    }


def _activity(request: Request, caller: Caller) -> list[audit.Entry] | None:
    """The last rows of the audit of each outcome, for an admin only: they name people and addresses."""
    if caller.role is not Role.ADMIN:
        return None
    with web_of(request).database.connection() as connection:
        return audit.latest(connection, _SHOWN_DONE, refused=_SHOWN_REFUSED)


async def enqueue(request: Request) -> Response:
    """The button, without JavaScript. A form that is sent twice creates only one job."""
    web, caller, form = await _admin_form(request)
    payload = Payload(
        triggered_by="admin",
        request_id=form.get("requestId", ""),
        user_id="admin",
        tenant_id=form.get("tenantId") or None,
    ).as_json()

    def enqueue_and_record(connection: Connection[Any]) -> Enqueued:
        job = queue.enqueue(connection, payload)
        record_job(connection, request, caller, "launch", job)
        return job

    job = await web.call(enqueue_and_record)
    structlog.get_logger().info(
        "stats job enqueued",
        caller=caller.name,
        address=address_of(request),
        triggeredBy="admin",
        job_id=str(job.job_id),
    )
    return RedirectResponse(f"{INFO}?job={job.job_id}", HTTPStatus.SEE_OTHER)


async def retry(request: Request) -> Response:
    """Retry, without JavaScript."""
    web, caller, form = await _admin_form(request)
    try:
        failed = UUID(form.get("job", ""))
    except ValueError:
        raise InvalidJob("job must be the id of a failed job") from None

    def retry_and_record(connection: Connection[Any]) -> Enqueued:
        job = queue.retry(connection, failed)
        record_job(connection, request, caller, "retry", job, about=f", a retry of {failed}")
        return job

    job = await web.call(retry_and_record)
    log_retry(request, caller, failed, job)
    return RedirectResponse(INFO, HTTPStatus.SEE_OTHER)


async def _admin_form(request: Request) -> tuple[Web, Caller, dict[str, str]]:
    web = web_of(request)
    caller = await web.guard.person(request)
    if caller is None:
        raise HTTPException(HTTPStatus.UNAUTHORIZED, "the session is over: log in again")
    form = await read_form(request)
    web.guard.check_form(request, caller, form.get("token", ""))
    require_admin(caller)
    web.writable()
    return web, caller, form


async def login_page(request: Request) -> Response:
    """The login page; redirects to the page that was asked for if no login is needed.

    A login link only leads here: a program that looks at the link does not use it up.
    """
    if await web_of(request).guard.person(request) is not None:
        return RedirectResponse(_next(request.query_params), HTTPStatus.SEE_OTHER)
    return await _login_form(request, request.query_params, HTTPStatus.OK)


async def login(request: Request) -> Response:
    """Check the password, or the key of the login link."""
    web = web_of(request)
    web.guard.same_origin(request)
    form = await read_form(request)
    response: Response = RedirectResponse(_next(form), HTTPStatus.SEE_OTHER)
    key = form.get("key", "")
    try:
        role = await web.guard.log_in(request, response, password=form.get("password", ""), key=key)
    except HTTPException as error:
        await web.audit.note(request, "login", None, outcome="refused", about=error.detail)
        raise
    if role is not None:
        await web.audit.note(request, "login", Caller(role.value, role, None))
        return response
    about = "wrong or used login link" if key else "wrong password"
    await web.audit.note(request, "login", None, outcome="refused", about=about)
    return await _login_form(request, form, HTTPStatus.UNAUTHORIZED)


async def _login_form(request: Request, given: Mapping[str, str], status: HTTPStatus) -> Response:
    guard = web_of(request).guard
    content = {
        "is_wrong": status is HTTPStatus.UNAUTHORIZED,
        "has_password": guard.has_password,
        "is_link_used": await guard.is_link_used(),
        "key": given.get("key", ""),
        "next": _next(given),
    }
    return _render(request, "login.html", **content, status_code=status)


def _next(given: Mapping[str, str]) -> str:
    """Where to go after the login: a page of the Dagster UI that was asked for, or ours. Never to another site."""
    wanted = given.get("next", "")
    is_dagster = re.fullmatch(rf"{DAGSTER}([/?][!-\[\]-~]*)?", wanted)  # printable, without a backslash
    return wanted if is_dagster else INFO


async def logout(request: Request) -> Response:
    """End the session, for every browser that has its cookie, with its event streams and WebSockets."""
    web = web_of(request)
    web.guard.same_origin(request)  # the answer forgets the cookie also of who has sent none
    caller = await web.guard.person(request)
    if caller is not None:
        web.guard.check_form(request, caller, (await read_form(request)).get("token", ""))
        if caller.session is not None:
            await web.guard.sessions.end(caller.session)
            await web.audit.note(request, "logout", caller)
    response = RedirectResponse(LOGIN, HTTPStatus.SEE_OTHER)
    response.delete_cookie(COOKIE)
    response.headers["Clear-Site-Data"] = '"cache", "storage"'  # the Dagster UI keeps what it has shown
    return response


async def docs(request: Request) -> Response:
    """The OpenAPI document as a page."""
    document = web_of(request).document
    return await run_in_threadpool(_render, request, "docs.html", document=document)


async def to_info(_: Request) -> Response:
    """Redirect to the admin's page."""
    return RedirectResponse(INFO)


def _render(request: Request, name: str, *, status_code: int = HTTPStatus.OK, **content: Any) -> Response:
    return web_of(request).templates.TemplateResponse(request, name, content, status_code=status_code)


ROUTES = [
    Route("/", to_info),
    Route(LOGIN, login_page, methods=["GET"]),
    Route(LOGIN, login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route(INFO, info),
    Route(f"{INFO}/jobs", jobs),
    Route(f"{INFO}/enqueue", enqueue, methods=["POST"]),
    Route(f"{INFO}/retry", retry, methods=["POST"]),
    Route("/docs", docs),
]
