"""The rules of the statistics in plain Python: points, seasons, halves, streaks, rounding.

Written from the specification and never from the SQL, in the most literal way: lists are walked from the first match to
the last. What each function stores, on top of these rules, is in `oracle_tables`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any

from stats_pipeline_tests.sql.club import Appearance, Club, Match, Player, Season

PLATFORM = {"prior_weight": 5, "min_goals_for_pb": 3, "min_streak_for_pb": 3}


def rounded(value: Fraction, places: int = 1) -> Decimal:
    """Halves away from zero."""
    scaled = abs(value) * 10**places
    whole = int(scaled + Fraction(1, 2))
    return (Decimal(whole) if value >= 0 else -Decimal(whole)).scaleb(-places)


@dataclass(frozen=True)
class Game:
    """One appearance, seen from the side the player really played for."""

    player: Player
    match: Match
    row: Appearance
    settings: "Settings"

    @property
    def day(self) -> date:
        return self.match.match_date

    @property
    def side(self) -> str | None:
        return self.row.actual_team if self.row.actual_team is not None else self.row.team

    @property
    def own(self) -> int:
        return self.match.team_a_score if self.side == "A" else self.match.team_b_score

    @property
    def opponent(self) -> int:
        return self.match.team_b_score if self.side == "A" else self.match.team_a_score

    @property
    def score(self) -> str:
        return f"{self.own}-{self.opponent}"

    @property
    def goals(self) -> int:
        return self.row.goals or 0

    @property
    def clean_sheet(self) -> bool:
        return bool(self.row.clean_sheet)

    def ended(self, *results: str) -> bool:
        return self.row.result in results

    @property
    def heavy(self) -> bool:
        return self.side in ("A", "B") and abs(self.own - self.opponent) >= self.settings.heavy

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
        return int(self._config.get(key, default))

    def decimal(self, key: str, default: int) -> Decimal:
        return Decimal(self._config.get(key, default))

    def positive(self, key: str, default: int) -> int:
        try:
            value = int(self._config.get(key, default))
        except ValueError:
            return default
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


def by_player(games: Iterable[Game]) -> list[tuple[Player, list[Game]]]:
    """The games of each player who has any, in the order of the games."""
    found: dict[int, tuple[Player, list[Game]]] = {}
    for game in games:
        found.setdefault(game.player.player_id, (game.player, []))[1].append(game)
    return list(found.values())


def within(games: Iterable[Game], start: date, end: date) -> list[Game]:
    return [game for game in games if start <= game.day <= end]


def in_match_order(match: Match) -> tuple[date, int]:
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
        self.players = {player.player_id: player for player in club.players}
        self.regulars = [player for player in club.players if not player.is_ringer]
        self.matches = sorted(club.matches, key=in_match_order)
        by_id = {match.match_id: match for match in club.matches}
        self.games = sorted(
            (
                Game(self.players[row.player_id], by_id[row.match_id], row, self.settings)
                for row in club.appearances
                if row.player_id is not None and row.match_id is not None
            ),
            key=lambda game: (in_match_order(game.match), game.player.player_id),
        )

    @cached_property
    def regular_games(self) -> list[Game]:
        return [game for game in self.games if not game.player.is_ringer]

    def games_of(self, player: Player) -> list[Game]:
        return [game for game in self.games if game.player is player]

    @property
    def latest(self) -> Match | None:
        return self.matches[-1] if self.matches else None

    def season_on(self, day: date) -> Season | None:
        found = [season for season in self.seasons if season.start_date <= day <= season.end_date]
        return max(found, key=lambda season: (season.start_date, season.id), default=None)

    def half_on(self, day: date) -> Half | None:
        season = self.season_on(day)
        if season is None:
            return None
        if day <= season.half_date:
            return Half(season, season.start_date, season.half_date)
        return Half(season, season.half_date + timedelta(days=1), season.end_date)

    def runs(self, player: Player, kind: str, matches: Sequence[Match] | None = None) -> list[Run]:
        """The player's runs of one kind within the matches given, all by default."""
        matches = self.matches if matches is None else matches
        mine = {game.match.match_id: game for game in self.games_of(player)}
        if kind == "attendance":
            return _runs([mine.get(match.match_id) for match in matches])
        own = [mine[match.match_id] for match in matches if match.match_id in mine]
        return _runs([game if COUNTS[kind](game) else None for game in own])

    def longest(self, player: Player, kind: str, matches: Sequence[Match] | None = None) -> int:
        return max((run.length for run in self.runs(player, kind, matches)), default=0)

    def current(self, player: Player, kind: str) -> Run | None:
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
