"""The rows that each stats function must store for a club, computed the plain way: the other side of the comparison.

One function per table or pair of tables, in the order of the specification. The rules they share are in `oracle`, the
larger tables in separate modules.
"""

from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

from stats_pipeline_tests.sql.club import Club
from stats_pipeline_tests.sql.oracle import (
    PLATFORM,
    STREAKS,
    Game,
    History,
    Shown,
    by_player,
    rounded,
    within,
)
from stats_pipeline_tests.sql.oracle_ratings import performance_ratings
from stats_pipeline_tests.sql.oracle_records import records, season_honours
from stats_pipeline_tests.sql.oracle_report import match_report

Row = dict[str, Any]
Rows = list[Row]


def expected(club: Club, today: date) -> dict[str, Rows]:
    """Every aggregate table, and the stamps, after refreshing an untouched database on a day."""
    history = History(club, today)
    return {
        "aggregated_half_season_stats": half_season_stats(history),
        "aggregated_season_stats": season_stats(history),
        "aggregated_all_time_stats": all_time_stats(history),
        "aggregated_hall_of_fame": hall_of_fame(history),
        "aggregated_recent_performance": recent_performance(history),
        "aggregated_season_honours": season_honours(history),
        "aggregated_records": [{"records": records(history)}],
        "aggregated_match_report": match_report(history),
        "aggregated_personal_bests": personal_bests(history),
        "aggregated_player_profile_stats": player_profile_stats(history),
        "aggregated_season_race_data": season_race_data(history),
        "aggregated_performance_ratings": performance_ratings(history),
        "aggregated_player_teammate_stats": player_teammate_stats(history),
        "cache_metadata": stamps(history),
    }


def stamps(history: History) -> Rows:
    labels = {
        "season_stats": "season_stats",
        "half_season_stats": "half_season_stats",
        "all_time_stats": "match_result",
        "hall_of_fame": "match_result",
        "recent_performance": "recent_performance",
        "honour_roll": "honour_roll",
        "match_report": "match_report",
        "personal_bests": "personal_bests",
        "player_profile_stats": "player_profile_stats",
        "season_race_data": "season_race_data",
        "player_power_rating": "function_execution",
        "player_teammate_stats": "player_teammate_stats",
    }
    if history.latest is None:
        del labels["personal_bests"]
    if history.season_on(history.today) is None:
        del labels["season_race_data"]
    return [{"cache_key": key, "dependency_type": label} for key, label in labels.items()]


def percentage(part: int, whole: int) -> Decimal:
    return rounded(Fraction(100 * part, whole))


def totals(player: Shown, games: list[Game]) -> Row:
    played = len(games)
    points = sum(game.points for game in games)
    wins = sum(game.ended("win") for game in games)
    return {
        "player_id": player.player_id,
        "name": player.name,
        "selected_club": player.selected_club,
        "games_played": played,
        "wins": wins,
        "draws": sum(game.ended("draw") for game in games),
        "losses": sum(game.ended("loss") for game in games),
        "goals": sum(game.goals for game in games),
        "heavy_wins": sum(game.heavy_win for game in games),
        "heavy_losses": sum(game.heavy_loss for game in games),
        "clean_sheets": sum(game.clean_sheet for game in games),
        "fantasy_points": points,
        "win_percentage": percentage(wins, played),
        "points_per_game": rounded(Fraction(points, played)),
    }


def half_season_stats(history: History) -> Rows:
    half = history.half_on(history.today)
    if half is None:
        return []
    return [
        totals(player, games) | {"historical_blocks": []}
        for player, games in by_player(within(history.regular_games, half.start, half.end))
    ]


def season_stats(history: History) -> Rows:
    return [
        totals(player, games) | {"season_start_date": start, "season_end_date": end}
        for start, end in {(season.start_date, season.end_date) for season in history.seasons}
        for player, games in by_player(within(history.regular_games, start, end))
    ]


def all_time_stats(history: History) -> Rows:
    minutes = history.settings.number("match_duration_minutes", 60)
    rows = []
    for player, games in by_player(history.regular_games):
        row = totals(player, games)
        played, goals = row["games_played"], row["goals"]
        row["minutes_per_goal"] = rounded(Fraction(played * minutes, goals)) if goals > 0 else None
        row["heavy_win_percentage"] = percentage(row["heavy_wins"], played)
        row["heavy_loss_percentage"] = percentage(row["heavy_losses"], played)
        row["clean_sheet_percentage"] = percentage(row["clean_sheets"], played)
        row["is_retired"] = player.is_retired
        if played >= history.settings.number("games_required_for_hof", 0):
            rows.append(row)
    return rows


def hall_of_fame(history: History) -> Rows:
    required = history.settings.number("games_required_for_hof", 50)
    careers = all_time_stats(history)
    lists = {
        "most_goals": [(row["goals"], row) for row in careers],
        "best_win_percentage": [(row["win_percentage"], row) for row in careers if row["games_played"] >= required],
        "most_fantasy_points": [(row["fantasy_points"], row) for row in careers],
    }
    result = []
    for category, entries in lists.items():
        eligible = [(value, row) for value, row in entries if value > 0]
        eligible.sort(key=lambda entry: (-entry[0], entry[1]["name"], entry[1]["player_id"]))
        result += [
            {
                "category": category,
                "player_id": row["player_id"],
                "value": value,
                "name": row["name"],
                "selected_club": row["selected_club"],
            }
            for value, row in eligible[: history.settings.number("hall_of_fame_limit", 3)]
        ]
    return result


