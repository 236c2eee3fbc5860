"""The rules of the statistics in plain Python: which rows count, points, seasons, halves, streaks, rounding.

Written from the specification and never from the SQL, in the most literal way: lists are walked from the first match to
the last. The tables of each function, based on these rules, are in `oracle_tables`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from stats_pipeline_tests.sql.club import Appearance, Club, Match, Player, Season

GOALS = range(-999, 1000)
SCORES = range(1000)
PLATFORM = {"prior_weight": 5, "min_goals_for_pb": 3, "min_streak_for_pb": 3}


def rounded(value: Fraction, places: int = 1) -> Decimal:
    """Halves away from zero."""
    scaled = abs(value) * 10**places
    whole = int(scaled + Fraction(1, 2))
    return (Decimal(whole) if value >= 0 else -Decimal(whole)).scaleb(-places)


class Played(NamedTuple):
    """A match that counts: it has a day that has come, and a score."""

    match_id: int
    match_date: date
    team_a_score: int
    team_b_score: int
    team_a_own_goals: int
    team_b_own_goals: int


class Shown(NamedTuple):
    """A player under the name that the statistics show."""

    player_id: int
    name: str
    is_ringer: bool
    is_retired: bool | None
    selected_club: Any


def has_been_played(match: Match, today: date) -> Played | None:
    _, day, score_a, score_b, own_goals_a, own_goals_b = match
    if day is None or score_a is None or score_b is None:
        return None
    if day > today or score_a not in SCORES or score_b not in SCORES:
        return None
    return Played(match.match_id, day, score_a, score_b, own_goals_a or 0, own_goals_b or 0)


def shown(player: Player) -> Shown:
    name = f"#{player.player_id}" if player.name is None else player.name[:14]
    return Shown(player.player_id, name, player.is_ringer, player.is_retired, player.selected_club)


@dataclass(frozen=True)
class Game:
    """One appearance, seen from the side the player really played for."""

    player: Shown
    match: Played
    row: Appearance
    settings: "Settings"

    @property
    def day(self) -> date:
        return self.match.match_date

    @property
    def side(self) -> str | None:
        return self.row.actual_team if self.row.actual_team is not None else self.row.team

    @property
    def own(self) -> int | None:
        return {"A": self.match.team_a_score, "B": self.match.team_b_score}.get(self.side or "")

    @property
    def opponent(self) -> int | None:
        return {"A": self.match.team_b_score, "B": self.match.team_a_score}.get(self.side or "")

    @property
    def score(self) -> str:
        return "" if self.own is None else f"{self.own}-{self.opponent}"

    @property
    def goals(self) -> int:
        return self.row.goals if self.row.goals is not None and self.row.goals in GOALS else 0

    @property
    def clean_sheet(self) -> bool:
        return bool(self.row.clean_sheet)

    def ended(self, *results: str) -> bool:
        return self.row.result in results

    @property
    def heavy(self) -> bool:
        return self.side in ("A", "B") and margin(self.match) >= self.settings.heavy

    @property
    def heavy_win(self) -> bool:
        return self.ended("win") and self.heavy

    @property
    def heavy_loss(self) -> bool:
        return self.ended("loss") and self.heavy

    @property
    def points(self) -> int:
        if not self.ended("win", "draw", "loss"):
            return 0
        base = self.settings.base[self.row.result, self.heavy, self.clean_sheet]
        return base + self.settings.goal * self.goals + self.settings.attendance


class Settings:
    """The tenant's settings with their defaults."""

    def __init__(self, config: Any) -> None:
        self._config = config
        win = self.number("fantasy_win_points", 20)
        draw = self.number("fantasy_draw_points", 10)
        loss = self.number("fantasy_loss_points", -10)
        heavy_win = self.number("fantasy_heavy_win_points", win + 10)
        heavy_loss = self.number("fantasy_heavy_loss_points", loss - 10)
        clean_win = self.number("fantasy_clean_sheet_win_points", win + 10)
        clean_draw = self.number("fantasy_clean_sheet_draw_points", draw + 10)
        heavy_clean_win = self.number("fantasy_heavy_clean_sheet_win_points", win + 20)
        self.base: dict[tuple[str | None, bool, bool], int] = {
            ("win", False, False): win,
            ("win", True, False): heavy_win,
            ("win", False, True): clean_win,
            ("win", True, True): heavy_clean_win,
            ("draw", False, False): draw,
            ("draw", True, False): draw,
            ("draw", False, True): clean_draw,
            ("draw", True, True): clean_draw,
            ("loss", False, False): loss,
            ("loss", False, True): loss,
            ("loss", True, False): heavy_loss,
            ("loss", True, True): heavy_loss,
        }
        self.goal = self.number("fantasy_goals_scored_points", 0)
        self.attendance = self.number("fantasy_attendance_points", 10)
        self.heavy = self.number("fantasy_heavy_win_threshold", 4)

    def number(self, key: str, default: int) -> int:
        try:
            value = int(self._config.get(key, default))
        except ValueError:
            return default
        return value if abs(value) < (10_000 if key.startswith("fantasy_") else 1_000_000) else default

    def decimal(self, key: str, default: int) -> Decimal:
        try:
            value = Decimal(self._config.get(key, default))
        except InvalidOperation:
            return Decimal(default)
        return value if value.is_finite() and abs(value) < 1_000_000 else Decimal(default)

    def positive(self, key: str, default: int) -> int:
        value = self.number(key, default)
        return value if value >= 1 else default


