"""The format and destination of our own log lines: one line each, to the standard error of the command.

Output of Dagster and other libraries goes to the files in `logs/`, which `deployment/supervisor.py` keeps. Output that
a user waits for, such as a command's result, is not logged: see `cli/console.py`.
"""

import logging
import os
import sys
import threading

import structlog

from stats_pipeline.settings import LogLevel, log_fd


def configure(level: LogLevel) -> None:
    """To be called once, by each process that serves requests or runs jobs."""
    fd = log_fd()
    stream = sys.stderr if fd is None else os.fdopen(fd, "w", buffering=1, errors="replace", closefd=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_level=False, repr_native_str=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # it logs each failed try; `Outage` logs one line


class Outage:
    """A condition that may last: logs one line when it begins and one when it ends, however often it is reported."""

    def __init__(self, begun: str, over: str) -> None:
        self._begun = begun
        self._over = over
        self._lock = threading.Lock()
        self._is_on = False

    def begins(self, reason: str) -> None:
        with self._lock:
            if not self._is_on:
                structlog.get_logger().warning(self._begun, reason=reason)
            self._is_on = True

    def is_over(self) -> None:
        if self._is_on:
            with self._lock:
                if self._is_on:
                    structlog.get_logger().info(self._over)
                self._is_on = False
