"""The report of the latest match, computed the plain way.

The rules are in `oracle`, the other tables in `oracle_tables`.
"""

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any

from stats_pipeline_tests.sql.oracle import PLATFORM, Game, History, Shown, by_player, margin

Row = dict[str, Any]
Rows = list[Row]


def match_report(history: History) -> Rows:
    latest = history.latest
    if latest is None:
        return []
    lineup = sorted((game for game in history.games if game.match is latest), key=lambda game: game.player.name)
    regulars = [game for game in lineup if not game.player.is_ringer]
    half = history.half_on(latest.match_date) if regulars else None
    season_start = half.season.start_date if half else None
    half_start = half.start if half else None
    on_fire, grim_reaper = form_players(history, latest.match_date)
    return [
        {
            "match_id": latest.match_id,
            "match_date": latest.match_date,
            "team_a_score": latest.team_a_score,
            "team_b_score": latest.team_b_score,
            "team_a_players": [game.player.name for game in lineup if game.side == "A"],
            "team_b_players": [game.player.name for game in lineup if game.side == "B"],
            "team_a_scorers": scorers(lineup, "A", latest.team_a_own_goals),
            "team_b_scorers": scorers(lineup, "B", latest.team_b_own_goals),
            "game_milestones": game_milestones(history, regulars),
            "goal_milestones": goal_milestones(history, regulars),
            "season_goal_leaders": leaders(history, season_start, "goals"),
            "season_fantasy_leaders": leaders(history, season_start, "points"),
            "half_season_goal_leaders": leaders(history, half_start, "goals"),
            "half_season_fantasy_leaders": leaders(history, half_start, "points"),
            "on_fire_player_id": on_fire,
            "grim_reaper_player_id": grim_reaper,
            "streaks": current_streaks(history) if regulars else [],
            "goal_streaks": goal_streaks(history) if regulars else [],
            "feat_breaking_data": feats(history, regulars) if regulars else [],
            "config_values": {
                key: history.settings.number(key, default)
                for key, default in (
                    ("win_streak_threshold", 4),
                    ("unbeaten_streak_threshold", 6),
                    ("loss_streak_threshold", 4),
                    ("winless_streak_threshold", 6),
                    ("goal_streak_threshold", 3),
                    ("game_milestone_threshold", 50),
                    ("goal_milestone_threshold", 25),
                )
            },
        }
    ]


def scorers(lineup: list[Game], side: str, own_goals: int) -> str:
    labels = [
        game.player.name if game.goals == 1 else f"{game.player.name} ({game.goals})"
        for game in lineup
        if game.side == side and game.goals > 0
    ]
    if own_goals > 0:
        labels.append(f"OG ({own_goals})")
    return ", ".join(labels)


def by_value(entries: Iterable[tuple[str, int]]) -> Rows:
    return [{"name": name, "value": value} for name, value in sorted(entries, key=lambda entry: (-entry[1], entry[0]))]


def game_milestones(history: History, regulars: list[Game]) -> Rows:
    step = history.settings.number("game_milestone_threshold", 50)
    counts = [(game.player.name, len(history.games_of(game.player))) for game in regulars]
    return by_value((name, count) for name, count in counts if step > 0 and count % step == 0)


def goal_milestones(history: History, regulars: list[Game]) -> Rows:
    step = history.settings.number("goal_milestone_threshold", 25)
    reached = []
    for game in regulars:
        after = sum(other.goals for other in history.games_of(game.player))
        before = after - game.goals
        marks = [mark for mark in range(step, after + 1, step) if mark > before] if step > 0 else []
        if marks:
            reached.append((game.player.name, marks[-1]))
    return by_value(reached)


def leaders(history: History, start: date | None, metric: str) -> Rows:
    if start is None or history.latest is None:
        return []
    day = history.latest.match_date

    def ranking(until: date) -> list[tuple[str, int]]:
        games = [game for game in history.regular_games if start <= game.day <= until]
        values = [(player.name, sum(getattr(game, metric) for game in mine)) for player, mine in by_player(games)]
        return sorted(((name, value) for name, value in values if value > 0), key=lambda entry: (-entry[1], entry[0]))

    now, before = ranking(day), ranking(day - timedelta(days=1))
    first = [(name, value) for name, value in now if value == now[0][1]]
    previous, previous_value = before[0] if before else (None, None)

    def change(name: str) -> str:
        if previous is None:
            return "new_leader"
        if len(first) > 1:
            return "tied"
        return "remains" if previous == name else "overtake"

    return [
        {
            "new_leader": name,
            f"new_leader_{metric}": value,
            "previous_leader": previous,
            f"previous_leader_{metric}": previous_value,
            "change_type": change(name),
        }
        for name, value in first
    ]


