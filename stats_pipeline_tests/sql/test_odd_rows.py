"""Values that nothing forbids: all functions count each correctly or leave it out, with a warning unless it is null.

The tables here allow what an app's own may allow: nulls, repeated appearances, open seasons. The current day of a club
is in `test_club_day`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from psycopg import Connection

from stats_pipeline_tests.reference import RPCS
from stats_pipeline_tests.sql.club import Appearance, Club, Match, Player, Season, load, read, refresh, stored
from stats_pipeline_tests.sql.golden import ANN, BOB, DAY_1, DAY_2, DAY_3, GOLDEN
from stats_pipeline_tests.sql.leagues import TODAYS, odd_clubs
from stats_pipeline_tests.sql.rare_clubs import SEASON, START, club, played
from stats_pipeline_tests.sql.test_oracle import check

MOST = 2**31 - 1


@pytest.fixture(scope="module")
def lax_connection(create_database: Callable[..., str], template: str) -> Iterator[Connection[Any]]:
    """A connection to a database whose tables allow nulls and repeated appearances."""
    with psycopg.connect(create_database(template), autocommit=True) as connection:
        for table, column in (
            ("players", "name"),
            ("players", "is_ringer"),
            ("matches", "match_date"),
            ("matches", "team_a_score"),
            ("matches", "team_b_score"),
            ("seasons", "half_date"),
        ):
            connection.execute(f"alter table public.{table} alter column {column} drop not null".encode())
        connection.execute("alter table public.players alter column name type text")
        connection.execute(
            "alter table public.player_matches drop constraint player_matches_tenant_id_match_id_player_id_key"
        )
        yield connection


@pytest.fixture
def lax(lax_connection: Connection[Any]) -> Iterator[Connection[Any]]:
    with lax_connection.transaction(force_rollback=True):
        yield lax_connection


def refreshed(connection: Connection[Any], club: Club, today: date = DAY_3) -> dict[str, list[dict[str, Any]]]:
    with connection.transaction(force_rollback=True):
        load(connection, club)
        refresh(connection, today=today)
        return stored(connection)


def told(connection: Connection[Any], club: Club, rpc: str = RPCS[0]) -> list[str]:
    """The lines a call says about the club's rows."""
    lines: list[str] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        lines.append(f"{notice.severity}: {notice.message_primary}")

    connection.add_notice_handler(note)
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("alter sequence public.player_matches_player_match_id_seq restart with 1")
            load(connection, club)
            refresh(connection, today=DAY_3, rpcs=[rpc])
    finally:
        connection.remove_notice_handler(note)
    return lines


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(club=odd_clubs(), today=TODAYS)
@pytest.mark.slow
def test_odd_clubs(lax_connection: Connection[Any], club: Club, today: date) -> None:
    check(lax_connection, club, today)


GOALS = (1, -1, 1, 1, 1)


def test_negative_goals(stats: Connection[Any]) -> None:
    lineups = (played(number, [ANN], goals=goals) for number, goals in enumerate(GOALS, start=1))
    negative = club("Ann", (1, 8, 15, 22, 29), *lineups)
    check(stats, negative, DAY_3)
    tables = refreshed(stats, negative)
    (profile,) = tables["aggregated_player_profile_stats"]
    assert {
        "most_game_goals": 1,
        "most_game_goals_date": "2024-01-30",
        "attendance_streak": 5,
        "attendance_streak_dates": "2024-01-02 to 2024-01-30",
        "win_streak": 5,
        "win_streak_dates": "2024-01-02 to 2024-01-30",
        "scoring_streak": 3,
        "scoring_streak_dates": "2024-01-16 to 2024-01-30",
    }.items() <= profile.items()
    (row,) = tables["aggregated_records"]
    assert [(entry["name"], entry["date"]) for entry in row["records"]["most_goals_in_game"]] == [
        ("Ann", f"2024-01-{day}") for day in (30, 23, 16, "02")
    ]
    assert tables["aggregated_all_time_stats"][0]["goals"] == sum(GOALS)


def test_fewer_goals_than_none(stats: Connection[Any]) -> None:
    tables = refreshed(stats, club("Ann", (1,), played(1, [ANN], goals=-2)))
    (profile,) = tables["aggregated_player_profile_stats"]
    assert (profile["most_game_goals"], profile["most_season_goals"], profile["most_season_goals_year"]) == (None,) * 3
    assert profile["yearly_stats"][0]["minutes_per_goal"] is None
    assert tables["aggregated_all_time_stats"][0]["minutes_per_goal"] is None


FIXTURE = replace(
    GOLDEN,
    matches=(*GOLDEN.matches, Match(9, DAY_3 + timedelta(days=7), 0, 0)),
    appearances=(*GOLDEN.appearances, *played(9, [ANN, BOB], result="draw")),
)


