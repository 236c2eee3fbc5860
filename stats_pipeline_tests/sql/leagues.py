"""Hypothesis strategies for small clubs, made to hit ties, gaps and degenerate rows rather than to look real.

Those of `odd_clubs` contain values that the reference tables forbid and an app's own tables may allow.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, TypeVar

from hypothesis import strategies as st

from stats_pipeline_tests.sql.club import Appearance, Club, Match, Player, Season

Row = TypeVar("Row", Player, Season, Match, Appearance)

FIRST_DAY = date(2022, 11, 20)
# Repeats make matches share a date; the span covers three calendar years, so seasons and years differ.
OFFSETS = (0, 0, 1, 7, 7, 14, 30, 41, 42, 43, 60, 180, 365, 400, 401, 408, 408, 500, 765)
DAYS = tuple(FIRST_DAY + timedelta(days=offset) for offset in OFFSETS)
NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Fay", "Gus")
CLUBS = (None, None, {"name": "Harbour City"})

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "fantasy_win_points": st.sampled_from(["25", "0"]),
        "fantasy_loss_points": st.sampled_from(["-3", "0"]),
        "fantasy_heavy_loss_points": st.just("-40"),
        "fantasy_clean_sheet_draw_points": st.just("12"),
        "fantasy_goals_scored_points": st.sampled_from(["2", "-1"]),
        "fantasy_attendance_points": st.sampled_from(["5", "0"]),
        "fantasy_heavy_win_threshold": st.sampled_from(["1", "2", "0"]),
        "match_duration_minutes": st.just("55"),
        "games_required_for_hof": st.sampled_from(["1", "2", "4"]),
        "hall_of_fame_limit": st.sampled_from(["1", "2", "0"]),
        "min_games_for_honours": st.sampled_from(["1", "2"]),
        "min_streak_length": st.sampled_from(["1", "2"]),
        "game_milestone_threshold": st.sampled_from(["1", "3", "0"]),
        "goal_milestone_threshold": st.sampled_from(["1", "4", "0"]),
        "win_streak_threshold": st.sampled_from(["1", "2"]),
        "unbeaten_streak_threshold": st.sampled_from(["1", "3"]),
        "loss_streak_threshold": st.sampled_from(["1", "2"]),
        "winless_streak_threshold": st.sampled_from(["1", "3"]),
        "goal_streak_threshold": st.sampled_from(["1", "2"]),
        "on_fire_grim_reaper_window_days": st.sampled_from(["30", "400", "-1", "soon"]),
        "on_fire_grim_reaper_min_games": st.sampled_from(["1", "2", "0", ""]),
        "performance_half_life_days": st.sampled_from(["100", "0", "10"]),
        "performance_qualification_threshold": st.sampled_from(["1", "2"]),
    },
)


DEGENERATE: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"result": None},
        {"result": "void"},
        {"goals": None},
        {"clean_sheet": None},
        {"clean_sheet": True},
        {"team": None, "actual_team": None},
        {"actual_team": "C"},
        {"player_id": None},
        {"match_id": None},
    ]
)


@st.composite
def clubs(draw: st.DrawFn, *, clean: bool = False) -> Club:
    """A club of up to seven players and fourteen matches; `clean` leaves out what the app's own contract forbids."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, len(NAMES)))]
    retired = st.sampled_from((False, False, True, False if clean else None))
    players = tuple(
        Player(number, name, draw(st.integers(0, 3)) == 0, draw(retired), draw(st.sampled_from(CLUBS)))
        for number, name in enumerate(names, start=1)
    )
    ids = draw(st.permutations(range(1, 15)))[: draw(st.integers(0, 14))]  # ids need not follow the dates
    matches, appearances = [], []
    for match_id in ids:
        score_a, score_b = draw(st.sampled_from(((0, 0), (1, 1), (1, 0), (0, 2), (4, 0), (2, 6), (5, 3), (2, 1))))
        own_goals = st.sampled_from((0, 0, 1, 2) if clean else (0, 0, 2, None))
        matches.append(Match(match_id, draw(st.sampled_from(DAYS)), score_a, score_b, draw(own_goals), draw(own_goals)))
        for player in players:
            side = draw(st.sampled_from(("A", "B", "A", "B", None)))
            if side is not None:
                appearances.append(_appearance(draw, match_id, player, side, score_a, score_b, clean))
    return Club(players, draw(seasons()), tuple(matches), tuple(draw(st.permutations(appearances))), draw(SETTINGS))


