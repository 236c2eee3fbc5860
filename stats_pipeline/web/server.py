"""Serving the app: which address it may listen on, what is logged, and how it stops.

What is served is in `app.py`.
"""

import ipaddress
from types import FrameType

import structlog
import uvicorn

from stats_pipeline.settings import Settings
from stats_pipeline.web.app import build_app

LOOPBACK = "127.0.0.1"
_GRACE = 3  # seconds for answers under way when the process is told to stop


def address(settings: Settings) -> str:
    """The host to listen on. Without a password whoever reaches the page is the admin: loopback, then."""
    return settings.host if settings.admin_password or _is_loopback(settings.host) else LOOPBACK


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


def serve(settings: Settings, database_url: str) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        cache_logger_on_first_use=True,
    )
    if note := access_note(settings):
        structlog.get_logger().warning(note)
    app = build_app(settings, database_url)
    config = uvicorn.Config(
        app,
        host=address(settings),
        port=settings.web_port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    _Server(config).run()


class _Server(uvicorn.Server):
    """Ends the event streams first: a graceful stop waits for answers, and these never end by themselves."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.web.changes.close()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
