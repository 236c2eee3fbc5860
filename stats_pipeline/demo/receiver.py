"""A stand-in for the app's cache invalidation route, for the demo: a real HTTP server that checks the key.

The demo reports the tags that it has received as delivered.
"""

import hmac
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from stats_pipeline.jobs.invalidation import ROUTE


class Receiver:
    """The tags the demo's app was asked to drop, in order, and the address and key to reach it with."""

    def __init__(self) -> None:
        self.key = secrets.token_urlsafe(32)
        self.tags: list[str] = []
        self.url = ""

    async def invalidate(self, request: Request) -> JSONResponse:
        """The route, as the app implements it."""
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode()):
            return _answer(HTTPStatus.UNAUTHORIZED, success=False, error="wrong key")
        tags = (await request.json())["tags"]
        self.tags.extend(tags)
        return _answer(HTTPStatus.OK, success=True, invalidated_tags=tags, failed_tags=[])


def _answer(status: HTTPStatus, **content: Any) -> JSONResponse:
    return JSONResponse(content, status_code=status)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Serve on a free loopback port for the length of the block."""
    receiver = Receiver()
    app = Starlette(routes=[Route(ROUTE, receiver.invalidate, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    listening = server.config.bind_socket()
    host, port = listening.getsockname()[:2]
    receiver.url = f"http://{host}:{port}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.should_exit = True
        thread.join(timeout=5)
