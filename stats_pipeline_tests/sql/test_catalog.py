"""The reference set as a whole: its RPCs as the app sees them, what visitors may not access, and re-applying.

The requirements of each function, including new ones, are in `test_every_function.py`.
"""

from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline.settings import SQL_ROOT
from stats_pipeline_tests.reference import RPCS, TABLES
from stats_pipeline_tests.sql.club import load, refresh, stored
from stats_pipeline_tests.sql.golden import DAY_3, GOLDEN

FILES = sorted((SQL_ROOT / "stats").glob("*.sql"))


def test_every_rpc_is_there_after_applying_twice(stats: Connection[Any]) -> None:
    load(stats, GOLDEN)
    refresh(stats, today=DAY_3)
    before = stored(stats)
    for file in FILES:
        stats.execute(file.read_bytes())
    assert stored(stats) == before
    found = stats.execute(
        "select proname::text, pg_get_function_arguments(oid), pg_get_function_result(oid), proconfig @> %s"
        " from pg_proc where pronamespace = 'public'::regnamespace and proname = any(%s)",
        (["search_path=pg_catalog, pg_temp"], list(RPCS)),
    ).fetchall()
    argument = "target_tenant_id uuid DEFAULT '00000000-0000-0000-0000-000000000001'::uuid"
    assert sorted(found) == sorted((rpc, argument, "void", True) for rpc in RPCS)


def test_helpers_are_closed_to_the_data_api(stats: Connection[Any]) -> None:
    helpers = {file.stem.partition("_")[2] for file in FILES if "0300" <= file.name < "1000"}
    rows = stats.execute(
        "select p.proname::text, has_function_privilege('anon', p.oid, 'execute') from pg_proc as p"
        " where p.pronamespace = 'stats_pipeline'::regnamespace and p.proname = any(%s)",
        (list(helpers),),
    ).fetchall()
    assert dict(rows) == dict.fromkeys(helpers, False)


def test_service_role_can_refresh_everything(stats: Connection[Any]) -> None:
    load(stats, GOLDEN)
    stats.execute("set local role service_role")
    refresh(stats, today=DAY_3)
    assert stored(stats)["aggregated_all_time_stats"]


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_the_tables_are_closed_to_visitors(stats: Connection[Any], role: str) -> None:
    stats.execute(f"set local role {role}".encode())
    for table in (*TABLES, "players", "matches", "player_matches", "seasons", "app_config", "cache_metadata"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), stats.transaction():
            stats.execute(f"select from public.{table}".encode())


def test_row_level_security_is_on_everywhere(stats: Connection[Any]) -> None:
    rows = stats.execute(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace"
        " and relkind = 'r' and not relrowsecurity"
    ).fetchall()
    assert rows == []
