"""A seeded synthetic league: players, seasons, matches and appearances that look like a real club's and are consistent.

Generating is pure: the same arguments give equal rows on every machine, Python version and day. `load` and `add_match`
are the only functions that touch a database, and they write source tables only. Statistics about these rows, and the
jobs that compute them, live elsewhere.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from operator import attrgetter
from typing import Any, Literal, NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row

DEFAULT_TENANT = UUID("00000000-0000-0000-0000-000000000001")

Side = Literal["A", "B"]
Result = Literal["win", "draw", "loss"]
SIDES: tuple[Side, Side] = ("A", "B")

FOUNDERS = 10  # regulars from the first week to the last, so that five a side can always be played
MAX_WEEKS = 520  # ten years; a longer list of matches means more of them a week, not a club older than its players
MAX_WEIGHT = 10
SEASON_WEEKS = 52
WEEKS_INTO_SEASON = 39  # of the last match: three quarters of the season are played, on any day

# No first name begins with another, and all are plain ASCII, so names sort the same in every collation.
# The longest of each, with the space, make 14 characters: the width of players.name.
FIRST_NAMES = (  # noqa: SIM905 - a list would take a line for each name
    "Adam Aidan Ben Callum Carl Colin Dan Declan Ed Femi Finn Gary Hugo Ian Imran Jack Jamal Joel Karim Kofi Lee Liam "
    "Marco Nick Omar Owen Pete Ravi Sam Tom Vikram Will"
).split()
SURNAMES = (  # noqa: SIM905 - a list would take a line for each name
    "Adeyemi Ahmed Allen Bailey Baker Bell Brown Carter Clark Cooper Costa Doyle Evans Ferrari Fisher Gill Hughes "
    "Hussain Jones Kaya Kelly Khan Lopez Moore Nowak Patel Quinn Reid Rossi Silva Walsh Young"
).split()
CLUBS = ("Ashford Rovers", "Castle United", "Harbour City", "Millbrook Town", "Northgate Albion", "Riverside Athletic")


class Player(NamedTuple):
    """A row of `players`; `selected_club` is JSON text."""

    player_id: int
    tenant_id: UUID
    name: str
    is_ringer: bool
    is_retired: bool
    selected_club: str | None
    join_date: date


class Season(NamedTuple):
    """A row of `seasons`; all three dates are inclusive, `half_date` is the last day of the first half."""

    id: int
    tenant_id: UUID
    start_date: date
    half_date: date
    end_date: date


class Match(NamedTuple):
    """A row of `matches`; a side's own goals are those scored in its favour, and are part of its score."""

    match_id: int
    tenant_id: UUID
    match_date: date
    team_a_score: int
    team_b_score: int
    team_a_own_goals: int
    team_b_own_goals: int
    season_id: int | None


class Appearance(NamedTuple):
    """A row of `player_matches`; the database numbers it. `actual_team` is set only where it differs from `team`."""

    tenant_id: UUID
    player_id: int
    match_id: int
    team: Side
    actual_team: Side | None
    goals: int
    clean_sheet: bool
    result: Result


class Member(NamedTuple):
    """A player with data that no table holds: weeks of membership, and the weights that shape line-ups and scores."""

    player: Player
    weeks: range
    keenness: int
    skill: int
    finishing: int


@dataclass(frozen=True)
class League:
    """One club's rows, in ascending order of their ids; matches are numbered in order of play."""

    seed: int
    tenant_id: UUID
    squad: tuple[Member, ...]
    seasons: tuple[Season, ...]
    matches: tuple[Match, ...]
    player_matches: tuple[Appearance, ...]

    @property
    def players(self) -> tuple[Player, ...]:
        return tuple(member.player for member in self.squad)