@pytest.mark.parametrize(
    "match",
    [
        Match(9, DAY_3 + timedelta(days=7), 0, 0),
        Match(9, DAY_3 + timedelta(days=1), 4, 2),
        Match(9, DAY_2, None, None),
        Match(9, DAY_2, 3, None),
        Match(9, DAY_2, -1, 2),
        Match(9, DAY_2, MOST, 2),
        Match(9, None, 2, 1),
    ],
    ids=str,
)
def test_a_match_that_is_not_played_is_in_no_table(lax: Connection[Any], match: Match) -> None:
    assert refreshed(lax, replace(FIXTURE, matches=(*GOLDEN.matches, match))) == refreshed(lax, GOLDEN)


def test_a_fixture_counts_from_its_day_on(stats: Connection[Any]) -> None:
    day = DAY_3 + timedelta(days=7)
    tables = refreshed(stats, FIXTURE, day)
    assert [row["match_id"] for row in tables["aggregated_match_report"]] == [9]
    assert [row["match_id"] for row in tables["aggregated_personal_bests"]] == [9]
    check(stats, FIXTURE, day)


def test_a_report_about_a_fixture_goes(stats: Connection[Any]) -> None:
    load(stats, FIXTURE)
    refresh(stats, today=DAY_3 + timedelta(days=7))
    refresh(stats, today=DAY_3)
    assert [row["match_id"] for row in read(stats, "aggregated_match_report")] == [3]


@pytest.mark.parametrize("day", ["infinity", "-infinity"])
def test_a_match_without_end_is_in_no_table(stats: Connection[Any], day: str) -> None:
    load(stats, FIXTURE)
    stats.execute("update public.matches set match_date = %s where match_id = 9", (day,))
    refresh(stats, today=DAY_3)
    assert stored(stats) == refreshed_beside(stats)


def refreshed_beside(connection: Connection[Any], club: Club = GOLDEN) -> dict[str, list[dict[str, Any]]]:
    """What a club stores, in a transaction that has another one."""
    for table in ("player_matches", "matches", "players", "seasons", "app_config"):
        connection.execute(f"delete from public.{table}".encode())
    return refreshed(connection, club)


def test_seasons_without_bounds(lax: Connection[Any]) -> None:
    load(lax, replace(GOLDEN, seasons=(Season(1, date(2024, 1, 1), None, date(2024, 12, 31)),)))
    refresh(lax, today=DAY_3)
    race = {row["period_type"]: row["player_data"] for row in read(lax, "aggregated_season_race_data")}
    assert race["current_half"] == race["whole_season"] != []
    lax.execute("update public.seasons set start_date = '-infinity', half_date = %s, end_date = 'infinity'", (DAY_2,))
    refresh(lax, today=DAY_3)
    assert read(lax, "aggregated_season_stats") == read(lax, "aggregated_half_season_stats") == []
    lax.execute("update public.seasons set start_date = '2024-01-01'")
    refresh(lax, today=DAY_3)
    games = lax.execute("select sum(games_played) from public.aggregated_season_stats").fetchone()
    assert games == (9,)  # Ann, Bob and Cal played three matches each


def test_a_player_without_a_name_is_shown_by_number(lax: Connection[Any]) -> None:
    tables = refreshed(lax, replace(GOLDEN, players=(GOLDEN.players[0], Player(BOB, None), *GOLDEN.players[2:])))
    assert [row["name"] for row in tables["aggregated_all_time_stats"]] == ["Ann", "#2", "Cal"]
    assert tables["aggregated_match_report"][0]["team_a_players"] == ["#2", "Dee"]


def test_a_name_that_is_too_long_is_cut(lax: Connection[Any]) -> None:
    long = GOLDEN.players[0]._replace(name="Bartholomew the Great")
    tables = refreshed(lax, replace(GOLDEN, players=(long, *GOLDEN.players[1:])))
    assert tables["aggregated_all_time_stats"][0]["name"] == "Bartholomew th"


def test_a_null_for_guest_is_none(lax: Connection[Any]) -> None:
    load(lax, GOLDEN)
    lax.execute("update public.players set is_ringer = null where player_id = %s", (ANN,))
    refresh(lax, today=DAY_3)
    tables = stored(lax)
    assert tables == refreshed_beside(lax)


def test_a_repeated_appearance_counts_once(lax: Connection[Any]) -> None:
    again = GOLDEN.appearances[0]._replace(goals=9, result="loss")
    assert refreshed(lax, replace(GOLDEN, appearances=(*GOLDEN.appearances, again))) == refreshed(lax, GOLDEN)


def spoiled(**changes: Any) -> Club:
    """The golden club with changes in Ann's first appearance."""
    first, *others = GOLDEN.appearances
    return replace(GOLDEN, appearances=(first._replace(**changes), *others))


@pytest.mark.parametrize("goals", [MOST, -MOST - 1, 1000, -1000])
def test_impossible_goals_are_none(stats: Connection[Any], goals: int) -> None:
    assert refreshed(stats, spoiled(goals=goals)) == refreshed(stats, spoiled(goals=0))


