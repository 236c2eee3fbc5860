"""The headers that every answer carries: what its page may load, and who may frame and keep it.

Nothing is allowed but our own files, so the page works without inline scripts and styles.
"""

from urllib.parse import urlsplit

from pydantic import AnyHttpUrl
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class SecurityHeaders:
    """Adds the headers. The app, if there is one, may show the page in a frame."""

    def __init__(self, app: ASGIApp, app_url: AnyHttpUrl | None) -> None:
        self._app = app
        ancestors = "'self'"
        if app_url is not None:
            parts = urlsplit(str(app_url))
            ancestors += f" {parts.scheme}://{parts.netloc}"
        self._headers = {
            "Content-Security-Policy": (
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                f"form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}"
            ),
            "Cross-Origin-Resource-Policy": "same-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and the answer back with the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Files are checked for a newer version each time, pages and rows are never kept.
        caching = "no-cache" if scope["path"].startswith("/static/") else "no-store"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({**self._headers, "Cache-Control": caching})
            await send(message)

        await self._app(scope, receive, send_with_headers)
