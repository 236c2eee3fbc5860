"""`stats-pipeline doctor` tries the life of a job, with `--functions` also each function, and rolls everything back."""

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg import Connection

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.demo import league
from stats_pipeline_tests.acceptance.conftest import Doctor, Result, run
from stats_pipeline_tests.integration import steps

HALL_OF_FAME, RATINGS = STATS_FUNCTIONS[2].rpc, STATS_FUNCTIONS[9].rpc
ALL = len(STATS_FUNCTIONS)
CLUB, OTHER_CLUB = str(steps.TENANT), str(steps.OTHER_TENANT)


def test_trying_leaves_nothing_and_waits_for_nobody(doctor: Doctor, query: Callable[..., Any]) -> None:
    query('select public.enqueue_stats_job(\'{"triggeredBy": "admin", "requestId": "mine"}\')')
    before = query("select id, status, xmin::text from public.background_job_status")
    assert doctor()["jobs"][0] == "ok"
    assert query("select id, status, xmin::text from public.background_job_status") == before
    for table in ("stats_pipeline.lease", "stats_pipeline.set_aside", "stats_pipeline.function_result"):
        assert query(f"select count(*) from {table}") == [{"count": 0}]


def tried(home: Path, url: str, **settings: str) -> tuple[list[tuple[str, str]], Result]:
    """What `--functions` has found, and how the command ended."""
    finished = run(home, "doctor", "--functions", "--json", STATS_DATABASE_URL=url, **settings)
    found = [(one["state"], one["said"]) for one in json.loads(finished.stdout) if one["subject"] == "trial"]
    return found, finished


def test_every_function_is_tried_for_every_club_and_nothing_kept(
    tmp_path: Path, database_url: str, connection: Connection[Any], query: Callable[..., Any]
) -> None:
    with connection.transaction():
        league.load(connection, league.generate(last_match=date.today()))
    [club] = query("select stats_pipeline.default_tenant()::text as id")
    query(
        f"create or replace function public.{HALL_OF_FAME}(target_tenant_id uuid default null) returns void "
        "language plpgsql as $$ begin insert into public.notes values (1); raise exception 'no\nfame' "
        "using errcode = 'P7777'; end $$; create table public.notes (n integer)"
    )
    before = snapshot(query)
    found, finished = tried(tmp_path, database_url, STATS_TENANTS=f"{club['id']},{OTHER_CLUB}")
    assert snapshot(query) == before
    for name, broken, summary in ((club["id"], found[0], found[1]), (OTHER_CLUB, found[2], found[3])):
        assert broken[0] == summary[0] == "problem"
        assert re.fullmatch(
            rf"{HALL_OF_FAME} fails for club {name} after 0\.\d s: no fame \(SQLSTATE P7777\)", broken[1]
        )
        assert re.fullmatch(
            rf"{ALL - 1} of {ALL} functions work for club {name}: tried in \d+\.\d s, and rolled back", summary[1]
        )
    assert f"Trying {HALL_OF_FAME} for club {OTHER_CLUB} …" in finished.stderr
    assert len(found) == 4


def test_a_function_that_waits_for_a_lock_or_breaks_a_deferred_constraint_is_named(
    tmp_path: Path, database_url: str, query: Callable[..., Any], connection: Connection[Any]
) -> None:
    query(
        "create table public.notes (n integer primary key deferrable initially deferred); insert into notes values (1)"
    )
    query("create table public.held (n integer)")
    for rpc, body in ((HALL_OF_FAME, "insert into public.notes values (1)"), (RATINGS, "lock public.held")):
        query(
            f"create or replace function public.{rpc}(target_tenant_id uuid default null) returns void "
            f"language plpgsql as $$ begin {body}; end $$"
        )
    with connection.transaction():
        query("lock public.held")
        found, _ = tried(tmp_path, database_url)
    said = [said for state, said in found if state == "problem"]
    assert re.search(rf"^{HALL_OF_FAME} fails for club default .*\(SQLSTATE 23505\)", said[0])
    assert re.search(rf"^{RATINGS} fails for club default after 1\.\d s: .*\(SQLSTATE 55P03\)", said[1])


def test_a_club_with_an_open_run_is_left_alone(tmp_path: Path, database_url: str, connection: Connection[Any]) -> None:
    steps.enqueue(connection, UUID(CLUB))
    steps.lease(connection)
    found, finished = tried(tmp_path, database_url, STATS_TENANTS=f"{CLUB},{OTHER_CLUB}")
    assert [state for state, _ in found] == ["warning", "ok"]
    assert found[0][1].startswith(f"club {CLUB} has an open run: ")
    assert found[1][1].startswith(f"{ALL} of {ALL} functions work for club {OTHER_CLUB}")
    assert f"Trying {HALL_OF_FAME} for club {CLUB}" not in finished.stderr


def test_without_being_asked_no_function_is_called(doctor: Doctor, query: Callable[..., Any]) -> None:
    query("create sequence public.calls")
    query(
        f"create or replace function public.{HALL_OF_FAME}(target_tenant_id uuid default null) returns void "
        "language sql as $$ select nextval('public.calls') $$"
    )
    assert "trial" not in doctor()
    assert query("select is_called from public.calls") == [{"is_called": False}]


def snapshot(query: Callable[..., Any]) -> dict[str, int]:
    """Every table, and a sum of all that is in it: also when each row was written."""
    tables = query(
        "select c.oid::regclass::text as name from pg_class as c where c.relkind = 'r' "
        "and c.relnamespace in ('public'::regnamespace, 'stats_pipeline'::regnamespace, 'pgmq'::regnamespace)"
    )
    summed = "select sum(hashtextextended(t.xmin::text || t::text, 0)) as sum from {} as t"
    return {table["name"]: query(summed.format(table["name"]))[0]["sum"] for table in tables}