@pytest.mark.parametrize(
    ("odd", "line"),
    [
        (spoiled(goals=MOST), f"goals {MOST} are not from -999 to 999: counted as none"),
        (spoiled(team="a"), "team 'a' is neither A nor B: the game counts for no side"),
        (spoiled(result="W"), "result 'W' is none of win, draw, loss: the game counts without one"),
        (spoiled(team="a", result="W"), "team 'a' is neither A nor B: the game counts for no side; result 'W' is"),
    ],
)
@pytest.mark.parametrize("rpc", [RPCS[0], RPCS[-1]])
def test_a_call_names_the_row_it_does_not_take(stats: Connection[Any], odd: Club, line: str, rpc: str) -> None:
    (said,) = told(stats, odd, rpc)
    assert said.startswith(f"WARNING: player_matches 1: {line}")
    assert "\n" not in said


def test_a_call_names_the_match_and_the_repetition(lax: Connection[Any]) -> None:
    odd = replace(FIXTURE, matches=(*GOLDEN.matches, Match(9, DAY_1, -1, 2)))
    assert told(lax, odd) == ["WARNING: matches 9: score -1-2 is not two numbers from 0 to 999: the match is left out"]
    again = replace(GOLDEN, appearances=(*GOLDEN.appearances, *GOLDEN.appearances[:2]))
    assert told(lax, again) == [
        "WARNING: player_matches 13: the player is in this match already: the row is left out (and 1 more)"
    ]


def with_settings(**config: str) -> Club:
    return replace(GOLDEN, config=config)


@pytest.mark.parametrize("value", ["many", "", "2.5", "10000", "-2147483648", "NaN", "1e3"])
def test_a_setting_that_is_no_number_means_the_default(stats: Connection[Any], value: str) -> None:
    assert refreshed(stats, with_settings(fantasy_win_points=value)) == refreshed(stats, GOLDEN)
    (line,) = told(stats, with_settings(fantasy_win_points=value))
    assert line.endswith(f"fantasy_win_points '{value}' is no number in its range: the default counts")


def test_a_setting_of_the_apps_own_is_not_ours(stats: Connection[Any]) -> None:
    assert told(stats, with_settings(club_name="Harbour City", fantasy_win_points=" 25 ")) == []


def test_of_two_values_for_a_setting_the_later_counts(lax: Connection[Any]) -> None:
    lax.execute("alter table public.app_config drop constraint app_config_tenant_id_config_key_key")
    load(lax, with_settings(fantasy_win_points="25"))
    lax.execute(
        "insert into public.app_config (tenant_id, config_key, config_value)"
        " select tenant_id, config_key, '26' from public.app_config"
    )
    refresh(lax, today=DAY_3)
    assert stored(lax) == refreshed_beside(lax, with_settings(fantasy_win_points="26"))


@pytest.mark.parametrize("value", ["many", "NaN", "", "1000000"])
def test_a_platform_setting_that_is_no_number_is_named(stats: Connection[Any], value: str) -> None:
    load(stats, GOLDEN)
    stats.execute("update public.superadmin_config set config_value = %s where config_key = 'prior_weight'", (value,))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"superadmin_config prior_weight is '{value}', "):
        refresh(stats, today=DAY_3, rpcs=["update_power_ratings"])


@pytest.mark.parametrize(
    "known",
    [GOLDEN, FIXTURE, spoiled(goals=None), spoiled(goals=-1), spoiled(result=None), spoiled(team=None)],
)
def test_nothing_is_said_of_what_may_be(stats: Connection[Any], known: Club) -> None:
    assert told(stats, known) == []


def test_a_line_of_another_club_is_not_told(stats: Connection[Any]) -> None:
    stats.execute(
        "insert into public.matches (match_id, tenant_id, match_date, team_a_score, team_b_score)"
        " values (99, gen_random_uuid(), '2024-01-01', -1, 0)"
    )
    assert told(stats, GOLDEN) == []


def test_odd_rows_are_found_by_their_index(stats: Connection[Any]) -> None:
    stats.execute("set local enable_seqscan = off")
    source = stats.execute("select prosrc from pg_proc where oid = 'stats_pipeline.odd_rows'::regproc").fetchone()
    assert source is not None
    query = "explain " + source[0].replace("target_tenant_id", "'00000000-0000-0000-0000-000000000001'::uuid")
    plan = "\n".join(line for (line,) in stats.execute(query.encode()))
    assert "player_matches_odd_idx" in plan


def test_who_plays_for_no_side_has_no_score(stats: Connection[Any]) -> None:
    lone = Club(
        players=(Player(1, "Ann"),),
        seasons=(SEASON,),
        matches=(Match(1, START, 0, 7),),
        appearances=(Appearance(1, 1, "C", None, 1, False, "win"),),
    )
    tables = refreshed(stats, lone)
    (recent,) = tables["aggregated_recent_performance"]
    assert (recent["last_5_games"][0]["score"], recent["last_5_games"][0]["clean_sheet"]) == ("", False)
    assert tables["aggregated_all_time_stats"][0]["heavy_wins"] == 0
