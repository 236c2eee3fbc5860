"""The stats functions, as data: what each one is called, reads, fills, invalidates, and how long it may take.

Ops, assets, results, tags and the CLI's live table all follow from this list, so a new function is one entry here
and one SQL function in the database. How a function is run belongs to `defs/`, what it computes to `sql/stats/`.
"""

from collections.abc import Collection
from dataclasses import dataclass

DEFAULT_TIMEOUT_SECONDS = 45  # what the whole refresh took before; a single function that needs longer is stuck
PLAYED = ("players", "player_matches", "matches")


@dataclass(frozen=True)
class StatsFunction:
    """One entry. `after` names the RPCs whose output this one reads; the reference set has none."""

    name: str
    rpc: str
    cache_tags: tuple[str, ...]
    tables: tuple[str, ...]
    reads: tuple[str, ...]
    summary: str
    timeout_seconds: int = DEFAULT_TIMEOUT_SECONDS
    after: tuple[str, ...] = ()


STATS_FUNCTIONS: tuple[StatsFunction, ...] = (
    StatsFunction(
        name="call-update-half-and-full-season-stats",
        rpc="update_half_and_full_season_stats",
        cache_tags=("season_stats", "half_season_stats"),
        tables=("aggregated_season_stats", "aggregated_half_season_stats"),
        reads=(*PLAYED, "seasons", "app_config"),
        summary="Totals per player for every season and for the current half season.",
    ),
    StatsFunction(
        name="call-update-all-time-stats",
        rpc="update_aggregated_all_time_stats",
        cache_tags=("all_time_stats",),
        tables=("aggregated_all_time_stats",),
        reads=(*PLAYED, "app_config"),
        summary="Career totals per player.",
    ),
    StatsFunction(
        name="call-update-hall-of-fame",
        rpc="update_aggregated_hall_of_fame",
        cache_tags=("hall_of_fame",),
        tables=("aggregated_hall_of_fame",),
        reads=(*PLAYED, "app_config"),
        summary="The best of all time by goals, win percentage and fantasy points.",
    ),
    StatsFunction(
        name="call-update-recent-performance",
        rpc="update_aggregated_recent_performance",
        cache_tags=("recent_performance",),
        tables=("aggregated_recent_performance",),
        reads=PLAYED,
        summary="The last five games of every regular.",
    ),
    StatsFunction(
        name="call-update-season-honours-and-records",
        rpc="update_aggregated_season_honours_and_records",
        cache_tags=("honour_roll",),
        tables=("aggregated_season_honours", "aggregated_records"),
        reads=(*PLAYED, "seasons", "app_config"),
        summary="Podiums of finished seasons and the all-time records.",
    ),
    StatsFunction(
        name="call-update-match-report-cache",
        rpc="update_aggregated_match_report_cache",
        cache_tags=("match_report",),
        tables=("aggregated_match_report",),
        reads=(*PLAYED, "seasons", "app_config", "superadmin_config"),
        summary="The report of the latest match: teams, milestones, leaders, streaks, feats.",
    ),
    StatsFunction(
        name="call-update-personal-bests",
        rpc="update_aggregated_personal_bests",
        cache_tags=("personal_bests",),
        tables=("aggregated_personal_bests",),
        reads=(*PLAYED, "superadmin_config"),
        summary="Personal bests set in the latest match.",
    ),
    StatsFunction(
        name="call-update-player-profile-stats",
        rpc="update_aggregated_player_profile_stats",
        cache_tags=("player_profile_stats",),
        tables=("aggregated_player_profile_stats",),
        reads=(*PLAYED, "app_config"),
        summary="The career page of every regular: totals, bests, streaks, years.",
    ),
    StatsFunction(
        name="call-update-season-race-data",
        rpc="update_aggregated_season_race_data",
        cache_tags=("season_race_data",),
        tables=("aggregated_season_race_data",),
        reads=(*PLAYED, "seasons", "app_config"),
        summary="Points curves of the five best players of the season and of its current half.",
    ),
    StatsFunction(
        name="call-update-power-ratings",
        rpc="update_power_ratings",
        cache_tags=("player_power_rating",),
        tables=("aggregated_performance_ratings",),
        reads=(*PLAYED, "app_config", "superadmin_config"),
        summary="Ratings that fade with time, for balancing teams.",
    ),
)

# In the reference set, but not part of a refresh unless STATS_OPTIONAL_FUNCTIONS names its RPC.
OPTIONAL_STATS_FUNCTIONS: tuple[StatsFunction, ...] = (
    StatsFunction(
        name="call-update-player-teammate-stats",
        rpc="update_aggregated_player_teammate_stats",
        cache_tags=("player_teammate_stats",),
        tables=("aggregated_player_teammate_stats",),
        reads=(*PLAYED, "app_config"),
        summary="With whom each player scores best.",
    ),
)


def select_functions(optional_rpcs: tuple[str, ...] = ()) -> tuple[StatsFunction, ...]:
    """The ten functions, and those of the optional ones that are named."""
    return STATS_FUNCTIONS + tuple(f for f in OPTIONAL_STATS_FUNCTIONS if f.rpc in optional_rpcs)


def dependents(rpc: str, functions: Collection[StatsFunction]) -> set[str]:
    """The RPCs that come after this one, directly or through others."""
    direct = {function.rpc for function in functions if rpc in function.after}
    return direct.union(*(dependents(later, functions) for later in direct))
