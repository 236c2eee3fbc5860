"""The door: one guard in front of our app and the Dagster UI, for HTTP and WebSockets.

It looks at `scope["path"]` before any router does, and routers see the same text: all that begins with the prefix is
the Dagster UI's, everything else is ours. What is ours guards itself (`app.py`); for the UI, who may ask for what is
here. Names and origins are judged in `origin.py`, sessions in `auth.py`.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

import psycopg
import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.settings import Settings
from stats_pipeline.web.address import DAGSTER, LOGIN
from stats_pipeline.web.auth import Guard
from stats_pipeline.web.dagster_ui import DagsterUI
from stats_pipeline.web.origin import Site, is_visit
from stats_pipeline.web.sessions import LOOK_SECONDS, Caller, Role

SESSION_OVER = 4401  # why a WebSocket was closed
_MAY_CHANGE = "stats_pipeline.may_change"  # in the scope of what is passed on to the Dagster UI


@dataclass(frozen=True)
class _Rule:
    methods: frozenset[str]
    admin_only: bool = False
    changes: bool = False


_READ = frozenset({"GET", "HEAD"})
_RULES: Mapping[str, _Rule] = {
    "page": _Rule(_READ),
    "about": _Rule(_READ),
    "graphql": _Rule(frozenset({"GET", "POST"})),  # the UI itself refuses a viewer's mutations
    "log": _Rule(frozenset({"GET"}), admin_only=True),
    "dump": _Rule(frozenset({"GET"}), admin_only=True),
    "report": _Rule(frozenset({"POST"}), admin_only=True, changes=True),
}
# Beside the UI's own policy, which has a nonce: a browser obeys both. GraphiQL's page has none of its own.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_WAITING_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="1">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Dagster · stats-pipeline</title>
<link rel="stylesheet" href="/static/page.css">
<p role="status">{reason} This page tries again by itself. <a href="/admin/info">Back to the jobs</a></p>
</html>
"""


class Refused(Exception):
    """The answer to a request that is not passed on."""

    def __init__(self, response: Response) -> None:
        self.response = response


