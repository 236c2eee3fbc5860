"""The worked example, value by value: totals by season and in all, recent games, and settings."""

from datetime import date
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline_tests.sql.club import Club, load, refresh, stored
from stats_pipeline_tests.sql.golden import (
    AFTER_SEASON,
    ANN,
    BOB,
    CAL,
    DAY_1,
    DAY_2,
    DAY_3,
    GOLDEN,
    Refreshed,
    columns,
    golden_with,
    numbers,
)

COUNTS = ("player_id", "name", "games_played", "wins", "draws", "losses", "goals", "heavy_wins", "heavy_losses")
RATES = ("clean_sheets", "win_percentage", "fantasy_points", "points_per_game")
TOTALS = [
    (ANN, "Ann", 3, 2, 1, 0, 6, 1, 0, 1, *numbers("66.7", "100", "33.3")),
    (BOB, "Bob", 3, 1, 1, 1, 4, 1, 0, 1, *numbers("33.3", "70", "23.3")),
    (CAL, "Cal", 3, 1, 1, 1, 2, 0, 1, 0, *numbers("33.3", "40", "13.3")),
]


def test_all_time_stats(refreshed: Refreshed) -> None:
    rows = refreshed("update_aggregated_all_time_stats")("all_time_stats")
    assert columns(rows, *COUNTS, *RATES) == TOTALS
    assert columns(
        rows,
        "minutes_per_goal",
        "heavy_win_percentage",
        "heavy_loss_percentage",
        "clean_sheet_percentage",
        "is_retired",
    ) == [
        (*numbers("30.0", "33.3", "0.0", "33.3"), False),
        (*numbers("45.0", "33.3", "0.0", "33.3"), False),
        (*numbers("90.0", "0.0", "33.3", "0.0"), True),
    ]


def test_all_time_stats_and_hall_of_fame_need_the_required_games(refreshed: Refreshed) -> None:
    read_table = refreshed(
        "update_aggregated_all_time_stats",
        "update_aggregated_hall_of_fame",
        club=golden_with(games_required_for_hof=4),
    )
    assert read_table("all_time_stats") == []
    assert read_table("hall_of_fame") == []


def test_season_stats(refreshed: Refreshed) -> None:
    rows = refreshed("update_half_and_full_season_stats")("season_stats")
    assert columns(rows, *COUNTS, *RATES) == TOTALS
    assert {(row["season_start_date"], row["season_end_date"]) for row in rows} == {
        (date(2024, 1, 1), date(2024, 12, 31))
    }


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        pytest.param(
            DAY_3,
            [
                (ANN, "Ann", 1, 1, 0, 0, 2, 0, 0, 0, *numbers("100.0", "30", "30.0")),
                (BOB, "Bob", 1, 0, 0, 1, 1, 0, 0, 0, *numbers("0.0", "0", "0.0")),
                (CAL, "Cal", 1, 1, 0, 0, 1, 0, 0, 0, *numbers("100.0", "30", "30.0")),
            ],
            id="second half",
        ),
        pytest.param(
            DAY_2,
            [
                (ANN, "Ann", 2, 1, 1, 0, 4, 1, 0, 1, *numbers("50.0", "70", "35.0")),
                (BOB, "Bob", 2, 1, 1, 0, 3, 1, 0, 1, *numbers("50.0", "70", "35.0")),
                (CAL, "Cal", 2, 0, 1, 1, 1, 0, 1, 0, *numbers("0.0", "10", "5.0")),
            ],
            id="the half date belongs to the first half",
        ),
        pytest.param(AFTER_SEASON, [], id="outside every season"),
    ],
)
def test_half_season_stats(refreshed: Refreshed, today: date, expected: list[Any]) -> None:
    rows = refreshed("update_half_and_full_season_stats", today=today)("half_season_stats")
    assert columns(rows, *COUNTS, *RATES) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            [
                ("most_goals", "Ann", "6.00"),
                ("most_goals", "Bob", "4.00"),
                ("most_goals", "Cal", "2.00"),
                ("most_fantasy_points", "Ann", "100.00"),
                ("most_fantasy_points", "Bob", "70.00"),
                ("most_fantasy_points", "Cal", "40.00"),
            ],
        ),
        (
            {"games_required_for_hof": 3},
            [
                ("most_goals", "Ann", "6.00"),
                ("most_goals", "Bob", "4.00"),
                ("most_goals", "Cal", "2.00"),
                ("best_win_percentage", "Ann", "66.70"),
                ("best_win_percentage", "Bob", "33.30"),
                ("best_win_percentage", "Cal", "33.30"),
                ("most_fantasy_points", "Ann", "100.00"),
                ("most_fantasy_points", "Bob", "70.00"),
                ("most_fantasy_points", "Cal", "40.00"),
            ],
        ),
        (
            {"games_required_for_hof": 3, "hall_of_fame_limit": 2},
            [
                ("most_goals", "Ann", "6.00"),
                ("most_goals", "Bob", "4.00"),
                ("best_win_percentage", "Ann", "66.70"),
                ("best_win_percentage", "Bob", "33.30"),
                ("most_fantasy_points", "Ann", "100.00"),
                ("most_fantasy_points", "Bob", "70.00"),
            ],
        ),
    ],
)
def test_hall_of_fame_in_the_order_of_its_ids(
    refreshed: Refreshed, settings: dict[str, int], expected: list[Any]
) -> None:
    rows = refreshed("update_aggregated_hall_of_fame", club=golden_with(**settings))("hall_of_fame", keep_order=True)
    assert [(row["category"], row["name"], str(row["value"])) for row in rows] == expected


