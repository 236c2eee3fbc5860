"""The event stream: each change once, in order, to every reader, from one listening connection, whatever fails."""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg import Connection

from stats_pipeline import database
from stats_pipeline.database import Database, budget, named_query
from stats_pipeline.database.budget import Held, Kind, Slots
from stats_pipeline.web import app, stream
from stats_pipeline.web.sessions import Role
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import JOBS, Served, serving, settings

Query = Callable[..., list[dict[str, Any]]]
LOOK = named_query("list_job_states")
PATIENCE = 20  # seconds; events come within milliseconds


@pytest.fixture(autouse=True)
def unpolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a notification tells of a change: the look behind them comes later than any test waits."""
    monkeypatch.setattr(stream, "POLL_SECONDS", 600)


class Reader:
    """One open stream: what it says, as it comes."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._thread.start()

    def _read(self, lines: Iterator[str]) -> None:
        try:
            for line in lines:
                if line.startswith("data: "):
                    self._events.put(json.loads(line.removeprefix("data: ")))
        except (httpx.StreamError, httpx.TransportError):
            return

    def next(self) -> dict[str, Any]:
        return self._events.get(timeout=PATIENCE)

    def statuses(self, job: object, last: str) -> list[str]:
        """The statuses of one job, up to the last one named; a status that is said again is progress."""
        found: list[str] = []
        while not found or found[-1] != last:
            event = self.next()
            if event["id"] == str(job) and event["status"] not in found[-1:]:
                found.append(event["status"])
        return found

    @property
    def is_quiet(self) -> bool:
        return self._events.empty()

    def wait_for_end(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@contextmanager
def reading(served: Served, headers: Mapping[str, str] | None = None) -> Iterator[Reader]:
    with (
        httpx.Client(timeout=httpx.Timeout(PATIENCE, read=None), headers=headers or served.session()) as client,
        client.stream("GET", f"{served.url}{JOBS}/stream") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines).startswith("retry:")  # the reader is known to the app from here on
        yield Reader(lines)


def listeners(query: Query) -> list[int]:
    """The server processes of the connections that look for changes."""
    rows = query(
        "select pid from pg_stat_activity where datname = current_database() and query like %s",
        f"{LOOK.split(';')[0]}%",
    )
    return [row["pid"] for row in rows]


@pytest.fixture
def served(serve: Callable[..., Served], connection: Connection[Any], query: Query) -> Served:
    """An app of the test's own, which has had its first look at the jobs."""
    return look(serve(), connection)


def look(served: Served, connection: Connection[Any]) -> Served:
    """Return once the app has reported a change."""
    with reading(served) as reader:
        steps.enqueue(connection)
        reader.next()
    connection.execute("delete from public.background_job_status")
    connection.execute("select pgmq.purge_queue('stats_update')")
    return served


def test_each_change_of_status_is_one_event_for_every_reader(
    served: Served, connection: Connection[Any], database_url: str, query: Query
) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(reading(served)) for _ in range(5)]
        assert len(listeners(query)) == 1
        job = steps.enqueue(connection)
        with Database(database_url) as database:
            steps.finish(connection, database)
        for reader in readers:
            assert reader.statuses(job, "completed") == ["queued", "processing", "completed"]


def test_progress_is_told_as_well(served: Served, connection: Connection[Any], database_url: str) -> None:
    with reading(served) as reader, Database(database_url) as database:
        job = steps.enqueue(connection)
        claimed = steps.start(connection)
        assert reader.statuses(job, "processing") == ["queued", "processing"]
        steps.compute(database, claimed, steps.TWO[0])
        steps.settle(connection)
        event = reader.next()
        assert (event["id"], event["status"]) == (str(job), "processing")


def test_what_is_rolled_back_is_not_told(served: Served, connection: Connection[Any]) -> None:
    with reading(served) as reader:
        with connection.transaction(force_rollback=True):
            steps.enqueue(connection)
        job = steps.enqueue(connection)
        assert reader.next()["id"] == str(job)
        assert reader.is_quiet


def test_a_lost_connection_is_replaced_and_what_happened_meanwhile_is_told(
    served: Served, connection: Connection[Any], query: Query
) -> None:
    with reading(served) as reader:
        [pid] = listeners(query)
        query("select pg_terminate_backend(%s)", pid)
        job = steps.enqueue(connection)
        assert reader.next()["id"] == str(job)
        later = steps.enqueue(connection)
        assert reader.statuses(later, "queued") == ["queued"]


