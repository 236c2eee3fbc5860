"""Season honours and all-time records, computed the plain way.

The rules are in `oracle`, the other tables in `oracle_tables`.
"""

from typing import Any

from stats_pipeline_tests.sql.oracle import History, Played, Run, Shown, by_player, margin, within

Row = dict[str, Any]
Rows = list[Row]


def podium(entries: list[tuple[str, int]], metric: str) -> Row:
    ranked = sorted(entries, key=lambda entry: (-entry[1], entry[0]))
    places = [[{"name": name, metric: value}] for name, value in ranked[:3]]
    places += [[]] * (3 - len(places))
    return dict(zip(("winners", "runners_up", "third_place"), places, strict=True))


def season_honours(history: History) -> Rows:
    rows = []
    for season in history.seasons:
        if season.end_date >= history.today:
            continue
        eligible = [
            (player, games)
            for player, games in by_player(within(history.regular_games, season.start_date, season.end_date))
            if len(games) >= history.settings.number("min_games_for_honours", 10)
        ]
        if not eligible:
            continue
        years = sorted({season.start_date.year, season.end_date.year})
        rows.append(
            {
                "season_id": season.id,
                "season_name": "-".join(map(str, years)),
                "season_winners": podium(
                    [(player.name, sum(game.points for game in games)) for player, games in eligible], "points"
                ),
                "top_scorers": podium(
                    [(player.name, sum(game.goals for game in games)) for player, games in eligible], "goals"
                ),
                "year": None,
            }
        )
    return rows


RECORD_STREAKS = {
    "Win Streak": "win",
    "Losing Streak": "losing",
    "Winless Streak": "winless",
    "Undefeated Streak": "undefeated",
}


def records(history: History) -> Row:
    def holders(runs: list[tuple[Shown, Run]]) -> Rows:
        longest = max((run.length for _, run in runs), default=0)
        best = [(player, run) for player, run in runs if run.length == longest]
        best.sort(key=lambda entry: (-entry[1].end.toordinal(), entry[0].name, entry[1].last_match))
        return [
            {"name": player.name, "streak": run.length, "start_date": str(run.start), "end_date": str(run.end)}
            for player, run in best
        ]

    def all_runs(kind: str) -> list[tuple[Shown, Run]]:
        return [(player, run) for player in history.regulars for run in history.runs(player, kind)]

    attendance = []
    minimum = history.settings.number("min_streak_length", 3)
    for player in history.regulars:
        runs = [run for run in history.runs(player, "attendance") if run.length >= minimum]
        if runs:
            attendance.append((player, max(runs, key=lambda run: (run.length, run.last_match))))

    return {
        "most_goals_in_game": most_goals_in_game(history),
        "biggest_victory": biggest_victory(history),
        "consecutive_goals_streak": holders(all_runs("scoring")),
        "streaks": {
            name: {"holders": holders(all_runs(kind))} for name, kind in RECORD_STREAKS.items() if all_runs(kind)
        },
        "attendance_streak": holders(attendance),
    }


def most_goals_in_game(history: History) -> Rows:
    most = max((game.goals for game in history.regular_games), default=0)
    best = [game for game in history.regular_games if game.goals == most and most > 0]
    best.sort(key=lambda game: (-game.day.toordinal(), game.player.name, game.match.match_id))
    return [
        {"name": game.player.name, "goals": game.goals, "date": str(game.day), "score": game.score} for game in best
    ]


def biggest_victory(history: History) -> Rows:
    def side(match: Played, name: str) -> str | None:
        games = [game for game in history.regular_games if game.match is match and game.side == name]
        labels = [
            f"{game.player.name} ({game.goals})" if game.goals > 0 else game.player.name
            for game in sorted(games, key=lambda game: game.player.name)
        ]
        return ", ".join(labels) or None

    with_regulars = {game.match.match_id for game in history.regular_games}
    candidates = [match for match in history.matches if match.match_id in with_regulars and margin(match) >= 1]
    biggest = max(map(margin, candidates), default=0)
    best = [match for match in candidates if margin(match) == biggest]
    best.sort(key=lambda match: (-match.match_date.toordinal(), match.match_id))
    return [
        {
            "team_a_score": match.team_a_score,
            "team_b_score": match.team_b_score,
            "team_a_players": side(match, "A"),
            "team_b_players": side(match, "B"),
            "date": str(match.match_date),
        }
        for match in best
    ]