def generate(
    *,
    seed: int = 24,
    players: int = 40,
    matches: int = 200,
    last_match: date = date(2025, 6, 26),
    tenant_id: UUID = DEFAULT_TENANT,
    id_offset: int = 0,
) -> League:
    """Generate a club whose latest match was on `last_match`.

    About one match a week for up to ten years, more a week beyond that. Dates follow `last_match` and ids follow
    `id_offset` (ids are global: give each club in one database its own range); nothing else depends on these two.
    Raises ValueError for a club too small for five a side, or larger than the supply of names.
    """
    supply = len(FIRST_NAMES) * len(SURNAMES)
    if not FOUNDERS <= players <= supply:
        raise ValueError(f"players must be between {FOUNDERS} and {supply}, not {players}")
    if matches < 1:
        raise ValueError(f"matches must be at least 1, not {matches}")

    rng = random.Random(seed)
    weeks = min(MAX_WEEKS, matches - matches // 12)  # about one week in twelve has a second match
    first_day = last_match - timedelta(weeks=weeks) + timedelta(days=1)
    seasons = _seasons(first_day, last_match, tenant_id, id_offset)
    squad = _squad(rng, players, weeks, first_day, tenant_id, id_offset)

    played: list[Match] = []
    appearances: list[Appearance] = []
    for week in range(weeks):
        members = [member for member in squad if week in member.weeks]
        for day in _match_days(rng, first_day + timedelta(weeks=week), matches * (week + 1) // weeks - len(played)):
            match_id = id_offset + len(played) + 1
            match, line_up = _play(rng, members, match_id, day, _season_on(day, seasons))
            played.append(match)
            appearances.extend(line_up)
    return League(seed, tenant_id, squad, seasons, tuple(played), tuple(appearances))


def next_match(league: League, *, day: date) -> tuple[Match, tuple[Appearance, ...]]:
    """Play one further match among the members who have not retired; the same league and day give the same match.

    Outside the league's seasons the match belongs to none. Raises ValueError for a day before the latest match.
    """
    latest = league.matches[-1]
    if day < latest.match_date:
        raise ValueError(f"day must not be before the latest match on {latest.match_date}, not {day}")
    members = [member for member in league.squad if not member.player.is_retired]
    rng = random.Random(f"{league.seed} {day.isoformat()}")
    return _play(rng, members, latest.match_id + 1, day, _season_on(day, league.seasons))


def load(connection: psycopg.Connection[Any], league: League) -> None:
    """Copy the league into the four source tables, in the caller's transaction.

    The tables' sequences end beyond the loaded ids, and the planner's statistics are fresh. Raises
    psycopg.errors.UniqueViolation where the ids or the club's player names are taken.
    """
    _copy(connection, "seasons", Season._fields, league.seasons)
    _copy(connection, "players", Player._fields, league.players)
    _copy(connection, "matches", Match._fields, league.matches)
    _copy(connection, "player_matches", Appearance._fields, league.player_matches)
    for table, key in (("seasons", "id"), ("players", "player_id"), ("matches", "match_id")):
        # nextval keeps a sequence that is already further along from being set back onto ids in use
        connection.execute(
            sql.SQL(
                "select setval(counter, greatest(nextval(counter), (select max({}) from {})))"
                " from cast(pg_get_serial_sequence(%s, %s) as regclass) as counter"
            ).format(sql.Identifier(key), sql.Identifier("public", table)),
            (f"public.{table}", key),
        )
    connection.execute("analyze public.seasons, public.players, public.matches, public.player_matches")


def add_match(connection: psycopg.Connection[Any], match: Match, line_up: Iterable[Appearance]) -> int:
    """Insert one match and its appearances in the caller's transaction; return the id the database gave the match.

    The match's own id is not used: other matches may have been added since its league was loaded.
    """
    columns = Match._fields[1:]
    insert = sql.SQL("insert into public.matches ({}) values ({}) returning match_id").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(sql.Placeholder() * len(columns))
    )
    match_id: int
    with connection.cursor(row_factory=scalar_row) as cursor:
        [match_id] = cursor.execute(insert, match[1:])
    _copy(connection, "player_matches", Appearance._fields, (a._replace(match_id=match_id) for a in line_up))
    return match_id


def _copy(
    connection: psycopg.Connection[Any], table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    statement = sql.SQL("copy {} ({}) from stdin").format(
        sql.Identifier("public", table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _seasons(first_day: date, last_match: date, tenant_id: UUID, id_offset: int) -> tuple[Season, ...]:
    length = timedelta(weeks=SEASON_WEEKS)
    starts = [last_match + timedelta(days=1) - timedelta(weeks=WEEKS_INTO_SEASON)]
    while starts[0] > first_day:
        starts.insert(0, starts[0] - length)
    return tuple(
        Season(
            id_offset + number,
            tenant_id,
            start,
            start + length / 2 - timedelta(days=1),
            start + length - timedelta(days=1),
        )
        for number, start in enumerate(starts, start=1)
    )


def _season_on(day: date, seasons: Sequence[Season]) -> int | None:
    return next((season.id for season in seasons if season.start_date <= day <= season.end_date), None)


def _squad(
    rng: random.Random, players: int, weeks: int, first_day: date, tenant_id: UUID, id_offset: int
) -> tuple[Member, ...]:
    """Founders first, then members by the week they joined: a fifth of them at the start, a quarter since retired."""
    joined = [0] * FOUNDERS + sorted(
        max(0, _below(rng, weeks * 5 // 4) - weeks // 4) for _ in range(players - FOUNDERS)
    )
    names = [f"{first} {surname}" for first in FIRST_NAMES for surname in SURNAMES]
    squad = []
    for number, start in enumerate(joined, start=1):
        ringer = number > FOUNDERS and rng.random() < 0.2
        retired = number > FOUNDERS and start + 1 < weeks and rng.random() < 0.25
        stop = start + 1 + _below(rng, weeks - start - 1) if retired else weeks
        player = Player(
            player_id=id_offset + number,
            tenant_id=tenant_id,
            name=names.pop(_below(rng, len(names))),
            is_ringer=ringer,
            is_retired=retired,
            selected_club=json.dumps({"name": CLUBS[_below(rng, len(CLUBS))]}) if rng.random() < 0.7 else None,
            join_date=first_day + timedelta(weeks=start),
        )
        squad.append(
            Member(
                player,
                weeks=range(start, stop),
                keenness=1 if ringer else 3 + _below(rng, 8),
                skill=1 + _below(rng, 5) + _below(rng, 5),  # two dice: many middling players, few stars
                finishing=1 + _below(rng, 1 + _below(rng, 10)),  # skewed: a few score most of the goals
            )
        )
    return tuple(squad)


def _match_days(rng: random.Random, week_start: date, matches: int) -> list[date]:
    """The week's days of play, in order: its last day, and any day for further matches, most often the same one."""
    days_before = [0] * min(matches, 1) + [_below(rng, 8) % 7 for _ in range(matches - 1)]
    return sorted(week_start + timedelta(days=6 - days) for days in days_before)


def _play(
    rng: random.Random, members: Sequence[Member], match_id: int, day: date, season_id: int | None
) -> tuple[Match, tuple[Appearance, ...]]:
    """One match of five to nine a side, played by a random choice of members in which the keen are likelier."""
    size = min(5 + _below(rng, 5), len(members) // 2)
    chosen: dict[int, Member] = {}
    while len(chosen) < 2 * size:
        member = _pick(rng, members, attrgetter("keenness"))
        chosen[member.player.player_id] = member
    line_up = list(chosen.values())
    planned = [0, 1] * size
    actual = planned.copy()
    if rng.random() < 0.125:
        actual[-2:] = 1, 0  # one of each side changes places before kick-off
    sides = [[member for member, own in zip(line_up, actual, strict=True) if own == side] for side in (0, 1)]

    strength_a, strength_b = (sum(member.skill for member in side) ** 3 for side in sides)
    scores, own_goals, goals = [0, 0], [0, 0], Counter[int]()
    for _chance in range(8 + _below(rng, 20)):
        attacking = 0 if rng.random() < strength_a / (strength_a + strength_b) else 1
        if rng.random() < 0.3:
            scores[attacking] += 1
            if rng.random() < 0.03:
                own_goals[attacking] += 1
            else:
                goals[_pick(rng, sides[attacking], attrgetter("finishing")).player.player_id] += 1

    tenant_id = line_up[0].player.tenant_id
    match = Match(match_id, tenant_id, day, scores[0], scores[1], own_goals[0], own_goals[1], season_id)
    return match, tuple(
        Appearance(
            tenant_id=tenant_id,
            player_id=member.player.player_id,
            match_id=match_id,
            team=SIDES[plan],
            actual_team=SIDES[own] if own != plan else None,
            goals=goals[member.player.player_id],
            clean_sheet=scores[1 - own] == 0,
            result=_result(scores[own] - scores[1 - own]),
        )
        for member, plan, own in zip(line_up, planned, actual, strict=True)
    )


def _result(difference: int) -> Result:
    return "win" if difference > 0 else "loss" if difference < 0 else "draw"


def _pick(rng: random.Random, members: Sequence[Member], weight: Callable[[Member], int]) -> Member:
    """One member at random in proportion to a weight of 1 to MAX_WEIGHT."""
    while True:
        member = members[_below(rng, len(members))]
        if _below(rng, MAX_WEIGHT) < weight(member):
            return member


def _below(rng: random.Random, bound: int) -> int:
    # Python guarantees an unchanged sequence for random() only: randrange, choice and shuffle may draw differently
    return int(rng.random() * bound)
