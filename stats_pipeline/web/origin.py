"""The names of this site: which hosts a request may be addressed to, and which pages may send one.

A page of another site can make a browser send requests here, with the session's cookie if it only differs in the port;
and it can make its own name resolve to this machine. What a caller may do is in `auth.py`.
"""

import ipaddress
import re
import socket
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

from stats_pipeline.settings import Settings

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


class Site:
    """Judges the headers of a request. One per process."""

    def __init__(self, settings: Settings) -> None:
        public = urlsplit(str(settings.public_url)) if settings.public_url else None
        self._public_host = public.netloc if public else None
        self._public_origin = f"{public.scheme}://{public.netloc}" if public else None
        names = {
            "localhost",
            socket.gethostname(),
            settings.host,
            public.hostname if public and public.hostname else "",
        }
        self._names = {name.lower() for name in names if name}

    def refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        """Why this request is not for us, if it is not: the name that it asks for is none of ours."""
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) != 1:
            return HTTPStatus.BAD_REQUEST, "send one Host header"
        if not self._is_ours(hosts[0]):
            return (
                HTTPStatus.MISDIRECTED_REQUEST,
                "this server does not answer to that name: set STATS_PUBLIC_URL to the address that people use",
            )
        return None

    def is_foreign(self, headers: Headers) -> bool:
        """Whether, by its headers, a page of another site or port has sent a request.

        All browsers since 2023 send one of the two headers; a request with neither does not come from a page.
        """
        host = headers.get("host", "")
        return not (
            all(self._is_our_origin(origin, host) for origin in headers.getlist("origin"))
            and all(site in ("same-origin", "none") for site in headers.getlist("sec-fetch-site"))
        )

    def is_secure(self, connection: HTTPConnection) -> bool:
        """Whether the browser's side of the connection is encrypted, as a trusted proxy or our own setting says."""
        is_public = connection.headers.get("host") == self._public_host
        return connection.url.scheme in ("https", "wss") or (
            is_public and self._public_origin is not None and self._public_origin.startswith("https:")
        )

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        try:
            ipaddress.ip_address(found["v6"] or found["name"])
        except ValueError:
            return found["v6"] is None and found["name"].lower() in self._names
        return True

    def _is_our_origin(self, origin: str, host: str) -> bool:
        if origin == self._public_origin or host == self._public_host:
            return origin == self._public_origin
        scheme, _, netloc = origin.partition("://")
        return scheme in ("http", "https") and netloc == host


def is_visit(scope: Scope) -> bool:
    """Whether somebody follows a link, or types an address, in a tab of a browser: any site may link to a page."""
    headers = Headers(scope=scope)
    return (
        scope["type"] == "http"
        and scope["method"] == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