def form_players(history: History, day: date) -> tuple[int | None, int | None]:
    window = history.settings.positive("on_fire_grim_reaper_window_days", 45)
    minimum = history.settings.positive("on_fire_grim_reaper_min_games", 4)
    inside = [game for game in history.regular_games if day - timedelta(days=window) <= game.day <= day]

    def merit(games: list[Game]) -> tuple[int, ...]:
        return (
            sum(game.points for game in games),
            sum(game.goals for game in games),
            -sum(game.opponent or 0 for game in games),
            sum(game.clean_sheet for game in games),
            sum(game.heavy_win for game in games),
            -sum(game.heavy_loss for game in games),
        )

    rated = [(merit(games), player) for player, games in by_player(inside) if len(games) >= minimum]
    if not rated:
        return None, None
    rated.sort(key=lambda entry: entry[1].name)
    return max(rated, key=lambda entry: entry[0])[1].player_id, min(rated, key=lambda entry: entry[0])[1].player_id


def length_now(history: History, player: Shown, kind: str) -> int:
    run = history.current(player, kind)
    return run.length if run else 0


def active_regulars(history: History) -> list[Shown]:
    return [player for player in history.regulars if not player.is_retired and history.games_of(player)]


RESULT_STREAKS = (
    ("win", "win", "win_streak_threshold", 4),
    ("unbeaten", "undefeated", "unbeaten_streak_threshold", 6),
    ("loss", "losing", "loss_streak_threshold", 4),
    ("winless", "winless", "winless_streak_threshold", 6),
)


def current_streaks(history: History) -> Rows:
    found = []
    for player in active_regulars(history):
        for name, kind, key, default in RESULT_STREAKS:
            length = length_now(history, player, kind)
            if length >= history.settings.number(key, default):
                found.append({"name": player.name, "streak_type": name, "streak_count": length})
                break
    return sorted(found, key=lambda entry: (-entry["streak_count"], entry["name"]))


def goal_streaks(history: History) -> Rows:
    found = []
    for player in active_regulars(history):
        run = history.current(player, "scoring")
        if run and run.length >= history.settings.number("goal_streak_threshold", 3):
            goals = sum(game.goals for game in run.games)
            found.append({"name": player.name, "matches_with_goals": run.length, "goals_in_streak": goals})
    return sorted(found, key=lambda entry: (-entry["matches_with_goals"], -entry["goals_in_streak"], entry["name"]))


def feats(history: History, regulars: list[Game]) -> Rows:
    *earlier, latest = history.matches
    if not earlier:
        return []
    number = history.settings.number
    past = [game for game in history.regular_games if game.match is not latest]
    streak_kinds = [(f"{name}_streak", kind, number(key, default)) for name, kind, key, default in RESULT_STREAKS]
    streak_kinds.append(("goal_streak", "scoring", number("goal_streak_threshold", 3)))
    streak_kinds.append(("attendance_streak", "attendance", number("min_streak_length", 3)))

    candidates: list[tuple[str, str, int | None, int, int]] = []
    most_goals = max((0, *(game.goals for game in past)))
    for game in regulars:
        if game.goals >= PLATFORM["min_goals_for_pb"]:
            candidates.append(("most_goals_in_game", game.player.name, game.player.player_id, game.goals, most_goals))
    for feat_type, kind, minimum in streak_kinds:
        record = max((history.longest(player, kind, earlier) for player in history.regulars), default=0)
        for game in regulars:
            length = length_now(history, game.player, kind)
            if length >= minimum:
                candidates.append((feat_type, game.player.name, game.player.player_id, length, record))
    if margin(latest):
        record = max((margin(game.match) for game in past), default=0)
        candidates.append(("biggest_victory", "Team Result", None, margin(latest), record))

    rows = [
        {
            "feat_type": feat_type,
            "player_name": name,
            "player_id": player_id,
            "new_value": value,
            "current_record": record,
            "status": "broken" if value > record else "equaled",
        }
        for feat_type, name, player_id, value, record in candidates
        if value >= record
    ]
    return sorted(
        rows, key=lambda row: (row["status"] != "broken", -row["new_value"], row["player_name"], row["feat_type"])
    )
