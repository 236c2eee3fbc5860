"""The OpenAPI document and the app behind it agree: schemathesis makes the requests and checks the answers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.web import auth
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import API_KEY, CRON, CRON_SECRET, ENQUEUE, JOBS, Served

SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
# PostgreSQL stores no zero character: `test_bodies.py` sends some. The stream never ends by itself: `test_stream.py`
# reads it. A 410 is what the old route is there for.
CONFIG = f"""
[generation]
allow-x00 = false

[[operations]]
include-path = "{JOBS}/stream"
enabled = false

[[operations]]
include-path = "{CRON}"
headers = {{ Authorization = "Bearer {CRON_SECRET}" }}
checks.positive_data_acceptance.expected-statuses = ["2xx", "410"]
"""


@pytest.mark.slow
def test_no_request_breaks_it_and_no_answer_is_undocumented(
    guarded: Served, connection: Connection[Any], database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: what the document calls valid is accepted, what it calls invalid refused, and nothing without a key."""
    monkeypatch.setattr(auth, "MAX_FAILURES", 10_000)  # wrong keys, from this one address
    failed = steps.enqueue(connection)
    with Database(database_url) as database:
        steps.fail(connection, database)
    document = httpx.get(f"{guarded.url}/openapi.json").json()
    # Only the id of a failed job may be retried, which a generator of requests cannot know.
    document["components"]["schemas"]["EnqueueRequest"]["properties"]["retryOf"] = {"enum": [str(failed), None]}
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    arguments = ["--url", guarded.url, "-H", f"Authorization: Bearer {API_KEY}", "--seed", "7", "--max-examples", "30"]
    finished = subprocess.run(
        [SCHEMATHESIS, "run", "openapi.json", *arguments, "--checks", "all", "--continue-on-failure", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "9 selected / 10 total" in finished.stdout


def test_the_document_lists_every_address_of_the_api(local: Served) -> None:
    paths = httpx.get(f"{local.url}/openapi.json").json()["paths"]
    assert {path: set(methods) for path, methods in paths.items()} == {
        ENQUEUE: {"post", "get"},
        CRON: {"get", "post"},
        JOBS: {"get"},
        f"{JOBS}/stream": {"get"},
        f"{JOBS}/{{job_id}}": {"get"},
        f"{JOBS}/{{job_id}}/retry": {"post"},
        "/health": {"get"},
        "/metrics": {"get"},
    }


def test_the_page_of_it_shows_every_operation_and_model_and_loads_nothing_from_elsewhere(
    local: Served, open_page: Callable[..., Any]
) -> None:
    document = httpx.get(f"{local.url}/openapi.json").json()
    asked: list[str] = []
    page = open_page("about:blank")
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{local.url}/docs")
    operations = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(operations)) == len(operations)
    for identifier in (*operations, *document["components"]["schemas"]):
        assert page.locator(f"#{identifier}").count() == 1
    assert all(url.startswith(local.url) for url in asked)
