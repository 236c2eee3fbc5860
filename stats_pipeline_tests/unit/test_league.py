"""The synthetic league is as consistent as a real club's, the same everywhere, and loads into a real PostgreSQL.

Statistics computed from it are tested with the functions that compute them.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from stats_pipeline.demo import league as league_module
from stats_pipeline.demo.league import Appearance, League, Match, add_match, generate, load, next_match
from stats_pipeline.settings import SQL_ROOT

OTHER_TENANT = UUID("00000000-0000-0000-0000-000000000002")

LEAGUES = st.builds(
    generate,
    seed=st.integers(0, 2**32),
    players=st.integers(10, 60),
    matches=st.integers(1, 120),
    last_match=st.dates(date(2000, 1, 1), date(2100, 1, 1)),
    id_offset=st.integers(0, 10**6),
)
# The source tables and what their grants need; the rest of the schema plays no part here.
SOURCE_TABLES = ("queries/ensure_migration_ledger.sql", "migrations/0001_roles.sql", "stats/0100_app_tables.sql")

quick = settings(max_examples=40, deadline=None)


def rows(league: League) -> dict[str, tuple[Any, ...]]:
    return {name: getattr(league, name) for name in ("players", "seasons", "matches", "player_matches")}


def checksum(league: League) -> str:
    return hashlib.sha256(json.dumps(rows(league), default=str).encode()).hexdigest()


def assert_books_balance(match: Match, line_up: Iterable[Appearance]) -> None:
    """Every contract between a match and its appearances, derived afresh from the score."""
    score = {"A": match.team_a_score, "B": match.team_b_score}
    own_goals = {"A": match.team_a_own_goals, "B": match.team_b_own_goals}
    other = {"A": "B", "B": "A"}
    line_up = list(line_up)
    side = {a.player_id: a.actual_team or a.team for a in line_up}

    assert len(side) == len(line_up), "a player appears twice"
    for team in ("A", "B"):
        assert score[team] == own_goals[team] + sum(a.goals for a in line_up if side[a.player_id] == team)
        assert 5 <= sum(a.team == team for a in line_up) <= 9
        assert sum(a.team == team for a in line_up) == sum(playing == team for playing in side.values())
    for a in line_up:
        own, opposing = score[side[a.player_id]], score[other[side[a.player_id]]]
        assert (a.tenant_id, a.match_id) == (match.tenant_id, match.match_id)
        assert a.actual_team in (None, other[a.team])
        assert a.goals >= 0
        assert a.clean_sheet == (opposing == 0)
        assert a.result == ("draw" if own == opposing else "win" if own > opposing else "loss")


def test_default_league_is_the_same_everywhere() -> None:
    """The generator may change, but knowingly: everyone's demo and benchmark data change with it."""
    assert checksum(generate()) == "ce00e09a1a03c2c2439ef721f28aa6925e01dc425b960f28059143d9e6b70dfb"


def test_same_arguments_give_equal_leagues_and_another_seed_another_league() -> None:
    assert generate(seed=1) == generate(seed=1)
    assert generate(seed=1).matches != generate(seed=2).matches


@quick
@given(league=LEAGUES)
def test_matches_and_appearances_agree(league: League) -> None:
    line_ups = defaultdict(list)
    for a in league.player_matches:
        line_ups[a.match_id].append(a)
    assert [match.match_id for match in league.matches] == list(line_ups)
    for match in league.matches:
        assert_books_balance(match, line_ups[match.match_id])


@quick
@given(league=LEAGUES)
def test_every_match_is_in_the_season_of_its_day(league: League) -> None:
    for season in league.seasons:
        assert season.start_date <= season.half_date < season.end_date
    for before, after in pairwise(league.seasons):
        assert after.start_date == before.end_date + timedelta(days=1)
    seasons = {season.id: season for season in league.seasons}
    for match in league.matches:
        assert match.season_id is not None
        assert seasons[match.season_id].start_date <= match.match_date <= seasons[match.season_id].end_date
    assert league.matches[-1].season_id == league.seasons[-1].id
    assert league.seasons[-1].half_date < league.matches[-1].match_date < league.seasons[-1].end_date


@quick
@given(league=LEAGUES)
def test_players_appear_only_while_they_are_members(league: League) -> None:
    days = {match.match_id: match.match_date for match in league.matches}
    players = {player.player_id: player for player in league.players}
    last_week = league.matches[-1].match_date - timedelta(days=7)
    for a in league.player_matches:
        assert players[a.player_id].join_date <= days[a.match_id]
        assert not (players[a.player_id].is_retired and days[a.match_id] > last_week)


