"""The cost of an almost idle deployment: CPU, connections and memory of each process.

One minute without jobs, then an accelerated hour: a job a second, each standing for one a minute. The system is started
in `harness.py`.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.harness import Bench, System, bench, say, show, write_json
from stats_pipeline.demo import league as demo_league

# The processes of `up` by their command line; the first match counts.
NAMES = {
    "stats_pipeline.runtime.webserver": "dagster web server",
    "stats_pipeline.runtime.daemon": "daemon",
    "dagster api grpc": "code server",
    "stats_pipeline.web": "web page",
    "serve(": "fork server and runs",
    "stats_pipeline.cli": "up",
    "postgres": "postgres",
}
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far, including those of ended child processes, and resident bytes."""

    cpu_s: float
    rss: int


def look(system: System, server: psutil.Process) -> dict[str, Usage]:
    """Every process of the deployment; those of PostgreSQL as one, with shared memory counted once."""
    found: dict[str, Usage] = {}
    for process in _family(psutil.Process(system.process.pid)):
        try:
            name = _name_of(process)
            usage = _usage_of(process)
        except psutil.NoSuchProcess:
            continue  # a run that has just ended: its CPU seconds now count for its parent
        # A run's process has the command line of its parent, the fork server; its memory counts there.
        earlier = found.get(name, Usage(0, 0))
        found[name] = Usage(earlier.cpu_s + usage.cpu_s, earlier.rss or usage.rss)
    cpu, private = 0.0, 0
    for process in _family(server):
        try:
            cpu += _usage_of(process).cpu_s
            private += process.memory_info().rss - process.memory_info().shared
        except psutil.NoSuchProcess:
            continue
    return {**found, "postgres": Usage(cpu, private)}


def _family(process: psutil.Process) -> Iterator[psutil.Process]:
    yield process
    yield from process.children(recursive=True)


def _usage_of(process: psutil.Process) -> Usage:
    times = process.cpu_times()
    return Usage(
        times.user + times.system + times.children_user + times.children_system,
        process.memory_info().rss,
    )


def _name_of(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    return next((name for part, name in NAMES.items() if part in command), command[:40])


def connections_of(system: System) -> dict[str, int]:
    """Connections to the database by application name, without the benchmark's own."""
    rows = system.connection.execute(
        "select application_name, count(*) as connections from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid() group by application_name"
    ).fetchall()
    counted: Counter[str] = Counter()
    for row in rows:
        name = row["application_name"]
        counted["stats-pipeline runs" if name.startswith("stats-pipeline run ") else name or "dagster"] += row[
            "connections"
        ]
    return dict(counted)


def part_of(
    before: Mapping[str, Usage], after: Mapping[str, Usage], seconds: float, jobs: int
) -> dict[str, dict[str, float]]:
    """Each process's costs between two samples: per minute, and per job if there were any."""
    parts = {}
    for name, now in after.items():
        then = before.get(name, Usage(0, now.rss))
        parts[name] = {
            "cpu_s_per_minute": round((now.cpu_s - then.cpu_s) / seconds * 60, 2),
            "rss_mib": round(now.rss / MEBIBYTE, 1),
        }
        if jobs:
            parts[name]["cpu_s_per_job"] = round((now.cpu_s - then.cpu_s) / jobs, 3)
    return parts


def without_postgres(processes: Mapping[str, Mapping[str, float]]) -> float:
    """CPU seconds a minute of all processes that this project starts, without the database: the aim is at most 3."""
    return round(sum(costs["cpu_s_per_minute"] for name, costs in processes.items() if name != "postgres"), 2)


def growth_of(before: Mapping[str, Usage], after: Mapping[str, Usage], jobs: int) -> dict[str, float]:
    """KiB of resident memory that each process gained per job between two samples."""
    return {
        name: round((after[name].rss - then.rss) / 1024 / jobs, 1) for name, then in before.items() if name in after
    }


def measure(opened: Bench, idle_seconds: int, minutes: int) -> dict[str, Any]:
    """Idle first, then the accelerated hour."""
    url = opened.database("ours", [demo_league.generate()])
    postmaster = psutil.Process(int((opened.folder / "postgres" / "postmaster.pid").read_text().split()[0]))
    with opened.ours(url) as ours:
        ours.warm_up()
        time.sleep(5)  # for the rest of the startup work
        say(f"Idle for {idle_seconds} s …")
        before, began = look(ours, postmaster), time.monotonic()
        most: Counter[str] = Counter()
        while time.monotonic() < began + idle_seconds:
            time.sleep(1)
            most |= Counter(connections_of(ours))
        idle_s = time.monotonic() - began
        processes = part_of(before, look(ours, postmaster), idle_s, 0)
        idle = {
            "seconds": round(idle_s),
            "processes": processes,
            "cpu_s_per_minute_without_postgres": without_postgres(processes),
            "connections": dict(most),
            "connections_in_all": sum(most.values()),
        }

        before, began = look(ours, postmaster), time.monotonic()
        sent = []
        most.clear()
        halfway = before
        for number in range(minutes):
            if number == minutes // 2:
                halfway = look(ours, postmaster)
            sent.append(ours.enqueue())
            time.sleep(max(0.0, began + number + 1 - time.monotonic()))
            most |= Counter(connections_of(ours))
            if (number + 1) % 10 == 0:
                say(f"{number + 1} of {minutes} jobs")
        rows = ours.wait(sent)
        time.sleep(2)  # the last run's process ends after its job
        working_s, after = time.monotonic() - began, look(ours, postmaster)
        return {
            "idle": idle,
            "accelerated_hour": {
                "jobs": minutes,
                "runs": len({row["run_id"] for row in rows}),
                "processes": part_of(before, after, working_s, minutes),
                # Of the second half: caches that the first jobs fill once are not growth.
                "growth_kib_per_job": growth_of(halfway, after, minutes - minutes // 2),
                "connections": dict(most),
            },
        }


def main(
    minutes: Annotated[int, typer.Option(min=1, help="Jobs, a second apart, for one a minute.")] = 60,
    idle_seconds: Annotated[int, typer.Option(min=1, help="How long to look at it idle.")] = 60,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
) -> None:
    """What ours costs while idle, and over an hour of one job a minute that is played in a minute.

    For each process: CPU seconds a minute, resident memory, and how much that grew for each job of the second half; and
    the largest number of database connections seen, by who holds them. What a process has started and outlived is
    counted as its own CPU: the fork server's contains the runs'. Memory of PostgreSQL is without what its processes
    share.

    Takes 3 minutes with the defaults. Ctrl-C stops everything.
    """
    with bench() as opened:
        result = measure(opened, idle_seconds, minutes)
    for title, part in (("Idle", result["idle"]), (f"{minutes} jobs", result["accelerated_hour"])):
        show(title, [{"": name, **values} for name, values in part["processes"].items()])
        if "growth_kib_per_job" in part:
            growth = part["growth_kib_per_job"].items()
            show(f"{title}: growth", [{"": name, "KiB per job": kib} for name, kib in growth])
        show(f"{title}: connections", [{"": name, "at most": count} for name, count in part["connections"].items()])
    say(f"Idle, without PostgreSQL: {result['idle']['cpu_s_per_minute_without_postgres']} CPU seconds a minute")
    write_json(json_file, result)


if __name__ == "__main__":
    typer.run(main)
