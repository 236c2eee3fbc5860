"""Rows whose source rows no longer exist: removed by the rebuild, kept as an archive, or removed with their match."""

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline_tests.sql.club import load, read, refresh, stored
from stats_pipeline_tests.sql.golden import ANN, BOB, CAL, DAY_2, DAY_3, DEE, GOLDEN


@pytest.fixture
def club(stats: Connection[Any]) -> Connection[Any]:
    """The golden club with honours and hall of fame, refreshed on the day of its last match."""
    load(stats, replace(GOLDEN, config={"min_games_for_honours": "1", "games_required_for_hof": "1"}))
    refresh(stats, today=DAY_3)
    return stats


def test_a_removed_season_takes_its_rows_along(club: Connection[Any]) -> None:
    refresh(club, today=date(2025, 1, 1))
    assert len(read(club, "aggregated_season_honours")) == 1
    club.execute("delete from public.seasons")
    refresh(club, today=date(2025, 1, 1))
    assert read(club, "aggregated_season_stats") == []
    assert read(club, "aggregated_season_honours") == []


def test_a_moved_season_leaves_no_rows_under_its_old_dates(club: Connection[Any]) -> None:
    club.execute("update public.seasons set start_date = '2023-12-01', end_date = '2024-11-30'")
    refresh(club, today=DAY_3)
    dates = {(row["season_start_date"], row["season_end_date"]) for row in read(club, "aggregated_season_stats")}
    assert dates == {(date(2023, 12, 1), date(2024, 11, 30))}


def test_a_player_turned_guest_leaves_every_table_but_the_ratings(club: Connection[Any]) -> None:
    club.execute("update public.players set is_ringer = true where player_id = %s", (ANN,))
    refresh(club, today=DAY_3)
    listed = {table for table, rows in stored(club).items() if any(row.get("player_id") == ANN for row in rows)}
    assert listed == {"aggregated_performance_ratings"}


def test_a_retired_player_loses_the_rating(club: Connection[Any]) -> None:
    club.execute("update public.players set is_retired = true where player_id = %s", (BOB,))
    refresh(club, today=DAY_3)
    assert [row["player_id"] for row in read(club, "aggregated_performance_ratings")] == [ANN, DEE]


def test_ratings_stay_when_no_match_is_left(club: Connection[Any]) -> None:
    before = read(club, "aggregated_performance_ratings")
    club.execute("delete from public.matches")
    refresh(club, today=DAY_3)
    assert before
    assert read(club, "aggregated_performance_ratings") == before


def test_a_report_goes_with_the_last_match(club: Connection[Any]) -> None:
    club.execute("delete from public.matches where match_id = 3")
    refresh(club, today=DAY_3)
    assert [row["match_id"] for row in read(club, "aggregated_match_report")] == [2]
    club.execute("delete from public.matches")
    refresh(club, today=DAY_3)
    assert read(club, "aggregated_match_report") == []
    assert [row["last_5_games"] for row in read(club, "aggregated_recent_performance")] == [[], [], []]


def test_personal_bests_of_earlier_matches_are_an_archive(club: Connection[Any]) -> None:
    before = read(club, "aggregated_personal_bests")
    club.execute(
        "insert into public.matches (match_id, tenant_id, match_date, team_a_score, team_b_score)"
        " select 4, tenant_id, '2024-03-26', 0, 0 from public.matches where match_id = 1"
    )
    refresh(club, today=date(2024, 3, 26))
    assert read(club, "aggregated_personal_bests") == [*before, {"match_id": 4, "broken_pbs_data": {}}]
    club.execute("delete from public.matches where match_id = 3")
    assert read(club, "aggregated_personal_bests") == [{"match_id": 4, "broken_pbs_data": {}}]


def test_races_of_earlier_years_are_an_archive(club: Connection[Any]) -> None:
    before = read(club, "aggregated_season_race_data")
    club.execute(
        "insert into public.seasons (id, tenant_id, start_date, half_date, end_date)"
        " select 2, tenant_id, '2025-01-01', '2025-06-30', '2025-12-31' from public.seasons"
    )
    refresh(club, today=date(2025, 7, 1))
    rows = read(club, "aggregated_season_race_data")
    assert rows[:2] == before
    assert [(row["season_year"], row["season_id"], row["player_data"]) for row in rows[2:]] == [(2025, 2, [])] * 2


def test_the_hall_of_fame_keeps_its_order_of_ids_when_places_change(club: Connection[Any]) -> None:
    club.execute("update public.player_matches set goals = 9 where player_id = %s and match_id = 3", (CAL,))
    refresh(club, today=DAY_3)
    rows = read(club, "aggregated_hall_of_fame", keep_order=True)
    assert [(row["category"], row["name"]) for row in rows] == [
        ("most_goals", "Cal"),
        ("most_goals", "Ann"),
        ("most_goals", "Bob"),
        ("best_win_percentage", "Ann"),
        ("best_win_percentage", "Bob"),
        ("best_win_percentage", "Cal"),
        ("most_fantasy_points", "Ann"),
        ("most_fantasy_points", "Bob"),
        ("most_fantasy_points", "Cal"),
    ]


def test_the_half_table_is_empty_between_seasons(club: Connection[Any]) -> None:
    assert read(club, "aggregated_half_season_stats")
    refresh(club, today=date(2025, 1, 1))
    assert read(club, "aggregated_half_season_stats") == []


def test_a_season_that_is_not_over_has_no_podium(club: Connection[Any]) -> None:
    refresh(club, today=date(2025, 1, 1))
    assert read(club, "aggregated_season_honours")
    refresh(club, today=DAY_2)
    assert read(club, "aggregated_season_honours") == []


def test_labels_of_stamps_are_rewritten_only_where_specified(club: Connection[Any]) -> None:
    club.execute("update public.cache_metadata set dependency_type = 'by hand', last_invalidated = '2000-01-01'")
    refresh(club, today=DAY_3)
    rows = club.execute("select cache_key, dependency_type, last_invalidated > '2020-01-01' from public.cache_metadata")
    labels = {key: label for key, label, is_new in rows if is_new}
    assert len(labels) == 12
    assert {key: label for key, label in labels.items() if label != "by hand"} == {
        "personal_bests": "personal_bests",
        "player_profile_stats": "player_profile_stats",
        "player_power_rating": "function_execution",
        "player_teammate_stats": "player_teammate_stats",
    }
