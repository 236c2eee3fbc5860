"""Several connections for the threads of a process, within the deployment's budget of them (`budget.py`).

`psycopg_pool` keeps a number for each pool; here a connection may be another process's as soon as nobody here uses it.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import Connection, pq
from psycopg.rows import DictRow

from stats_pipeline.database.connection import (
    APPLICATION_NAME,
    CONNECT_TIMEOUT,
    call,
    can_listen,
    connect,
    describe,
    run,
)
from stats_pipeline.errors import DatabaseUnavailable, NoConnectionFree

if TYPE_CHECKING:
    from stats_pipeline.database.budget import Held, Kind, Slots

_POLL_SECONDS = 0.02  # for a slot that becomes free
_SECOND_SECONDS = 0.1  # for which a process with a connection of its own waits for that one
_KEEP_SECONDS = 1.0
_RETRY_SECONDS = 0.25
_ASK_SECONDS = 1.0


class Database:
    """A pool of autocommit connections with dictionary rows to one PostgreSQL, safe to share between threads.

    `max_connections` are opened when they are needed, and kept. Up to `shared` further ones each need a slot of the
    deployment's budget: such a connection is closed, and its slot given up, when nobody in this process wants it next
    or somebody elsewhere waits. A command, which has none of its own, keeps its one for a second.

    Whoever wants a connection waits for a turn as long as that takes, or `turn` seconds. `patience` is for a database
    that does not answer, seconds. `ahead`: one is opened in the background, before the first request.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 4,
        slots: "Slots | None" = None,
        kind: "Kind" = "other",
        shared: int = 0,
        ahead: bool = False,
        application_name: str = APPLICATION_NAME,
        patience: float = CONNECT_TIMEOUT,
        turn: float | None = None,
    ) -> None:
        self.url = url
        self._application_name = application_name
        self._patience = patience
        self._turn = turn
        self._own = max_connections
        self._slots = slots
        self._kind: Kind = kind
        self._shared = shared
        self._ahead = ahead
        self._changed = threading.Condition()
        self._idle: list[_Pooled] = []
        self._own_open = self._shared_open = 0
        self._waiting = 0
        self._is_sought = False
        self._is_open = True
        self._closer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._is_open = True
        if self._ahead:
            threading.Thread(target=self._open_ahead, name="connecting", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Closes what is idle; what is in use is closed when it is given back."""
        with self._changed:
            self._is_open = False
            idle, self._idle = self._idle, []
        for pooled in idle:
            self._drop(pooled)

    @contextmanager
    def connection(self) -> Iterator[Connection[DictRow]]:
        """A pooled autocommit connection. Raises `DatabaseUnavailable` if the database does not answer, or if no
        connection became free in time."""
        pooled = self._take()
        try:
            yield pooled.connection
        finally:
            self._give_back(pooled)

    @contextmanager
    def transaction(self) -> Iterator[Connection[DictRow]]:
        """A pooled connection inside one transaction: committed at the end of the block, rolled back on an error."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def run(self, query: str, **parameters: Any) -> list[DictRow]:
        """Run the named query in its own transaction and return its rows."""
        with self.connection() as connection:
            return run(connection, query, **parameters)

    def call(self, function: str, /, **arguments: Any) -> list[DictRow]:
        """Call the function in its own transaction and return its rows."""
        with self.connection() as connection:
            return call(connection, function, **arguments)

    def dedicated_connection(self) -> Connection[DictRow]:
        """A connection for the caller alone, outside the pool: what it costs of the budget is the caller's to know."""
        return connect(self.url, autocommit=True, application_name=self._application_name)

    @property
    def can_listen(self) -> bool:
        """Whether notifications work on this database's connections."""
        return can_listen(self.url)

    def _take(self) -> "_Pooled":
        until = None if self._turn is None else time.monotonic() + self._turn
        while True:
            with self._changed:
                self._waiting += 1
                try:
                    pooled, held = self._next(until)
                finally:
                    self._waiting -= 1
            if pooled is None:
                return self._open(held, until)
            if pooled.is_alive():
                return pooled
            self._drop(pooled)

    def _next(self, until: float | None) -> "tuple[_Pooled | None, Held | None]":
        """An idle connection, or else the right to open one: an own one, or one for the slot."""
        while True:
            if self._idle:
                return self._idle.pop(0), None
            if self._own_open < self._own:
                self._own_open += 1
                return None, None
            if self._slots is not None and self._shared_open < self._shared and not self._is_sought:
                self._is_sought = True  # by one thread at a time
                try:
                    if held := self._seek(self._slots, until):
                        self._shared_open += 1
                        return None, held
                finally:
                    self._is_sought = False
                    self._changed.notify_all()
            elif not self._changed.wait(None if until is None else max(0.0, until - time.monotonic())):
                raise self._none_became_free()

    def _seek(self, slots: "Slots", until: float | None) -> "Held | None":
        """A slot for one more connection; None as soon as there is an idle connection."""
        began = time.monotonic()
        with ExitStack() as registered:
            is_registered = False
            while not self._idle and self._own_open >= self._own:
                has_some = self._own_open + self._shared_open > 0
                # To open a second one takes longer than most uses of the first one.
                if self._own == 0 or time.monotonic() > began + _SECOND_SECONDS:
                    if held := slots.try_to_take(self._kind, has_some=has_some):
                        return held
                    if not has_some and not is_registered:
                        registered.enter_context(slots.waiting(self._kind))
                        is_registered = True
                if until is not None and time.monotonic() > until:
                    raise self._none_became_free()
                self._changed.wait(_POLL_SECONDS)
        return None

    def _none_became_free(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"no connection to {describe(self.url)} became free in time")

    def _open(self, held: "Held | None", until: float | None) -> "_Pooled":
        """Tries again for as long as the database does not answer, or has no connection free."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                connection = connect(
                    self.url,
                    autocommit=True,
                    application_name=self._application_name,
                    timeout=min(CONNECT_TIMEOUT, max(2, math.ceil(self._patience))),
                )
            except DatabaseUnavailable as error:
                limit = until if isinstance(error, NoConnectionFree) else deadline
                if limit is not None and time.monotonic() >= limit:
                    self._forget(held)
                    raise
                time.sleep(_RETRY_SECONDS)
            except BaseException:
                self._forget(held)
                raise
            else:
                return _Pooled(connection, held)

    def _open_ahead(self) -> None:
        with suppress(DatabaseUnavailable):  # who needs it will be told
            self._give_back(self._take())

    def _give_back(self, pooled: "_Pooled") -> None:
        is_usable = pooled.is_usable()
        with self._changed:
            is_kept = is_usable and self._is_open
            if is_kept and pooled.held is not None:
                is_kept = (self._waiting > 0 or self._keeps_one) and not pooled.held.is_wanted()
            if is_kept:
                pooled.since = time.monotonic()
                # The own ones first: the others can then be given up.
                self._idle.insert(0 if pooled.held is None else len(self._idle), pooled)
                if self._keeps_one and self._closer is None:
                    self._close_later()
                self._changed.notify_all()
        if not is_kept:
            self._drop(pooled)

    @property
    def _keeps_one(self) -> bool:
        return self._own == 0 and self._kind == "other"

    def _close_later(self) -> None:
        self._closer = threading.Timer(_KEEP_SECONDS, self._close_unused)
        self._closer.daemon = True
        self._closer.start()

    def _close_unused(self) -> None:
        with self._changed:
            self._closer = None
            used_since = time.monotonic() - _KEEP_SECONDS
            unused = [each for each in self._idle if each.held and (each.since < used_since or each.held.is_wanted())]
            self._idle = [each for each in self._idle if each not in unused]
            if self._shared_open > len(unused):
                self._close_later()
        for pooled in unused:
            self._drop(pooled)

    def _drop(self, pooled: "_Pooled") -> None:
        try:
            pooled.connection.close()
        finally:
            self._forget(pooled.held)

    def _forget(self, held: "Held | None") -> None:
        with self._changed:
            if held is None:
                self._own_open -= 1
            else:
                self._shared_open -= 1
                held.release()
            self._changed.notify_all()


class _Pooled:
    """A connection of a pool, with its slot if it needs one."""

    def __init__(self, connection: Connection[DictRow], held: "Held | None") -> None:
        self.connection = connection
        self.held = held
        self.since = time.monotonic()  # of the last use

    def is_alive(self) -> bool:
        """Whether the server still knows it: it is asked after a while, or if it has said something by itself."""
        try:
            if time.monotonic() > self.since + _ASK_SECONDS or wait([self.connection.fileno()], 0):
                self.connection.execute("")
        except psycopg.Error:
            return False
        return True

    def is_usable(self) -> bool:
        """Whether it can be used again; rolls back what was left open."""
        try:
            if self.connection.info.transaction_status != pq.TransactionStatus.IDLE:
                self.connection.rollback()
        except psycopg.Error:
            return False
        return not self.connection.closed and self.connection.info.transaction_status == pq.TransactionStatus.IDLE
