"""The worked example, value by value: what each function must store for four players and three matches."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline_tests.sql.club import RPCS, Club, load, read, refresh, stored
from stats_pipeline_tests.sql.golden import (
    AFTER_SEASON,
    ANN,
    BOB,
    CAL,
    DAY_1,
    DAY_2,
    DAY_3,
    DEE,
    GOLDEN,
    golden_until,
    golden_with,
)

Refreshed = Callable[..., Callable[..., list[dict[str, Any]]]]

NOUGHT = Decimal("0.0")


@pytest.fixture
def refreshed(stats: Connection[Any]) -> Refreshed:
    """Load a club, call one function (or all) on a day, and give the reader of what it stored."""

    def run(*rpcs: str, club: Club = GOLDEN, today: date = DAY_3) -> Callable[..., list[dict[str, Any]]]:
        load(stats, club)
        refresh(stats, today=today, rpcs=rpcs or RPCS)
        return lambda table, **options: read(stats, f"aggregated_{table}", **options)

    return run


def columns(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def numbers(*values: str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, values))


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


HONOURS = "update_aggregated_season_honours_and_records"


def test_honours_need_ten_games_and_a_finished_season(refreshed: Refreshed) -> None:
    assert refreshed(HONOURS, today=AFTER_SEASON)("season_honours") == []


@pytest.mark.parametrize(("today", "seasons"), [(date(2024, 12, 31), 0), (date(2025, 1, 1), 1)])
def test_a_season_is_finished_after_its_last_day(refreshed: Refreshed, today: date, seasons: int) -> None:
    rows = refreshed(HONOURS, club=golden_with(min_games_for_honours=3), today=today)("season_honours")
    assert len(rows) == seasons


def test_honours_with_a_lower_minimum(refreshed: Refreshed) -> None:
    rows = refreshed(HONOURS, club=golden_with(min_games_for_honours=3), today=AFTER_SEASON)("season_honours")
    assert rows == [
        {
            "season_id": 1,
            "season_name": "2024",
            "season_winners": {
                "winners": [{"name": "Ann", "points": 100}],
                "runners_up": [{"name": "Bob", "points": 70}],
                "third_place": [{"name": "Cal", "points": 40}],
            },
            "top_scorers": {
                "winners": [{"name": "Ann", "goals": 6}],
                "runners_up": [{"name": "Bob", "goals": 4}],
                "third_place": [{"name": "Cal", "goals": 2}],
            },
            "year": None,
        }
    ]


def held(name: str, length: int, first: date, last: date) -> dict[str, Any]:
    return {"name": name, "streak": length, "start_date": str(first), "end_date": str(last)}


def test_records(refreshed: Refreshed) -> None:
    (row,) = refreshed(HONOURS)("records")
    assert row["records"] == {
        "most_goals_in_game": [{"name": "Ann", "goals": 3, "date": str(DAY_1), "score": "5-0"}],
        "biggest_victory": [
            {
                "team_a_score": 5,
                "team_b_score": 0,
                "team_a_players": "Ann (3), Bob (1)",
                "team_b_players": "Cal",
                "date": str(DAY_1),
            }
        ],
        "consecutive_goals_streak": [held("Ann", 3, DAY_1, DAY_3), held("Bob", 3, DAY_1, DAY_3)],
        "streaks": {
            "Win Streak": {
                "holders": [
                    held("Ann", 1, DAY_3, DAY_3),
                    held("Cal", 1, DAY_3, DAY_3),
                    held("Ann", 1, DAY_1, DAY_1),
                    held("Bob", 1, DAY_1, DAY_1),
                ]
            },
            "Losing Streak": {"holders": [held("Bob", 1, DAY_3, DAY_3), held("Cal", 1, DAY_1, DAY_1)]},
            "Winless Streak": {"holders": [held("Bob", 2, DAY_2, DAY_3), held("Cal", 2, DAY_1, DAY_2)]},
            "Undefeated Streak": {"holders": [held("Ann", 3, DAY_1, DAY_3)]},
        },
        "attendance_streak": [
            held("Ann", 3, DAY_1, DAY_3),
            held("Bob", 3, DAY_1, DAY_3),
            held("Cal", 3, DAY_1, DAY_3),
        ],
    }


def test_joint_record_holders_newest_first(refreshed: Refreshed, stats: Connection[Any]) -> None:
    read_table = refreshed(HONOURS)
    stats.execute("update public.player_matches set goals = 3 where match_id = 2 and player_id = %s", (BOB,))
    refresh(stats, today=DAY_3, rpcs=[HONOURS])
    (row,) = read_table("records")
    assert row["records"]["most_goals_in_game"] == [
        {"name": "Bob", "goals": 3, "date": str(DAY_2), "score": "2-2"},
        {"name": "Ann", "goals": 3, "date": str(DAY_1), "score": "5-0"},
    ]


REPORT = "update_aggregated_match_report_cache"


def leader(metric: str, name: str, total: int, previous: str | None, before: int | None, change: str) -> dict[str, Any]:
    return {
        "new_leader": name,
        f"new_leader_{metric}": total,
        "previous_leader": previous,
        f"previous_leader_{metric}": before,
        "change_type": change,
    }


def feat(kind: str, name: str, player_id: int) -> dict[str, Any]:
    return {
        "feat_type": kind,
        "player_name": name,
        "player_id": player_id,
        "new_value": 3,
        "current_record": 2,
        "status": "broken",
    }


@pytest.mark.parametrize("today", [DAY_3, AFTER_SEASON])
def test_match_report_whatever_the_day(refreshed: Refreshed, today: date) -> None:
    (row,) = refreshed(REPORT, today=today)("match_report")
    midnight = row.pop("match_date")
    assert (midnight.date(), midnight.hour) == (DAY_3, 0)
    assert row == {
        "match_id": 3,
        "team_a_score": 1,
        "team_b_score": 3,
        "team_a_players": ["Bob", "Dee"],
        "team_b_players": ["Ann", "Cal"],
        "team_a_scorers": "Bob",
        "team_b_scorers": "Ann (2), Cal",
        "game_milestones": [],
        "goal_milestones": [],
        "season_goal_leaders": [leader("goals", "Ann", 6, "Ann", 4, "remains")],
        "season_fantasy_leaders": [leader("points", "Ann", 100, "Ann", 70, "remains")],
        "half_season_goal_leaders": [leader("goals", "Ann", 2, None, None, "new_leader")],
        "half_season_fantasy_leaders": [
            leader("points", "Ann", 30, None, None, "new_leader"),
            leader("points", "Cal", 30, None, None, "new_leader"),
        ],
        "on_fire_player_id": None,
        "grim_reaper_player_id": None,
        "streaks": [],
        "goal_streaks": [
            {"name": "Ann", "matches_with_goals": 3, "goals_in_streak": 6},
            {"name": "Bob", "matches_with_goals": 3, "goals_in_streak": 4},
        ],
        "feat_breaking_data": [
            feat("attendance_streak", "Ann", ANN),
            feat("goal_streak", "Ann", ANN),
            feat("attendance_streak", "Bob", BOB),
            feat("goal_streak", "Bob", BOB),
            feat("attendance_streak", "Cal", CAL),
        ],
        "config_values": {
            "win_streak_threshold": 4,
            "unbeaten_streak_threshold": 6,
            "loss_streak_threshold": 4,
            "winless_streak_threshold": 6,
            "goal_streak_threshold": 3,
            "game_milestone_threshold": 50,
            "goal_milestone_threshold": 25,
        },
    }


def test_match_report_of_the_first_match(refreshed: Refreshed) -> None:
    (row,) = refreshed(REPORT, club=golden_until(1))("match_report")
    assert (row["team_a_scorers"], row["team_b_scorers"]) == ("Ann (3), Bob, OG (1)", "")
    assert row["feat_breaking_data"] == []


def test_match_report_form_players(refreshed: Refreshed) -> None:
    (row,) = refreshed(REPORT, club=golden_with(on_fire_grim_reaper_min_games=3))("match_report")
    assert (row["on_fire_player_id"], row["grim_reaper_player_id"]) == (ANN, CAL)


def test_match_report_milestones(refreshed: Refreshed) -> None:
    club = golden_with(game_milestone_threshold=3, goal_milestone_threshold=5)
    (row,) = refreshed(REPORT, club=club)("match_report")
    assert row["game_milestones"] == [{"name": name, "value": 3} for name in ("Ann", "Bob", "Cal")]
    assert row["goal_milestones"] == [{"name": "Ann", "value": 5}]


def best(metric: str) -> dict[str, Any]:
    return {"metric_type": metric, "value": 3, "previous_best_value": 2}


def test_personal_bests(refreshed: Refreshed) -> None:
    assert refreshed("update_aggregated_personal_bests")("personal_bests") == [
        {
            "match_id": 3,
            "broken_pbs_data": {
                "1": {
                    "name": "Ann",
                    "pbs": [
                        best("longest_undefeated_streak"),
                        best("attendance_streak"),
                        best("longest_scoring_streak"),
                    ],
                },
                "2": {"name": "Bob", "pbs": [best("attendance_streak"), best("longest_scoring_streak")]},
                "3": {"name": "Cal", "pbs": [best("attendance_streak")]},
            },
        }
    ]


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
