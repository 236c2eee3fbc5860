"""Two callers at once: one tenant's calls queue up, tenants do not wait for each other, readers never see a gap."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline_tests.reference import RPCS, TABLES
from stats_pipeline_tests.sql.club import OTHER_TENANT, Club, fingerprint, load, refresh, versions
from stats_pipeline_tests.sql.golden import DAY_3, GOLDEN

WAIT = timedelta(seconds=30)  # a bound for a hang, not an expectation
OFFSET = 100

OTHER = replace(
    GOLDEN,
    tenant_id=OTHER_TENANT,
    players=tuple(row._replace(player_id=row.player_id + OFFSET) for row in GOLDEN.players),
    seasons=tuple(row._replace(id=row.id + OFFSET) for row in GOLDEN.seasons),
    matches=tuple(row._replace(match_id=row.match_id + OFFSET) for row in GOLDEN.matches),
    appearances=tuple(
        row._replace(match_id=(row.match_id or 0) + OFFSET, player_id=(row.player_id or 0) + OFFSET)
        for row in GOLDEN.appearances
    ),
)


@pytest.fixture
def connect(database_url: str) -> Iterator[Callable[[], Connection[Any]]]:
    """Opens further connections to the test's own database, each on the day of the golden club's last match."""
    opened: list[Connection[Any]] = []

    def connect() -> Connection[Any]:
        connection = psycopg.connect(database_url, autocommit=True)
        connection.execute("select set_config('stats_pipeline.today', %s, false)", (DAY_3.isoformat(),))
        connection.execute("set statement_timeout = '30s'")
        opened.append(connection)
        return connection

    with psycopg.connect(database_url) as setup:
        for club in (GOLDEN, OTHER):
            load(setup, replace(club, config={"games_required_for_hof": "1", "min_games_for_honours": "1"}))
    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=len(RPCS)) as executor:
        yield executor


def call(connection: Connection[Any], rpc: str, club: Club = GOLDEN) -> None:
    connection.execute(f"select public.{rpc}(%s)".encode(), (club.tenant_id,))


def until_waiting(observer: Connection[Any], backend: int, waiting: Future[None]) -> None:
    """Return when the backend waits for a lock; the server answers each look, so this spins no faster than it can."""
    look = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    while observer.execute(look, (backend,)).fetchone() != (True,):
        assert not waiting.done(), "the second call did not wait"


@pytest.mark.parametrize("rpc", RPCS)
def test_calls_of_one_tenant_take_turns(
    connect: Callable[[], Connection[Any]], pool: ThreadPoolExecutor, rpc: str
) -> None:
    first, second, other, observer = connect(), connect(), connect(), connect()
    with first.transaction():
        call(first, rpc)
        waiting = pool.submit(call, second, rpc)
        until_waiting(observer, second.info.backend_pid, waiting)
        call(other, rpc, OTHER)  # does not wait
        assert not waiting.done()
    waiting.result(timeout=WAIT.total_seconds())

    # the second call saw what the first had committed, and had nothing left to write
    rows = versions(observer)
    call(first, rpc)
    assert versions(observer) == rows


def test_a_call_that_waited_reads_what_was_committed_meanwhile(
    connect: Callable[[], Connection[Any]], pool: ThreadPoolExecutor
) -> None:
    first, second, observer = connect(), connect(), connect()
    rpc = "update_aggregated_all_time_stats"
    with first.transaction():
        first.execute("update public.player_matches set goals = goals + 10 where match_id = 1 and player_id = 1")
        first.execute(
            "insert into public.app_config (tenant_id, config_key, config_value)"
            " values (%s, 'match_duration_minutes', '160')",
            (GOLDEN.tenant_id,),
        )
        call(first, rpc)
        waiting = pool.submit(call, second, rpc)
        until_waiting(observer, second.info.backend_pid, waiting)
    waiting.result(timeout=WAIT.total_seconds())
    row = observer.execute(
        "select goals, minutes_per_goal from public.aggregated_all_time_stats where player_id = 1"
    ).fetchone()
    assert row == (16, 30)  # 3 games of 160 minutes


def test_all_functions_at_once_store_what_they_store_one_after_another(
    connect: Callable[[], Connection[Any]], pool: ThreadPoolExecutor
) -> None:
    observer = connect()
    jobs = [pool.submit(call, connect(), rpc, club) for rpc in RPCS for club in (GOLDEN, OTHER)]
    for job in jobs:
        job.result(timeout=WAIT.total_seconds())
    at_once = fingerprint(observer)
    for table in TABLES:
        observer.execute(f"delete from public.{table}".encode())
    refresh(observer, today=DAY_3)
    assert fingerprint(observer) == at_once


@pytest.mark.parametrize(
    ("rpc", "table"),
    [
        ("update_half_and_full_season_stats", "aggregated_half_season_stats"),
        ("update_half_and_full_season_stats", "aggregated_season_stats"),
        ("update_aggregated_all_time_stats", "aggregated_all_time_stats"),
        ("update_aggregated_hall_of_fame", "aggregated_hall_of_fame"),
        ("update_aggregated_recent_performance", "aggregated_recent_performance"),
        ("update_aggregated_match_report_cache", "aggregated_match_report"),
        ("update_aggregated_player_profile_stats", "aggregated_player_profile_stats"),
        ("update_power_ratings", "aggregated_performance_ratings"),
    ],
)
def test_readers_never_see_an_empty_table(
    connect: Callable[[], Connection[Any]], pool: ThreadPoolExecutor, rpc: str, table: str
) -> None:
    writer, reader = connect(), connect()
    call(writer, rpc)
    count = f"select count(*) from public.{table} where tenant_id = %s".encode()
    full = reader.execute(count, (GOLDEN.tenant_id,)).fetchone()

    def write() -> None:
        for goals in range(20):
            writer.execute("update public.player_matches set goals = %s where player_id <= 4", (goals % 2 + 1,))
            call(writer, rpc)

    writing, seen = pool.submit(write), set()
    while not writing.done():
        seen.add(reader.execute(count, (GOLDEN.tenant_id,)).fetchone())
    writing.result()
    assert seen == {full}
    assert full != (0,)


@pytest.mark.parametrize("rpc", RPCS[:10])
def test_a_call_that_is_rolled_back_leaves_the_old_rows(connect: Callable[[], Connection[Any]], rpc: str) -> None:
    connection = connect()
    call(connection, rpc)
    before = fingerprint(connection)
    with connection.transaction(force_rollback=True):
        connection.execute("delete from public.player_matches where match_id = 3")
        connection.execute("delete from public.matches where match_id = 3")
        call(connection, rpc)
        assert fingerprint(connection) != before
    assert fingerprint(connection) == before