@dataclass(frozen=True)
class Run:
    """A maximal run of counting appearances."""

    games: tuple[Game, ...]

    @property
    def length(self) -> int:
        return len(self.games)

    @property
    def start(self) -> date:
        return self.games[0].day

    @property
    def end(self) -> date:
        return self.games[-1].day

    @property
    def last_match(self) -> tuple[date, int]:
        return in_match_order(self.games[-1].match)


def by_player(games: Iterable[Game]) -> list[tuple[Shown, list[Game]]]:
    """The games of each player who has any, in the order of the games."""
    found: dict[int, tuple[Shown, list[Game]]] = {}
    for game in games:
        found.setdefault(game.player.player_id, (game.player, []))[1].append(game)
    return list(found.values())


def within(games: Iterable[Game], start: date, end: date) -> list[Game]:
    return [game for game in games if start <= game.day <= end]


def margin(match: Played) -> int:
    return abs(match.team_a_score - match.team_b_score)


def in_match_order(match: Played) -> tuple[date, int]:
    return match.match_date, match.match_id


COUNTS: dict[str, Callable[[Game], bool]] = {
    "win": lambda game: game.ended("win"),
    "losing": lambda game: game.ended("loss"),
    "undefeated": lambda game: game.ended("win", "draw"),
    "winless": lambda game: game.ended("draw", "loss"),
    "scoring": lambda game: game.goals >= 1,
}
STREAKS = (*COUNTS, "attendance")


@dataclass(frozen=True)
class Half:
    season: Season
    start: date
    end: date


class History:
    """A club's past as of a day: games in match order, runs, seasons."""

    def __init__(self, club: Club, today: date) -> None:
        self.today = today
        self.settings = Settings(club.config)
        self.seasons = club.seasons
        self.players = {player.player_id: shown(player) for player in club.players}
        self.regulars = [player for player in self.players.values() if not player.is_ringer]
        played = [has_been_played(match, today) for match in club.matches]
        self.matches = sorted((match for match in played if match), key=in_match_order)
        by_id = {match.match_id: match for match in self.matches}
        first = {(row.match_id, row.player_id): row for row in reversed(club.appearances)}
        self.games = sorted(
            (
                Game(self.players[row.player_id], by_id[row.match_id], row, self.settings)
                for row in first.values()
                if row.player_id is not None and row.match_id in by_id
            ),
            key=lambda game: (in_match_order(game.match), game.player.player_id),
        )

    @cached_property
    def regular_games(self) -> list[Game]:
        return [game for game in self.games if not game.player.is_ringer]

    def games_of(self, player: Shown) -> list[Game]:
        return [game for game in self.games if game.player is player]

    @property
    def latest(self) -> Played | None:
        return self.matches[-1] if self.matches else None

    def season_on(self, day: date) -> Season | None:
        found = [season for season in self.seasons if season.start_date <= day <= season.end_date]
        return max(found, key=lambda season: (season.start_date, season.id), default=None)

    def half_on(self, day: date) -> Half | None:
        season = self.season_on(day)
        if season is None:
            return None
        if season.half_date is None:
            return Half(season, season.start_date, season.end_date)
        if day <= season.half_date:
            return Half(season, season.start_date, season.half_date)
        return Half(season, season.half_date + timedelta(days=1), season.end_date)

    def runs(self, player: Shown, kind: str, matches: Sequence[Played] | None = None) -> list[Run]:
        """The player's runs of one kind within the matches given, all by default."""
        matches = self.matches if matches is None else matches
        mine = {game.match.match_id: game for game in self.games_of(player)}
        if kind == "attendance":
            return _runs([mine.get(match.match_id) for match in matches])
        own = [mine[match.match_id] for match in matches if match.match_id in mine]
        return _runs([game if COUNTS[kind](game) else None for game in own])

    def longest(self, player: Shown, kind: str, matches: Sequence[Played] | None = None) -> int:
        return max((run.length for run in self.runs(player, kind, matches)), default=0)

    def current(self, player: Shown, kind: str) -> Run | None:
        """The run that ends with the player's own most recent appearance."""
        games, runs = self.games_of(player), self.runs(player, kind)
        return runs[-1] if runs and runs[-1].games[-1] is games[-1] else None


def _runs(counting: Iterable[Game | None]) -> list[Run]:
    runs: list[list[Game]] = [[]]
    for game in counting:
        if game is None:
            runs.append([])
        else:
            runs[-1].append(game)
    return [Run(tuple(games)) for games in runs if games]
