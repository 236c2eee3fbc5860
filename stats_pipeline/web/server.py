"""Serving the app: what is logged, and how it stops.

What is served is in `app.py`, where in `address.py`.
"""

from types import FrameType

import structlog
import uvicorn

from stats_pipeline import log
from stats_pipeline.settings import Settings
from stats_pipeline.web.address import access_note, address
from stats_pipeline.web.app import build_app

_GRACE = 3  # seconds for answers under way when the process is told to stop


def serve(settings: Settings, database_url: str) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    log.configure(settings.log_level)
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
