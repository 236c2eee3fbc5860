"""Guards on the plans, on a club of 5 000 matches: everything is read a few times, nothing once per player or match."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline.demo import league
from stats_pipeline_tests.reference import RPCS
from stats_pipeline_tests.sql.club import set_today
from stats_pipeline_tests.sql.plans import Plan, explain, explain_helper, handled_rows, nodes

MATCHES, PLAYERS = 5_000, 150
LARGE = {"matches", "player_matches"}


@pytest.fixture(scope="module")
def large(create_database: Callable[..., str], template: str) -> Iterator[tuple[Connection[Any], int]]:
    """A connection to a database with the large club, and its number of appearances (14 a match)."""
    club = league.generate(players=PLAYERS, matches=MATCHES)
    with psycopg.connect(create_database(template), autocommit=True) as connection:
        league.load(connection, club)
        set_today(connection, date(2025, 6, 26))
        yield connection, len(club.player_matches)


def assert_linear(plans: list[Plan], appearances: int, *, most: float) -> None:
    """No scan of a large table in a loop, and no step that handles more than `most` times the appearances.

    Matches times players would be more than ten times the appearances.
    """
    read = 0.0
    for plan in plans:
        for node in nodes(plan):
            assert handled_rows(node) <= most * appearances, node
            if node.get("Relation Name") in LARGE and "Seq Scan" in node["Node Type"]:
                assert node["Actual Loops"] == 1, node
            if node.get("Relation Name") == "player_matches":
                read += handled_rows(node)
    assert read <= 5 * appearances


@pytest.mark.parametrize("rpc", RPCS)
def test_functions_are_linear(large: tuple[Connection[Any], int], rpc: str) -> None:
    connection, appearances = large
    pairs_of_teammates = rpc == "update_aggregated_player_teammate_stats"
    with connection.transaction(force_rollback=True):
        assert_linear(explain(connection, rpc), appearances, most=8 if pairs_of_teammates else 2)


@pytest.mark.parametrize("helper", ["careers", "biggest_margin"])
def test_helpers_are_linear(large: tuple[Connection[Any], int], helper: str) -> None:
    connection, appearances = large
    assert_linear([explain_helper(connection, helper)], appearances, most=2)


def test_generic_plans_are_linear_too(large: tuple[Connection[Any], int]) -> None:
    """A session that calls a function often gets a plan made without knowing the tenant."""
    connection, appearances = large
    for rpc in RPCS[:10]:
        with connection.transaction(force_rollback=True):
            connection.execute("set local plan_cache_mode = force_generic_plan")
            assert_linear(explain(connection, rpc), appearances, most=2)


def test_the_guard_sees_a_product(large: tuple[Connection[Any], int]) -> None:
    connection, appearances = large
    row = connection.execute(
        "explain (analyze, format json) select count(*) from public.players cross join public.matches"
    ).fetchone()
    assert row is not None
    with pytest.raises(AssertionError):
        assert_linear([row[0][0]["Plan"]], appearances, most=8)
