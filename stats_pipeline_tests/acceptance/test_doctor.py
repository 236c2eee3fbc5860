"""`stats-pipeline doctor` as its user sees it: each thing that can be wrong, reported with what to do about it."""

import json
import re
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.settings import VERSION
from stats_pipeline_tests.acceptance.app_server import KEY, App
from stats_pipeline_tests.acceptance.conftest import Doctor, Result, findings, run
from stats_pipeline_tests.acceptance.processes import Pipeline
from stats_pipeline_tests.integration import steps

HALL_OF_FAME, RATINGS = STATS_FUNCTIONS[2].rpc, STATS_FUNCTIONS[9].rpc
SENSORS = ("stats_queue", "stats_upkeep", "stats_relay")
ALL = len(STATS_FUNCTIONS)
CLUB, OTHER_CLUB = str(steps.TENANT), str(steps.OTHER_TENANT)


def test_a_pipeline_that_is_up_is_well(pipeline: Pipeline, app: App) -> None:
    settings = {"NEXT_PUBLIC_APP_URL": app.url, "INTERNAL_API_KEY": KEY}
    found = findings(run(pipeline.home, "doctor", "--json", **settings))
    assert {subject: state for subject, (state, _) in found.items()} == {
        **dict.fromkeys(("settings", "database", "functions", "schema", "jobs", "Dagster", "app"), "ok"),
        **dict.fromkeys(("queue", "nightly refresh", "connections"), "ok"),
        "visitors": "warning",
    }
    assert re.fullmatch(
        r"\d can be opened beside those of the running deployment, of STATS_MAX_CONNECTIONS=12", found["connections"][1]
    )
    shown = run(pipeline.home, "doctor", **settings)
    assert shown.returncode == 0
    assert "sensors are running" in shown.stdout


def test_what_is_fine_is_said_with_what_it_was(doctor: Doctor, query: Callable[..., Any]) -> None:
    query('select public.enqueue_stats_job(\'{"triggeredBy": "admin", "requestId": "mine"}\')')
    found = doctor(STATS_CRON="30 4 1 1 *", STATS_TIMEZONE="Asia/Tokyo", STATS_TENANTS=CLUB)
    assert found["settings"] == ("ok", f"all valid; functions: {ALL}, clubs: 1 in STATS_TENANTS")
    assert found["queue"] == ("ok", "jobs waiting: 1")
    next_year = datetime.now(ZoneInfo("Asia/Tokyo")).year + 1
    assert found["nightly refresh"] == (
        "ok",
        f"next {next_year}-01-01 04:30 Asia/Tokyo, while Dagster is running and its schedule was not stopped in its UI",
    )
    [server] = query("select split_part(current_setting('server_version'), ' ', 1) as version")
    said = re.fullmatch(
        r"connected to .+: PostgreSQL (.+), pgmq installed from SQL, (\d+) of (\d+) connections free",
        found["database"][1],
    )
    assert said is not None
    assert said[1] == server["version"]
    assert 0 < int(said[2]) < int(said[3])


def test_a_setting_without_effect_is_a_warning(doctor: Doctor) -> None:
    state, said = doctor(STATS_CORN="0 3 * * *")["settings"]
    assert state == "warning"
    assert said.endswith("did you mean STATS_CRON?")


def beat(query: Callable[..., Any], ago: str, *sensors: str, version: str | None = None) -> None:
    for sensor in sensors or SENSORS:
        query(
            "insert into stats_pipeline.sensor_beat values (%s, 'a-host', %s, clock_timestamp() - %s::interval)",
            sensor,
            version or VERSION,
            ago,
        )


def test_sensors_that_run_are_said_with_version_and_host(doctor: Doctor, query: Callable[..., Any]) -> None:
    beat(query, "1 second")
    assert doctor()["Dagster"] == ("ok", f"sensors are running: version {VERSION} on a-host")


@pytest.mark.parametrize("ago", [None, "10 minutes"])
def test_without_dagster_it_names_the_two_ways_on(doctor: Doctor, query: Callable[..., Any], ago: str | None) -> None:
    if ago is not None:
        beat(query, ago)
    state, said = doctor()["Dagster"]
    assert state == "problem"
    assert ("last sign of a sensor 60" if ago else "no sensor has ever run") in said
    assert "stats-pipeline up" in said
    assert "stats-pipeline run-direct" in said


def test_a_sensor_that_is_silent_is_named(doctor: Doctor, query: Callable[..., Any]) -> None:
    beat(query, "1 second", "stats_queue", "stats_upkeep")
    state, said = doctor()["Dagster"]
    assert state == "problem"
    assert "Silent are the sensors stats_relay: if they were stopped in Dagster's UI, start them there" in said
    assert doctor(NEXT_PUBLIC_APP_URL="", INTERNAL_API_KEY="")["Dagster"][0] == "ok"