def _appearance(
    draw: st.DrawFn, match_id: int, player: Player, side: str, score_a: int, score_b: int, clean: bool
) -> Appearance:
    own, opponent = (score_a, score_b) if side == "A" else (score_b, score_a)
    swapped = draw(st.integers(0, 4)) == 0
    planned = ("B" if side == "A" else "A") if swapped else side
    row = Appearance(
        match_id,
        player.player_id,
        planned,
        side if swapped else None,
        draw(st.sampled_from((0, 0, 1, 1, 2, 3))),
        opponent == 0,
        "win" if own > opponent else "loss" if own < opponent else "draw",
    )
    if clean or draw(st.integers(0, 9)):
        return row
    return row._replace(**draw(DEGENERATE))


@st.composite
def seasons(draw: st.DrawFn) -> tuple[Season, ...]:
    """Up to three seasons that may leave gaps, overlap or coincide."""
    found = []
    for number in range(1, draw(st.integers(0, 3)) + 1):
        start = FIRST_DAY + timedelta(days=draw(st.sampled_from((-20, 0, 7, 42, 300, 400))))
        half = start + timedelta(days=draw(st.sampled_from((0, 7, 30, 100))))
        end = half + timedelta(days=draw(st.sampled_from((1, 12, 100, 400))))
        found.append(Season(number, start, half, end))
    if found and draw(st.integers(0, 4)) == 0:
        found.append(found[0]._replace(id=len(found) + 1))
    return tuple(found)


TODAYS = st.sampled_from([*DAYS, FIRST_DAY - timedelta(days=1), FIRST_DAY + timedelta(days=2000)])


LIMITS = (-(2**31), -1000, -999, -3, -1, 999, 1000, 2**31 - 1)
SPOILED_SETTINGS = ("", "many", "NaN", "Infinity", "1000000", "2147483647", "99999999999999999999", "0x1F")
SPOILED_MATCH: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"match_date": None},
        {"team_a_score": None},
        {"team_a_score": None, "team_b_score": None},
        *({"team_b_score": score} for score in LIMITS),
        *({"team_a_own_goals": goals} for goals in LIMITS),
    ]
)
SPOILED_APPEARANCE: st.SearchStrategy[dict[str, Any]] = st.one_of(
    DEGENERATE,
    st.sampled_from([{"team": "a", "actual_team": None}, {"result": "W"}, *({"goals": goals} for goals in LIMITS)]),
)


@st.composite
def odd_clubs(draw: st.DrawFn) -> Club:
    """A club with odd values, nulls and repeated appearances among its rows."""

    def spoil(rows: Sequence[Row], values: st.SearchStrategy[dict[str, Any]], one_in: int) -> tuple[Row, ...]:
        return tuple(row if draw(st.integers(1, one_in)) > 1 else row._replace(**draw(values)) for row in rows)

    club = draw(clubs())
    kept, spoiled = dict(club.config), st.sampled_from(SPOILED_SETTINGS)
    for key in draw(st.lists(st.sampled_from(sorted(kept)), max_size=3)) if kept else ():
        kept[key] = draw(spoiled)
    repeated = [row for row in club.appearances if draw(st.integers(0, 9)) == 0]
    return replace(
        club,
        config=kept,
        players=spoil(club.players, st.just({"name": None}), 5),
        seasons=spoil(club.seasons, st.just({"half_date": None}), 4),
        matches=spoil(club.matches, SPOILED_MATCH, 5),
        appearances=spoil((*club.appearances, *repeated), SPOILED_APPEARANCE, 5),
    )
