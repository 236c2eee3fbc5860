"""The cost of the stats functions, in passes over the data: for leagues of growing size, one function or all at once.

A pass is a plain aggregate over the join of `player_matches` and `matches`, warm, in the same database, so results are
comparable across machines. The orchestration of a refresh is not measured here.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from psycopg import Connection

from benchmarks.harness import bench, say, show, write_json
from stats_pipeline import database
from stats_pipeline.catalog import OPTIONAL_STATS_FUNCTIONS, STATS_FUNCTIONS
from stats_pipeline.demo import league as demo_league

PASS = """
    select count(*), sum(pm.goals), sum(m.team_a_score)
    from public.player_matches as pm
    join public.matches as m on m.match_id = pm.match_id
"""
# Made before each call, as a refresh follows a change: without one nothing would be written.
CHANGE = """
    update public.player_matches set goals = 1 - least(goals, 1)
    where match_id = (select max(match_id) from public.matches)
"""
RPCS = tuple(function.rpc for function in STATS_FUNCTIONS)
ALL_RPCS = RPCS + tuple(function.rpc for function in OPTIONAL_STATS_FUNCTIONS)
LAST_MATCH = date(2025, 6, 26)  # also the day of every call: mid-season, so that all functions have work
AIM_PASSES, AIM_GROWTH = 10, 1.1
WIDER_AIMS = {"update_aggregated_match_report_cache": 25, "update_aggregated_player_profile_stats": 25}


def players(matches: int) -> int:
    """40 players for 200 matches, 500 for 20 000."""
    return max(40, min(500, round(40 * math.pow(matches / 200, 0.55))))


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def call(connection: Connection[Any], rpc: str) -> None:
    connection.execute(f"select public.{rpc}()".encode())


def measure(url: str, rounds: int) -> dict[str, Any]:
    """One size's part of the JSON. Each figure is the best of the rounds, in which pass and functions take turns."""
    passes: list[float] = []
    functions: dict[str, list[float]] = {rpc: [] for rpc in ALL_RPCS}
    at_once: list[float] = []
    with ExitStack() as stack:
        connections = {rpc: _connect(stack, url) for rpc in ALL_RPCS}
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=len(RPCS)))
        connection = _connect(stack, url)
        for rpc in ALL_RPCS:
            call(connections[rpc], rpc)  # plans and caches
        connection.execute("analyze")
        for _ in range(rounds):
            for rpc in ALL_RPCS:
                passes.append(seconds(lambda: connection.execute(PASS).fetchall()))
                connection.execute(CHANGE)
                functions[rpc].append(seconds(lambda rpc=rpc: call(connections[rpc], rpc)))  # type: ignore[misc]
            connection.execute(CHANGE)
            at_once.append(all_at_once(pool, {rpc: connections[rpc] for rpc in RPCS}))
    baseline = min(passes)
    return {
        "baseline_s": round(baseline, 6),
        "set_parallel_passes": round(min(at_once) / baseline, 2),
        "functions": {rpc: round(min(values) / baseline, 2) for rpc, values in functions.items()},
    }


def all_at_once(pool: ThreadPoolExecutor, connections: Mapping[str, Connection[Any]]) -> float:
    """Seconds from a common start until the last function has ended."""
    start = threading.Barrier(len(connections) + 1)

    def one(rpc: str) -> None:
        start.wait()
        call(connections[rpc], rpc)

    running = [pool.submit(one, rpc) for rpc in connections]
    start.wait()
    return seconds(lambda: [job.result() for job in running])


def growth_exponents(sizes: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """The exponent x of time ~ matches^x for each function, fitted over all sizes; empty for a single size."""
    if len(sizes) < 2:
        return {}
    matches = [math.log(size) for size in sizes]
    return {
        rpc: round(
            statistics.linear_regression(
                matches, [math.log(size["functions"][rpc] * size["baseline_s"]) for size in sizes.values()]
            ).slope,
            3,
        )
        for rpc in ALL_RPCS
    }


def _connect(stack: ExitStack, url: str) -> Connection[Any]:
    connection = stack.enter_context(database.connect(url, autocommit=True))
    connection.execute("select set_config('stats_pipeline.today', %s, false)", (LAST_MATCH.isoformat(),))
    return connection


def _sizes(text: str) -> Sequence[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise typer.BadParameter(f"numbers of matches such as 200,1000, not {text!r}")
    return found


def main(
    sizes: Annotated[
        str, typer.Option(metavar="MATCHES,…", help="Numbers of matches, separated by commas.")
    ] = "200,1000,5000,20000",
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each function; the best one counts.")] = 15,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
) -> None:
    """Cost of the stats functions, as a multiple of one pass over the league's appearances.

    For each size a league of 40 to 500 players is loaded into an embedded server in a temporary folder. Every function
    is called after a change to the latest match; then all ten are called at once, on ten connections.

    The aims are 10 passes for each function, 25 for match report and profile, and a growth exponent of 1.1. A figure
    that misses its aim is marked with an asterisk. Takes about 3 minutes with the defaults.
    """
    measured: dict[int, dict[str, Any]] = {}
    wanted = _sizes(sizes)
    with bench() as opened:
        for matches in wanted:
            say(f"{matches} matches, {players(matches)} players: loading …")
            league = demo_league.generate(players=players(matches), matches=matches, last_match=LAST_MATCH)
            url = opened.database(f"league_{matches}", [league])
            say(f"{matches} matches: measuring …")
            measured[matches] = measure(url, rounds)
    growth = growth_exponents(measured)
    show("Passes over the data", _table(measured, growth))
    write_json(json_file, {"sizes": {str(key): value for key, value in measured.items()}, "growth_exponent": growth})


def _table(measured: Mapping[int, Mapping[str, Any]], growth: Mapping[str, float]) -> list[dict[str, object]]:
    def marked(value: float, aim: float) -> str:
        return f"{value:.2f}{'*' if value > aim else ' '}"

    rows: list[dict[str, object]] = []
    for rpc in ALL_RPCS:
        aim = WIDER_AIMS.get(rpc, AIM_PASSES) if rpc in RPCS else math.inf
        row: dict[str, object] = {"function": rpc}
        row |= {f"{matches} matches": marked(size["functions"][rpc], aim) for matches, size in measured.items()}
        rows.append(row | ({"growth": marked(growth[rpc], AIM_GROWTH)} if growth else {}))
    at_once = {f"{matches} matches": f"{size['set_parallel_passes']:.2f} " for matches, size in measured.items()}
    a_pass = {f"{matches} matches": f"{size['baseline_s'] * 1000:.2f} ms " for matches, size in measured.items()}
    no_growth = {"growth": ""} if growth else {}
    return [
        *rows,
        {"function": "all ten at once", **at_once, **no_growth},
        {"function": "one pass", **a_pass, **no_growth},
    ]


if __name__ == "__main__":
    typer.run(main)
