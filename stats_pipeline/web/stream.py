"""Server-sent events: one per change of a job, from one listening connection to any number of browsers.

The connection is open only while a stream is, and needs a slot of the deployment's budget: without one, and behind a
transaction pooler, the changes are looked for with the connection of the requests. The notification
(`stats_pipeline.job_changed`) is fast, the poll besides it is reliable: both call `_observe`, which passes on only
changes. How a page uses an event belongs to the page.
"""

import asyncio
import json
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import nullcontext, suppress
from typing import Any, TypeAlias

import psycopg
import structlog
from psycopg import Connection

from stats_pipeline.database import Database, budget, run
from stats_pipeline.errors import DatabaseUnavailable, NoConnectionFree, one_line
from stats_pipeline.web.schemas import JobEvent

CHANNEL = "stats_pipeline_jobs"
POLL_SECONDS = 15  # besides the notifications
POLL_ALONE_SECONDS = 2  # without notifications
HEARTBEAT_SECONDS = 15  # so that a proxy does not close an idle stream
MAX_STREAMS = 200
MAX_STREAMS_OF_ONE = 20  # session: a tab has one
_BACKLOG = 500  # events a reader may be behind; then its stream ends, and it reconnects and reads everything again
_REMEMBERED = 1000  # jobs; more than the poll reads
_PRIMING_SECONDS = 5  # that a stream waits for the present state
_STOP_SECONDS = 0.2  # how long the listening thread takes to notice a stop


Reader: TypeAlias = "asyncio.Queue[JobEvent | None]"


class JobChanges:
    """The changes of all jobs, for the length of an `async with` block. Outages of the database are waited out."""

    def __init__(self, database: Database, slots: budget.Slots | None = None) -> None:
        self._database = database
        self._slots = slots
        # Weak: a stream whose client leaves before its first line is never started, and so never ends.
        self._readers: weakref.WeakKeyDictionary[Reader, str | None] = weakref.WeakKeyDictionary()  # to their sessions
        self._known: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._primed = asyncio.Event()  # the present state is known: what differs from it is news
        self._stopping = threading.Event()
        self._wanted = threading.Event()  # a stream is open, or the process stops

    async def __aenter__(self) -> "JobChanges":
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._follow, name="job-changes", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await asyncio.to_thread(self._thread.join)

    def close(self) -> None:
        """End every stream. May be called twice. Not to be called by a signal handler: it takes locks."""
        self._stopping.set()
        self._wanted.set()
        self._loop.call_soon_threadsafe(self._end_all)

    def _end_all(self) -> None:
        for reader in list(self._readers):
            _end(reader)

    def end(self, sessions: Collection[str]) -> None:
        """End the streams of these sessions."""
        for reader, session in list(self._readers.items()):
            if session in sessions:
                _end(reader)

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return len(self._readers)

    async def events(self, session: str | None) -> AsyncIterator[str] | None:
        """The lines of one stream, until the reader disconnects, falls behind, logs out, or the process stops.

        None if too many streams are open, of this session or in all. A stream counts from this call on. Every change
        after its return is in one of the lines: who reads the jobs then misses nothing. Raises `DatabaseUnavailable`.
        """
        of_one = session is not None and sum(of == session for of in self._readers.values()) >= MAX_STREAMS_OF_ONE
        if of_one or self.streams >= MAX_STREAMS:
            return None
        reader: Reader = asyncio.Queue(maxsize=_BACKLOG)
        self._readers[reader] = session
        self._wanted.set()
        try:
            await asyncio.wait_for(self._primed.wait(), _PRIMING_SECONDS)
        except TimeoutError:
            self._readers.pop(reader, None)
            raise DatabaseUnavailable("the database does not say which jobs there are") from None
        return self._lines(reader)

    async def _lines(self, reader: Reader) -> AsyncIterator[str]:
        try:
            yield "retry: 2000\n: connected\n\n"
            while not self._stopping.is_set():
                try:
                    event = await asyncio.wait_for(reader.get(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if event is None:
                    return
                yield f"event: job\ndata: {event.model_dump_json()}\n\n"
        finally:
            self._readers.pop(reader, None)

    def _follow(self) -> None:
        while self._is_watched():
            try:
                self._listen_if_possible()
                if self._readers and not self._stopping.is_set():
                    with self._database.connection() as connection:
                        self._poll(connection)
                    self._stopping.wait(POLL_ALONE_SECONDS)
            except (DatabaseUnavailable, psycopg.OperationalError) as error:
                structlog.get_logger().debug("the database is out of reach", reason=one_line(error))
                self._stopping.wait(POLL_ALONE_SECONDS)

    def _is_watched(self) -> bool:
        """Waits for a stream if none is open; False once the process stops."""
        if not self._readers:
            self._wanted.clear()
            self._loop.call_soon_threadsafe(self._forget)
            if not self._readers and not self._stopping.is_set():
                self._wanted.wait()
        return not self._stopping.is_set()

    def _forget(self) -> None:
        if not self._readers:
            self._primed.clear()

    def _listen_if_possible(self) -> None:
        """Until no stream is open, or somebody else wants the connection; not at all if there is none."""
        if self._database.can_listen and (slot := self._slot()) is not None:
            with slot, suppress(NoConnectionFree):
                self._listen(slot)

    def _slot(self) -> "budget.Held | nullcontext[None] | None":
        return nullcontext() if self._slots is None else self._slots.try_to_take("other")

    def _listen(self, slot: "budget.Held | nullcontext[None]") -> None:
        with self._database.dedicated_connection() as connection:
            connection.execute(f"listen {CHANNEL}".encode())
            while self._readers and not self._stopping.is_set():
                self._poll(connection)
                until = time.monotonic() + POLL_SECONDS
                while time.monotonic() < until and self._readers and not self._stopping.is_set():
                    for notification in connection.notifies(timeout=_STOP_SECONDS):
                        self._tell(json.loads(notification.payload), is_read=False)
                    if isinstance(slot, budget.Held) and slot.is_wanted():
                        return

    def _poll(self, connection: Connection[Any]) -> None:
        for row in reversed(run(connection, "list_job_states")):
            self._tell(row, is_read=True)
        self._loop.call_soon_threadsafe(self._primed.set)

    def _tell(self, row: dict[str, Any], *, is_read: bool) -> None:
        self._loop.call_soon_threadsafe(self._observe, JobEvent(**row), is_read)

    def _observe(self, event: JobEvent, is_read: bool) -> None:
        """Pass on a change, once. The state found by the first poll is not a change.

        A notification may be late, and older than the known state. A row read from the table is always current, even if
        its version was set back by hand.
        """
        key = str(event.id)
        version, status = self._known.get(key, (-1, ""))
        if (event.version, event.status) == (version, status) or (event.version < version and not is_read):
            return
        self._known[key] = (event.version, event.status)
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        if not self._primed.is_set():
            return
        for reader in list(self._readers):
            try:
                reader.put_nowait(event)
            except asyncio.QueueFull:
                self._readers.pop(reader, None)
                _end(reader)


def _end(reader: Reader) -> None:
    """Make the reader's stream end at the next event it takes."""
    while not reader.empty():
        reader.get_nowait()
    reader.put_nowait(None)
