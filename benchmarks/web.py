"""Fifty callers that enqueue over HTTP as fast as they can, compared with fifty that call the SQL function directly.

Both kinds have the same number of database connections, and take turns of a few seconds, so that a busy machine affects
both. Compared is how long one caller waits for its answer.
"""

import http.client
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import uuid4

import typer

from benchmarks.harness import OUR_VARIABLES, BenchmarkFailed, _free_port, bench, say, show, write_json
from stats_pipeline.database import Database
from stats_pipeline.jobs import queue
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline.web.api import ENQUEUE

TURN_SECONDS = 5
KEY = "the key of the benchmark"

Call = Callable[[dict[str, Any]], None]  # enqueues one payload, or raises


def payload() -> dict[str, Any]:
    return {"triggeredBy": "post-match", "matchId": 1, "requestId": str(uuid4())}


@contextmanager
def web_server(database_url: str, home: Path) -> Iterator[str]:
    """The web process as `up` starts it."""
    port = _free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(OUR_VARIABLES)},
        "STATS_DATABASE_URL": database_url,
        "STATS_HOME": str(home),
        "STATS_PORT": str(port),
        "INTERNAL_API_KEY": KEY,
        "ADMIN_PASSWORD": secrets.token_urlsafe(16),
    }
    command = [sys.executable, "-m", "stats_pipeline", "web"]
    with (home / "web.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=PROJECT_ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", ENQUEUE)
            if connection.getresponse().status == HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
        if time.monotonic() > deadline:
            raise BenchmarkFailed("the web process did not answer within 30 seconds")


@contextmanager
def over_http(url: str) -> Iterator[Call]:
    """One caller's keep-alive connection."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    def call(sent: dict[str, Any]) -> None:
        connection.request("POST", ENQUEUE, json.dumps(sent).encode(), headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != HTTPStatus.ACCEPTED:
            raise BenchmarkFailed(f"{response.status}: {body.decode(errors='replace')[:200]}")

    try:
        yield call
    finally:
        connection.close()


@contextmanager
def bare(database: Database) -> Iterator[Call]:
    """One caller of the SQL function, with the same pool as the web process."""

    def call(sent: dict[str, Any]) -> None:
        with database.connection() as connection:
            queue.enqueue(connection, sent)

    yield call


def turn(callers: int, seconds: float, caller: Callable[[], Any]) -> tuple[list[float], list[str]]:
    """Let the callers call for `seconds`; returns the seconds of each call, and the errors."""
    waits: list[float] = []
    problems: list[str] = []
    end = time.monotonic() + seconds

    def work() -> None:
        try:
            with caller() as call:
                while (began := time.monotonic()) < end:
                    call(payload())
                    waits.append(time.monotonic() - began)
        except Exception as error:  # any error is a result
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits, problems


def milliseconds(waits: Sequence[float]) -> dict[str, float]:
    ordered = sorted(waits)
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
        for name, share in (("p50_ms", 0.50), ("p99_ms", 0.99), ("max_ms", 1.0))
    }


def main(
    callers: Annotated[int, typer.Option(min=1, help="How many enqueue at the same time.")] = 50,
    seconds: Annotated[int, typer.Option(min=1, help="How long each kind enqueues, in all.")] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
) -> None:
    """What the HTTP door costs on top of the SQL function, under load.

    Fails if a call fails, or if an accepted job has no row or no message. Takes a minute with the defaults.
    """
    with bench() as opened:
        url = opened.database("web", [])
        with web_server(url, opened.folder) as web_url, Database(url, max_connections=8) as database:
            kinds: dict[str, Callable[[], Any]] = {
                "HTTP": lambda: over_http(web_url),
                "bare SQL": lambda: bare(database),
            }
            waits: dict[str, list[float]] = {name: [] for name in kinds}
            problems: list[str] = []
            left = float(seconds)
            while left > 0:
                for name, caller in kinds.items():
                    found, wrong = turn(callers, min(left, TURN_SECONDS), caller)
                    waits[name] += found
                    problems += [f"{name}: {problem}" for problem in wrong]
                left -= TURN_SECONDS
                say(f"{sum(map(len, waits.values()))} jobs, {len(problems)} errors")
            (stored,) = database.run("measure_queue")
        accepted = sum(map(len, waits.values()))
        if problems:
            raise BenchmarkFailed(f"{len(problems)} errors, the first: {problems[0]}")
        if not accepted == stored["waiting"] == stored["messages"]:
            raise BenchmarkFailed(f"{accepted} accepted, {stored['waiting']} rows, {stored['messages']} messages")
    result = {
        name: {"jobs": len(found), "per_s": round(len(found) / seconds), **milliseconds(found)}
        for name, found in waits.items()
    }
    ratios = {key: round(result["HTTP"][key] / result["bare SQL"][key], 2) for key in ("p50_ms", "p99_ms")}
    show(f"{callers} callers", [{"": name, **row} for name, row in result.items()])
    show("HTTP to bare SQL", [{"p50": ratios["p50_ms"], "p99": ratios["p99_ms"]}])
    write_json(json_file, {"callers": callers, "seconds": seconds, **result, "ratios": ratios})


if __name__ == "__main__":
    typer.run(main)
