"""The HTTP client for the app's cache invalidation route (`docs/app-integration.md` shows the app's side).

It makes one call and says what the app took. Which tags are due, and when to try again, belongs to `outbox.py`.
"""

import functools
import ssl
from collections.abc import Collection
from typing import Annotated

import httpx
from pydantic import BaseModel, Field, ValidationError

from stats_pipeline.errors import SettingsError
from stats_pipeline.models import Delivery
from stats_pipeline.settings import Settings

ROUTE = "/api/internal/cache/invalidate"
SOURCE = "stats-pipeline"
_MAX_ANSWER = 65_536  # bytes; a list of eleven tags needs 300


@functools.cache
def tls() -> ssl.SSLContext:
    """The trusted certificates. Reading them takes 20 ms: call it before runs are forked from this process."""
    return httpx.create_ssl_context()


def route(settings: Settings) -> str | None:
    """The address that is called; None without an app."""
    return None if settings.app_url is None else str(settings.app_url).rstrip("/") + ROUTE


class _Answer(BaseModel):
    success: bool
    invalidated_tags: Annotated[list[str], Field(default_factory=list)]
    failed_tags: Annotated[list[str], Field(default_factory=list)]
    error: str | None = None


class CacheClient:
    """One keep-alive connection pool to the app, safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        url = route(settings)
        if url is None or settings.internal_api_key is None:
            raise SettingsError("NEXT_PUBLIC_APP_URL is not set: there is no app to tell about stale tags")
        self.url = url
        self._http = httpx.Client(
            timeout=settings.cache_timeout,
            verify=tls(),
            headers={"Authorization": f"Bearer {settings.internal_api_key.get_secret_value()}"},
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def invalidate(self, tags: Collection[str], *, request_id: str) -> Delivery:
        """Ask the app to drop the tags, once. Never raises: what went wrong is in the answer's `problem`.

        Only a 200 or 207 whose body names a tag as invalidated, and not as failed, counts as taken. Takes at most the
        timeout of the settings per phase of the call.
        """
        body = {"tags": sorted(tags), "source": SOURCE, "requestId": request_id}
        try:
            with self._http.stream("POST", self.url, json=body) as response:
                content = _beginning(response)
        except httpx.HTTPError as error:
            return _failed(f"{type(error).__name__}: {error}".rstrip(": "))
        if response.status_code in (200, 207):
            return _read(response.status_code, content, frozenset(tags))
        if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
            return _failed(
                f"the app refuses the call with {response.status_code}: "
                "check NEXT_PUBLIC_APP_URL, INTERNAL_API_KEY and the app's route"
            )
        return _failed(f"the app answered {response.status_code}")


def _failed(problem: str) -> Delivery:
    return Delivery(frozenset(), problem, route_failed=True)


def _beginning(response: httpx.Response) -> bytes:
    """As much of the body as an answer may have; closing the response then drops the rest unread."""
    content = b""
    for part in response.iter_bytes(_MAX_ANSWER):
        content += part
        if len(content) > _MAX_ANSWER:
            break
    return content


def _read(status: int, content: bytes, asked: frozenset[str]) -> Delivery:
    try:
        answer = _Answer.model_validate_json(content)
    except ValidationError:
        return _failed(f"the app answered {status} with a body that is not its contract")
    taken = (asked & frozenset(answer.invalidated_tags)) - frozenset(answer.failed_tags)
    if taken == asked:
        return Delivery(taken)
    left = ", ".join(sorted(asked - taken))
    return Delivery(taken, f"the app did not invalidate {left}" + (f": {answer.error}" if answer.error else ""))