class Door:
    """ASGI, in front of our app. `ui` is None where there is no Dagster UI."""

    def __init__(self, app: ASGIApp, settings: Settings, guard: Guard, ui: DagsterUI | None) -> None:
        self._ours = app
        self._site = Site(settings)
        self._guard = guard
        self._ui = ui
        self._is_read_only = settings.read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to whom it is for, or refuse it."""
        if scope["type"] == "lifespan":
            await self._ours(scope, receive, send)
            return
        try:
            self._check_name(scope)
            if self._ui is None or not _is_below_prefix(scope["path"]):
                await self._to_ours(scope, receive, send)
            else:
                await self._to_ui(self._ui, scope, receive, send)
        except Refused as refused:
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(refused.response)
            else:
                await refused.response(scope, receive, send)

    def _check_name(self, scope: Scope) -> None:
        if refusal := self._site.refusal(scope):
            raise _refusal(*refusal)
        if not scope["path"].startswith("/"):
            raise _refusal(HTTPStatus.BAD_REQUEST, "ask for a path, not for a whole address")

    async def _to_ours(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            raise _refusal(HTTPStatus.NOT_FOUND, "there is no WebSocket here")
        if self._ui is not None and scope["path"] in self._ui.root_files:
            if not self._ui.is_open or scope["method"] not in _READ:
                raise _refusal(HTTPStatus.NOT_FOUND, "there is no such file")
            path = DAGSTER + scope["path"]
            await self._ui({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            return
        await self._ours(scope, receive, send)

    async def _to_ui(self, ui: DagsterUI, scope: Scope, receive: Receive, send: Send) -> None:
        kind = ui.kind(scope["path"].removeprefix(DAGSTER))
        connection = HTTPConnection(scope)
        _check_form_of(connection, kind)
        if self._site.is_foreign(connection.headers) and not (kind == "page" and is_visit(scope)):
            raise _refusal(HTTPStatus.FORBIDDEN, "another site's page may not do this")
        signed = self._guard.signed(connection)
        if signed is None:
            raise _to_login(connection, kind)
        if scope["type"] == "websocket":
            caller = await self._caller(connection, kind)
            self._check_is_open(ui, connection)
            await self._until_over(ui, self._scope(scope, caller), receive, send, caller)
            return
        if not await ui.take_turn():
            raise _wait(connection, "The Dagster UI is busy: perhaps its code server does not answer.")
        try:
            caller = await self._caller(connection, kind)
            self._check_rights(caller, _RULES[kind])
            if scope["path"] == DAGSTER:
                query = scope["query_string"].decode("latin-1")
                raise Refused(RedirectResponse(f"{DAGSTER}/{'?' if query else ''}{query}", HTTPStatus.SEE_OTHER))
            self._check_is_open(ui, connection)
            await ui(self._scope(scope, caller), receive, _with_headers(send))
        finally:
            ui.end_turn()

    def _check_rights(self, caller: Caller, rule: _Rule) -> None:
        if rule.admin_only and caller.role is not Role.ADMIN:
            raise _refusal(HTTPStatus.FORBIDDEN, "a viewer may not do this")
        if rule.changes and self._is_read_only:
            raise _refusal(HTTPStatus.FORBIDDEN, "read-only mode: nothing can be changed here")

    def _scope(self, scope: Scope, caller: Caller) -> Scope:
        return {**scope, _MAY_CHANGE: caller.role is Role.ADMIN and not self._is_read_only}

    async def _caller(self, connection: HTTPConnection, kind: str) -> Caller:
        try:
            caller = await self._guard.person(connection, may_be_old=LOOK_SECONDS)
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            structlog.get_logger().debug("the database is out of reach", reason=one_line(error))
            raise _wait(connection, "The database is out of reach.") from None
        if caller is None:
            raise _to_login(connection, kind)
        return caller

    def _check_is_open(self, ui: DagsterUI, connection: HTTPConnection) -> None:
        if not ui.is_open:
            ui.open()
            raise _wait(connection, "The Dagster UI is being opened.")

    async def _until_over(self, ui: DagsterUI, scope: Scope, receive: Receive, send: Send, caller: Caller) -> None:
        """Let the UI talk over the WebSocket until the session has ended."""
        is_over = asyncio.Event()

        async def receive_until_over() -> Message:
            receiving, ending = asyncio.ensure_future(receive()), asyncio.ensure_future(is_over.wait())
            try:
                await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not is_over.is_set():
                    return receiving.result()
                await send({"type": "websocket.close", "code": SESSION_OVER, "reason": "the session is over"})
                return {"type": "websocket.disconnect", "code": SESSION_OVER}
            finally:
                receiving.cancel()
                ending.cancel()

        async def send_until_over(message: Message) -> None:
            if not is_over.is_set():
                await send(message)

        with self._guard.sessions.watching(caller, is_over.set):
            await ui(scope, receive_until_over, send_until_over)


def may_change(scope: Mapping[str, object]) -> bool:
    """Whether a request that was passed on to the UI comes from an admin."""
    return scope.get(_MAY_CHANGE) is True


def _is_below_prefix(path: str) -> bool:
    return path == DAGSTER or path.startswith(f"{DAGSTER}/")


def _check_form_of(connection: HTTPConnection, kind: str) -> None:
    """Raises for what no page of the UI ever sends."""
    path = connection.scope["path"]
    if kind == "notebook" or re.search(r"//|\\|[\x00-\x1f\x7f]|/\.\.?(/|$)", path):
        raise _refusal(HTTPStatus.NOT_FOUND, "there is no such page")
    if connection.scope["type"] == "websocket":
        if kind != "graphql":
            raise _refusal(HTTPStatus.NOT_FOUND, "there is no WebSocket here")
        return
    method, headers = connection.scope["method"], connection.headers
    # A link could be a mutation: only GraphiQL's page is there for GET.
    is_link = kind == "graphql" and method == "GET" and (connection.url.query or not _wants_page(connection))
    if method not in _RULES[kind].methods or is_link:
        allowed = ", ".join(sorted(_RULES[kind].methods))
        raise _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "this address does not take that", {"Allow": allowed})
    # A form of another site can send any other type.
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")


def _wants_page(connection: HTTPConnection) -> bool:
    return "text/html" in connection.headers.get("accept", "")


def _refusal(status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None) -> Refused:
    return Refused(PlainTextResponse(f"{status.phrase}: {reason}\n", status, dict(headers or {}) | _HEADERS))


def _to_login(connection: HTTPConnection, kind: str) -> Refused:
    """To the login, and from there to the page that was asked for; whoever asks for no page is only refused."""
    if connection.scope["type"] != "http" or kind != "page" or not _wants_page(connection):
        return _refusal(HTTPStatus.UNAUTHORIZED, "log in at /login first")
    query = connection.url.query
    wanted = quote(connection.scope["path"]) + (f"?{query}" if query else "")
    return Refused(RedirectResponse(f"{LOGIN}?next={quote(wanted, safe='')}", HTTPStatus.SEE_OTHER))


def _wait(connection: HTTPConnection, reason: str) -> Refused:
    """To be asked again in a second; a page does that by itself."""
    headers = {"Retry-After": "1", "Cache-Control": "no-store"}
    if connection.scope["type"] == "http" and _wants_page(connection):
        page = HTMLResponse(_WAITING_PAGE.format(reason=reason), HTTPStatus.SERVICE_UNAVAILABLE, headers | _HEADERS)
        return Refused(page)
    return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, reason, headers)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.append("Content-Security-Policy", _POLICY)
            headers.update(_HEADERS)
        await send(message)

    return send_with_headers