def test_an_older_state_is_not_told_after_a_newer_one(
    served: Served, connection: Connection[Any], database_url: str, query: Query
) -> None:
    """The look behind the notifications may be quicker than they are: they come again, and late, here."""
    with database.connect(database_url, autocommit=True) as late, reading(served) as reader:
        late.execute(f"listen {stream.CHANNEL}".encode())
        job = steps.enqueue(connection)
        steps.start(connection)
        assert reader.statuses(job, "processing") == ["queued", "processing"]
        told = [notification.payload for notification in late.notifies(timeout=PATIENCE, stop_after=2)]
        for payload in told:
            query(f"select pg_notify('{stream.CHANNEL}', %s)", payload)
        other = steps.enqueue(connection, steps.OTHER_TENANT)
        assert reader.next()["id"] == str(other)


def test_a_change_whose_notification_is_lost_is_found_by_looking(
    serve: Callable[..., Served], connection: Connection[Any], query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.1)
    with reading(look(serve(), connection)) as reader:
        job = steps.enqueue(connection)
        assert reader.statuses(job, "queued") == ["queued"]
        with connection.transaction():
            query("set local session_replication_role = replica")  # no trigger fires
            steps.start(connection)
        # A look in between says "queued" again: the row has got its message since its own notification.
        assert reader.statuses(job, "processing")[-1] == "processing"


def test_without_notifications_the_changes_are_found_by_looking(
    serve: Callable[..., Served], connection: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "can_listen", False)
    monkeypatch.setattr(stream, "POLL_ALONE_SECONDS", 0.1)
    served = look(serve(), connection)
    with reading(served) as reader:
        job = steps.enqueue(connection)
        assert reader.statuses(job, "queued") == ["queued"]
        steps.start(connection)
        assert reader.statuses(job, "processing") == ["processing"]


