"""The headers of every answer: what its page may load, which sites may frame it, and whether it may be cached.

Only our own files are allowed, so the page works without inline scripts and styles.
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
        """Handle the request, and add the headers to the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Files are checked for a newer version each time, pages and rows are never cached.
        caching = "no-cache" if scope["path"].startswith("/static/") else "no-store"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({**self._headers, "Cache-Control": caching})
            await send(message)

        await self._app(scope, receive, send_with_headers)
