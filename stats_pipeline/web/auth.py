"""Authentication: a server with a key, the admin with a session, or, without a password, any caller on this machine.

A session is a signed cookie. Only sessions that were logged out are in the database, until they would have expired.

Secrets are compared in constant time, and none has a default. `app.py` declares the access per route.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from itsdangerous import BadSignature, Signer, URLSafeTimedSerializer
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stats_pipeline.database import Database
from stats_pipeline.settings import MAX_SESSION_HOURS, Settings

COOKIE = "stats_pipeline_session"
MAX_FAILURES = 5  # wrong passwords or keys per address, in FAILURE_WINDOW
FAILURE_WINDOW = 300  # seconds
_LOOPBACK_HOSTS = {"127.0.0.1", "localhost", "::1"}
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@dataclass(frozen=True)
class Caller:
    """The caller of a request. Form tokens are bound to its `session`; a server that shows a key has none."""

    name: str
    session: str | None


class Guard:
    """Checks keys, sessions, form tokens and logins. One per process; wrong tries are counted in its memory."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.password = settings.admin_password
        self._api_key = settings.internal_api_key
        self._cron_secret = settings.cron_secret
        self._lifetime = settings.session_hours * 3600
        self._database = database
        # Derived from the password: all sessions end when it changes, and none when the process restarts. This is slow
        # (about 50 ms), so that guessing the password from a stolen cookie is expensive.
        secret = (
            hashlib.scrypt(self.password.get_secret_value().encode(), salt=COOKIE.encode(), n=2**14, r=8, p=1)
            if self.password
            else secrets.token_bytes(32)
        )
        self._sessions = URLSafeTimedSerializer(secret, salt="session", signer_kwargs={"digest_method": hashlib.sha256})
        self._forms = Signer(secret, salt="form", digest_method=hashlib.sha256)
        self._wrong_passwords = _WrongTries("passwords")
        self._wrong_keys = _WrongTries("keys")

    def server(self, request: Request) -> Caller:
        """The caller with the cron secret. Raises 401 or 429, and 503 when no secret is set."""
        if self._cron_secret is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "CRON_SECRET is not set: this address is switched off")
        if "authorization" not in request.headers:
            raise _unauthorized("Authorization: Bearer CRON_SECRET is required")
        self._check_key(request, self._cron_secret)
        return Caller("cron", None)

    async def server_or_admin(self, request: Request) -> Caller:
        """The caller with the API key, or the admin.

        Raises 401, 403 if another site's page sent the request, and 429 after too many wrong keys.
        """
        if "authorization" in request.headers:
            self._check_key(request, self._api_key)
            return Caller("server", None)
        caller = await self.admin(request)
        if caller is None:
            raise _unauthorized("Authorization: Bearer INTERNAL_API_KEY, or a login at /login, is required")
        self.same_origin(request)
        return caller

    def _check_key(self, request: Request, key: SecretStr | None) -> None:
        """Raises 401 if the key is wrong, and 429 after too many wrong ones, then also if it is right."""
        self._wrong_keys.refuse_more(request)
        if key is None or not _shows(request, key):
            self._wrong_keys.add(request)
            raise _unauthorized("the key is wrong")
        self._wrong_keys.forget(request)

    async def admin(self, request: Request) -> Caller | None:
        """The admin, unless logged out; without a password, any caller on this machine under a local name.

        Raises `DatabaseUnavailable` if it cannot be checked whether the session was logged out.
        """
        caller = self.signed(request)
        return None if caller is None or await self.is_logged_out(caller) else caller

    def signed(self, request: Request) -> Caller | None:
        """The admin, perhaps logged out: only the cookie is checked."""
        if self.password is None:
            return Caller("admin", "loopback") if _is_local(request) else None
        try:
            session = self._sessions.loads(request.cookies.get(COOKIE, ""), max_age=self._lifetime)
        except BadSignature:
            return None
        return Caller("admin", str(session))

    async def is_logged_out(self, caller: Caller) -> bool:
        """Whether the session was logged out, at this or another web process."""
        if self.password is None:
            return False
        (row,) = await run_in_threadpool(self._database.run, "is_session_ended", session=caller.session)
        return bool(row["is_ended"])

    async def log_out(self, session: str) -> None:
        """Reject the session's cookie from now on."""
        # As long as it could be valid if STATS_SESSION_HOURS were raised later.
        await run_in_threadpool(self._database.run, "end_session", session=session, hours=MAX_SESSION_HOURS)

    def same_origin(self, request: Request) -> None:
        """Raises 403 if a browser sent this from a page of another origin and it could change something.

        All browsers since 2023 send one of two headers; a request with neither header does not come from a browser.
        """
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        if site is not None:
            is_ours = site in ("same-origin", "none")
        else:
            is_ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if not is_ours:
            raise HTTPException(HTTPStatus.FORBIDDEN, "another site's page may not do this")

    def form_token(self, caller: Caller) -> str:
        """The token that each form of this caller must contain."""
        return self._forms.get_signature(caller.session or "").decode()

    def check_form(self, request: Request, caller: Caller, token: str) -> None:
        """Raises 403 if the form was not issued by us to this caller."""
        self.same_origin(request)
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.form_token(caller).encode()):
            raise HTTPException(HTTPStatus.FORBIDDEN, "the form is too old: reload the page and try again")

    def log_in(self, request: Request, response: Response, password: str) -> bool:
        """Give the response a session if the password is right. Raises 429 after too many wrong ones."""
        self._wrong_passwords.refuse_more(request)
        if self.password is None or not _same(password, self.password):
            self._wrong_passwords.add(request)
            return False
        self._wrong_passwords.forget(request)
        response.set_cookie(
            COOKIE,
            self._sessions.dumps(secrets.token_urlsafe(16)),
            max_age=self._lifetime,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return True


class _WrongTries:
    """The wrong tries of each address in the last FAILURE_WINDOW."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def refuse_more(self, request: Request) -> None:
        """Raises 429 if there were MAX_FAILURES."""
        times = self._recent(request)
        if len(times) >= MAX_FAILURES:
            wait = round(times[0] + FAILURE_WINDOW - time.monotonic()) + 1
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS, f"too many wrong {self._what}: wait", {"Retry-After": str(wait)}
            )

    def add(self, request: Request) -> None:
        """Count one more for this address."""
        self._recent(request).append(time.monotonic())

    def forget(self, request: Request) -> None:
        """Forget the wrong tries of this address."""
        self._recent(request).clear()

    def _recent(self, request: Request) -> deque[float]:
        limit = time.monotonic() - FAILURE_WINDOW
        for network, times in list(self._times.items()):
            while times and times[0] < limit:
                times.popleft()
            if not times:
                del self._times[network]
        return self._times[_network(request)]


def _unauthorized(reason: str) -> HTTPException:
    return HTTPException(HTTPStatus.UNAUTHORIZED, reason, {"WWW-Authenticate": "Bearer"})


def _same(given: str, secret: SecretStr) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.get_secret_value().encode())


def _shows(request: Request, key: SecretStr) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return _same(given, key) and kind.lower() == "bearer"


def _is_local(request: Request) -> bool:
    """Whether the request comes directly from this machine, and to a local name: not to a site whose name resolves to
    127.0.0.1."""
    if request.client is None or any(header in request.headers for header in _PROXY_HEADERS):
        return False
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        return host in _LOOPBACK_HOSTS and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _network(request: Request) -> str:
    """The network that counts as one address: an IPv6 subscriber has 2^64 addresses."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64 if address.version == 6 else 32), strict=False))
