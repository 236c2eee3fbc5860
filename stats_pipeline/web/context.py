"""Shared by all handlers of one process: database, guard, reading a body with a limit, answering with a model.

It is stored in `request.app.state.web`. Database calls block: handlers make them in Starlette's thread pool, by being
plain functions or through `call`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

from psycopg import Connection
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.templating import Jinja2Templates

from stats_pipeline.database import Database
from stats_pipeline.settings import Settings
from stats_pipeline.web.audit import Audit
from stats_pipeline.web.auth import Guard
from stats_pipeline.web.stream import JobChanges
from stats_pipeline.web.trial import Trial

MAX_BODY = 65_536  # bytes
T = TypeVar("T")


@dataclass(frozen=True)
class Web:
    """One per process."""

    settings: Settings
    database: Database
    guard: Guard
    audit: Audit
    changes: JobChanges
    trial: Trial
    templates: Jinja2Templates
    document: dict[str, Any]  # OpenAPI
    dagster_url: str | None  # of the UI, as our own pages link to it

    def writable(self) -> None:
        """Raises 403 in read-only mode."""
        if self.settings.read_only:
            raise HTTPException(HTTPStatus.FORBIDDEN, "read-only mode: nothing can be enqueued here")

    async def call(self, step: Callable[[Connection[Any]], T]) -> T:
        """Run a step in one transaction, off the event loop."""

        def in_transaction() -> T:
            with self.database.transaction() as connection:
                return step(connection)

        return await run_in_threadpool(in_transaction)


def web_of(request: Request) -> Web:
    """This process's `Web` object."""
    web: Web = request.app.state.web
    return web


def answer(model: BaseModel, status: HTTPStatus = HTTPStatus.OK) -> JSONResponse:
    """A model as JSON, in the spelling of its aliases."""
    return JSONResponse(model.model_dump(mode="json", by_alias=True), status)


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises 413, 415 or 400."""
    body = await _read(request, "application/json")
    try:
        return json.loads(body, parse_float=_number, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is not valid JSON") from None


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of several with one name the last one counts. Raises 413, 415 or 400."""
    body = await _read(request, "application/x-www-form-urlencoded")
    try:
        return dict(parse_qsl(body.decode("ascii"), max_num_fields=20, keep_blank_values=True))
    except ValueError:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the form cannot be read") from None


async def _read(request: Request, content_type: str) -> bytes:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != content_type:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be {content_type}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {MAX_BODY} bytes")
    return bytes(body)


def _number(text: str) -> float:
    """JSON has only one kind of number: 7.0 is 7."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
