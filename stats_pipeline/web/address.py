"""The address on which the web process listens, the links to it, and what its operator must know about them.

A separate module, so that the command line can print them without importing a web server.
"""

import hashlib
import hmac

from stats_pipeline.errors import SettingsError
from stats_pipeline.settings import LOOPBACK, Settings

INFO = "/admin/info"
LOGIN = "/login"
DAGSTER = "/dagster"


def address(settings: Settings) -> str:
    """The host to listen on: loopback without a password, as the login link is sent unencrypted."""
    return settings.host if settings.admin_password else settings.loopback_host


def url(settings: Settings) -> str:
    """The URL of the page: the one that people use, or one for a browser on this machine."""
    return _base(settings) + INFO


def dagster_url(settings: Settings) -> str:
    """The URL of the Dagster UI."""
    return _base(settings) + DAGSTER


def login_link(settings: Settings, start_key: bytes) -> str:
    """The link to log in once without a password, if `ADMIN_PASSWORD` is not set. To be shown on a terminal only."""
    return f"{_base(settings)}{LOGIN}?key={login_key(start_key)}"


def login_key(start_key: bytes) -> str:
    """The key in the login link; the key of the start itself is not learned from it."""
    return hmac.new(start_key, b"login link", hashlib.sha256).hexdigest()


def require_a_key(settings: Settings, *, is_terminal: bool) -> None:
    """Raises `SettingsError` if nobody could log in: no password, and no terminal to show the login link on."""
    if settings.admin_password is None and not is_terminal:
        raise SettingsError(
            "ADMIN_PASSWORD must be set when standard error is not a terminal: the login link that takes its place "
            "otherwise is shown on a terminal only"
        )


def access_note(settings: Settings) -> str | None:
    """A note for the operator on who has access, if there is one."""
    if settings.admin_password:
        return None
    return (
        f"ADMIN_PASSWORD is not set: only {address(settings)} is listened on, and only this start's login link lets in"
    )


def local_url(host: str, port: int) -> str:
    """The URL of a server on this machine, for a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _base(settings: Settings) -> str:
    if settings.public_url is not None:
        return str(settings.public_url).rstrip("/")
    host = address(settings)
    # All addresses, including loopback.
    return local_url(LOOPBACK if host in ("0.0.0.0", "::") else host, settings.port)  # noqa: S104
