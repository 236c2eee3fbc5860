"""The address on which the web process listens, and what its operator must know about it.

A separate module, so that the command line can print it without importing a web server.
"""

from stats_pipeline.settings import LOOPBACK, Settings


def address(settings: Settings) -> str:
    """The host to listen on: loopback without a password, since any visitor would then have admin rights."""
    return settings.host if settings.admin_password else settings.loopback_host


def url(settings: Settings) -> str:
    """The URL of the page for a browser on this machine."""
    host = address(settings)
    if host in ("0.0.0.0", "::"):  # noqa: S104  # all addresses, including loopback
        host = LOOPBACK
    return f"{local_url(host, settings.web_port)}/admin/info"


def local_url(host: str, port: int) -> str:
    """The URL of a server on this machine, for a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def access_note(settings: Settings) -> str | None:
    """A note for the operator on who has access, if there is one."""
    if settings.admin_password:
        return None
    return f"ADMIN_PASSWORD is not set: the admin page listens on {address(settings)} only and asks for no login"
