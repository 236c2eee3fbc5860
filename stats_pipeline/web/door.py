"""The door: one guard in front of our app and the Dagster UI, for HTTP and WebSockets.

It looks at `scope["path"]` before any router does, and routers see the same text: all that begins with the prefix is
the Dagster UI's, everything else is ours. What is ours guards itself (`app.py`); for the UI, who may ask for what is
here. Names and origins are judged in `origin.py`, sessions in `auth.py`.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import groupby
from urllib.parse import quote

import psycopg
import structlog
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.jobs.audit import Action
from stats_pipeline.settings import Settings
from stats_pipeline.web.address import DAGSTER, LOGIN
from stats_pipeline.web.audit import Audit
from stats_pipeline.web.auth import Guard
from stats_pipeline.web.dagster_ui import Busy, DagsterUI
from stats_pipeline.web.origin import Site, is_visit
from stats_pipeline.web.sessions import LOOK_SECONDS, Caller, Role

SESSION_OVER = 4401  # why a WebSocket was closed
_MAY_CHANGE = "stats_pipeline.may_change"  # in the scope of what is passed on to the Dagster UI


@dataclass(frozen=True)
class _Rule:
    methods: frozenset[str]
    admin_only: bool = False
    changes: bool = False


_MAX_QUERY = 262_144  # bytes, with its variables: the config of a run is one
_BODY_SECONDS, _SEND_SECONDS = 10, 30  # for a query to come, and for a part of the answer to be taken
_MAX_SOCKETS = 20  # of one session: a tab has one or two
_NO_CHANGES = frozenset({"logTelemetry", "setNuxSeen", "__typename"})  # what the UI's pages send by themselves
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
    "Referrer-Policy": "same-origin",
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

    def __init__(self, app: ASGIApp, settings: Settings, guard: Guard, audit: Audit, ui: DagsterUI | None) -> None:
        self._ours = app
        self._audit = audit
        self._site = Site(settings)
        self._guard = guard
        self._ui = ui
        self._is_read_only = settings.read_only
        self._sockets: Counter[str] = Counter()

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
        """A load balancer and the app's own server may use any name: another site's page learns nothing from the
        first, and does not have the second one's key."""
        is_any_name_good = scope["path"] == "/health" or (
            scope["path"].startswith("/api/") and "authorization" in Headers(scope=scope)
        )
        if not is_any_name_good and (refusal := self._site.refusal(scope)):
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
        caller = await self._caller(connection, kind)
        if scope["type"] == "websocket":
            self._check_is_open(ui, connection)
            await self._until_over(ui, self._scope(scope, caller), receive, send, caller)
            return
        self._check_rights(caller, _RULES[kind])
        if scope["path"] == DAGSTER:
            query = scope["query_string"].decode("latin-1")
            raise Refused(RedirectResponse(f"{DAGSTER}/{'?' if query else ''}{query}", HTTPStatus.SEE_OTHER))
        self._check_is_open(ui, connection)
        if scope["method"] == "POST":
            receive = await self._judge_changes(ui, kind, scope, receive, caller)
        scope, send = self._scope(scope, caller), _with_headers(send, scope["path"])
        try:
            if kind == "page":  # a file, as the UI's pages are
                await ui(scope, receive, send)
                return
            async with ui.turn(is_viewer=caller.role is not Role.ADMIN):
                await ui(scope, receive, send)
        except Busy:
            raise _wait(connection, "The Dagster UI is busy: perhaps its code server does not answer.") from None
        except (TimeoutError, ClientDisconnect):
            return  # who asked does not read the answer

    def _check_rights(self, caller: Caller, rule: _Rule) -> None:
        if rule.admin_only and caller.role is not Role.ADMIN:
            raise _refusal(HTTPStatus.FORBIDDEN, "a viewer may not do this")
        if rule.changes and self._is_read_only:
            raise _refusal(HTTPStatus.FORBIDDEN, "read-only mode: nothing can be changed here")

    async def _judge_changes(self, ui: DagsterUI, kind: str, scope: Scope, receive: Receive, caller: Caller) -> Receive:
        """Refuse what may not be changed, and record what will be asked for; what then receives the same body."""
        if kind != "graphql":
            await self._audit.note(scope, "change", caller, about=f"{scope['path']} in the Dagster UI")
            return receive
        body = await _read(scope, receive)
        changes = set(await run_in_threadpool(_mutations, ui, body))
        if changes and not self._may_change(caller):
            raise _refusal(HTTPStatus.FORBIDDEN, "who may only look may change nothing")
        for action, names in groupby(sorted(changes - _NO_CHANGES, key=_action_of), key=_action_of):
            await self._audit.note(scope, action, caller, about=f"{', '.join(sorted(names))} in the Dagster UI")
        return _replaying(body, receive)

    def _may_change(self, caller: Caller) -> bool:
        return caller.role is Role.ADMIN and not self._is_read_only

    def _scope(self, scope: Scope, caller: Caller) -> Scope:
        return {**scope, _MAY_CHANGE: self._may_change(caller)}

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

        session = caller.session or ""
        if self._sockets[session] >= _MAX_SOCKETS:
            raise _refusal(HTTPStatus.TOO_MANY_REQUESTS, "too many tabs are open")
        self._sockets[session] += 1
        try:
            with self._guard.sessions.watching(caller, is_over.set):
                await ui(scope, receive_until_over, send_until_over)
        finally:
            self._sockets[session] -= 1
            if not self._sockets[session]:
                del self._sockets[session]


async def _read(scope: Scope, receive: Receive) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in Request(scope, receive).stream():
                body += chunk
                if len(body) > _MAX_QUERY:
                    raise _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the query is too long")
    except (TimeoutError, ClientDisconnect):
        raise _refusal(HTTPStatus.REQUEST_TIMEOUT, "the query did not come") from None
    return bytes(body)


def _mutations(ui: DagsterUI, body: bytes) -> list[str]:
    try:
        return ui.mutations_of(body)
    except ValueError as error:
        raise _refusal(HTTPStatus.BAD_REQUEST, str(error)) from None


def _replaying(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _action_of(mutation: str) -> Action:
    """In the words of the audit. By their names, as Dagster has a dozen of each kind."""
    if mutation.startswith(("launch", "reexecute")):
        return "launch"
    return "cancel" if mutation.startswith(("terminate", "cancel")) else "change"


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


def _with_headers(send: Send, path: str) -> Send:
    caching = {} if path.startswith(f"{DAGSTER}/_next/") else {"Cache-Control": "no-store"}

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.append("Content-Security-Policy", _POLICY)
            headers.update(_HEADERS | caching)
        async with asyncio.timeout(_SEND_SECONDS):  # who does not read the answer keeps no turn
            await send(message)

    return send_with_headers
