"""Delivering due tags with a real database and a real HTTP server: which are due, when, and the effect on the job.

How the client interprets an app's answers is in `unit/test_invalidation.py`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline.catalog import STATS_FUNCTIONS, StatsFunction
from stats_pipeline.database import Database
from stats_pipeline.jobs import outbox
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Delivery
from stats_pipeline.jobs.refresh import Refresh
from stats_pipeline.settings import Settings
from stats_pipeline_tests.acceptance.app_server import KEY, App, Call, leave, refuse, take_all
from stats_pipeline_tests.integration.steps import TWO, compute, enqueue, expire, job, lease_of, settle, start

Connected = Connection[Any]
Query = Callable[..., list[dict[str, Any]]]

THREE = STATS_FUNCTIONS[1:4]
TAGS = {tag for function in TWO for tag in function.cache_tags}
DEADLINE = 900
NOBODY = "http://127.0.0.1:1"  # where nothing listens


@pytest.fixture
def app() -> Iterator[App]:
    started = App()
    started.start()
    yield started
    started.stop()


@pytest.fixture
def cache(app: App) -> Iterator[CacheClient]:
    client = CacheClient(Settings.model_validate({"NEXT_PUBLIC_APP_URL": app.url, "INTERNAL_API_KEY": KEY}))
    yield client
    client.close()


@pytest.fixture
def relay(opened: Database, cache: CacheClient) -> Callable[[], None]:
    """What the relay sensor does each second."""

    def relay() -> None:
        outbox.deliver(opened, cache, cache_deadline=DEADLINE)

    return relay


@pytest.fixture
def later(query: Query) -> Callable[[int], None]:
    """Let so many seconds pass, for the outbox and the route."""

    def pass_by(seconds: int) -> None:
        query(
            "update stats_pipeline.outbox set due_at = due_at - make_interval(secs => %s), "
            "next_try_at = next_try_at - make_interval(secs => %s)",
            seconds,
            seconds,
        )
        query("update stats_pipeline.endpoint set next_try_at = next_try_at - make_interval(secs => %s)", seconds)
        query("update stats_pipeline.lease set ended_at = ended_at - make_interval(secs => %s)", seconds)

    return pass_by


def due(query: Query) -> set[str]:
    return {row["tag"] for row in query("select tag from stats_pipeline.outbox where delivered_at is null")}


def told(app: App) -> list[tuple[str, ...]]:
    return [call.tags for call in app.received]


def computed(connection: Connected, opened: Database, run_id: str = "run-1") -> Any:
    """A job whose functions are done and whose hooks were lost: its tags are due."""
    job_id = enqueue(connection)
    compute(opened, start(connection, run_id))
    settle(connection, run_id, app=True)
    return job_id


def test_a_hook_delivers_the_tags_of_its_run_at_once(
    connection: Connected, opened: Database, cache: CacheClient, app: App, query: Query
) -> None:
    job_id = computed(connection, opened)
    for _ in TWO:
        outbox.deliver(opened, cache, cache_deadline=DEADLINE, lease_id=lease_of(opened))
    assert told(app) == [sum((function.cache_tags for function in TWO), ())]
    assert due(query) == set()
    assert job(connection, job_id).status == "completed"


def test_functions_that_end_during_a_call_share_the_next_one(
    connection: Connected,
    opened: Database,
    app: App,
    database_url: str,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "STATS_DATABASE_URL": database_url,
        "NEXT_PUBLIC_APP_URL": app.url,
        "INTERNAL_API_KEY": KEY,
    }.items():
        monkeypatch.setenv(name, value)
    job_id = enqueue(connection)
    claimed = start(connection, "run-1", THREE)
    compute(opened, claimed, THREE[0])
    with (
        closing(CacheClient(Settings())) as cache,
        ThreadPoolExecutor() as hooks,
    ):
        refresh = Refresh(opened, Settings(), run_id="run-1", lease_id=claimed.lease_id, cache=cache)
        others: list[Future[Delivery]] = []

        def end_meanwhile_then_take(call: Call) -> None:
            for function in THREE[1:]:
                compute(opened, claimed, function)
                others.append(hooks.submit(refresh.deliver))
            app.behaviour = take_all
            take_all(call)

        with app.behaving(end_meanwhile_then_take):
            refresh.deliver()
        assert all(other.result(timeout=10).problem is None for other in others)
    assert told(app) == [THREE[0].cache_tags, tuple(sorted(THREE[1].cache_tags + THREE[2].cache_tags))]
    assert due(query) == set()
    assert job(connection, job_id).status == "completed"


def test_several_due_rows_of_a_tag_are_one_delivery(
    connection: Connected,
    opened: Database,
    relay: Callable[[], None],
    later: Callable[[int], None],
    app: App,
    query: Query,
) -> None:
    jobs = [computed(connection, opened, f"run-{number}") for number in range(3)]
    later(3)
    relay()
    assert [set(tags) for tags in told(app)] == [TAGS]
    assert due(query) == set()
    assert {job(connection, job_id).status for job_id in jobs} == {"completed"}


def test_the_relay_leaves_a_fresh_tag_to_its_hook(
    connection: Connected, opened: Database, relay: Callable[[], None], later: Callable[[int], None], app: App
) -> None:
    computed(connection, opened)
    relay()
    assert told(app) == []
    later(3)
    relay()
    assert len(told(app)) == 1


def test_a_tag_that_goes_stale_again_while_it_is_delivered_stays_due(
    connection: Connected,
    opened: Database,
    relay: Callable[[], None],
    later: Callable[[int], None],
    app: App,
    query: Query,
) -> None:
    computed(connection, opened, "run-1")
    later(3)
    enqueue(connection)
    second = start(connection, "run-2")

    def go_stale_then_take(call: Call) -> None:
        compute(opened, second, TWO[0])
        take_all(call)

    with app.behaving(go_stale_then_take):
        relay()
    assert due(query) == set(TWO[0].cache_tags)
    later(3)
    relay()
    assert due(query) == set()
    assert told(app)[1] == TWO[0].cache_tags


def test_a_tag_of_two_functions_is_due_until_both_have_been_told(
    connection: Connected, opened: Database, cache: CacheClient, app: App
) -> None:
    first, second = TWO[0], dataclasses.replace(TWO[1], cache_tags=TWO[0].cache_tags)
    job_id = enqueue(connection)
    claimed = start(connection)
    compute(opened, claimed, first)
    outbox.deliver(opened, cache, cache_deadline=DEADLINE, lease_id=lease_of(opened))
    compute(opened, claimed, second)
    settle(connection, app=True)
    row = job(connection, job_id)
    assert row.status == "processing"
    assert row.results is not None
    assert row.results["cache"] == {"status": "pending", "delivered": [], "pending": list(first.cache_tags)}
    outbox.deliver(opened, cache, cache_deadline=DEADLINE, lease_id=lease_of(opened))
    assert job(connection, job_id).status == "completed"
    assert told(app) == [first.cache_tags] * 2


def test_a_tag_is_due_since_its_function_ended_not_since_it_began(
    connection: Connected, opened: Database, query: Query
) -> None:
    """Or the relay would be as quick as the hook for every function of more than three seconds."""
    query("create table public.began (at timestamptz)")
    query("create function public.work() returns void language sql as $$ insert into public.began values (now()) $$")
    work = StatsFunction("Work", "work", ("tag",), (), (), "")
    enqueue(connection)
    compute(opened, start(connection, functions=(work,)), work)
    [row] = query("select due_at > at as is_later from stats_pipeline.outbox, public.began")
    assert row["is_later"]


def wait_of(query: Query) -> float:
    [row] = query(
        "select extract(epoch from next_try_at - clock_timestamp())::float as wait from stats_pipeline.endpoint"
    )
    return float(row["wait"])


def test_a_failing_route_is_asked_less_and_less_often_up_to_five_minutes(
    connection: Connected,
    opened: Database,
    relay: Callable[[], None],
    later: Callable[[int], None],
    app: App,
    query: Query,
) -> None:
    computed(connection, opened)
    later(3)
    waits = []
    with app.behaving(refuse(503)):
        for _ in range(12):
            before = len(told(app))
            relay()
            relay()  # while the route rests nothing is sent
            assert len(told(app)) == before + 1
            waits.append(wait_of(query))
            later(376)
    for number, wait in enumerate(waits):
        nominal = min(300, 2**number)
        assert 0.75 * nominal - 0.5 < wait <= 1.25 * nominal, waits
    assert len({round(wait / min(300, 2**number), 2) for number, wait in enumerate(waits)}) > 1  # jitter
    relay()
    assert query("select * from stats_pipeline.endpoint") == []


def test_ten_failures_at_once_are_one(
    connection: Connected,
    opened: Database,
    cache: CacheClient,
    later: Callable[[int], None],
    query: Query,
    at_once: Callable[..., list[Any]],
) -> None:
    computed(connection, opened)
    ids = [row["id"] for row in query("select id from stats_pipeline.outbox")]

    def fail(_: int) -> None:
        parameters = {"asked": ids, "taken": [], "problem": "down", "cache_deadline": DEADLINE}
        opened.call("record_delivery", route=cache.url, **parameters)

    assert at_once(10, fail) == [None] * 10
    [row] = query("select failures from stats_pipeline.endpoint")
    assert row["failures"] == 1
    later(3)
    at_once(10, fail)
    [row] = query("select failures from stats_pipeline.endpoint")
    assert row["failures"] == 2


def test_a_tag_the_app_cannot_drop_waits_alone(
    connection: Connected,
    opened: Database,
    relay: Callable[[], None],
    later: Callable[[int], None],
    app: App,
    query: Query,
) -> None:
    first = computed(connection, opened, "run-1")
    later(3)
    bad = TWO[0].cache_tags[0]
    with app.behaving(leave(bad)):
        for _ in range(3):
            relay()
            later(10)
        second = computed(connection, opened, "run-2")
        later(3)
        relay()
    assert due(query) == {bad}
    assert query("select * from stats_pipeline.endpoint") == []  # the route itself is well
    for job_id in (first, second):
        results = job(connection, job_id).results
        assert results is not None
        assert results["cache"]["pending"] == [bad]
    [row] = query("select max(tries) as tries from stats_pipeline.outbox where delivered_at is null")
    assert row["tries"] == 4


def test_a_tag_that_was_left_is_not_asked_for_at_once_again(
    connection: Connected, opened: Database, relay: Callable[[], None], later: Callable[[int], None], app: App
) -> None:
    computed(connection, opened)
    later(3)
    bad = TWO[0].cache_tags[0]
    with app.behaving(leave(bad)):
        relay()
        relay()
        assert len(told(app)) == 1
        later(2)
        relay()
    assert told(app)[1:] == [(bad,)]


def test_another_apps_route_that_fails_gives_ours_no_rest(
    connection: Connected, opened: Database, relay: Callable[[], None], later: Callable[[int], None], query: Query
) -> None:
    """The address has been changed since."""
    with closing(CacheClient(Settings.model_validate({"NEXT_PUBLIC_APP_URL": NOBODY, "INTERNAL_API_KEY": KEY}))) as old:
        computed(connection, opened)
        later(3)
        outbox.deliver(opened, old, cache_deadline=DEADLINE)
    assert due(query) == TAGS
    relay()
    assert due(query) == set()


def test_after_the_deadline_the_job_fails_by_name_and_completes_when_the_app_takes_the_tags(
    connection: Connected, opened: Database, relay: Callable[[], None], later: Callable[[int], None], app: App
) -> None:
    job_id = computed(connection, opened)
    assert job(connection, job_id).status == "processing"
    later(DEADLINE + 1)
    with app.behaving(refuse(500)):
        relay()
    failed = job(connection, job_id)
    assert failed.status == "failed"
    assert failed.error_message == "Cache tags not delivered: " + ", ".join(sorted(TAGS))
    later(10)
    relay()
    completed = job(connection, job_id)
    assert (completed.status, completed.error_message) == ("completed", None)
    assert completed.results is not None
    assert completed.results["cache"] == {"status": "delivered", "pending": [], "delivered": sorted(TAGS)}


def test_what_a_dead_run_made_stale_is_delivered_though_nobody_resumed_it(
    connection: Connected, opened: Database, relay: Callable[[], None], later: Callable[[int], None], query: Query
) -> None:
    enqueue(connection)
    compute(opened, start(connection), TWO[0])
    expire(opened, max_attempts=0)
    later(3)
    relay()
    assert due(query) == set()