def game(day: date, goals: int, result: str, score: str, clean_sheet: bool) -> dict[str, Any]:
    return {"date": str(day), "goals": goals, "result": result, "score": score, "clean_sheet": clean_sheet}


def test_recent_performance(refreshed: Refreshed) -> None:
    rows = refreshed("update_aggregated_recent_performance")("recent_performance")
    assert columns(rows, "player_id", "last_5_goals", "last_5_games") == [
        (
            ANN,
            6,
            [
                game(DAY_3, 2, "win", "3-1", False),
                game(DAY_2, 1, "draw", "2-2", False),
                game(DAY_1, 3, "win", "5-0", True),
            ],
        ),
        (
            BOB,
            4,
            [
                game(DAY_3, 1, "loss", "1-3", False),
                game(DAY_2, 2, "draw", "2-2", False),
                game(DAY_1, 1, "win", "5-0", True),
            ],
        ),
        (
            CAL,
            2,
            [
                game(DAY_3, 1, "win", "3-1", False),
                game(DAY_2, 1, "draw", "2-2", False),
                game(DAY_1, 0, "loss", "0-5", False),
            ],
        ),
    ]


def test_other_point_settings(refreshed: Refreshed) -> None:
    club = golden_with(fantasy_attendance_points=5, fantasy_goals_scored_points=2, fantasy_heavy_win_threshold=2)
    read_table = refreshed(club=club)
    assert columns(
        read_table("all_time_stats"), "name", "fantasy_points", "points_per_game", "heavy_wins", "heavy_losses"
    ) == [
        ("Ann", *numbers("107", "35.7"), 2, 0),
        ("Bob", *numbers("53", "17.7"), 1, 1),
        ("Cal", *numbers("39", "13.0"), 1, 1),
    ]
    (whole,) = (row for row in read_table("season_race_data") if row["period_type"] == "whole_season")
    assert [[point["points"] for point in racer["cumulative_data"]] for racer in whole["player_data"]] == [
        [0, 51, 68, 107],
        [0, 47, 66, 53],
        [0, -15, 2, 39],
    ]


def test_missing_totals_follow_the_configured_win(refreshed: Refreshed) -> None:
    read_table = refreshed(club=golden_with(fantasy_win_points=25))
    for table in ("all_time_stats", "season_stats", "player_profile_stats"):
        assert columns(read_table(table), "name", "fantasy_points") == [("Ann", 110), ("Bob", 75), ("Cal", 45)], table


def test_empty_database(refreshed: Refreshed, stats: Connection[Any]) -> None:
    refreshed(club=Club())
    result = stored(stats)
    assert {table: rows for table, rows in result.items() if rows and table != "cache_metadata"} == {
        "aggregated_records": [
            {
                "records": {
                    "most_goals_in_game": [],
                    "biggest_victory": [],
                    "consecutive_goals_streak": [],
                    "streaks": {},
                    "attendance_streak": [],
                }
            }
        ]
    }
    assert {row["cache_key"]: row["dependency_type"] for row in result["cache_metadata"]} == {
        "season_stats": "season_stats",
        "half_season_stats": "half_season_stats",
        "all_time_stats": "match_result",
        "hall_of_fame": "match_result",
        "recent_performance": "recent_performance",
        "honour_roll": "honour_roll",
        "match_report": "match_report",
        "player_profile_stats": "player_profile_stats",
        "player_power_rating": "function_execution",
        "player_teammate_stats": "player_teammate_stats",
    }


@pytest.mark.parametrize(
    ("key", "rpc"),
    [("prior_weight", "update_power_ratings"), ("min_goals_for_pb", "update_aggregated_personal_bests")],
)
def test_a_missing_platform_setting_is_an_error(stats: Connection[Any], key: str, rpc: str) -> None:
    load(stats, GOLDEN)
    stats.execute("delete from public.superadmin_config where config_key = %s", (key,))
    with pytest.raises(psycopg.errors.NoDataFound, match=key), stats.transaction():
        refresh(stats, today=DAY_3, rpcs=[rpc])
    assert stored(stats)["aggregated_performance_ratings"] == []