@quick
@given(league=LEAGUES)
def test_names_and_ids_fit_their_columns(league: League) -> None:
    names = [player.name for player in league.players]
    assert len(set(names)) == len(names)
    assert all(0 < len(name) <= 14 for name in names)
    for table, key in (("players", "player_id"), ("matches", "match_id"), ("seasons", "id")):
        ids = [getattr(row, key) for row in rows(league)[table]]
        assert ids == list(range(ids[0], ids[0] + len(ids)))


@quick
@given(
    seed=st.integers(0, 1000), matches=st.integers(1, 60), days=st.integers(-5000, 5000), offset=st.integers(0, 1000)
)
def test_the_day_and_the_ids_shift_a_league_and_change_nothing_else(
    seed: int, matches: int, days: int, offset: int
) -> None:
    last, shift = date(2025, 6, 26), timedelta(days=days)
    near = generate(seed=seed, matches=matches, last_match=last)
    far = generate(seed=seed, matches=matches, last_match=last + shift, tenant_id=OTHER_TENANT, id_offset=offset)

    assert far.matches[-1].match_date == last + shift
    assert far.players == tuple(
        p._replace(player_id=p.player_id + offset, tenant_id=OTHER_TENANT, join_date=p.join_date + shift)
        for p in near.players
    )
    assert far.player_matches == tuple(
        a._replace(player_id=a.player_id + offset, match_id=a.match_id + offset, tenant_id=OTHER_TENANT)
        for a in near.player_matches
    )
    assert [m.match_date - shift for m in far.matches] == [m.match_date for m in near.matches]


@pytest.mark.parametrize(("players", "matches"), [(10, 1), (40, 200), (60, 1000), (200, 5000), (500, 20000)])
def test_sizes_are_as_asked_and_history_ends_after_ten_years(players: int, matches: int) -> None:
    league = generate(players=players, matches=matches)
    days = [match.match_date for match in league.matches]
    assert (len(league.players), len(days)) == (players, matches)
    assert days == sorted(days)
    assert days[-1] - days[0] <= timedelta(weeks=520)
    assert 10 * matches <= len(league.player_matches) <= 18 * matches


def test_default_league_has_everything_the_statistics_are_about() -> None:
    league = generate()
    games = Counter(a.player_id for a in league.player_matches)
    wins = Counter(a.player_id for a in league.player_matches if a.result == "win")
    rates = [wins[player] / played for player, played in games.items() if played >= 50]
    sizes = Counter(a.match_id for a in league.player_matches)

    assert sum(player.is_ringer for player in league.players) >= 3
    assert sum(player.is_retired for player in league.players) >= 3
    assert len({player.join_date for player in league.players}) >= 10
    assert any(player.selected_club is None for player in league.players)
    assert sum(match.team_a_own_goals + match.team_b_own_goals for match in league.matches) >= 5
    assert {a.result for a in league.player_matches} == {"win", "draw", "loss"}
    assert {a.actual_team for a in league.player_matches} == {None, "A", "B"}
    assert any(a.clean_sheet for a in league.player_matches)
    assert max(abs(match.team_a_score - match.team_b_score) for match in league.matches) >= 4
    assert set(sizes.values()) == {10, 12, 14, 16, 18}
    assert max(Counter(match.match_date for match in league.matches).values()) >= 2
    assert len(league.seasons) >= 4
    assert len(rates) >= 15
    assert max(rates) - min(rates) > 0.2


def test_names_sort_alike_in_every_collation() -> None:
    """Collations differ on spaces, accents and case within words; names must not depend on any of these."""
    first_names, surnames = league_module.FIRST_NAMES, league_module.SURNAMES
    for word in (*first_names, *surnames):
        assert word.isascii()
        assert word.isalpha()
        assert word == word.capitalize()
    assert not [(a, b) for a in first_names for b in first_names if a != b and b.startswith(a)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"players": 9}, "players must be"), ({"players": 1025}, "players must be"), ({"matches": 0}, "matches must be")],
)
def test_impossible_sizes_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**arguments)  # type: ignore[arg-type]


