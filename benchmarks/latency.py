"""How long a job takes from enqueue to processing, to completed, and to the last cache tag at the app.

Compares `stats-pipeline up`, a plain worker, Dagster with its defaults, and the floor: the ten RPCs called directly
from ten threads; and optionally another version of this project. The systems are started in `harness.py`.
"""

import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import psycopg
import typer

from benchmarks.harness import App, Bench, BenchmarkFailed, System, bench, percentiles, say, show, write_json
from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.demo import league as demo_league
from stats_pipeline.jobs.invalidation import ROUTE

BLOCK = 5  # jobs of one system before the next one's turn
GAP_SECONDS = (1.0, 5.0)  # between two arrivals
STOCK_JOBS = 6  # of half a minute each
STOCK_GAP_SECONDS = (0.0, 30.0)  # one interval of its sensor
FLOOR_EVERY = 2  # blocks
RESAMPLES = 20_000

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """One job; seconds since it was enqueued."""

    started_s: float
    completed_s: float
    invalidated_s: float


def summarize(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Percentiles of each of the three times."""
    return {
        name: percentiles([asdict(timing)[name] for timing in timings])
        for name in ("started_s", "completed_s", "invalidated_s")
    }


def result_of(league: str, timings: dict[str, list[Timing]]) -> dict[str, Any]:
    """One league's part of the JSON. `stock` has its own number of jobs, because it gets fewer."""
    result: dict[str, Any] = {"league": league, "jobs": len(timings["ours"])}
    for name, measured in timings.items():
        result[name] = summarize(measured)
        if name == "stock":
            result[name]["jobs"] = len(measured)
    return result


def bootstrap_interval(
    ours: Sequence[float], theirs: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of the medians, by resampling each side from its own values."""
    rng = random.Random(seed)
    differences = [
        statistics.median(rng.choices(ours, k=len(ours))) - statistics.median(rng.choices(theirs, k=len(theirs)))
        for _ in range(resamples)
    ]
    cuts = statistics.quantiles(differences, n=40)
    return cuts[0], cuts[-1]


def against_of(commit: str, ours: Sequence[Timing], theirs: Sequence[Timing], *, seed: int) -> dict[str, Any]:
    """The part of the JSON about another version: how much later ours completes a job, with the interval."""
    our_seconds, their_seconds = ([timing.completed_s for timing in timings] for timings in (ours, theirs))
    our_median, their_median = statistics.median(our_seconds), statistics.median(their_seconds)
    low, high = bootstrap_interval(our_seconds, their_seconds, seed=seed)
    return {
        "commit": commit,
        "jobs": len(their_seconds),
        "median_completed_s": {"ours": round(our_median, 4), "against": round(their_median, 4)},
        "difference_s": round(our_median - their_median, 4),
        "interval_95_s": [round(low, 4), round(high, 4)],
        "resamples": RESAMPLES,
        **summarize(theirs),
    }


def commit_of(checkout: Path) -> str:
    """The commit of a checkout. Raises `BenchmarkFailed`."""
    asked = subprocess.run(("git", "-C", str(checkout), "rev-parse", "HEAD"), capture_output=True, check=False)
    if asked.returncode != 0:
        raise BenchmarkFailed(f"{checkout} is no checkout: {asked.stderr.decode(errors='replace').strip()}")
    return asked.stdout.decode().strip()


def turns(systems: Sequence[T], number: int) -> Sequence[T]:
    """The systems in the order of this block: forwards and backwards in turn, so that each goes first equally often."""
    return systems if number % 2 == 0 else systems[::-1]


def ratios_of(result: dict[str, Any]) -> dict[str, float]:
    """The figures that have aims, from one league's result; in seconds where the name says so."""
    ours, plain, floor = (result[name]["completed_s"] for name in ("ours", "plain", "floor"))
    ratios = {
        "completed p50, ours / plain": ours["p50"] / plain["p50"],
        "completed p95, ours / plain": ours["p95"] / plain["p95"],
        "completed p50, ours - floor, seconds": ours["p50"] - floor["p50"],
        "completed p50, plain - floor, seconds": plain["p50"] - floor["p50"],
        "processing p95, ours, seconds": result["ours"]["started_s"]["p95"],
    }
    if "stock" in result:
        ratios["completed p50, stock / ours"] = result["stock"]["completed_s"]["p50"] / ours["p50"]
    return {name: round(value, 3) for name, value in ratios.items()}


def do_block(system: System, gaps: Sequence[float]) -> list[Timing]:
    """Enqueue a job after each gap, without waiting for the one before, and wait for all."""
    sent = []
    arrival = time.monotonic()
    for gap in gaps:
        arrival += gap
        time.sleep(max(0.0, arrival - time.monotonic()))
        sent.append(system.enqueue())
    rows = {row["id"]: row for row in system.wait(sent)}
    return [
        Timing(
            rows[job.job_id]["started_s"],
            rows[job.job_id]["completed_s"],
            system.app.received_all(since=job.at + rows[job.job_id]["started_s"]) - job.at,
        )
        for job in sent
    ]


def measure_floor(url: str, times: int) -> list[Timing]:
    """The ten RPCs at once on open connections, then one call with all tags, and nothing else."""
    timings = []
    with ExitStack() as resources:
        app = resources.enter_context(App().serving())
        http = resources.enter_context(httpx.Client(headers={"Authorization": f"Bearer {app.key}"}))
        connections = [resources.enter_context(psycopg.connect(url, autocommit=True)) for _ in STATS_FUNCTIONS]
        threads = resources.enter_context(ThreadPoolExecutor(len(STATS_FUNCTIONS)))
        tags = [tag for function in STATS_FUNCTIONS for tag in function.cache_tags]
        statements = [f"select public.{function.rpc}()".encode() for function in STATS_FUNCTIONS]
        for _ in range(times + 1):
            began = time.monotonic()
            list(threads.map(psycopg.Connection.execute, connections, statements))
            completed = time.monotonic()
            http.post(app.url + ROUTE, json={"tags": tags}).raise_for_status()
            timings.append(Timing(0.0, completed - began, app.received_all(since=began) - began))
    return timings[1:]  # the first call fills the caches of ten new connections


def measure_league(
    opened: Bench, name: str, jobs: int, seed: int, skip_stock: bool, checkout: Path | None
) -> dict[str, Any]:
    """All systems on one league: ours, the plain worker and the other version in turn with the same arrival times."""
    players, matches = map(int, name.split("/"))
    made = demo_league.generate(players=players, matches=matches)
    rng = random.Random(f"{seed} {name}")
    gaps = [rng.uniform(*GAP_SECONDS) for _ in range(jobs)]
    blocks = [gaps[start : start + BLOCK] for start in range(0, jobs, BLOCK)]
    urls = {
        system: opened.database(f"{system}_{players}_{matches}", [made])
        for system in ("ours", "plain", "stock", "floor")
    }
    timings: dict[str, list[Timing]] = {"ours": [], "plain": [], "floor": []}
    commit = ""
    if checkout is not None:
        commit = commit_of(checkout)
        urls["against"] = opened.database(f"against_{players}_{matches}", [made], checkout=checkout)
        timings["against"] = []
    say(f"League {name}: starting the systems …")
    with ExitStack() as running:
        systems = [running.enter_context(opened.ours(urls["ours"])), running.enter_context(opened.plain(urls["plain"]))]
        if checkout is not None:
            systems.append(running.enter_context(opened.ours(urls["against"], name="against", checkout=checkout)))
        for system in systems:
            system.warm_up()
        for number, block in enumerate(blocks):
            for system in turns(systems, number):
                timings[system.name] += do_block(system, block)
            if number % FLOOR_EVERY == 0:
                timings["floor"] += measure_floor(urls["floor"], BLOCK)
            say(f"League {name}: {len(timings['ours'])} of {jobs} jobs each")
    if not skip_stock:
        timings["stock"] = []
        with opened.stock(urls["stock"]) as stock:
            say(f"League {name}: warming stock Dagster up …")
            stock.warm_up()
            for number in range(min(jobs, STOCK_JOBS)):
                timings["stock"] += do_block(stock, [rng.uniform(*STOCK_GAP_SECONDS)])
                say(f"League {name}: stock Dagster has done {number + 1} of {min(jobs, STOCK_JOBS)} jobs")
    theirs = timings.pop("against", [])
    result = result_of(name, timings)
    if checkout is not None:
        result["against"] = against_of(commit, timings["ours"], theirs, seed=seed)
    return result


def show_result(result: dict[str, Any]) -> None:
    """The table and the ratios of one league."""
    show(
        f"League {result['league']} (players/matches), seconds since the enqueue",
        [
            {
                "": system,
                **{
                    f"{name.removesuffix('_s')} {which}": result[system][name][which]
                    for name in ("started_s", "completed_s", "invalidated_s")
                    for which in ("p50", "p95", "max")
                },
                "jobs": result[system].get("jobs", result["jobs"] if system != "floor" else ""),
            }
            for system in ("ours", "against", "plain", "stock", "floor")
            if system in result
        ],
    )
    show("Ratios", [{"": name, "value": value} for name, value in ratios_of(result).items()])
    if "against" in result:
        against = result["against"]
        low, high = against["interval_95_s"]
        show(
            f"Ours against {against['commit'][:7]}, seconds until completed",
            [
                {
                    "median, ours": f"{against['median_completed_s']['ours']:.3f}",
                    "median, against": f"{against['median_completed_s']['against']:.3f}",
                    "difference": f"{against['difference_s']:+.3f}",
                    "95 % interval": f"{low:+.3f} to {high:+.3f}",
                }
            ],
        )


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs for each system that takes turns, per league.")] = 40,
    leagues: Annotated[str, typer.Option(help="Leagues as players/matches, separated by commas.")] = "40/200,80/1000",
    seed: Annotated[int, typer.Option(help="Of the random arrival times and resamples.")] = 1,
    skip_stock: Annotated[bool, typer.Option("--skip-stock", help="Leave Dagster's defaults out: 4 minutes.")] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKOUT",
            exists=True,
            file_okay=False,
            resolve_path=True,
            help="The folder of another version of this project, to be compared with this one: 3 minutes more.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
) -> None:
    """From enqueue to processing, to completed, and to the last cache tag at the app, in seconds.

    Four systems share one embedded database server, each with a database of its own and the same league:
    `stats-pipeline up` (ours), a worker that polls once a second (plain), Dagster with its defaults (stock), and the
    ten RPCs called straight from ten threads (floor). Ours and plain take turns, five jobs each, with the same random
    arrival times; stock follows with fewer jobs, since one takes half a minute.

    With --against the `up` of another version takes turns with them. It runs from its own folder, with its own code and
    SQL, in a database that it has migrated itself and that holds the same league. Printed is how much later ours
    completes a job than it, as the difference of the medians with its 95 % bootstrap interval: a change is
    fast enough if the upper end, against 0.1.0 (commit 074f0d3), is at most 50 ms, and ours / plain p50 at most 1.

    Takes about 9 minutes per league. Compare the columns of one run, never two runs. Ctrl-C stops everything.
    """
    names = leagues.split(",")
    with bench() as opened:
        results = [measure_league(opened, name.strip(), jobs, seed, skip_stock, against) for name in names]
    for result in results:
        show_result(result)
    write_json(json_file, {"seed": seed, "leagues": results})


if __name__ == "__main__":
    typer.run(main)
