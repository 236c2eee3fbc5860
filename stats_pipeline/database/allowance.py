"""How many connections the database, or the pooler in front of it, allows: found out by opening them.

One after the other, and all closed again. Nothing here takes a slot of `budget.py`: that is the caller's.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from stats_pipeline.database.connection import can_listen, connect, describe
from stats_pipeline.errors import NoConnectionFree

_ANSWER_SECONDS = 3  # a pooler that has no more lets one wait
_AGAIN_SECONDS = 1


@dataclass(frozen=True)
class Allowed:
    """How many connections could be opened at the same time, and why no more: empty if as many as were asked for."""

    count: int
    reason: str = ""


def count_allowed(url: str, most: int) -> Allowed:
    """Open up to `most` connections. Raises `DatabaseUnavailable` for any other trouble than their number."""
    opened: list[Connection[Any]] = []
    try:
        while len(opened) < most:
            opening = _Opening(url)
            if not opening.is_done.wait(_ANSWER_SECONDS):
                opening.abandon()
                return Allowed(len(opened), f"no answer within {_ANSWER_SECONDS} seconds")
            try:
                opened.append(opening.result())
            except NoConnectionFree as error:
                return Allowed(len(opened), str(error))
        return Allowed(len(opened))
    finally:
        for connection in opened:
            connection.close()


def wait_for_connections(url: str, count: int, say: Callable[[str], None]) -> None:
    """Return when so many connections can be open at the same time; says so in one line if it has to wait.

    Lets go of what it has while it waits: whoever holds the others may need them to come to an end. Does nothing behind
    a transaction pooler, which hands out no connections. Raises `DatabaseUnavailable` for any other trouble.
    """
    if not can_listen(url):
        return
    opened: list[Connection[Any]] = []
    has_said = False

    def let_go() -> None:
        nonlocal has_said
        while opened:
            opened.pop().close()
        if not has_said:
            say(
                f"Waiting for {count} free connections at {describe(url)}: another deployment still holds them, or "
                "STATS_MAX_CONNECTIONS is more than is allowed there"
            )
            has_said = True

    try:
        while len(opened) < count:
            opening = _Opening(url)
            while not opening.is_done.wait(_ANSWER_SECONDS):
                let_go()
            try:
                opened.append(opening.result())
            except NoConnectionFree:
                let_go()
                time.sleep(_AGAIN_SECONDS)
    finally:
        for connection in opened:
            connection.close()


class _Opening:
    """One connection, opened by a thread, which may take as long as a pooler lets it wait."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection[Any] | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._is_abandoned = False
        self.is_done = threading.Event()
        threading.Thread(target=self._open, name="connecting", daemon=True).start()

    def _open(self) -> None:
        try:
            connection = connect(self._url, autocommit=True)
            connection.execute("select 1")
            with self._lock:
                if self._is_abandoned:
                    connection.close()
                else:
                    self._connection = connection
        except Exception as error:
            self._error = error
        finally:
            self.is_done.set()

    def result(self) -> Connection[Any]:
        """Raises what went wrong."""
        if self._error is not None:
            raise self._error
        assert self._connection is not None
        return self._connection

    def abandon(self) -> None:
        """Close it as soon as it is there."""
        with self._lock:
            self._is_abandoned = True
            if self._connection is not None:
                self._connection.close()
