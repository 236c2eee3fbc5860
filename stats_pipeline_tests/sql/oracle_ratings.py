"""The power ratings, computed the plain way: forty digits, every match weighted for every player.

The rules are in `oracle`, the other tables in `oracle_tables`.
"""

from datetime import date
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

from stats_pipeline_tests.sql.oracle import PLATFORM, History, Played, rounded

Row = dict[str, Any]
Rows = list[Row]


def performance_ratings(history: History) -> Rows:
    with localcontext() as context:
        context.prec = 40
        return _ratings(history)


def _ratings(history: History) -> Rows:
    half_life = history.settings.decimal("performance_half_life_days", 730)
    if half_life <= 0:
        half_life = Decimal(730)
    qualified_from = history.settings.decimal("performance_qualification_threshold", 5)
    prior = PLATFORM["prior_weight"]

    def weight(match: Played) -> Decimal:
        return Decimal(2) ** (-Decimal((history.today - match.match_date).days) / half_life)

    matches = history.matches
    if not matches:
        return []
    rows: Rows = []
    for player in history.players.values():
        if player.is_retired:
            continue
        games = history.games_of(player)
        joined = games[0].day if games else date(1900, 1, 1)
        rows.append(
            {
                "player_id": player.player_id,
                "first_match_date": joined,
                "name": player.name,
                "is_retired": player.is_retired,
                "is_ringer": player.is_ringer,
                "selected_club": player.selected_club,
                "played": sum((weight(game.match) for game in games), Decimal(0)),
                "available": sum((weight(match) for match in matches if match.match_date >= joined), Decimal(0)),
                "points": sum((game.points * weight(game.match) for game in games), Decimal(0)),
                "goals": sum((game.goals * weight(game.match) for game in games), Decimal(0)),
            }
        )
    candidates = [row for row in rows if not row["is_ringer"] and row["played"] > 0]
    pool = [row for row in candidates if row["played"] >= Decimal("0.6") * qualified_from] or candidates

    def mean(metric: str) -> Decimal:
        return sum(row[metric] for row in pool) / sum(row["played"] for row in pool) if pool else Decimal(0)

    mean_points, mean_goals = mean("points"), mean("goals")
    for row in rows:
        played, available = row.pop("played"), row.pop("available")
        row["is_qualified"] = played >= qualified_from
        row["power_rating"] = (row.pop("points") + prior * mean_points) / (played + prior)
        row["goal_threat"] = (row.pop("goals") + prior * mean_goals) / (played + prior)
        row["participation"] = 100 * played / available if available else Decimal(0)
        row["weighted_played"], row["weighted_available"] = played, available
    for metric, column in (
        ("power_rating", "power_percentile"),
        ("goal_threat", "goal_percentile"),
        ("participation", "participation_percentile"),
    ):
        # far finer than what is stored: forty digits of arithmetic may differ in the last ones between equal ratings
        values = {row["player_id"]: round(row[metric], 9) for row in rows if row["is_qualified"]}
        for row in rows:
            value = values.get(row["player_id"])
            if value is None or len(set(values.values())) == 1:
                row[column] = Decimal(50)
            else:
                below = sum(other < value for other in values.values())
                row[column] = rounded(Fraction(100 * below, len(values) - 1))
    return rows
