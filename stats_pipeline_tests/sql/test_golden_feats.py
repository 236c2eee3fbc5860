"""The worked example, value by value: honours, records, personal bests and the report of a match."""

from datetime import date
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline_tests.sql.club import refresh
from stats_pipeline_tests.sql.golden import (
    AFTER_SEASON,
    ANN,
    BOB,
    CAL,
    DAY_1,
    DAY_2,
    DAY_3,
    Refreshed,
    golden_until,
    golden_with,
)

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
