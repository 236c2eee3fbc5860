"""Where the web process listens, and what its operator must know about that.

By itself, so that the command line can say it without importing a web server.
"""

from stats_pipeline.settings import LOOPBACK, Settings


def address(settings: Settings) -> str:
    """The host to listen on. Without a password whoever reaches the page is the admin: loopback, then."""
    return settings.host if settings.admin_password else settings.loopback_host


def url(settings: Settings) -> str:
    """Where a browser on this machine finds the page."""
    host = address(settings)
    if host in ("0.0.0.0", "::"):  # noqa: S104  # all addresses, of which loopback is one
        host = LOOPBACK
    return f"{local_url(host, settings.web_port)}/admin/info"


def local_url(host: str, port: int) -> str:
    """A server on this machine, for a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def access_note(settings: Settings) -> str | None:
    """What the operator must know about who gets in, if anything."""
    if settings.admin_password:
        return None
    return f"ADMIN_PASSWORD is not set: the admin page listens on {address(settings)} only and asks for no login"
