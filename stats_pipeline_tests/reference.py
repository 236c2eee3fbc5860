"""The reference set by name: the subject of its own tests, whatever else the catalog lists."""

from stats_pipeline.catalog import ALL_STATS_FUNCTIONS

# The app's list, which its pages and its cache depend on: name, RPC, tags.
APP = """
call-update-half-and-full-season-stats update_half_and_full_season_stats season_stats,half_season_stats
call-update-all-time-stats update_aggregated_all_time_stats all_time_stats
call-update-hall-of-fame update_aggregated_hall_of_fame hall_of_fame
call-update-recent-performance update_aggregated_recent_performance recent_performance
call-update-season-honours-and-records update_aggregated_season_honours_and_records honour_roll
call-update-match-report-cache update_aggregated_match_report_cache match_report
call-update-personal-bests update_aggregated_personal_bests personal_bests
call-update-player-profile-stats update_aggregated_player_profile_stats player_profile_stats
call-update-season-race-data update_aggregated_season_race_data season_race_data
call-update-power-ratings update_power_ratings player_power_rating
""".strip().splitlines()
TEN = tuple(line.split()[1] for line in APP)
RPCS = (*TEN, "update_aggregated_player_teammate_stats")  # the last one is optional

_BY_RPC = {function.rpc: function for function in ALL_STATS_FUNCTIONS}
FUNCTIONS = tuple(_BY_RPC[rpc] for rpc in RPCS)
TABLES = tuple(table for function in FUNCTIONS for table in function.tables)
