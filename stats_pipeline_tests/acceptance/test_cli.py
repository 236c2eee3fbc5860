"""The command line as its user sees it: help, usage, jobs enqueued, listed and retried."""

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.conftest import COMMAND, COMMANDS, NO_JOB, Cli, environment, misuse, refusal, run
from stats_pipeline_tests.acceptance.processes import Pipeline

RPCS = {function.rpc for function in STATS_FUNCTIONS}
TAGS = {tag for function in STATS_FUNCTIONS for tag in function.cache_tags}
# The columns of the app's table, then ours.
COLUMNS = {
    *("id", "job_type", "job_payload", "status", "started_at", "completed_at", "error_message", "results"),
    *("created_at", "updated_at", "tenant_id", "retry_of", "attempts", "run_id", "msg_id"),
}
JOBS = ("4f1d0000-0000-4000-8000-000000000001", "5a2e0000-0000-4000-8000-000000000002")


def on_terminal(width: int, *command: str, **settings: str) -> list[str]:
    """The lines that a command which succeeds leaves on a terminal of this width."""
    ours, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    given |= settings | {"TERM": "xterm"}
    with subprocess.Popen(command, env=given, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # the other side has ended
            while read := os.read(ours, 65_536):
                shown += read
    os.close(ours)
    assert process.returncode == 0, shown
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(tmp_path: Path, command: str) -> None:
    finished = run(tmp_path, command, "--help")
    assert finished.returncode == 0
    assert f"stats-pipeline {command}" in finished.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [60, 80])
def test_help_has_a_line_for_each_command_and_no_value_for_a_flag(tmp_path: Path, width: int) -> None:
    listed = run(tmp_path, "--help", COLUMNS=str(width)).stdout
    assert max(map(len, listed.splitlines())) <= width
    if width == 80:
        assert "..." not in listed.replace("[ARGS]...", "")
    options = run(tmp_path, "migrate", "--help", COLUMNS=str(width)).stdout
    assert re.search(r"^  --reference-stats  [A-Z]", options, re.MULTILINE)
    assert "--no-reference-stats" not in options


def test_ctrl_c_during_the_imports_is_silent(tmp_path: Path) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "stats_pipeline", "up"],
        env=environment(tmp_path),
        cwd=PROJECT_ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert starting.stderr is not None
    try:
        with starting.stderr as said:
            assert any("psycopg" in line for line in said)
            starting.send_signal(signal.SIGINT)
            rest = [line for line in said if not line.startswith("import time:")]
        assert starting.wait(30) == 130
    finally:
        starting.kill()
        starting.wait()
    assert rest == []
    assert not list(tmp_path.iterdir())