@quick
@given(league=LEAGUES, days=st.integers(0, 7 * 13))
def test_next_match_belongs_to_the_league(league: League, days: int) -> None:
    latest = league.matches[-1]
    day = latest.match_date + timedelta(days=days)
    match, line_up = next_match(league, day=day)

    assert (match, line_up) == next_match(replace(league), day=day)
    assert (match.match_date, match.season_id) == (day, latest.season_id)
    assert_books_balance(match, line_up)
    assert {a.player_id for a in line_up} <= {p.player_id for p in league.players if not p.is_retired}


def test_next_match_is_never_before_the_latest_and_outside_all_seasons_has_none() -> None:
    league = generate()
    latest = league.matches[-1].match_date
    with pytest.raises(ValueError, match="before the latest match"):
        next_match(league, day=latest - timedelta(days=1))
    assert next_match(league, day=latest + timedelta(days=365))[0].season_id is None


@pytest.fixture(scope="module")
def server_url(create_database: Callable[[], str]) -> str:
    return create_database()


@pytest.fixture
def connection(server_url: str) -> Iterator[psycopg.Connection[Any]]:
    """An open transaction on empty source tables; nothing a test does outlives it."""
    with psycopg.connect(server_url, row_factory=dict_row) as connection:
        for file in SOURCE_TABLES:
            connection.execute((SQL_ROOT / file).read_bytes())
        yield connection
        connection.rollback()


def fetch(connection: psycopg.Connection[Any], query: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in connection.execute(query)]


def test_loaded_rows_are_the_leagues_rows(connection: psycopg.Connection[Any]) -> None:
    leagues = [generate(), generate(seed=7, tenant_id=OTHER_TENANT, id_offset=1000)]
    for league in leagues:
        load(connection, league)

    for table, order in (("seasons", "id"), ("matches", "match_id"), ("player_matches", "player_match_id")):
        expected = [row for league in leagues for row in rows(league)[table]]
        columns = ", ".join(expected[0]._fields)
        assert fetch(connection, f"select {columns} from public.{table} order by {order}") == expected
    players = [row for league in leagues for row in league.players]
    clubs = [None if p.selected_club is None else json.loads(p.selected_club) for p in players]
    columns = ", ".join(players[0]._fields)
    assert fetch(connection, f"select {columns} from public.players order by player_id") == [
        p._replace(selected_club=club) for p, club in zip(players, clubs, strict=True)
    ]
    assert fetch(
        connection,
        """select sum(goals) + (select sum(team_a_own_goals + team_b_own_goals) from public.matches)
               = (select sum(team_a_score + team_b_score) from public.matches) from public.player_matches""",
    ) == [(True,)]


def test_ids_given_after_loading_are_free_in_whatever_order_leagues_are_loaded(
    connection: psycopg.Connection[Any],
) -> None:
    load(connection, generate(matches=20, id_offset=1000))
    load(connection, generate(matches=20, tenant_id=OTHER_TENANT))
    for table, key in (("players", "player_id"), ("matches", "match_id"), ("seasons", "id")):
        [(following, highest)] = fetch(
            connection,
            f"select nextval(pg_get_serial_sequence('public.{table}', '{key}')), max({key}) from public.{table}",
        )
        assert following > highest


def test_loading_never_sets_a_sequence_back(connection: psycopg.Connection[Any]) -> None:
    connection.execute("select setval('public.matches_match_id_seq', 5000)")
    load(connection, generate(matches=20))
    assert fetch(connection, "select nextval('public.matches_match_id_seq') > 5000") == [(True,)]


def test_loading_twice_is_refused(connection: psycopg.Connection[Any]) -> None:
    load(connection, generate(matches=20))
    with pytest.raises(psycopg.errors.UniqueViolation):
        load(connection, generate(matches=20))


def test_an_added_match_takes_the_databases_next_id(connection: psycopg.Connection[Any]) -> None:
    league = generate(matches=20)
    load(connection, league)
    match, line_up = next_match(league, day=league.matches[-1].match_date)

    first, second = (add_match(connection, match, line_up) for _ in range(2))

    assert 20 < first < second
    for match_id in (first, second):
        columns = ", ".join(Match._fields)
        [stored] = fetch(connection, f"select {columns} from public.matches where match_id = {match_id}")
        columns = ", ".join(Appearance._fields)
        played = fetch(
            connection,
            f"select {columns} from public.player_matches where match_id = {match_id} order by player_match_id",
        )
        assert stored == match._replace(match_id=match_id)
        assert_books_balance(Match(*stored), [Appearance(*row) for row in played])
        assert len(played) == len(line_up)
