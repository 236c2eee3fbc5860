"""Commands that cannot work: one line that names the setting and says what to do, and no stack trace."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline.jobs import audit
from stats_pipeline_tests.acceptance.conftest import COMMANDS, NO_JOB, Cli, refusal, run
from stats_pipeline_tests.acceptance.processes import Pipeline


def test_a_second_up_beside_the_first_says_so(cli: Cli, pipeline: Pipeline) -> None:
    for command in (("up",), ("demo", "--exit")):
        message = refusal(cli(*command))
        assert message.startswith("stats-pipeline is running here already (process ")
        assert str(pipeline.home) in message


@pytest.mark.parametrize("command", [("up",), ("demo", "--exit")], ids=" ".join)
def test_a_port_in_use_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refusal(run(tmp_path, *command, STATS_PORT=port))
    assert message.startswith(f"STATS_PORT: port {port} on 127.0.0.1 cannot be used")
    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize(
    "command", [("up",), ("demo", "--exit"), ("migrate",), ("enqueue",), ("jobs",), ("retry", NO_JOB)]
)
def test_a_database_that_does_not_answer_is_named_without_its_password(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    finished = run(tmp_path, *command, STATS_DATABASE_URL=f"postgresql://me:hunter2@127.0.0.1:{port}/app")
    message = refusal(finished)
    assert message.startswith(f"STATS_DATABASE_URL: cannot connect to 127.0.0.1:{port}/app: ")
    assert message.endswith("Connection refused; check host, port, user, password and sslmode")
    assert "hunter2" not in message


@pytest.mark.parametrize("url", ["postgresql://localhost:http/app", "postgresql://me:hunter2@localhost/app?no=option"])
def test_a_database_url_that_is_none_is_named_without_its_password(tmp_path: Path, url: str) -> None:
    for command in ("up", "jobs", "migrate"):
        message = refusal(run(tmp_path, command, STATS_DATABASE_URL=url))
        assert message.startswith("STATS_DATABASE_URL")
        assert "hunter2" not in message


def test_a_database_that_is_not_migrated_is_told_to_be(tmp_path: Path, create_database: Callable[..., str]) -> None:
    url = create_database()
    for command in (("jobs",), ("activity",), ("enqueue",), ("retry", NO_JOB), ("reconcile",)):
        assert "stats-pipeline migrate" in refusal(run(tmp_path, *command, STATS_DATABASE_URL=url))


def test_what_migrate_cannot_repair_is_named_with_the_sql(
    tmp_path: Path, database_url: str, query: Callable[..., Any]
) -> None:
    query("drop index stats_pipeline.lease_one_open_per_tenant")
    query("insert into stats_pipeline.lease (job_ids, claim_until) select '{}', now() from generate_series(1, 2)")
    message = refusal(run(tmp_path, "migrate", STATS_DATABASE_URL=database_url))
    assert message.startswith("nothing was changed; put this right by hand, and migrate again: the index stats_pipel")
    assert "CREATE UNIQUE INDEX lease_one_open_per_tenant ON stats_pipeline.lease" in message


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    for command in (*COMMANDS[:-2], f"job {NO_JOB}", f"retry {NO_JOB}"):
        assert refusal(run(tmp_path, *command.split(), STATS_CRON="never")).startswith("STATS_CRON must be a cron")


@pytest.mark.parametrize("command", ["up", "down", "jobs", "enqueue", "doctor"])
def test_a_state_folder_that_is_a_file_is_named_with_its_variable(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    message = refusal(run(tmp_path / "file", command))
    assert str(tmp_path / "file") in message
    assert "STATS_HOME" in message


@pytest.mark.parametrize("command", ["up", "jobs"])
def test_a_state_folder_with_something_else_in_it_is_named(tmp_path: Path, command: str) -> None:

    (tmp_path / "folder" / "postgres").mkdir(parents=True)
    (tmp_path / "folder" / "postgres" / "somebody's").touch()
    finished = run(tmp_path / "folder", command)
    assert finished.returncode == 1
    assert f"the embedded PostgreSQL in {tmp_path / 'folder'} did not start" in finished.stderr.splitlines()[-1]


def test_an_apps_own_data_gets_no_made_up_league(tmp_path: Path, database_url: str, query: Callable[..., Any]) -> None:
    query("insert into public.players (tenant_id, name) values (gen_random_uuid(), 'Somebody real')")
    message = refusal(run(tmp_path, "demo", "--exit", STATS_DATABASE_URL=database_url))
    assert message.startswith("STATS_DATABASE_URL: this database holds an app's own data")


def test_waiting_for_a_job_that_nobody_works_on_ends(tmp_path: Path, database_url: str) -> None:
    finished = run(tmp_path, "enqueue", "--wait", "--timeout", "1", STATS_DATABASE_URL=database_url)
    assert finished.returncode == 1
    assert "still queued after 1 seconds; is `up` running?" in finished.stderr


def test_an_empty_list_of_jobs_says_so(tmp_path: Path, database_url: str) -> None:
    assert run(tmp_path, "jobs", STATS_DATABASE_URL=database_url).stdout == "No background jobs found\n"
    assert json.loads(run(tmp_path, "jobs", "--json", STATS_DATABASE_URL=database_url).stdout) == []


def test_activity_lists_who_did_what(tmp_path: Path, database_url: str, connection: Connection[Any]) -> None:
    assert run(tmp_path, "activity", STATS_DATABASE_URL=database_url).stdout == "Nothing yet\n"
    for number in range(3):
        audit.record(connection, action="launch", who="server", role="admin", address="::1", about=f"job {number}")
    for _ in range(12):
        audit.record(connection, action="login", outcome="refused", who="unknown", role="unknown", address="192.0.2.1")
    shown = run(tmp_path, "activity", STATS_DATABASE_URL=database_url).stdout.splitlines()
    assert shown[0].split() == ["Time", "Who", "What", "From"]
    assert [line.split()[2:] for line in shown[1:3]] == [
        ["unknown", "login", "refused,", "2", "times", "192.0.2.1"],
        ["unknown", "login", "refused", "192.0.2.1"],
    ]
    assert shown[-1].split()[2:] == ["server", "(admin)", "launch:", "job", "0", "::1"]
    entries = json.loads(run(tmp_path, "activity", "--limit", "2", "--json", STATS_DATABASE_URL=database_url).stdout)
    assert [entry["outcome"] for entry in entries] == ["refused", "refused", "done", "done"]
    assert {**entries[-1], "at": ""} == {
        **{"at": "", "action": "launch", "outcome": "done", "who": "server", "role": "admin", "address": "::1"},
        **{"about": "job 1", "times": 1},
    }


def test_reconcile_says_each_repair_in_a_sentence(tmp_path: Path, database_url: str, query: Callable[..., Any]) -> None:
    enqueued = run(tmp_path, "enqueue", "--json", STATS_DATABASE_URL=database_url)
    job_id = json.loads(enqueued.stdout)["jobId"]
    query("delete from pgmq.q_stats_update")
    repair = f"send the missing message of job {job_id}\n"
    assert run(tmp_path, "reconcile", "--dry-run", STATS_DATABASE_URL=database_url).stdout == f"Would {repair}"
    assert run(tmp_path, "reconcile", STATS_DATABASE_URL=database_url).stdout == f"Done: {repair}"
    assert run(tmp_path, "reconcile", STATS_DATABASE_URL=database_url).stdout == "Nothing to repair\n"