def test_sensors_of_another_version_are_a_warning(doctor: Doctor, query: Callable[..., Any]) -> None:
    beat(query, "1 second", version="0.0.9")
    state, said = doctor()["Dagster"]
    assert state == "warning"
    assert f"version 0.0.9 on a-host, but this is {VERSION}" in said


def test_a_function_that_is_missing_is_named(doctor: Doctor, query: Callable[..., Any]) -> None:
    query(f"drop function public.{HALL_OF_FAME}(uuid)")
    state, said = doctor()["functions"]
    assert state == "problem"
    assert said.startswith(f"this role may not call {HALL_OF_FAME}:")


def test_a_database_of_an_older_version_is_told_to_migrate(doctor: Doctor, query: Callable[..., Any]) -> None:
    query("update stats_pipeline.migration set checksum = 'older' where name = 'settle_lease.sql'")
    assert doctor()["schema"] == ("problem", "settle_lease.sql to apply: run `stats-pipeline migrate`")


def test_what_somebody_has_dropped_is_named_and_left(doctor: Doctor, query: Callable[..., Any]) -> None:
    trigger = "select tgenabled from pg_trigger where tgname = 'zz_stats_pipeline_job_queued'"
    query("alter table public.background_job_status disable trigger zz_stats_pipeline_job_queued")
    assert doctor()["schema"] == (
        "problem",
        "trigger zz_stats_pipeline_job_queued is missing or was altered: run `stats-pipeline migrate`",
    )
    assert query(trigger) == [{"tgenabled": "D"}]
    query("alter table public.background_job_status enable trigger zz_stats_pipeline_job_queued")
    query("drop index stats_pipeline.lease_one_open_per_tenant")
    assert doctor()["schema"] == (
        "problem",
        "the index stats_pipeline.lease_one_open_per_tenant is missing: run `stats-pipeline migrate`",
    )


def test_a_database_without_anything_of_ours(doctor: Doctor, create_database: Callable[..., str]) -> None:
    found = doctor(STATS_DATABASE_URL=create_database("template0"))
    assert found["queue"] == ("problem", "pgmq is missing: enable Queues in the Supabase dashboard, then migrate")
    assert found["schema"] == ("problem", "everything to apply: run `stats-pipeline migrate`")
    assert found["functions"][0] == "problem"
    assert found["app"][0] == "ok"


def test_a_database_that_does_not_answer_keeps_nothing_from_being_examined(doctor: Doctor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    found = doctor(STATS_DATABASE_URL=f"postgresql://me:hunter2@127.0.0.1:{port}/app")
    assert found["database"][0] == "problem"
    assert "cannot connect to 127.0.0.1:" in found["database"][1]
    assert "hunter2" not in str(found)
    assert found["app"][0] == "ok"


def test_an_embedded_database_that_is_not_running(tmp_path: Path) -> None:
    found = findings(run(tmp_path, "doctor", "--json"))
    assert found["database"] == (
        "problem",
        "the embedded PostgreSQL is not running: start it with `stats-pipeline up`",
    )
    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize(
    ("settings", "state", "said"),
    [
        ({"NEXT_PUBLIC_APP_URL": "", "INTERNAL_API_KEY": ""}, "warning", "set NEXT_PUBLIC_APP_URL"),
        ({"INTERNAL_API_KEY": "another key altogether"}, "problem", "refuses the call with 401"),
        ({"NEXT_PUBLIC_APP_URL": "http://127.0.0.1:1"}, "problem", "Connect"),
    ],
)
def test_an_app_that_cannot_be_told(doctor: Doctor, settings: dict[str, str], state: str, said: str) -> None:
    found = doctor(**settings)["app"]
    assert found[0] == state
    assert said in found[1]


REFUSED_BY_A_TRIGGER = """
create function public.no_more() returns trigger language plpgsql as $$
begin
    if new.status = 'processing' then raise exception 'not on a Sunday'; end if;
    return new;
end $$;
create trigger no_more before update on public.background_job_status for each row execute function public.no_more();
"""
NO_MADE_UP_CLUB = """
create table public.clubs (id uuid primary key);
alter table public.background_job_status add foreign key (tenant_id) references public.clubs;
"""


def visitor_reads(query: Callable[..., Any]) -> bool:
    """Whether anon reads a job's error, tried with one."""
    query("insert into public.background_job_status (job_payload, status) values ('{}', 'completed')")
    query("set role anon")
    try:
        return bool(query("select error_message from public.background_job_status"))
    except psycopg.errors.InsufficientPrivilege:
        return False
    finally:
        query("reset role")


POLICY = "alter policy background_job_status_read on public.background_job_status"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("select", "error_message and job_payload of every club"),
        (f"{POLICY} using (status = 'completed')", "of rows where (status = 'completed'::text) in"),
        ("alter table public.background_job_status disable row level security", "of every club"),
        (
            "create policy strict on public.background_job_status as restrictive using (tenant_id is null)",
            "of rows where (tenant_id IS NULL) in",
        ),
        (f"{POLICY} to public", "of every club"),
        (
            "revoke select on public.background_job_status from anon; "
            "grant select (id, error_message) on public.background_job_status to anon",
            "may read error_message of every club",
        ),
    ],
    ids=["as planned", "a condition", "no row security", "a restriction", "everybody", "one column"],
)
def test_what_visitors_may_read_is_said(doctor: Doctor, query: Callable[..., Any], change: str, said: str) -> None:
    query(change)
    assert visitor_reads(query)
    found = doctor()["visitors"]
    assert found[0] == "warning"
    assert said in found[1]


