"""Serves the app: logging, the limit of a request's head, and shutdown.

The app is in `app.py`, its address in `address.py`.
"""

import asyncio
import logging
from types import FrameType
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette

from stats_pipeline import log
from stats_pipeline.settings import Settings
from stats_pipeline.web.address import access_note, address
from stats_pipeline.web.app import build_app
from stats_pipeline.web.dagster_ui import DagsterUI

MAX_HEAD = 32_768  # bytes of a request's URL and headers together
_GRACE = 3  # seconds for unfinished answers when the process is told to stop


def serve(settings: Settings, database_url: str, *, start_key: bytes, ui: DagsterUI | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, with the Dagster UI if there is one.

    `start_key` are random bytes, the same for a server that takes the place of one that died.
    """
    log.configure(settings.log_level)
    if note := access_note(settings):
        structlog.get_logger().warning(note)
    app = build_app(settings, database_url, start_key=start_key, ui=ui)
    _Server(configuration(app, host=address(settings), port=settings.port, server_header=False)).run()


def configuration(app: Starlette, **options: Any) -> uvicorn.Config:
    """How the app is served, at any address."""
    trusted = app.state.web.settings.forwarded_allow_ips
    config = uvicorn.Config(
        app,
        proxy_headers=trusted is not None,
        forwarded_allow_ips=trusted or "",  # never uvicorn's own default, which believes loopback
        log_level="warning",
        timeout_graceful_shutdown=_GRACE,
        http="h11",  # the only one of uvicorn's parsers with a limit
        h11_max_incomplete_event_size=MAX_HEAD,
        ws_max_size=MAX_HEAD,  # bytes of a message to the Dagster UI: its largest is a tenth of that
        **options,
    )
    logging.getLogger("uvicorn.error").addFilter(_quiet_refusals)
    return config


def _quiet_refusals(record: logging.LogRecord) -> bool:
    """Without an error line for each WebSocket that is refused, or answer that is not read: anybody could fill the log
    with them."""
    said = record.getMessage()
    return not ("without completing handshake" in said or "without completing response" in said)


class _Server(uvicorn.Server):
    """Ends the event streams first: a graceful stop waits for answers, and these never end otherwise."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started:
            # Not here: what the handler interrupts may have the lock that `close` takes.
            changes = self.config.app.state.web.changes  # type: ignore[union-attr]
            asyncio.get_running_loop().call_soon_threadsafe(changes.close)
        super().handle_exit(sig, frame)
