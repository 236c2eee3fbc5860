"""Where the web process listens, and what its operator must know about that.

By itself, so that the command line can say it without importing a web server.
"""

from stats_pipeline.settings import Settings

LOOPBACK = "127.0.0.1"


def address(settings: Settings) -> str:
    """The host to listen on. Without a password whoever reaches the page is the admin: loopback, then."""
    return settings.host if settings.admin_password else settings.loopback_host


def url(settings: Settings) -> str:
    """Where a browser on this machine finds the page."""
    host = address(settings)
    if host in ("0.0.0.0", "::"):  # noqa: S104  # all addresses, of which loopback is one
        host = LOOPBACK
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.web_port}/admin/info"


def access_note(settings: Settings) -> str | None:
    """What the operator must know about who gets in, if anything."""
    if settings.admin_password:
        return None
    return f"ADMIN_PASSWORD is not set: the admin page listens on {address(settings)} only and asks for no login"
