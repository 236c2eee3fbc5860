"""The SQL against an independent oracle: every table of small clubs of all kinds, and of the demo league."""

import json
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from psycopg import Connection

from stats_pipeline.catalog import ALL_STATS_FUNCTIONS
from stats_pipeline.demo import league
from stats_pipeline_tests.sql.club import Appearance, Club, Match, Player, Season, in_order, load, read, refresh
from stats_pipeline_tests.sql.golden import DAY_3, GOLDEN, golden_until
from stats_pipeline_tests.sql.leagues import TODAYS, clubs
from stats_pipeline_tests.sql.oracle_tables import expected
from stats_pipeline_tests.sql.rare_clubs import RARE_CLUBS

# What depends on the exponential weights is compared to the precision it is stored with.
APPROXIMATE = {
    "power_rating": Decimal("0.001"),
    "goal_threat": Decimal("0.001"),
    "weighted_played": Decimal("0.001"),
    "weighted_available": Decimal("0.001"),
    "participation": Decimal("0.1"),
}


# A new function is among them once its tables are.
CHECKED = [f.rpc for f in ALL_STATS_FUNCTIONS if set(f.tables) <= expected(GOLDEN, DAY_3).keys()]


def assert_stored(connection: Connection[Any], club: Club, today: date) -> None:
    for table, rows in expected(club, today).items():
        is_ranked = table == "aggregated_hall_of_fame"
        actual = read(connection, table, club.tenant_id, keep_order=is_ranked)
        ordered = rows if is_ranked else in_order(rows)
        assert len(actual) == len(ordered), table
        for row, wanted in zip(actual, ordered, strict=True):
            assert comparable(row, wanted) == wanted, table


def comparable(row: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The stored row, with a value close enough to the one wanted replaced by it."""
    result = dict(row)
    for key, value in row.items():
        if isinstance(value, datetime):
            result[key] = value.date()
        if key in APPROXIMATE and abs(value - wanted[key]) <= APPROXIMATE[key]:
            result[key] = wanted[key]
    return result


def check(connection: Connection[Any], club: Club, today: date) -> None:
    with connection.transaction(force_rollback=True):
        load(connection, club)
        refresh(connection, today=today, rpcs=CHECKED)
        assert_stored(connection, club, today)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(club=clubs(), today=TODAYS)
@example(club=GOLDEN, today=DAY_3)
@example(club=golden_until(1), today=DAY_3)
@example(club=Club(), today=DAY_3)
@pytest.mark.slow
def test_small_clubs(stats_connection: Connection[Any], club: Club, today: date) -> None:
    check(stats_connection, club, today)


@pytest.mark.parametrize("name", RARE_CLUBS)
def test_rare_clubs(stats_connection: Connection[Any], name: str) -> None:
    check(stats_connection, RARE_CLUBS[name], DAY_3)


def as_club(demo: league.League) -> Club:
    return Club(
        players=tuple(
            Player(p.player_id, p.name, p.is_ringer, p.is_retired, p.selected_club and json.loads(p.selected_club))
            for p in demo.players
        ),
        seasons=tuple(Season(s.id, s.start_date, s.half_date, s.end_date) for s in demo.seasons),
        matches=tuple(
            Match(m.match_id, m.match_date, m.team_a_score, m.team_b_score, m.team_a_own_goals, m.team_b_own_goals)
            for m in demo.matches
        ),
        appearances=tuple(
            Appearance(a.match_id, a.player_id, a.team, a.actual_team, a.goals, a.clean_sheet, a.result)
            for a in demo.player_matches
        ),
        tenant_id=demo.tenant_id,
    )


@pytest.fixture(scope="module")
def demo_club() -> Club:
    return as_club(league.generate())


@pytest.mark.parametrize("today", [date(2025, 6, 26), date(2027, 1, 1)])
def test_demo_league(stats_connection: Connection[Any], demo_club: Club, today: date) -> None:
    check(stats_connection, demo_club, today)


@pytest.mark.parametrize("matches", [37, 120, 163])
def test_demo_league_in_earlier_days(stats_connection: Connection[Any], demo_club: Club, matches: int) -> None:
    played = demo_club.matches[:matches]
    ids, today = {match.match_id for match in played}, played[-1].match_date
    assert today is not None
    club = replace(
        demo_club,
        matches=played,
        appearances=tuple(row for row in demo_club.appearances if row.match_id in ids),
        config={"min_games_for_honours": "5", "games_required_for_hof": "20", "fantasy_goals_scored_points": "3"},
    )
    check(stats_connection, club, today)