def test_without_a_command_all_are_listed(tmp_path: Path) -> None:
    finished = run(tmp_path)
    for command in COMMANDS:
        assert f" {command} " in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("enqueue", "--no-such-option"),
        ("enqueue", "--trigger", "boredom"),
        ("enqueue", "--match-id", "seven"),
        ("enqueue", "--match-id", "0"),
        ("enqueue", "--match-id", "-7"),
        ("enqueue", "--tenant-id", "the-other-club"),
        ("enqueue", "--tenant-id", "[/red]"),
        ("jobs", "--watch", "--json"),
        ("jobs", "--limit", "0"),
        ("retry",),
        ("retry", "no-uuid"),
        ("job", "123"),
        ("job", "0000%"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    finished = run(tmp_path, *arguments)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr != ""
    option = next((argument for argument in arguments if argument.startswith("--")), arguments[0])
    assert option in finished.stderr


def test_the_version_is_shown_also_by_the_module(tmp_path: Path) -> None:
    shown = run(tmp_path, "--version")
    by_module = subprocess.run(
        [sys.executable, "-m", "stats_pipeline", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == by_module.stdout == f"stats-pipeline {version('stats-pipeline')}\n"


# Enqueue, jobs, retry


def test_enqueue_prints_the_jobs_id(cli: Cli, pipeline: Pipeline) -> None:
    request = str(uuid4())
    arguments = ("enqueue", "--trigger", "post-match", "--match-id", "7", "--request-id", request, "--json")
    first = cli(*arguments)
    assert first.returncode == 0
    answer = json.loads(first.stdout)
    assert answer.keys() == {"success", "jobId", "status", "message", "repeated", "createdAt", "completedAt"}
    assert (answer["success"], answer["status"], answer["repeated"]) == (True, "queued", False)
    payload = pipeline.job(UUID(answer["jobId"]))["job_payload"]
    assert {"triggeredBy": "post-match", "matchId": 7, "requestId": request}.items() <= payload.items()

    second = json.loads(cli(*arguments).stdout)
    assert (second["jobId"], second["repeated"]) == (answer["jobId"], True)
    assert second["createdAt"] == answer["createdAt"]
    said = cli(*arguments[:-1], "--wait").stdout
    assert said.startswith(f"This request has been enqueued before: {answer['jobId']} (")
    assert f", enqueued {datetime.fromisoformat(answer['createdAt']).astimezone():%Y-%m-%d %H:%M:%S}" in said


def test_enqueue_and_wait_shows_every_function(cli: Cli) -> None:
    finished = cli("enqueue", "--wait")
    assert finished.returncode == 0, finished.stderr
    for rpc in RPCS:
        assert finished.stderr.count(f"✓  {rpc} ") == 1
    assert finished.stderr.endswith("\n")


def test_with_json_nothing_else_is_said(cli: Cli) -> None:
    finished = cli("enqueue", "--wait", "--json")
    assert json.loads(finished.stdout)["status"] == "completed"
    assert finished.stderr == ""


def test_enqueue_takes_the_whole_payload(cli: Cli, pipeline: Pipeline) -> None:
    payload = {"triggeredBy": "cron", "requestId": str(uuid4()), "more": ["of", "the app's"]}
    answer = json.loads(cli("enqueue", "--payload", json.dumps(payload), "--json").stdout)
    assert payload.items() <= pipeline.job(UUID(answer["jobId"]))["job_payload"].items()


PAYLOAD = '{"triggeredBy": "admin", "requestId": "1"}'


@pytest.mark.parametrize(
    ("arguments", "option", "problem"),
    [
        (("--trigger", "boredom"), "--trigger", "'boredom'"),
        (("--trigger", "post-match"), "--trigger", "post-match requires --match-id"),
        (("--payload", PAYLOAD, "--match-id", "7"), "--payload", "cannot be combined with --match-id"),
        (("--payload", PAYLOAD, "--trigger", "admin"), "--payload", "cannot be combined with --trigger"),
        (("--match-id", "0"), "--match-id", "1"),
        (("--match-id", "-7"), "--match-id", "1"),
        (("--match-id", "9" * 19), "--match-id", "must be a positive integer"),
        (("--tenant-id", "the-other-club"), "--tenant-id", "UUID"),
        (("--tenant-id", "[/red]"), "--tenant-id", "UUID"),
        (("--request-id", ""), "--request-id", "must be a text of 1 to 200 characters"),
        (("--request-id", "x" * 201), "--request-id", "must be a text of 1 to 200 characters"),
        (("--payload", '{"triggeredBy": "admin"}'), "--payload", "requestId"),
        (("--payload", PAYLOAD[:-1] + ', "retryOf": "' + NO_JOB + '"}'), "--payload", "retryOf"),
        (("--payload", "[]"), "--payload", "payload must be a JSON object"),
        (("--payload", '"admin"'), "--payload", "payload must be a JSON object"),
        (("--payload", "null"), "--payload", "payload must be a JSON object"),
        (("--payload", json.dumps({"requestId": "x" * 70_000})), "--payload", "payload is "),
        (("--payload", "{not json"), "--payload", "not valid JSON"),
        (("--payload", ""), "--payload", "not valid JSON"),
        (("--payload", '{"triggeredBy": "admin", "requestId": NaN}'), "--payload", "payload cannot be stored"),
        (("--payload", '{"triggeredBy": "admin", "requestId": "\\u0000"}'), "--payload", "payload cannot be stored"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_wrong_value_is_one_line_that_names_the_option(
    cli: Cli, pipeline: Pipeline, arguments: tuple[str, ...], option: str, problem: str
) -> None:
    before = pipeline.value("select count(*) from public.background_job_status")
    message = misuse(cli("enqueue", "--json", *arguments))
    start = f"Invalid value for '{option}': "
    assert message.startswith(start)
    assert problem in message.removeprefix(start)
    assert pipeline.value("select count(*) from public.background_job_status") == before


def test_a_club_that_does_not_exist_is_refused_in_one_line(cli: Cli, pipeline: Pipeline) -> None:
    pipeline.query("create table public.tenants (id uuid primary key)")
    try:
        message = misuse(cli("enqueue", "--tenant-id", NO_JOB))
    finally:
        pipeline.query("drop table public.tenants")
    assert message == (f"Invalid value for '--tenant-id': must be the id of a row of public.tenants; {NO_JOB} is none")


def test_jobs_are_listed_newest_first_with_all_columns(cli: Cli) -> None:
    ids = [json.loads(cli("enqueue", "--wait", "--json").stdout)["jobId"] for _ in range(2)]
    listed = json.loads(cli("jobs", "--json", "--limit", "2").stdout)
    assert [job["id"] for job in listed] == ids[::-1]
    for job in listed:
        assert job.keys() >= COLUMNS
        assert job["results"]["functions"].keys() == RPCS
    assert ids[0] in cli("jobs").stdout


def test_jobs_can_be_watched_on_a_terminal_until_ctrl_c(pipeline: Pipeline) -> None:
    ours, terminal = os.openpty()
    watching = subprocess.Popen(
        [COMMAND, "jobs", "--watch"],
        env=environment(pipeline.home, COLUMNS="160", TERM="xterm"),
        cwd=PROJECT_ROOT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        shown = os.read(ours, 65_536)
        while b"Status" not in shown:
            shown += os.read(ours, 65_536)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
        assert b"Traceback" not in shown
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)


def test_a_failed_job_is_retried_and_the_reason_for_failing_shown(cli: Cli, pipeline: Pipeline) -> None:
    rpc = STATS_FUNCTIONS[1].rpc
    pipeline.query(f"alter function public.{rpc}(uuid) rename to the_original")
    try:
        failed = cli("enqueue", "--wait")
    finally:
        pipeline.query(f"alter function public.the_original(uuid) rename to {rpc}")
    assert failed.returncode == 1
    assert f"Failed functions: {rpc} (function public.{rpc}() does not exist" in failed.stderr
    [job] = json.loads(cli("jobs", "--json", "--limit", "1").stdout)
    assert job["status"] == "failed"

    retried = cli("retry", job["id"], "--wait", "--json")
    assert retried.returncode == 0, retried.stderr
    answer = json.loads(retried.stdout)
    assert answer["status"] == "completed"
    assert pipeline.job(UUID(answer["jobId"]))["retry_of"] == UUID(job["id"])

    message = refusal(cli("retry", answer["jobId"][:13]))
    assert message == f"job {answer['jobId']} is completed: only a failed job can be retried"

    shown = cli("job", job["id"][:13]).stdout
    for part in (job["id"], "failed", job["error_message"], *RPCS, job["results"]["functions"][rpc]["error"]):
        assert part in shown
    for tag in TAGS - set(STATS_FUNCTIONS[1].cache_tags):
        assert tag in shown
    assert json.loads(cli("job", job["id"].upper(), "--json").stdout) == job


@pytest.mark.parametrize("command", ["job", "retry"])
def test_a_job_is_named_by_its_id_or_a_beginning_that_is_only_its_own(
    tmp_path: Path, database_url: str, query: Callable[..., Any], command: str
) -> None:
    query(
        "insert into public.background_job_status (id, job_payload, status, completed_at) "
        "select ('abcd000' || n || '-0000-4000-8000-000000000000')::uuid, '{}', 'completed', now() "
        "from generate_series(1, 2) as n"
    )

    def message(job_id: str) -> str:
        return refusal(run(tmp_path, command, job_id, STATS_DATABASE_URL=database_url))

    assert message(NO_JOB) == f"job {NO_JOB} does not exist"
    assert message("1234") == "no job has an id that begins with 1234"
    assert message("abcd") == "several jobs have an id that begins with abcd: give more of it"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_jobs_fit_the_terminal_and_what_is_cut_ends_in_an_ellipsis(
    tmp_path: Path, database_url: str, query: Callable[..., Any], width: int
) -> None:
    reason = "Failed functions: update_power_ratings (division by zero (SQLSTATE 22012)), " + ", ".join(sorted(RPCS))
    for job_id, match, status, error in ((JOBS[0], 201, "failed", reason), (JOBS[1], 10**17, "completed", None)):
        query(
            "insert into public.background_job_status "
            "(id, job_payload, status, created_at, started_at, completed_at, error_message) "
            "values (%s, %s, %s, now() - interval '1 s' * %s, '2025-06-27T12:00Z', '2025-06-27T12:01Z', %s)",
            job_id,
            json.dumps({"triggeredBy": "post-match", "matchId": match}),
            status,
            JOBS.index(job_id),
            error,
        )
    settings = {"STATS_HOME": str(tmp_path), "STATS_DATABASE_URL": database_url, "TZ": "UTC"}
    head, *lines = on_terminal(width, COMMAND, "jobs", **settings)
    assert max(map(len, lines)) <= width
    if width < 200:
        failed, long, *after = lines
        assert head.split()[:4] == ["Job", "Trigger", "Status", "Started"]
        assert failed.split()[:7] == [f"{JOBS[0][:8]}…", "post-match", "(Match", "201)", "failed", "06-27", "12:00"]
        assert long.split()[0] == f"{JOBS[1][:8]}…"
        assert re.search(r"post-match \(Match( 10*)?…  completed  06-27 12:00", long)
        assert " ".join(after).split() == f"{JOBS[0][:8]}… {reason}".split()
    else:
        assert lines[0].startswith(JOBS[0])
        assert "60.0 s" in lines[0]


def test_migrating_again_has_nothing_to_do(cli: Cli) -> None:
    applied = json.loads(cli("migrate", "--json").stdout)
    assert applied == {"migrations": [], "functions": [], "reference_stats": [], "repaired": []}
