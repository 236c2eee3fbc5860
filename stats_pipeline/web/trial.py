"""Tries whether a job could be enqueued. `health.py` uses the result for `/health`."""

import threading
import time

import psycopg
import structlog

from stats_pipeline.database import Database
from stats_pipeline.errors import DatabaseUnavailable, StatsPipelineError, one_line
from stats_pipeline.jobs import queue

TRY_SECONDS = 30


class Trial:
    """One per process: tries at most every 30 seconds, however often it is called."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._trying = threading.Lock()
        self._problem: str | None = None
        self._tried_at = -float("inf")

    def problem(self) -> str | None:
        """Why the last trial failed; None if it succeeded. Raises if the database does not answer."""
        with self._trying:
            if time.monotonic() - self._tried_at >= TRY_SECONDS:
                self._problem = self._try()
                self._tried_at = time.monotonic()
            return self._problem

    def _try(self) -> str | None:
        try:
            with self._database.connection() as connection:
                queue.try_to_enqueue(connection)
        except (psycopg.OperationalError, DatabaseUnavailable):
            raise
        except (psycopg.Error, StatsPipelineError) as error:
            problem = one_line(error)
            if problem != self._problem:
                structlog.get_logger().warning("no job can be enqueued", reason=problem)
            return problem
        return None
