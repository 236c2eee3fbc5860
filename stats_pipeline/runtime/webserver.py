"""Dagster's UI behind a guard: `python -m stats_pipeline.runtime.webserver WORKSPACE`.

Dagster's own server asks nobody who he is: a web page in the operator's browser could launch runs and stop every
sensor. This one listens on loopback only and takes requests only by a name of its own and from its own pages. Who may
do what on the admin's page is said in `web/auth.py`.
"""

import argparse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

import dagster as dg
import uvicorn
from dagster._core.workspace.context import WorkspaceProcessContext  # the content of the UI, loaded from the file
from dagster._core.workspace.load_target import WorkspaceFileTarget  # the workspace file
from dagster_webserver.app import create_app_from_workspace_process_context  # the UI, to put a guard in front of it
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

# Addresses that are not pages. A link on another site may lead to a page, but not to these: they do or fetch something.
_NO_PAGES = ("/graphql", "/logs/", "/notebook", "/dagit", "/download_debug/", "/report_", "/server_info")
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_MAX_HEADERS = 65_536  # bytes
_GRACE = 3  # seconds for unfinished answers when the process is told to stop


class OwnPagesOnly:
    """ASGI: passes on HTTP and WebSocket requests addressed to one of `hosts` and not sent by another site's page."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], *, may_be_proxied: bool) -> None:
        self._app = app
        self._hosts = hosts
        self._may_be_proxied = may_be_proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is None:
            await self._app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or headers["host"] not in self._hosts:
            return _refuse(HTTPStatus.MISDIRECTED_REQUEST, f"ask for one of {', '.join(sorted(self._hosts))}")
        if not self._may_be_proxied and any(header in headers for header in _PROXY_HEADERS):
            return _refuse(HTTPStatus.FORBIDDEN, "behind a proxy: set STATS_UI_URL to the address that people use")
        is_page = scope["type"] == "http" and not scope["path"].startswith(_NO_PAGES)
        is_visit = (
            is_page
            and scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if self._is_foreign(headers) and not is_visit:
            return _refuse(HTTPStatus.FORBIDDEN, "another site's page may not do this")
        if (
            scope["type"] == "http"
            and (scope["path"], scope["method"]) == ("/graphql", "GET")
            and scope["query_string"]
        ):
            return _refuse(HTTPStatus.METHOD_NOT_ALLOWED, "send a query with POST")  # a link could be a mutation
        return None

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether, by its headers, a page of another site or port has sent it."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc not in self._hosts:
            return True
        return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _refuse(status: HTTPStatus, reason: str) -> PlainTextResponse:
    return PlainTextResponse(f"{status.phrase}: {reason}\n", status)


def _unframed(send: Send) -> Send:
    """Adds the headers that forbid other sites to show an answer in a frame."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Frame-Options"] = "DENY"
            headers.append("Content-Security-Policy", "frame-ancestors 'none'")
        await send(message)

    return guarded


@contextmanager
def _dagster_app(workspace: str) -> Iterator[ASGIApp]:
    with (
        dg.DagsterInstance.get() as instance,
        WorkspaceProcessContext(
            instance, version=dg.__version__, workspace_load_target=WorkspaceFileTarget([workspace])
        ) as context,
    ):
        yield create_app_from_workspace_process_context(context)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m stats_pipeline.runtime.webserver", description=__doc__)
    parser.add_argument("workspace", help="workspace file")
    parser.add_argument("--host", required=True, help="address to listen on")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--proxied-as", metavar="HOST:PORT", help="what people call a reverse proxy in front")
    given = parser.parse_args()
    # The hosts under which a browser may reach this server; a foreign name that resolves to this machine is not one.
    hosts = {f"{name}:{given.port}" for name in ("127.0.0.1", "localhost", "[::1]")} | {given.proxied_as} - {None}
    with _dagster_app(given.workspace) as app:
        uvicorn.run(
            OwnPagesOnly(app, hosts, may_be_proxied=given.proxied_as is not None),
            host=given.host,
            port=given.port,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            http="h11",  # the only one of uvicorn's parsers with a limit
            h11_max_incomplete_event_size=_MAX_HEADERS,
            timeout_graceful_shutdown=_GRACE,
        )


if __name__ == "__main__":
    main()
