"""The app's own calls, run by Node, to our addresses: on the app's machine, and from its servers with the key."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import KEY, Served

SCRIPT = Path(__file__).with_name("app_calls.mjs")
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="there is no node here: install Node 18 or newer")
@pytest.mark.parametrize("with_key", [False, True])
def test_the_app_needs_no_other_code_than_its_own(
    local: Served,
    guarded: Served,
    connection: Connection[Any],
    database_url: str,
    query: Callable[..., list[dict[str, Any]]],
    with_key: bool,
) -> None:
    failed = steps.enqueue(connection, triggeredBy="post-match", matchId=99)
    with Database(database_url) as database:
        steps.fail(connection, database)
    arguments = [guarded.url, json.dumps(KEY)] if with_key else [local.url, json.dumps(local.session())]
    finished = subprocess.run(
        [str(NODE), str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    shown = json.loads(finished.stdout)

    assert shown["warnings"] == []
    assert (shown["pressed"]["ok"], shown["pressed"]["status"]) == (True, "queued")
    assert (shown["cron"]["ok"], shown["cron"]["success"]) == (True, True)
    assert shown["failed"] == str(failed)
    assert [(row["trigger"], row["status"], row["duration"], row["retry"]) for row in shown["table"]] == [
        ("admin", "queued", "N/A", False),
        ("cron", "queued", "N/A", False),
        ("admin", "queued", "N/A", False),
        ("post-match (Match 123)", "queued", "N/A", False),
        ("post-match (Match 99)", "failed", "0s", True),
    ]
    assert shown["table"][2]["id"] == shown["pressed"]["jobId"]
    assert shown["toasts"] == [
        {"message": "Job retry queued successfully", "type": "success"},
        {"message": "Failed to retry job: Failed to retry job", "type": "error"},
    ]
    rows = query("select retry_of from public.background_job_status where retry_of is not null")
    assert rows == [{"retry_of": failed}]
