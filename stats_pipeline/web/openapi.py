"""The OpenAPI document, from the same list of operations as the routes.

The behaviour of an operation belongs to its endpoint; the list of operations is in `app.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Literal

from pydantic import TypeAdapter

from stats_pipeline.web.auth import COOKIE
from stats_pipeline.web.schemas import Problem

VERSION = "1.0.0"
JOB_ID = "{job_id}"


class Access(StrEnum):
    """Who may call an operation."""

    OPEN = "anyone"
    CRON = "CRON_SECRET"
    VIEWER = "INTERNAL_API_KEY, or a session"
    ADMIN = "INTERNAL_API_KEY, or the admin's session"


@dataclass(frozen=True)
class Operation:
    """One method of one path, described by its endpoint's docstring.

    `answers` holds a model, or the media type of an answer that is not JSON.
    """

    method: str
    path: str
    endpoint: Callable[..., Any]
    access: Access
    answers: Mapping[HTTPStatus, Any]
    body: type[Any] | None = None
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def problems(self) -> set[HTTPStatus]:
        """The error statuses of the operation, derived from its input and access."""
        found = {HTTPStatus.SERVICE_UNAVAILABLE}
        if self.access is not Access.OPEN:
            found |= {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}
        if self.access is not Access.OPEN and (self.method == "POST" or self.access is Access.CRON):
            found.add(HTTPStatus.FORBIDDEN)  # a viewer, read-only mode, or another site's page
        if self.body is not None:
            found |= {
                HTTPStatus.BAD_REQUEST,
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            }
        if self.query:
            found.add(HTTPStatus.BAD_REQUEST)
        if JOB_ID in self.path:
            found.add(HTTPStatus.NOT_FOUND)
        return found - self.answers.keys()


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the operations."""
    models: list[tuple[Any, Literal["validation", "serialization"], TypeAdapter[Any]]] = []
    for operation in operations:
        if operation.body is not None:
            models.append((operation.body, "validation", TypeAdapter(operation.body)))
        for answer in (*operation.answers.values(), Problem):
            if not isinstance(answer, str):
                models.append((str(answer), "serialization", TypeAdapter(answer)))
    schemas, definitions = TypeAdapter.json_schemas(models, ref_template="#/components/schemas/{model}")

    def answer_content(answer: Any) -> dict[str, Any]:
        if isinstance(answer, str):
            return {answer: {"schema": {"type": "string"}}}
        return {"application/json": {"schema": schemas[str(answer), "serialization"]}}

    def describe(operation: Operation) -> dict[str, Any]:
        answers = dict(operation.answers) | dict.fromkeys(operation.problems, Problem)
        described: dict[str, Any] = {
            "summary": (operation.endpoint.__doc__ or "").strip(),
            "operationId": operation.endpoint.__name__,
            "responses": {
                str(int(status)): {"description": status.phrase, "content": answer_content(answer)}
                for status, answer in sorted(answers.items())
            },
        }
        if operation.access is Access.CRON:
            described["security"] = [{"cronSecret": []}]
        elif operation.access is not Access.OPEN:
            described["security"] = [{"apiKey": []}, {"session": []}]
        parameters = [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in operation.query.items()
        ]
        if JOB_ID in operation.path:
            parameters.append(
                {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
            )
        if parameters:
            described["parameters"] = parameters
        if operation.body is not None:
            schema = schemas[operation.body, "validation"]
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        return described

    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for operation in operations:
        paths[operation.path][operation.method.lower()] = describe(operation)
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stats-pipeline",
            "version": VERSION,
            "description": "Enqueue refreshes of the player statistics and follow them.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "apiKey": bearer | {"description": "INTERNAL_API_KEY as a bearer token, for the app's servers."},
                "cronSecret": bearer
                | {"description": "CRON_SECRET as a bearer token, for a scheduler such as Vercel's."},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": "A session, begun at /login. A viewer's may only read; anything else is 403.",
                },
            },
        },
    }
