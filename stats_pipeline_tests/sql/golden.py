"""The worked example: four players, three matches, every figure computed by hand.

Match 3 has a swap (Ann and Dee play for the other side), match 1 an own goal, Cal has retired and Dee is a guest.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

from stats_pipeline_tests.sql.club import Appearance, Club, Match, Player, Season

Refreshed = Callable[..., Callable[..., list[dict[str, Any]]]]

ANN, BOB, CAL, DEE = 1, 2, 3, 4
DAY_1, DAY_2, DAY_3 = date(2024, 3, 5), date(2024, 3, 12), date(2024, 3, 19)
AFTER_SEASON = date(2025, 1, 2)
NOUGHT = Decimal("0.0")

GOLDEN = Club(
    players=(
        Player(ANN, "Ann"),
        Player(BOB, "Bob"),
        Player(CAL, "Cal", is_retired=True),
        Player(DEE, "Dee", is_ringer=True),
    ),
    seasons=(Season(1, date(2024, 1, 1), DAY_2, date(2024, 12, 31)),),
    matches=(
        Match(1, DAY_1, 5, 0, 1, 0),
        Match(2, DAY_2, 2, 2),
        Match(3, DAY_3, 1, 3),
    ),
    appearances=(
        Appearance(1, ANN, "A", None, 3, True, "win"),
        Appearance(1, BOB, "A", None, 1, True, "win"),
        Appearance(1, CAL, "B", None, 0, False, "loss"),
        Appearance(1, DEE, "B", None, 0, False, "loss"),
        Appearance(2, ANN, "A", None, 1, False, "draw"),
        Appearance(2, CAL, "A", None, 1, False, "draw"),
        Appearance(2, BOB, "B", None, 2, False, "draw"),
        Appearance(2, DEE, "B", None, 0, False, "draw"),
        Appearance(3, ANN, "A", "B", 2, False, "win"),
        Appearance(3, CAL, "B", None, 1, False, "win"),
        Appearance(3, BOB, "A", None, 1, False, "loss"),
        Appearance(3, DEE, "B", "A", 0, False, "loss"),
    ),
)


def golden_with(**settings: object) -> Club:
    """The example under other settings."""
    return replace(GOLDEN, config={key: str(value) for key, value in settings.items()})


def golden_until(match_id: int) -> Club:
    """The example before the later matches were played."""
    return replace(
        GOLDEN,
        matches=tuple(match for match in GOLDEN.matches if match.match_id <= match_id),
        appearances=tuple(row for row in GOLDEN.appearances if row.match_id is not None and row.match_id <= match_id),
    )


def columns(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def numbers(*values: str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, values))
