"""The requirements of each stats function of the catalog, including new ones: a failing test says what is missing.

The rules are those of `docs/stats-functions.md`. The results of a function are tested elsewhere, against an oracle.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline.catalog import ALL_STATS_FUNCTIONS, StatsFunction
from stats_pipeline.demo.league import DEFAULT_TENANT
from stats_pipeline.settings import SQL_ROOT
from stats_pipeline_tests.sql.club import OTHER_TENANT, load, set_today
from stats_pipeline_tests.sql.golden import DAY_3, GOLDEN
from stats_pipeline_tests.sql.oracle_tables import expected

VISITORS = ("anon", "authenticated", "public")
NOT_CHECKED = re.compile(r"^-- Not checked independently: \S.{9,}$", re.MULTILINE)

each_function = pytest.mark.parametrize("function", ALL_STATS_FUNCTIONS, ids=lambda function: function.rpc)


@pytest.fixture
def club(stats: Connection[Any]) -> Connection[Any]:
    """A connection, in a transaction, to a database with the golden club, on the day of its last match."""
    load(stats, GOLDEN)
    set_today(stats, DAY_3)
    return stats


@pytest.fixture(scope="module")
def two(create_database: Callable[..., str], template: str) -> Iterator[tuple[Connection[Any], Connection[Any]]]:
    """Two connections to a database without rows."""
    url = create_database(template)
    with psycopg.connect(url) as first, psycopg.connect(url, autocommit=True) as second:
        yield first, second


def call(connection: Connection[Any], function: StatsFunction, *tenant: object) -> None:
    connection.execute(f"select public.{function.rpc}({', '.join(['%s'] * len(tenant))})".encode(), tenant)


def writes(connection: Connection[Any]) -> dict[str, int]:
    """How many rows of each of the app's tables this transaction has written."""
    rows = connection.execute(
        "select relname::text, n_tup_ins + n_tup_upd + n_tup_del from pg_stat_xact_user_tables"
        " where schemaname = 'public'"
    )
    return dict(rows.fetchall())


def test_every_file_without_a_number_is_a_function_of_the_catalog() -> None:
    files = {file.stem for file in (SQL_ROOT / "stats").glob("*.sql") if not file.name[0].isdigit()}
    assert files == {function.rpc for function in ALL_STATS_FUNCTIONS}


@each_function
def test_it_is_called_with_a_tenant_or_none_and_returns_nothing(
    stats: Connection[Any], function: StatsFunction
) -> None:
    rows = stats.execute(
        "select pg_get_function_arguments(oid), pg_get_function_result(oid) from pg_proc"
        " where pronamespace = 'public'::regnamespace and proname = %s",
        (function.rpc,),
    ).fetchall()
    assert rows == [(f"target_tenant_id uuid DEFAULT '{DEFAULT_TENANT}'::uuid", "void")]


@each_function
def test_its_search_path_is_pinned(stats: Connection[Any], function: StatsFunction) -> None:
    [(pinned,)] = stats.execute(
        "select 'search_path=pg_catalog, pg_temp' = any(proconfig) from pg_proc where oid = %s::regproc",
        (f"public.{function.rpc}",),
    ).fetchall()
    assert pinned


@each_function
def test_the_app_may_call_it_and_nobody_else(stats: Connection[Any], function: StatsFunction) -> None:
    may = stats.execute(
        "select r, has_function_privilege(r, %s::regproc, 'execute') from unnest(%s::text[]) as r",
        (f"public.{function.rpc}", ["service_role", *VISITORS]),
    ).fetchall()
    assert dict(may) == {"service_role": True, **dict.fromkeys(VISITORS, False)}


@each_function
def test_its_tables_are_the_apps_and_nobody_elses(stats: Connection[Any], function: StatsFunction) -> None:
    for table in function.tables:
        may = stats.execute(
            "select r, has_table_privilege(r, %s::regclass, 'select, insert, update, delete')"
            " from unnest(%s::text[]) as r",
            (f"public.{table}", ["service_role", *VISITORS]),
        ).fetchall()
        assert dict(may) == {"service_role": True, **dict.fromkeys(VISITORS, False)}
        [(is_on,)] = stats.execute(
            "select relrowsecurity from pg_class where oid = %s::regclass", (f"public.{table}",)
        ).fetchall()
        assert is_on, f"row level security of {table}"


@each_function
def test_the_app_can_call_it_and_it_writes_to_its_own_tables_alone(
    club: Connection[Any], function: StatsFunction
) -> None:
    before = writes(club)
    club.execute("set local role service_role")
    call(club, function, GOLDEN.tenant_id)
    written = {table for table, rows in writes(club).items() if rows > before.get(table, 0)}
    assert "cache_metadata" in written
    assert written <= {*function.tables, "cache_metadata"}


@each_function
def test_it_writes_rows_of_the_tenant_it_is_called_for(club: Connection[Any], function: StatsFunction) -> None:
    call(club, function, OTHER_TENANT)
    call(club, function)
    for table in function.tables:
        found = club.execute(f"select distinct tenant_id from public.{table}".encode()).fetchall()
        assert set(found) <= {(OTHER_TENANT,), (GOLDEN.tenant_id,)}
    club.execute("delete from public.matches")
    before = {table: club.execute(f"select * from public.{table}".encode()).fetchall() for table in function.tables}
    call(club, function, OTHER_TENANT)
    for table, rows in before.items():
        assert club.execute(f"select * from public.{table}".encode()).fetchall() == rows


@each_function
def test_the_second_call_writes_nothing(club: Connection[Any], function: StatsFunction) -> None:
    rows = {}
    for number in range(2):
        call(club, function)
        for table in function.tables:
            rows[number, table] = club.execute(f"select ctid, * from public.{table}".encode()).fetchall()
    for table in function.tables:
        assert rows[0, table] == rows[1, table]


@each_function
def test_calls_for_one_tenant_take_turns_on_its_own_lock(
    two: tuple[Connection[Any], Connection[Any]], function: StatsFunction
) -> None:
    first, second = two
    is_free = "select pg_try_advisory_xact_lock(hashtextextended(%s || ':' || %s, 0))"
    with first.transaction(force_rollback=True):
        call(first, function, GOLDEN.tenant_id)
        assert second.execute(is_free, (function.rpc, str(GOLDEN.tenant_id))).fetchone() == (False,)
        assert second.execute(is_free, (function.rpc, str(OTHER_TENANT))).fetchone() == (True,)


@each_function
def test_what_it_stores_is_computed_independently_or_its_file_says_why_not(function: StatsFunction) -> None:
    """Either `expected` in `oracle_tables` has its tables, or its SQL file has such a line:

    -- Not checked independently: a copy of one column, without arithmetic
    """
    without = set(function.tables) - expected(GOLDEN, DAY_3).keys()
    has_reason = NOT_CHECKED.search((SQL_ROOT / "stats" / f"{function.rpc}.sql").read_text()) is not None
    assert bool(without) == has_reason, without
