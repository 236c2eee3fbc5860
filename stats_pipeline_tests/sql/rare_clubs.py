"""Clubs built for one rule each, where random ones rarely arrive: ties at a cut-off, edges of a window, only guests."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import date, timedelta

from stats_pipeline_tests.sql.club import Appearance, Club, Match, Player, Season
from stats_pipeline_tests.sql.golden import ANN, BOB, DEE, GOLDEN

START = date(2024, 1, 1)
SEASON = Season(1, START, date(2024, 6, 30), date(2024, 12, 31))


def played(
    match_id: int, players: Iterable[int], *, goals: int = 0, side: str = "A", result: str = "win"
) -> list[Appearance]:
    return [Appearance(match_id, player, side, None, goals, False, result) for player in players]


def club(players: str, days: Iterable[int], *lineups: list[Appearance], **settings: str) -> Club:
    """Players by initial, each match 2-1 on the given day of the year."""
    return Club(
        players=tuple(Player(number, name) for number, name in enumerate(players.split(), start=1)),
        seasons=(SEASON,),
        matches=tuple(Match(number, START + timedelta(days=day), 2, 1) for number, day in enumerate(days, start=1)),
        appearances=tuple(row for lineup in lineups for row in lineup),
        config=settings,
    )


RARE_CLUBS = {
    "latest match among guests only": replace(
        GOLDEN,
        matches=(*GOLDEN.matches, Match(4, date(2024, 3, 26), 9, 0)),
        appearances=(*GOLDEN.appearances, *played(4, [DEE], goals=9)),
        config={"on_fire_grim_reaper_min_games": "1", "win_streak_threshold": "1", "goal_streak_threshold": "1"},
    ),
    "two lead where one led": club(
        "Ann Bob Cal", (1, 8), played(1, [1], goals=2), played(2, [2], goals=2), played(2, [1, 3])
    ),
    "two lead where another led": club(
        "Ann Bob Cal", (1, 8), played(1, [3], goals=1), played(2, [1, 2], goals=2), played(2, [3])
    ),
    "two seasons with the same dates": replace(GOLDEN, seasons=(*GOLDEN.seasons, GOLDEN.seasons[0]._replace(id=2))),
    "two equal runs of attendance": club(
        "Ann Bob",
        (1, 8, 15, 22, 29),
        *(played(number, [ANN, BOB]) for number in (1, 2, 4, 5)),
        min_streak_length="2",
    ),
    "form on the edges of the window": club(
        "Ann Bob Cal",
        (54, 55, 100),  # 46, 45 and 0 days before the latest
        played(1, [1, 3]),
        played(2, [1, 2]),
        played(3, [1, 2, 3]),
        on_fire_grim_reaper_min_games="2",
    ),
    "form decided by heavy losses": Club(
        players=(Player(1, "Ann"), Player(2, "Bob")),
        seasons=(SEASON,),
        matches=(
            Match(1, date(2024, 3, 1), 1, 5),
            Match(2, date(2024, 3, 2), 1, 4),
            Match(3, date(2024, 3, 3), 2, 0),
            Match(4, date(2024, 3, 4), 3, 1),
        ),
        appearances=(
            *played(1, [1], result="loss"),
            *played(2, [2], result="loss"),
            *played(3, [1]),
            *played(4, [2]),
        ),
        config={"on_fire_grim_reaper_min_games": "2", "fantasy_heavy_loss_points": "-10"},
    ),
    "form decided by name": club(
        "Bob Ann", (1, 8), played(1, [1, 2]), played(2, [1, 2]), on_fire_grim_reaper_min_games="2"
    ),
    "six equal racers and scorers": club(
        "Fay Eve Dee Cal Bob Ann", (1, 8), played(1, range(1, 7), goals=1), played(2, range(1, 7), goals=1)
    ),
    # Equal on paper, while the division of sums that contain old weights ends many digits later.
    "a third of the matches since the first": club(
        "Ann Bob",
        (*[-900] * 3, *[60] * 3),
        *(played(number, [1], result="draw") for number in (1, 4)),
        played(5, [2], result="draw"),
        performance_half_life_days="10",
        performance_qualification_threshold="0.1",
    ),
    "two matches on one day": club(
        "Ann Bob",
        (1, 1, 1),
        played(1, [1, 2], goals=1, result="loss"),
        played(2, [1], goals=2),
        played(3, [1, 2], goals=0, side="B", result="loss"),
        win_streak_threshold="1",
        loss_streak_threshold="1",
    ),
}
