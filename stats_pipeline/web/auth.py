"""Authentication: a server with a key, a person with a session; a session is given for a password, or a login link.

Secrets are compared in constant time, and none has a default. Sessions are in `sessions.py`, the origin of a request is
judged in `origin.py`, `app.py` declares the access per route.
"""

import hashlib
import hmac
import time
from collections import OrderedDict, deque
from http import HTTPStatus

from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from stats_pipeline.database import Database
from stats_pipeline.jobs.audit import network
from stats_pipeline.settings import Settings
from stats_pipeline.web.address import login_key
from stats_pipeline.web.audit import address_of
from stats_pipeline.web.origin import Site
from stats_pipeline.web.sessions import Caller, Role, Sessions

COOKIE = "stats_pipeline_session"
MAX_FAILURES = 5  # wrong passwords or keys per address, in FAILURE_WINDOW
MAX_LOGINS = 30  # right and wrong ones per address, in FAILURE_WINDOW
FAILURE_WINDOW = 300  # seconds
MAX_ADDRESSES = 10_000  # whose tries are remembered
_LINK_HOURS = 87_600  # that a used login link is remembered: longer than any process runs


class Guard:
    """Checks keys, sessions, form tokens and logins. One per process; wrong tries are counted in its memory."""

    def __init__(self, settings: Settings, database: Database, start_key: bytes) -> None:
        given = {Role.ADMIN: settings.admin_password, Role.VIEWER: settings.viewer_password}
        self._passwords = {role: password for role, password in given.items() if password is not None}
        self._link_key = None if self._passwords else SecretStr(login_key(start_key))
        self._api_key = settings.internal_api_key
        self._cron_secret = settings.cron_secret
        self._lifetime = settings.session_hours * 3600
        self._database = database
        self._site = Site(settings)
        secrets = {role: _session_secret(role, password) for role, password in self._passwords.items()}
        # Without passwords: a door that is started again by the same `up` knows its sessions.
        secrets = secrets or {Role.ADMIN: hmac.digest(start_key, b"sessions", "sha256")}
        self.sessions = Sessions(database, secrets, self._lifetime)
        self._logins = _Tries("logins")
        self._wrong_passwords = _Tries("wrong passwords")
        self._wrong_keys = _Tries("wrong keys")

    @property
    def has_password(self) -> bool:
        """Whether people log in with a password; otherwise with the login link."""
        return bool(self._passwords)

    def server(self, request: Request) -> Caller:
        """The caller with the cron secret. Raises 401 or 429, and 503 when no secret is set."""
        if self._cron_secret is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "CRON_SECRET is not set: this address is switched off")
        if "authorization" not in request.headers:
            raise _unauthorized("Authorization: Bearer CRON_SECRET is required")
        self._check_key(request, self._cron_secret)
        return Caller("cron", Role.ADMIN, None)

    async def server_or_person(self, request: Request) -> Caller:
        """The caller with the API key, or a person with a session.

        Raises 401, 403 if another site's page sent the request, and 429 after too many wrong keys.
        """
        if "authorization" in request.headers:
            if self._api_key is None:
                raise _unauthorized("INTERNAL_API_KEY is not set: this API takes no server's call")
            self._check_key(request, self._api_key)
            self._wrong_keys.forget(request)
            return Caller("server", Role.ADMIN, None)
        caller = await self.person(request)
        if caller is None:
            raise _unauthorized("Authorization: Bearer INTERNAL_API_KEY, or a login at /login, is required")
        self.same_origin(request)
        return caller

    def _check_key(self, request: Request, key: SecretStr) -> None:
        """Raises 401 if the key is wrong, and 429 after too many wrong ones, then also if it is right."""
        self._wrong_keys.refuse_beyond(MAX_FAILURES, request)
        if not _shows(request, key):
            self._wrong_keys.add(request)
            raise _unauthorized("the key is wrong")

    async def person(self, connection: HTTPConnection, *, may_be_old: float = 0) -> Caller | None:
        """The person who has logged in, and not out; a logout elsewhere may count `may_be_old` seconds later.

        Raises `DatabaseUnavailable` if it cannot be checked whether the session was logged out.
        """
        caller = self.signed(connection)
        return None if caller is None or await self.sessions.is_over(caller, may_be_old=may_be_old) else caller

    def signed(self, connection: HTTPConnection) -> Caller | None:
        """The person, perhaps logged out: only the cookie is checked."""
        return self.sessions.read(connection.cookies.get(COOKIE, ""))

    def same_origin(self, request: Request) -> None:
        """Raises 403 if a browser sent this from a page of another origin and it could change something."""
        if request.method not in ("GET", "HEAD", "OPTIONS") and self._site.is_foreign(request.headers):
            raise HTTPException(HTTPStatus.FORBIDDEN, "another site's page may not do this")

    def check_form(self, request: Request, caller: Caller, token: str) -> None:
        """Raises 403 if the form was not issued by us to this caller."""
        self.same_origin(request)
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.sessions.form_token(caller).encode()):
            raise HTTPException(HTTPStatus.FORBIDDEN, "the form is too old: reload the page and try again")

    async def log_in(self, request: Request, response: Response, *, password: str, key: str) -> Role | None:
        """Give the response a session if the password is right, or the login link's key, which is used up by this.

        Raises 429 after too many wrong ones, and after too many logins.
        """
        self._wrong_passwords.refuse_beyond(MAX_FAILURES, request)
        self._logins.refuse_beyond(MAX_LOGINS, request)
        self._logins.add(request)
        role = await self._role_of_link(key) if key else self._role_of_password(password)
        if role is None:
            self._wrong_passwords.add(request)
            return None
        if role is Role.ADMIN:  # a viewer could guess the admin's between two logins
            self._wrong_passwords.forget(request)
        response.set_cookie(
            COOKIE,
            self.sessions.begin(role),
            max_age=self._lifetime,
            httponly=True,
            samesite="lax",
            secure=self._site.is_secure(request),
        )
        return role

    def _role_of_password(self, given: str) -> Role | None:
        found = [role for role, password in self._passwords.items() if _same(given, password)]
        return found[0] if found else None

    async def _role_of_link(self, given: str) -> Role | None:
        if self._link_key is None or not _same(given, self._link_key):
            return None
        is_first = await run_in_threadpool(self._database.run, "end_session", session=self._link, hours=_LINK_HOURS)
        return Role.ADMIN if is_first else None

    async def is_link_used(self) -> bool:
        """Whether somebody has logged in with this start's login link, at this process or the one before it."""
        if self._link_key is None:
            return False
        (row,) = await run_in_threadpool(self._database.run, "is_session_ended", session=self._link)
        return bool(row["is_ended"])

    @property
    def _link(self) -> str:
        """How a login link that was used is stored, beside the sessions that have ended."""
        assert self._link_key is not None
        return "login link " + hashlib.sha256(self._link_key.get_secret_value().encode()).hexdigest()


