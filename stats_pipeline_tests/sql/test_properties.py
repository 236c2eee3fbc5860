"""Properties of every club: order of rows, order of calls and plans do not matter; clubs and books stay separate."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from stats_pipeline.demo import league
from stats_pipeline_tests.reference import RPCS, TABLES
from stats_pipeline_tests.sql.club import OTHER_TENANT, Club, fingerprint, load, read, refresh, versions
from stats_pipeline_tests.sql.golden import DAY_3, GOLDEN
from stats_pipeline_tests.sql.leagues import TODAYS, clubs

TODAY = date(2025, 6, 26)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module")
def demo_connection(create_database: Callable[..., str], template: str) -> Iterator[Connection[Any]]:
    """A connection to a database of its own with the demo league in it, and everything refreshed."""
    with psycopg.connect(create_database(template), autocommit=True) as connection:
        league.load(connection, league.generate())
        refresh(connection, today=TODAY)
        yield connection


@pytest.fixture
def demo(demo_connection: Connection[Any]) -> Iterator[Connection[Any]]:
    with demo_connection.transaction(force_rollback=True):
        yield demo_connection


def beside_the_demo_league(club: Club) -> Club:
    """The same club as another tenant, with ids of its own."""
    offset = 100_000
    return replace(
        club,
        tenant_id=OTHER_TENANT,
        players=tuple(row._replace(player_id=row.player_id + offset) for row in club.players),
        seasons=tuple(row._replace(id=row.id + offset) for row in club.seasons),
        matches=tuple(row._replace(match_id=row.match_id + offset) for row in club.matches),
        appearances=tuple(
            row._replace(match_id=row.match_id + offset, player_id=row.player_id + offset)
            for row in club.appearances
            if row.match_id is not None and row.player_id is not None
        ),
    )


def stored_for(connection: Connection[Any], club: Club, today: date) -> list[tuple[str, str]]:
    with connection.transaction(force_rollback=True):
        load(connection, club)
        refresh(connection, today=today, tenant_id=club.tenant_id)
        return fingerprint(connection, club.tenant_id)


@few
@given(club=clubs(), today=TODAYS, data=st.data())
def test_order_of_source_rows_does_not_matter(
    stats_connection: Connection[Any], club: Club, today: date, data: st.DataObject
) -> None:
    shuffled = replace(
        club,
        players=tuple(data.draw(st.permutations(club.players))),
        seasons=tuple(data.draw(st.permutations(club.seasons))),
        matches=tuple(data.draw(st.permutations(club.matches))),
        appearances=tuple(data.draw(st.permutations(club.appearances))),
    )
    assert stored_for(stats_connection, club, today) == stored_for(stats_connection, shuffled, today)


def test_order_of_calls_does_not_matter(demo: Connection[Any]) -> None:
    before = fingerprint(demo)
    for table in TABLES:
        demo.execute(f"delete from public.{table}".encode())
    refresh(demo, today=TODAY, rpcs=reversed(RPCS))
    assert fingerprint(demo) == before


@pytest.mark.parametrize("rpc", RPCS)
def test_a_function_alone_stores_what_it_stores_among_the_others(demo: Connection[Any], rpc: str) -> None:
    before = fingerprint(demo)
    for table in TABLES:
        demo.execute(f"delete from public.{table}".encode())
    refresh(demo, today=TODAY, rpcs=[rpc])
    alone = fingerprint(demo)
    filled = {table for table, _ in alone}
    assert filled
    assert alone == [line for line in before if line[0] in filled]


@pytest.mark.parametrize(
    "planner",
    [
        ["enable_hashjoin", "enable_mergejoin"],
        ["enable_nestloop", "enable_hashjoin"],
        ["enable_hashagg", "enable_incremental_sort"],
        ["enable_sort", "enable_indexscan", "enable_bitmapscan"],
    ],
    ids="+".join,
)
def test_plans_do_not_matter(demo: Connection[Any], planner: list[str]) -> None:
    before = fingerprint(demo)
    for table in TABLES:
        demo.execute(f"delete from public.{table}".encode())
    for setting in planner:
        demo.execute(f"set local {setting} = off".encode())
    demo.execute("discard plans")
    refresh(demo, today=TODAY)
    assert fingerprint(demo) == before


@pytest.mark.parametrize("position", [0, 100, -1], ids=["first", "middle", "latest"])
def test_deleting_a_match_and_adding_it_again_restores_everything(demo: Connection[Any], position: int) -> None:
    latest = league.generate().matches[-1].match_id
    match_id = league.generate().matches[position].match_id
    before = fingerprint(demo)
    for table in ("matches", "player_matches"):
        demo.execute(f"create temporary table kept_{table} on commit drop as table public.{table}".encode())
    demo.execute("delete from public.matches where match_id = %s", (match_id,))
    refresh(demo, today=TODAY)
    assert fingerprint(demo) != before
    for table in ("matches", "player_matches"):
        demo.execute(f"insert into public.{table} select * from kept_{table} where match_id = %s".encode(), (match_id,))
    refresh(demo, today=TODAY)
    # bests of an earlier match that was the latest for a while are an archive, and stay
    demo.execute("delete from public.aggregated_personal_bests where match_id <> %s", (latest,))
    assert fingerprint(demo) == before


def test_a_second_run_writes_no_row(demo: Connection[Any]) -> None:
    before = versions(demo)
    refresh(demo, today=TODAY)
    assert versions(demo) == before


def test_a_change_writes_only_the_rows_it_changes(demo: Connection[Any]) -> None:
    before = versions(demo)
    player_id = league.generate().players[0].player_id
    demo.execute(
        "update public.player_matches set goals = goals + 1 where player_match_id ="
        " (select min(player_match_id) from public.player_matches where player_id = %s)",
        (player_id,),
    )
    refresh(demo, today=TODAY, rpcs=["update_aggregated_all_time_stats", "update_aggregated_player_profile_stats"])
    changed = [table for table, *_ in before - versions(demo)]
    assert sorted(changed) == ["aggregated_all_time_stats", "aggregated_player_profile_stats"]


def test_one_tenants_refresh_leaves_the_others_rows_alone(demo: Connection[Any]) -> None:
    club = beside_the_demo_league(replace(GOLDEN, config={"fantasy_win_points": "99", "hall_of_fame_limit": "1"}))
    before = fingerprint(demo)
    load(demo, club)
    refresh(demo, today=DAY_3, tenant_id=OTHER_TENANT)
    assert fingerprint(demo) == before

    guest, stamps = versions(demo, OTHER_TENANT), read(demo, "cache_metadata", OTHER_TENANT)
    assert {table for table, *_ in guest} == set(TABLES) - {
        "aggregated_season_honours",
        "aggregated_player_teammate_stats",
    }
    demo.execute("delete from public.matches where tenant_id <> %s and match_id %% 2 = 0", (OTHER_TENANT,))
    refresh(demo, today=TODAY)
    assert fingerprint(demo) != before
    assert versions(demo, OTHER_TENANT) == guest
    assert read(demo, "cache_metadata", OTHER_TENANT) == stamps


def test_another_tenant_changes_nothing(stats_connection: Connection[Any]) -> None:
    guest = beside_the_demo_league(GOLDEN)
    alone = stored_for(stats_connection, guest, DAY_3)
    with stats_connection.transaction(force_rollback=True):
        league.load(stats_connection, league.generate())
        stats_connection.execute(
            "insert into public.app_config (tenant_id, config_key, config_value)"
            " values (%s, 'fantasy_win_points', '77'), (%s, 'match_duration_minutes', '7')",
            (league.DEFAULT_TENANT, league.DEFAULT_TENANT),
        )
        assert stored_for(stats_connection, guest, DAY_3) == alone


@pytest.mark.parametrize("field", ["match_id", "player_id"])
def test_an_appearance_that_names_another_clubs_rows_counts_for_nobody(stats: Connection[Any], field: str) -> None:
    """Their foreign keys look at the id alone, so such a row can be there."""
    guest = beside_the_demo_league(GOLDEN)
    load(stats, GOLDEN)
    load(stats, guest)
    stray = GOLDEN.appearances[0]._replace(**{field: getattr(guest.appearances[0], field)})
    refresh(stats, today=DAY_3)
    refresh(stats, today=DAY_3, tenant_id=OTHER_TENANT)
    before = fingerprint(stats), fingerprint(stats, OTHER_TENANT)
    load(stats, Club(appearances=(stray,)))
    refresh(stats, today=DAY_3)
    refresh(stats, today=DAY_3, tenant_id=OTHER_TENANT)
    assert (fingerprint(stats), fingerprint(stats, OTHER_TENANT)) == before


def test_no_arguments_mean_the_default_tenant(demo: Connection[Any]) -> None:
    before = fingerprint(demo)
    for table in TABLES:
        demo.execute(f"delete from public.{table}".encode())
    for rpc in RPCS:
        demo.execute(f"select public.{rpc}()".encode())
    assert fingerprint(demo) == before


def test_the_books_balance(demo: Connection[Any]) -> None:
    def one(statement: str) -> Any:
        row = demo.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]

    scored = one("select sum(team_a_score + team_b_score - team_a_own_goals - team_b_own_goals) from public.matches")
    guests = one("select sum(goals) from public.player_matches join public.players using (player_id) where is_ringer")
    all_time = one("select sum(goals) from public.aggregated_all_time_stats")
    assert guests > 0
    assert all_time + guests == scored
    assert one("select sum(goals) from public.aggregated_season_stats") == all_time  # every match lies in one season
    points = one("select sum(fantasy_points) from public.aggregated_all_time_stats")
    assert one("select sum(fantasy_points) from public.aggregated_season_stats") == points
    assert one("select sum(fantasy_points) from public.aggregated_player_profile_stats") == points
    assert (
        one(
            "select sum((year ->> 'fantasy_points')::integer)"
            " from public.aggregated_player_profile_stats, jsonb_array_elements(yearly_stats) as year"
        )
        == points
    )
    assert (
        one(
            """
            select count(*)
            from public.aggregated_season_race_data as race
            cross join jsonb_array_elements(race.player_data) as racer
            join public.aggregated_season_stats as season
                on season.player_id = (racer ->> 'player_id')::integer
                and season.season_start_date = (racer #>> '{cumulative_data,0,date}')::date
            where race.period_type = 'whole_season'
                and season.fantasy_points = (racer #>> '{cumulative_data,-1,points}')::integer
            """
        )
        == 5
    )
