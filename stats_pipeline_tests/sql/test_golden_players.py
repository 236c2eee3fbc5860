"""The worked example, value by value: a player's profile, the season race and the ratings."""

from datetime import date
from typing import Any

from psycopg import Connection

from stats_pipeline_tests.sql.golden import (
    ANN,
    BOB,
    CAL,
    DAY_1,
    DAY_2,
    DAY_3,
    DEE,
    Refreshed,
    columns,
    golden_with,
    numbers,
)


def span(first: date, last: date) -> str:
    return f"{first} to {last}"


def test_player_profiles(refreshed: Refreshed) -> None:
    rows = refreshed("update_aggregated_player_profile_stats")("player_profile_stats")
    assert columns(
        rows,
        *("player_id", "name", "games_played", "fantasy_points", "most_game_goals", "most_game_goals_date"),
        *("most_season_goals", "most_season_goals_year", "selected_club", "teammate_chemistry_all"),
    ) == [
        (ANN, "Ann", 3, 100, 3, str(DAY_1), 6, "2024", None, []),
        (BOB, "Bob", 3, 70, 2, str(DAY_2), 4, "2024", None, []),
        (CAL, "Cal", 3, 40, 1, str(DAY_3), 2, "2024", None, []),
    ]
    assert [
        [
            (row[f"{kind}_streak"], row[f"{kind}_streak_dates"])
            for kind in ("win", "losing", "undefeated", "winless", "attendance", "scoring")
        ]
        for row in rows
    ] == [
        [
            (1, span(DAY_3, DAY_3)),
            (0, None),
            (3, span(DAY_1, DAY_3)),
            (1, span(DAY_2, DAY_2)),
            (3, span(DAY_1, DAY_3)),
            (3, span(DAY_1, DAY_3)),
        ],
        [
            (1, span(DAY_1, DAY_1)),
            (1, span(DAY_3, DAY_3)),
            (2, span(DAY_1, DAY_2)),
            (2, span(DAY_2, DAY_3)),
            (3, span(DAY_1, DAY_3)),
            (3, span(DAY_1, DAY_3)),
        ],
        [
            (1, span(DAY_3, DAY_3)),
            (1, span(DAY_1, DAY_1)),
            (2, span(DAY_2, DAY_3)),
            (2, span(DAY_1, DAY_2)),
            (3, span(DAY_1, DAY_3)),
            (2, span(DAY_2, DAY_3)),
        ],
    ]


def test_player_profiles_by_year(refreshed: Refreshed, stats: Connection[Any]) -> None:
    refreshed("update_aggregated_player_profile_stats")
    years = stats.execute(
        "select yearly_stats::text from public.aggregated_player_profile_stats order by player_id"
    ).fetchall()
    assert years == [
        (
            f'[{{"year": 2024, "games_played": 3, "goals_scored": {goals}, "fantasy_points": {points},'
            f' "points_per_game": {per_game}, "minutes_per_goal": {minutes}}}]',
        )
        for goals, points, per_game, minutes in ((6, 100, 33.3, 30.0), (4, 70, 23.3, 45.0), (2, 40, 13.3, 90.0))
    ]


def curve(player_id: int, name: str, *points: tuple[date, int]) -> dict[str, Any]:
    return {
        "player_id": player_id,
        "name": name,
        "cumulative_data": [{"date": str(day), "points": total} for day, total in points],
    }


def test_season_race(refreshed: Refreshed) -> None:
    start, half = date(2024, 1, 1), date(2024, 3, 13)
    assert refreshed("update_aggregated_season_race_data")("season_race_data") == [
        {
            "season_year": 2024,
            "period_type": "current_half",
            "season_id": 1,
            "player_data": [curve(ANN, "Ann", (half, 0), (DAY_3, 30)), curve(CAL, "Cal", (half, 0), (DAY_3, 30))],
        },
        {
            "season_year": 2024,
            "period_type": "whole_season",
            "season_id": 1,
            "player_data": [
                curve(ANN, "Ann", (start, 0), (DAY_1, 50), (DAY_2, 70), (DAY_3, 100)),
                curve(BOB, "Bob", (start, 0), (DAY_1, 50), (DAY_2, 70), (DAY_3, 70)),
                curve(CAL, "Cal", (start, 0), (DAY_1, -10), (DAY_2, 10), (DAY_3, 40)),
            ],
        },
    ]


RATED = ("name", "power_rating", "goal_threat", "participation", "weighted_played", "weighted_available")
RATINGS = [
    ("Ann", *numbers("30.136", "1.790", "100.0", "2.980", "2.980")),
    ("Bob", *numbers("26.376", "1.541", "100.0", "2.980", "2.980")),
    ("Dee", *numbers("18.957", "1.044", "100.0", "2.980", "2.980")),
]
PERCENTILES = ("is_qualified", "power_percentile", "goal_percentile", "participation_percentile")


def test_power_ratings_before_anybody_is_qualified(refreshed: Refreshed) -> None:
    rows = refreshed("update_power_ratings")("performance_ratings")
    assert columns(rows, *RATED) == RATINGS
    assert columns(rows, *PERCENTILES) == [(False, *numbers("50", "50", "50"))] * 3
    assert columns(rows, "player_id", "first_match_date", "is_retired", "is_ringer", "selected_club") == [
        (ANN, DAY_1, False, False, None),
        (BOB, DAY_1, False, False, None),
        (DEE, DAY_1, False, True, None),
    ]


def test_power_percentiles_of_the_qualified(refreshed: Refreshed) -> None:
    club = golden_with(performance_qualification_threshold=2)
    rows = refreshed("update_power_ratings", club=club)("performance_ratings")
    assert columns(rows, *RATED) == RATINGS
    assert columns(rows, *PERCENTILES) == [
        (True, *numbers("100.0", "100.0", "50.0")),
        (True, *numbers("50.0", "50.0", "50.0")),
        (True, *numbers("0.0", "0.0", "50.0")),
    ]
