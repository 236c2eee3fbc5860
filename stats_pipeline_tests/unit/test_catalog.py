"""The catalog against what it stands for: the app's own list of functions, the SQL files, the tables."""

import re
from dataclasses import replace

from stats_pipeline.catalog import OPTIONAL_STATS_FUNCTIONS, STATS_FUNCTIONS, dependents, select_functions
from stats_pipeline.settings import SQL_ROOT

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
"""
EVERYTHING = STATS_FUNCTIONS + OPTIONAL_STATS_FUNCTIONS


def test_names_rpcs_and_tags_are_the_apps() -> None:
    ours = [f"{function.name} {function.rpc} {','.join(function.cache_tags)}" for function in STATS_FUNCTIONS]
    assert ours == APP.split("\n")[1:-1]


def test_eleven_tags_and_no_table_is_filled_twice() -> None:
    tags = [tag for function in STATS_FUNCTIONS for tag in function.cache_tags]
    assert len(tags) == len(set(tags)) == 11
    tables = [table for function in EVERYTHING for table in function.tables]
    assert len(tables) == len(set(tables))


def test_every_rpc_has_a_file_of_its_own_and_no_file_an_unknown_one() -> None:
    files = {file.stem.split("_", 1)[1] for file in (SQL_ROOT / "stats").glob("1*.sql")}
    assert files == {function.rpc for function in EVERYTHING}


def test_tables_exist_in_the_reference_set() -> None:
    schema = "".join(file.read_text() for file in sorted((SQL_ROOT / "stats").glob("0[12]*.sql")))
    created = set(re.findall(r"create table (?:if not exists )?public\.(\w+)", schema))
    used = {table for function in EVERYTHING for table in (*function.reads, *function.tables)}
    assert used <= created


def test_no_function_reads_what_another_one_fills() -> None:
    filled = {table for function in EVERYTHING for table in function.tables}
    for function in EVERYTHING:
        (file,) = (SQL_ROOT / "stats").glob(f"1*_{function.rpc}.sql")
        mentioned = set(re.findall(r"public\.(\w+)", file.read_text()))
        assert mentioned & filled <= set(function.tables), function.rpc


def test_optional_functions_run_only_when_they_are_named() -> None:
    assert select_functions() == STATS_FUNCTIONS
    assert select_functions(("update_aggregated_player_teammate_stats",)) == EVERYTHING


def test_what_comes_after_a_function_directly_or_through_others() -> None:
    first, second, third, fourth, fifth = STATS_FUNCTIONS[:5]
    chain = (
        first,
        replace(second, after=(first.rpc,)),
        replace(third, after=(second.rpc, first.rpc)),
        replace(fourth, after=(third.rpc,)),
        replace(fifth, after=()),
    )
    assert dependents(first.rpc, chain) == {second.rpc, third.rpc, fourth.rpc}
    assert dependents(third.rpc, chain) == {fourth.rpc}
    assert dependents(fifth.rpc, chain) == set()
