"""The current day of a club: that of its own time zone, the same in every function."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection, sql

from stats_pipeline.demo.league import DEFAULT_TENANT
from stats_pipeline_tests.reference import RPCS
from stats_pipeline_tests.sql.club import OTHER_TENANT, Club, Match, Player, Season, load, set_today, stored
from stats_pipeline_tests.sql.oracle_tables import expected
from stats_pipeline_tests.sql.rare_clubs import played
from stats_pipeline_tests.sql.test_oracle import assert_stored


@pytest.fixture
def stats(stats: Connection[Any]) -> Connection[Any]:
    """The module's connection, with no day fixed and UTC as the session's zone, as the pipeline's sessions have it."""
    stats.execute("select set_config('stats_pipeline.today', '', false)")
    stats.execute("set local time zone 'UTC'")
    return stats


def day(connection: Connection[Any], zone: str) -> date:
    row = connection.execute("select (now() at time zone %s)::date", (zone,)).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def other_zone(connection: Connection[Any]) -> str:
    """A zone in which it is not the day that it is in UTC."""
    return next(
        zone
        for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago", "Etc/GMT+12", "Etc/GMT-14")
        if day(connection, zone) != day(connection, "UTC")
    )


def today(connection: Connection[Any], tenant: UUID = DEFAULT_TENANT) -> date:
    row = connection.execute("select stats_pipeline.stats_today(%s)", (tenant,)).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def tenants(
    connection: Connection[Any], zone: str | None, *, key: str = "tenant_id", column: str = "time_zone"
) -> None:
    """The app's table of tenants, with the default one in a zone."""
    connection.execute(
        sql.SQL("create table public.tenants ({} uuid primary key, name text, {} text)").format(
            sql.Identifier(key), sql.Identifier(column)
        )
    )
    connection.execute("insert into public.tenants values (%s, 'Harbour City', %s)", (DEFAULT_TENANT, zone))


@pytest.mark.parametrize("key", ["id", "tenant_id"])
@pytest.mark.parametrize("column", ["time_zone", "timezone"])
def test_a_clubs_own_zone(stats: Connection[Any], key: str, column: str) -> None:
    zone = other_zone(stats)
    tenants(stats, zone, key=key, column=column)
    assert today(stats) == day(stats, zone)
    assert today(stats, OTHER_TENANT) == day(stats, "UTC")


def test_the_zone_of_the_setting(stats: Connection[Any]) -> None:
    zone = other_zone(stats)
    stats.execute("select set_config('stats_pipeline.timezone', %s, true)", (zone,))
    assert today(stats) == day(stats, zone)
    tenants(stats, "UTC")
    assert today(stats) == day(stats, "UTC")
    assert today(stats, OTHER_TENANT) == day(stats, zone)


@pytest.mark.parametrize(
    "zone",
    [
        None,
        "",
        " ",
        "Atlantis/Nowhere",
        "Atlantis",
        "Nowhere14",
        "Nowhere-14",
        "+14",
        "-14",
        "14:00",
        "Etc/GMT-99",
        "../../etc/passwd",
        "x" * 300,
        "Pacific/Kiritimati'; drop table public.tenants; --",
        "localtime\n",
    ],
    ids=repr,
)
def test_what_is_no_zone_is_passed_over(stats: Connection[Any], zone: str | None) -> None:
    tenants(stats, zone)
    assert today(stats) == day(stats, "UTC")
    stats.execute("select set_config('stats_pipeline.timezone', %s, true)", (zone or "",))
    assert today(stats) == day(stats, "UTC")
    good = other_zone(stats)
    stats.execute("select set_config('stats_pipeline.timezone', %s, true)", (good,))
    assert today(stats) == day(stats, good)


@pytest.mark.parametrize(
    "zone",
    [
        "Pacific/Auckland",
        " Pacific/Auckland ",
        "pacific/auckland",
        "America/Port-au-Prince",
        "Etc/GMT-14",
        "Etc/GMT+12",
        "EST5EDT",
        "GMT",
        "UTC",
    ],
)
def test_names_of_zones(stats: Connection[Any], zone: str) -> None:
    stats.execute("set local time zone 'Pacific/Kiritimati'")
    tenants(stats, zone)
    assert today(stats) == day(stats, zone.strip())


@pytest.mark.parametrize(
    "table",
    ["(id integer, time_zone text)", "(id uuid, name text)", "(slug text, timezone text)", "()"],
)
def test_a_table_of_tenants_of_another_kind(stats: Connection[Any], table: str) -> None:
    stats.execute(f"create table public.tenants {table}".encode())
    assert today(stats) == day(stats, "UTC")


def test_a_table_that_may_not_be_read(stats: Connection[Any]) -> None:
    tenants(stats, other_zone(stats))
    stats.execute("revoke all on public.tenants from service_role")
    stats.execute("set local role service_role")
    assert today(stats) == day(stats, "UTC")


def test_a_fixed_day_beats_every_zone(stats: Connection[Any]) -> None:
    tenants(stats, other_zone(stats))
    with fixed(stats, date(2024, 3, 19)):
        assert today(stats) == date(2024, 3, 19)


@contextmanager
def fixed(connection: Connection[Any], on: date) -> Iterator[None]:
    set_today(connection, on)
    try:
        yield
    finally:
        connection.execute("select set_config('stats_pipeline.today', '', false)")


def first_match(on: date) -> Club:
    """A club whose season begins with the match of a day."""
    return Club(
        players=(Player(1, "Ann"), Player(2, "Bob")),
        seasons=(Season(1, on, on + timedelta(days=90), on + timedelta(days=180)),),
        matches=(Match(1, on, 2, 1),),
        appearances=(*played(1, [1], goals=2), *played(1, [2], goals=1, side="B", result="loss")),
    )


@pytest.mark.parametrize("offset", [0, 1])
def test_every_function_has_the_clubs_day(stats: Connection[Any], offset: int) -> None:
    """The season's first match of today counts, tomorrow's does not, in every table."""
    zone = other_zone(stats)
    tenants(stats, zone)
    club_day = day(stats, zone)
    club = first_match(club_day)
    if offset:
        tomorrow = Match(2, club_day + timedelta(days=1), 0, 0)
        club = replace(
            club, matches=(*club.matches, tomorrow), appearances=(*club.appearances, *played(2, [1, 2], result="draw"))
        )
    load(stats, club)
    for rpc in RPCS:
        stats.execute(f"select public.{rpc}()".encode())
    assert_stored(stats, club, club_day)
    rows = stored(stats)
    assert len(rows["aggregated_half_season_stats"]) == len(rows["aggregated_performance_ratings"]) == 2
    assert len(rows["aggregated_season_race_data"]) == 2
    assert {row["games_played"] for row in rows["aggregated_all_time_stats"]} == {1}
    assert expected(club, club_day)["aggregated_match_report"][0]["match_id"] == 1