def require_admin(caller: Caller) -> None:
    """Raises 403 for a viewer."""
    if caller.role is not Role.ADMIN:
        raise HTTPException(HTTPStatus.FORBIDDEN, "a viewer may look at everything here, and change nothing")


class _Tries:
    """The tries of each address in the last FAILURE_WINDOW; of MAX_ADDRESSES, those that tried last."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # in the order of their last try

    def refuse_beyond(self, most: int, request: Request) -> None:
        """Raises 429 if there were so many."""
        times = self._recent(request)
        if len(times) >= most:
            wait = round(times[0] + FAILURE_WINDOW - time.monotonic()) + 1
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS, f"too many {self._what}: wait", {"Retry-After": str(wait)}
            )

    def add(self, request: Request) -> None:
        """Count one more for this address."""
        address = _network(request)
        self._times.setdefault(address, deque()).append(time.monotonic())
        self._times.move_to_end(address)
        if len(self._times) > MAX_ADDRESSES:
            self._times.popitem(last=False)

    def forget(self, request: Request) -> None:
        """Forget the tries of this address."""
        self._times.pop(_network(request), None)

    def _recent(self, request: Request) -> deque[float]:
        limit = time.monotonic() - FAILURE_WINDOW
        while self._times and next(iter(self._times.values()))[-1] < limit:
            self._times.popitem(last=False)
        times = self._times.get(_network(request), deque())
        while times and times[0] < limit:
            times.popleft()
        return times


def _unauthorized(reason: str) -> HTTPException:
    return HTTPException(HTTPStatus.UNAUTHORIZED, reason, {"WWW-Authenticate": "Bearer"})


def _session_secret(role: Role, password: SecretStr) -> bytes:
    """All sessions of a role end when its password changes, and none when the process restarts.

    This is slow (about 50 ms), so that guessing the password from a stolen cookie is expensive.
    """
    salt = COOKIE if role is Role.ADMIN else f"{COOKIE} {role}"
    return hashlib.scrypt(password.get_secret_value().encode(), salt=salt.encode(), n=2**14, r=8, p=1)


def _same(given: str, secret: SecretStr) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.get_secret_value().encode())


def _shows(request: Request, key: SecretStr) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return _same(given, key) and kind.lower() == "bearer"


def _network(request: Request) -> str:
    return network(address_of(request))
