"""The client of the app's cache invalidation route (`docs/app-integration.md` shows the app's side).

It makes one call and reports which tags the app confirmed. How the call is made, and when it times out, belongs to
`outbound.py`; which tags are due, and when to retry, to `outbox.py`.
"""

import ipaddress
import json
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from typing import Annotated
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpcore
from pydantic import BaseModel, Field, ValidationError

from stats_pipeline.errors import SettingsError
from stats_pipeline.jobs.models import Delivery
from stats_pipeline.jobs.outbound import CallFailed, Outbound
from stats_pipeline.settings import Settings

ROUTE = "/api/internal/cache/invalidate"
SOURCE = "stats-pipeline"
_MAX_ANSWER = 65_536  # bytes; a list of eleven tags needs 300
_MAX_PROBLEM = 500  # characters


def route(settings: Settings) -> str | None:
    """The URL that is called; None without an app."""
    return None if settings.app_url is None else str(settings.app_url).rstrip("/") + ROUTE


class _Answer(BaseModel):
    success: bool
    invalidated_tags: Annotated[list[str], Field(default_factory=list)]
    failed_tags: Annotated[list[str], Field(default_factory=list)]
    error: str | None = None


@contextmanager
def open_client(settings: Settings) -> "Iterator[CacheClient | None]":
    """The client for the length of the block; None if no app is configured."""
    if settings.app_url is None:
        yield None
    else:
        with closing(CacheClient(settings)) as client:
            yield client


class CacheClient:
    """One keep-alive connection pool to the app, safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        url = route(settings)
        if url is None or settings.internal_api_key is None:
            raise SettingsError("NEXT_PUBLIC_APP_URL is not set: there is no app to tell about stale tags")
        self.url = url
        key = settings.internal_api_key.get_secret_value()
        self._headers = {
            **settings.app_headers,
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": SOURCE,
        }
        proxy = None if _is_loopback(url) else _proxy(settings)
        self._secrets = [key, *settings.app_headers.values()]
        if proxy is not None and proxy.auth is not None:
            self._secrets.append(proxy.auth[1].decode())
        self._http = Outbound(timeout=settings.cache_timeout, ca_file=settings.ca_file, proxy=proxy)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def invalidate(self, tags: Collection[str], *, request_id: str) -> Delivery:
        """Ask the app to invalidate the tags, once. Never raises: the `problem` of the result says what went wrong.

        A tag counts as taken only if the answer is a 200 or 207 that lists it as invalidated and not as failed. Takes
        at most the timeout of the settings, from the look-up of the name to the last byte.
        """
        body = json.dumps({"tags": sorted(tags), "source": SOURCE, "requestId": request_id}).encode()
        try:
            with self._http.post(self.url, body, list(self._headers.items())) as response:
                problem = _refusal(self.url, response)
                content = b"" if problem else _beginning(response)
        except CallFailed as error:
            return self._delivery(frozenset(), str(error), route_failed=True)
        if problem:
            return self._delivery(frozenset(), problem, route_failed=True)
        try:
            answer = _Answer.model_validate_json(content)
        except ValidationError:
            problem = f"the app answered {response.status} with a body that is not its contract"
            return self._delivery(frozenset(), problem, route_failed=True)
        asked = frozenset(tags)
        taken = (asked & frozenset(answer.invalidated_tags)) - frozenset(answer.failed_tags)
        if taken == asked:
            return Delivery(taken)
        left = ", ".join(sorted(asked - taken))
        return self._delivery(
            taken, f"the app did not invalidate {left}" + (f": {answer.error}" if answer.error else "")
        )

    def _delivery(self, taken: frozenset[str], problem: str, *, route_failed: bool = False) -> Delivery:
        """The problem, which may quote the app, without secrets and unprintable characters, and cut in length."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            problem = problem.replace(secret, "***").replace(quote(secret, safe=""), "***")
        printable = "".join(character if character.isprintable() else " " for character in problem)
        return Delivery(taken, " ".join(printable.split())[:_MAX_PROBLEM], route_failed=route_failed)


def _is_loopback(url: str) -> bool:
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxy(settings: Settings) -> httpcore.Proxy | None:
    if settings.http_proxy is None:
        return None
    parts = urlsplit(settings.http_proxy.get_secret_value())
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return httpcore.Proxy(f"http://{host}:{parts.port or 80}", auth=auth)


def _refusal(url: str, response: httpcore.Response) -> str | None:
    """The reason if the answer confirms no tag regardless of its body."""
    status = response.status
    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    if 300 <= status < 400:
        return (
            f"the app redirects with {status} to {_target(url, headers.get(b'location', ''))}, where the key is not "
            "sent: check NEXT_PUBLIC_APP_URL"
        )
    if 400 <= status < 500 and status not in (408, 429):
        return (
            f"the app refuses the call with {status}: check NEXT_PUBLIC_APP_URL, INTERNAL_API_KEY and the app's route"
        )
    if status not in (200, 207):
        return f"the app answered {status}"
    encoding = headers.get(b"content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        return f"the app's answer is encoded ({encoding[:40]}), though identity was asked for: let it answer in plain"
    return None


def _target(url: str, location: str) -> str:
    """The target of a redirect, without parts that may be secret: user, password, query and fragment."""
    try:
        parts = urlsplit(urljoin(url, location))
        if not location or not parts.hostname:
            return "nowhere"
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "what is no address"
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _beginning(response: httpcore.Response) -> bytes:
    """The body up to the longest valid answer; closing the response then drops the rest unread."""
    content = b""
    for part in response.iter_stream():
        content += part
        if len(content) > _MAX_ANSWER:
            break
    return content
