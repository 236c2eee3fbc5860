"""A stand-in for the app's cache invalidation route, for the demo: a real HTTP server that checks the key.

The demo reports the tags that it has received as delivered.
"""

import hmac
import json
import secrets
import socket
from contextlib import closing
from http import HTTPStatus
from typing import Any, Self

import httpcore
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from stats_pipeline.jobs.invalidation import ROUTE

_RECEIVED = "/received"


class Receiver:
    """The address and key of the demo's app, on a free loopback port. One process serves it, others may ask it."""

    def __init__(self) -> None:
        self.key = secrets.token_urlsafe(32)
        self._tags: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        host, port = self._listening.getsockname()
        self.url = f"http://{host}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def serve(self) -> None:
        """Serve until SIGTERM."""
        routes = [
            Route(ROUTE, self._invalidate, methods=["POST"]),
            Route(_RECEIVED, self._list_received, methods=["GET"]),
        ]
        uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off")).run(
            sockets=[self._listening]
        )

    def received(self) -> list[str]:
        """The tags that the app was asked to drop, in order."""
        with closing(httpcore.ConnectionPool()) as client:
            shown = [("Authorization", f"Bearer {self.key}")]
            return list(json.loads(client.request("GET", self.url + _RECEIVED, headers=shown).content))

    def _has_key(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode())

    async def _invalidate(self, request: Request) -> JSONResponse:
        """The route, as the app implements it."""
        if not self._has_key(request):
            return _answer(HTTPStatus.UNAUTHORIZED, success=False, error="wrong key")
        tags = (await request.json())["tags"]
        self._tags.extend(tags)
        return _answer(HTTPStatus.OK, success=True, invalidated_tags=tags, failed_tags=[])

    async def _list_received(self, request: Request) -> JSONResponse:
        if not self._has_key(request):
            return _answer(HTTPStatus.UNAUTHORIZED, error="wrong key")
        return JSONResponse(self._tags)


def _answer(status: HTTPStatus, **content: Any) -> JSONResponse:
    return JSONResponse(content, status_code=status)