def recent_performance(history: History) -> Rows:
    rows = []
    for player in history.regulars:
        recent = history.games_of(player)[::-1][:5]
        rows.append(
            {
                "player_id": player.player_id,
                "last_5_goals": sum(game.goals for game in recent),
                "last_5_games": [
                    {
                        "date": str(game.day),
                        "goals": game.goals,
                        "result": game.row.result or "",
                        "score": game.score,
                        "clean_sheet": game.opponent == 0,
                    }
                    for game in recent
                ],
            }
        )
    return rows


PERSONAL_BESTS = {
    "longest_win_streak": "win",
    "longest_undefeated_streak": "undefeated",
    "longest_losing_streak": "losing",
    "longest_winless_streak": "winless",
    "attendance_streak": "attendance",
    "longest_scoring_streak": "scoring",
}


def personal_bests(history: History) -> Rows:
    if history.latest is None:
        return []
    earlier = history.matches[:-1]
    document = {}
    for game in history.regular_games:
        if game.match is not history.latest:
            continue
        before = [other for other in history.games_of(game.player) if other is not game]
        candidates = [
            (
                "most_goals_in_game",
                game.goals,
                max((0, *(other.goals for other in before))),
                PLATFORM["min_goals_for_pb"],
            )
        ]
        for metric, kind in PERSONAL_BESTS.items():
            run = history.current(game.player, kind)
            candidates.append(
                (
                    metric,
                    run.length if run else 0,
                    history.longest(game.player, kind, earlier),
                    PLATFORM["min_streak_for_pb"],
                )
            )
        bests = [
            {"metric_type": metric, "value": value, "previous_best_value": previous}
            for metric, value, previous, minimum in candidates
            if value >= minimum and value > previous
        ]
        if bests:
            document[str(game.player.player_id)] = {"name": game.player.name, "pbs": bests}
    return [{"match_id": history.latest.match_id, "broken_pbs_data": document}]


def player_profile_stats(history: History) -> Rows:
    minutes = history.settings.number("match_duration_minutes", 60)
    rows = []
    for player in history.regulars:
        games = history.games_of(player)
        row: Row = {
            "player_id": player.player_id,
            "name": player.name,
            "games_played": len(games),
            "fantasy_points": sum(game.points for game in games),
            "selected_club": player.selected_club,
            "teammate_chemistry_all": [],
        }
        best = max((game for game in games if game.goals > 0), key=lambda game: (game.goals, game.day), default=None)
        row["most_game_goals"] = best.goals if best else None
        row["most_game_goals_date"] = str(best.day) if best else None

        years: Rows = []
        for year in sorted({game.day.year for game in games}, reverse=True):
            inside = [game for game in games if game.day.year == year]
            goals, points = sum(game.goals for game in inside), sum(game.points for game in inside)
            years.append(
                {
                    "year": year,
                    "games_played": len(inside),
                    "goals_scored": goals,
                    "fantasy_points": points,
                    "minutes_per_goal": float(rounded(Fraction(len(inside) * minutes, goals))) if goals > 0 else None,
                    "points_per_game": float(rounded(Fraction(points, len(inside)))),
                }
            )
        row["yearly_stats"] = years
        top = max(
            (year for year in years if year["goals_scored"] > 0),
            key=lambda y: (y["goals_scored"], y["year"]),
            default=None,
        )
        row["most_season_goals"] = top["goals_scored"] if top else None
        row["most_season_goals_year"] = str(top["year"]) if top else None

        for kind in STREAKS:
            longest = max(history.runs(player, kind), key=lambda run: (run.length, run.last_match), default=None)
            row[f"{kind}_streak"] = longest.length if longest else 0
            row[f"{kind}_streak_dates"] = f"{longest.start} to {longest.end}" if longest else None
        rows.append(row)
    return rows


def season_race_data(history: History) -> Rows:
    half = history.half_on(history.today)
    if half is None:
        return []
    season = half.season
    rows = []
    for period, start, end in (
        ("whole_season", season.start_date, season.end_date),
        ("current_half", half.start, half.end),
    ):
        racers = by_player(within(history.regular_games, start, end))
        ranked = sorted(
            ((sum(game.points for game in games), player, games) for player, games in racers),
            key=lambda entry: (-entry[0], entry[1].name),
        )
        curves: Rows = []
        for _, player, games in [entry for entry in ranked if entry[0] > 0][:5]:
            points, running = [{"date": str(start), "points": 0}], 0
            for game in games:
                running += game.points
                points.append({"date": str(game.day), "points": running})
            curves.append({"player_id": player.player_id, "name": player.name, "cumulative_data": points})
        rows.append(
            {
                "season_year": season.start_date.year,
                "period_type": period,
                "player_data": sorted(curves, key=lambda curve: curve["player_id"]),
                "season_id": season.id,
            }
        )
    return rows


def player_teammate_stats(history: History) -> Rows:
    rows = []
    for player in history.players.values():
        mine = {game.match.match_id: game for game in history.games_of(player)}
        entries = []
        for mate in history.regulars:
            if mate is player or mate.is_retired:
                continue
            common = [
                mine[game.match.match_id]
                for game in history.games_of(mate)
                if game.match.match_id in mine and game.side is not None and mine[game.match.match_id].side == game.side
            ]
            if len(common) >= 10:
                average = Fraction(sum(game.points for game in common), len(common))
                entries.append((-average, -len(common), mate.name, mate.player_id))
        entries.sort()
        if entries:
            rows.append(
                {
                    "player_id": player.player_id,
                    "teammate_chemistry_all": [
                        {
                            "player_id": mate_id,
                            "name": name,
                            "games_played_with": -games,
                            "average_fantasy_points_with": float(rounded(-average, 2)),
                        }
                        for average, games, name, mate_id in entries
                    ],
                }
            )
    return rows