def test_who_waits_for_its_connection_gets_it_and_the_changes_are_found_by_looking(
    serve: Callable[..., Served],
    connection: Connection[Any],
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Not taken back at once, while those who wait are still waiting: the stream then does without."""
    monkeypatch.setattr(stream, "POLL_ALONE_SECONDS", 0.5)
    took: list[float] = []
    try_to_take = Slots.try_to_take

    def counted(self: Slots, kind: Kind, *given: Any, **options: Any) -> Held | None:
        held = try_to_take(self, kind, *given, **options)
        if kind == "other" and threading.current_thread().name == "job-changes" and held is not None:
            took.append(time.monotonic())
        return held

    monkeypatch.setattr(Slots, "try_to_take", counted)
    served = look(serve(STATS_HOME=str(tmp_path), STATS_RUNTIME="fast"), connection)
    slots = Slots(tmp_path / "connections", budget.split(12, 4).shared)
    with reading(served) as reader, slots.waiting("computing"):
        began = time.monotonic()
        while time.monotonic() < began + 3:
            job = steps.enqueue(connection)
            assert reader.statuses(job, "queued") == ["queued"]
        assert 1 <= len([at for at in took if at > began]) <= (time.monotonic() - began) / 0.5 + 1


@contextmanager
def without_a_look(database_url: str) -> Iterator[Connection[Any]]:
    """Nobody reads the jobs for the length of the block."""
    with database.connect(database_url, autocommit=True) as holding, holding.transaction():
        holding.execute("lock table public.background_job_status")
        yield holding


def test_a_stream_begins_when_the_present_state_is_known(
    serve: Callable[..., Served], connection: Connection[Any], database_url: str
) -> None:
    """So whoever reads the jobs once it has begun misses nothing, and is told nothing old."""
    steps.enqueue(connection)
    server = serve()
    waits = "select count(*) from pg_locks where relation = 'public.background_job_status'::regclass and not granted"
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        with without_a_look(database_url) as holding:
            opening = pool.submit(stack.enter_context, reading(server))
            while [row["count"] for row in holding.execute(waits.encode())] != [1]:
                assert not opening.done()
        reader = opening.result(PATIENCE)
        new = steps.enqueue(connection)
        assert reader.next()["id"] == str(new)


def test_no_stream_while_the_present_state_is_not_to_be_had(
    serve: Callable[..., Served], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_PRIMING_SECONDS", 0.2)
    server = serve()
    with without_a_look(database_url):
        answer = httpx.get(f"{server.url}{JOBS}/stream", headers=server.session(), timeout=PATIENCE)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    with reading(server):
        pass


def test_what_one_look_finds_is_told_oldest_first(
    serve: Callable[..., Served], connection: Connection[Any], query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "can_listen", False)
    monkeypatch.setattr(stream, "POLL_ALONE_SECONDS", 0.1)
    with reading(look(serve(), connection)) as reader:
        with connection.transaction():
            jobs = [steps.enqueue(connection) for _ in range(5)]
            query("update public.background_job_status set created_at = created_at + msg_id * interval '1 ms'")
        assert [reader.next()["id"] for _ in jobs] == [str(job) for job in jobs]


def test_a_reader_that_falls_behind_is_sent_away_and_the_others_are_not(
    served: Served, connection: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_BACKLOG", 3)
    with reading(served) as small:  # its queue is made with the smaller limit
        monkeypatch.setattr(stream, "_BACKLOG", 500)
        with reading(served) as large:
            with connection.transaction():
                jobs = [steps.enqueue(connection) for _ in range(50)]  # told all at once
            assert [large.next()["id"] for _ in jobs] == [str(job) for job in jobs]
            small.wait_for_end()


def test_streams_are_limited(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with reading(served), reading(served):
        monkeypatch.setattr(stream, "MAX_STREAMS", 2)
        refused = httpx.get(f"{served.url}{JOBS}/stream", headers=served.session())
        assert refused.status_code == 503
        assert "retry-after" in refused.headers


def test_streams_of_one_session_are_limited(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS_OF_ONE", 2)
    session = served.session(Role.ADMIN)
    with reading(served, session), ExitStack() as stack:
        stack.enter_context(reading(served, session))
        refused = httpx.get(f"{served.url}{JOBS}/stream", headers=session)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        with reading(served):  # of another one
            pass
        stack.close()
        until(lambda: served.streams == 1, "the end of the stream")
        with reading(served, session):
            pass


def test_of_many_streams_at_once_no_more_than_the_limit_are_taken(served: Served) -> None:
    async def open_one(client: httpx.AsyncClient, decided: asyncio.Barrier) -> int:
        url, session = f"{served.url}{JOBS}/stream", served.session()
        async with client.stream("GET", url, headers=session, timeout=PATIENCE) as response:
            await decided.wait()  # none gives its place up to another
            return response.status_code

    async def open_all(number: int) -> list[int]:
        limits = httpx.Limits(max_connections=number, max_keepalive_connections=0)
        async with httpx.AsyncClient(limits=limits) as client:
            decided = asyncio.Barrier(number)
            return await asyncio.gather(*(open_one(client, decided) for _ in range(number)))

    with ThreadPoolExecutor(1) as elsewhere:  # this thread has a loop: the browser's
        statuses = elsewhere.submit(asyncio.run, open_all(stream.MAX_STREAMS + 50)).result()
    # Streams of the tests before may still be about to end.
    assert stream.MAX_STREAMS - 10 <= statuses.count(200) <= stream.MAX_STREAMS
    assert statuses.count(200) + statuses.count(503) == len(statuses)


def test_a_stop_ends_the_streams(connection: Connection[Any], database_url: str) -> None:
    with serving(settings(), database_url) as served, ExitStack() as stack:
        reader = stack.enter_context(reading(look(served, connection)))
        stack.pop_all()  # the stream stays open while the app is told to stop
    reader.wait_for_end()


def test_without_the_dagster_ui_it_has_no_connection_beside_the_shared_ones(
    serve: Callable[..., Served], query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be served beside an `up` of the same state folder."""
    monkeypatch.setattr(app, "TURN", 0.2)
    served = serve(STATS_HOME=str(tmp_path), STATS_RUNTIME="fast")
    shared = budget.split(12, 4).shared
    slots = Slots(tmp_path / "connections", shared)
    headers = served.session()
    for asked_for, expected in ((shared - 1, 503), (shared - 2, 200)):
        with slots.take("run", asked_for):
            assert httpx.get(f"{served.url}{JOBS}", headers=headers, timeout=PATIENCE).status_code == expected