@pytest.mark.parametrize(
    "change",
    [
        "revoke select on public.background_job_status from anon",
        "revoke select on public.background_job_status from anon; "
        "grant select (id, status) on public.background_job_status to anon",
        f"{POLICY} to authenticated",
        f"{POLICY} using (false)",
        "create policy nobody on public.background_job_status as restrictive using (false)",
        "drop policy background_job_status_read on public.background_job_status",
        "revoke usage on schema public from public, anon",
    ],
)
def test_visitors_who_may_not_read_are_no_warning(doctor: Doctor, query: Callable[..., Any], change: str) -> None:
    query(change)
    assert not visitor_reads(query)
    assert "visitors" not in doctor()


def test_a_request_id_that_is_a_constant_is_noticed(doctor: Doctor, query: Callable[..., Any]) -> None:
    nightly = 'select public.enqueue_stats_job(\'{"triggeredBy": "cron", "requestId": "nightly"}\')'
    query(nightly)
    query("update public.background_job_status set status = 'completed', completed_at = now()")
    query(nightly)
    assert "requests" not in doctor()
    query("update public.background_job_status set completed_at = now() - interval '1 day'")
    query(nightly)
    state, said = doctor()["requests"]
    assert state == "warning"
    assert said.startswith("requestId 'nightly' of club default was used again on 1 days of the last week")


def test_a_made_up_club_is_tried_also_where_the_clubs_are_known(doctor: Doctor, query: Callable[..., Any]) -> None:
    query("create table public.tenants (id uuid primary key)")
    found = doctor()
    assert found["jobs"][0] == "ok"
    assert found["clubs"] == ("ok", "jobs of a club that is not in public.tenants are refused")


def test_a_club_of_the_settings_that_does_not_exist_is_named(doctor: Doctor, query: Callable[..., Any]) -> None:
    query("create table public.tenants (id uuid primary key)")
    query("insert into public.tenants values (%s)", CLUB)
    assert doctor(STATS_TENANTS=CLUB)["clubs"][0] == "ok"
    state, said = doctor(STATS_TENANTS=f"{CLUB},{OTHER_CLUB}")["clubs"]
    assert state == "problem"
    assert said.startswith(f"STATS_TENANTS: {OTHER_CLUB} is not in public.tenants")


def test_clubs_that_cannot_all_be_seen_are_not_refused_and_that_is_said(
    doctor: Doctor, query: Callable[..., Any], database_url: str
) -> None:
    query("create table public.tenants (id uuid primary key)")
    query("create role worker bypassrls; grant usage on schema stats_pipeline, pgmq to worker")
    query("grant select on all tables in schema stats_pipeline to worker")
    query("grant execute on all functions in schema stats_pipeline to worker")
    try:
        state, said = doctor(STATS_DATABASE_URL=f"{database_url}&options=-crole%3Dworker")["clubs"]
    finally:
        query("drop owned by worker; drop role worker")
    assert state == "warning"
    assert said.startswith("this role does not see every row of public.tenants")


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ("alter database current set default_transaction_read_only = on", "problem", "read-only transaction"),
        (REFUSED_BY_A_TRIGGER, "problem", "fails at claim"),
        (NO_MADE_UP_CLUB, "warning", "no trial: "),
    ],
    ids=["read-only", "a trigger", "a foreign key"],
)
def test_what_would_keep_a_job_from_its_end_is_found_by_trying(
    doctor: Doctor, query: Callable[..., Any], change: str, state: str, said: str
) -> None:
    name = query("select quote_ident(current_database()) as name")[0]["name"]
    query(change.replace("database current", f"database {name}"))
    found = doctor()["jobs"]
    assert found[0] == state
    assert said in found[1]


def tried(home: Path, url: str, **settings: str) -> tuple[list[tuple[str, str]], Result]:
    """What `--functions` has found, and how the command ended."""
    finished = run(home, "doctor", "--functions", "--json", STATS_DATABASE_URL=url, **settings)
    found = [(one["state"], one["said"]) for one in json.loads(finished.stdout) if one["subject"] == "trial"]
    return found, finished
