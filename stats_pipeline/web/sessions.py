"""Sessions: signed cookies, the role that each proves, and their end everywhere.

Nothing of an open session is stored. Those that were logged out are in the database until they would have expired. Who
is given a session is decided in `auth.py`.
"""

import asyncio
import hashlib
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum

import psycopg
from itsdangerous import BadSignature, Signer, URLSafeTimedSerializer
from starlette.concurrency import run_in_threadpool

from stats_pipeline.database import Database
from stats_pipeline.errors import DatabaseUnavailable
from stats_pipeline.settings import MAX_SESSION_HOURS

LOOK_SECONDS = 1.0  # between two looks whether a session with an open stream or WebSocket was logged out elsewhere
_REMEMBERED = 1000  # sessions


class Role(StrEnum):
    """What a caller may do: everything, or only look."""

    ADMIN = "admin"
    VIEWER = "viewer"


@dataclass(frozen=True)
class Caller:
    """The caller of a request. Form tokens are bound to its `session`; a server that shows a key has none."""

    name: str
    role: Role
    session: str | None
    until: float = math.inf  # Unix time


class Sessions:
    """Begins, reads and ends sessions. One per process; a secret per role says which role a cookie proves."""

    def __init__(self, database: Database, secret_of: Mapping[Role, bytes], lifetime: int) -> None:
        self._database = database
        self._lifetime = lifetime
        self._cookies = {
            role: URLSafeTimedSerializer(secret, salt="session", signer_kwargs={"digest_method": hashlib.sha256})
            for role, secret in secret_of.items()
        }
        self._forms = {
            role: Signer(secret, salt="form", digest_method=hashlib.sha256) for role, secret in secret_of.items()
        }
        self._seen_open: dict[str, float] = {}
        self._watchers: dict[object, tuple[Caller, Callable[[], None]]] = {}
        self._looking: asyncio.Task[None] | None = None

    def begin(self, role: Role) -> str:
        """The cookie of a new session."""
        return str(self._cookies[role].dumps(secrets.token_urlsafe(16)))

    def read(self, cookie: str) -> Caller | None:
        """Whose cookie this is, perhaps logged out; None if it is forged or too old."""
        for role, serializer in self._cookies.items():
            with suppress(BadSignature):
                session, begun = serializer.loads(cookie, max_age=self._lifetime, return_timestamp=True)
                return Caller(role.value, role, str(session), begun.timestamp() + self._lifetime)
        return None

    def form_token(self, caller: Caller) -> str:
        """The token that each form of this caller must contain."""
        return self._forms[caller.role].get_signature(caller.session or "").decode()

    async def is_over(self, caller: Caller, *, may_be_old: float = 0) -> bool:
        """Whether the session was logged out, at this or another web process.

        The answer may be that of `may_be_old` seconds ago, unless this process ended the session. Raises
        `DatabaseUnavailable` if it cannot be checked.
        """
        if caller.session is None:
            return False
        now = time.monotonic()
        if now - self._seen_open.get(caller.session, -math.inf) <= may_be_old:
            return False
        (row,) = await run_in_threadpool(self._database.run, "is_session_ended", session=caller.session)
        if not row["is_ended"]:
            if len(self._seen_open) >= _REMEMBERED:
                self._seen_open.clear()
            self._seen_open[caller.session] = now
        return bool(row["is_ended"])

    async def end(self, session: str) -> None:
        """Reject the session's cookie from now on, and end what is open of it."""
        # As long as it could be valid if STATS_SESSION_HOURS were raised later.
        await run_in_threadpool(self._database.run, "end_session", session=session, hours=MAX_SESSION_HOURS)
        self._seen_open.pop(session, None)
        self._tell({session})

    @contextmanager
    def watching(self, caller: Caller, over: Callable[[], None]) -> Iterator[None]:
        """Have `over` called about a second after the session has ended, wherever it was, in the length of the block.

        During an outage of the database only what this process knows counts.
        """
        if caller.session is None:
            yield
            return
        key = object()
        self._watchers[key] = (caller, over)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            del self._watchers[key]

    async def _look(self) -> None:
        while self._watchers:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.time()
            until = {caller.session: caller.until for caller, _ in self._watchers.values() if caller.session}
            self._tell({session for session, end in until.items() if end <= now})
            with suppress(DatabaseUnavailable, psycopg.OperationalError):
                rows = await run_in_threadpool(self._database.run, "list_ended_sessions", sessions=list(until))
                self._tell({row["session"] for row in rows})

    def _tell(self, ended: Collection[str]) -> None:
        for caller, over in list(self._watchers.values()):
            if caller.session in ended:
                over()
