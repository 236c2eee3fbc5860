"""The cost of an almost idle deployment: CPU, connections and memory of each process.

One minute without jobs, then an accelerated hour: a job a second, each standing for one a minute. The system is started
in `harness.py`.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.harness import Bench, System, bench, say, show, write_json
from stats_pipeline.demo import league as demo_league

TITLE = "stats-pipeline: "  # of the processes that `up` forks
MEBIBYTE = 1024 * 1024
UP, RUNS, POSTGRES = "up", "runs", "postgres"


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far, including those of ended child processes, and memory in bytes: proportional, so that what
    processes share is counted once in all."""

    cpu_s: float
    pss: int


def look(system: System, server: psutil.Process) -> dict[str, Usage]:
    """Every process of the deployment; runs as one, and those of PostgreSQL."""
    found: defaultdict[str, Usage] = defaultdict(lambda: Usage(0, 0))
    named = [(process, _name_of(process)) for process in _family(psutil.Process(system.process.pid))]
    for process, name in [*named, *((process, POSTGRES) for process in _family(server))]:
        try:
            usage = _usage_of(process)
        except psutil.NoSuchProcess:
            continue  # a run that has just ended: its CPU seconds now count for its parent
        found[name] = Usage(found[name].cpu_s + usage.cpu_s, found[name].pss + usage.pss)
    return dict(found)


def pss_in_all(usages: Mapping[str, Usage]) -> float:
    """MiB of all processes that this project starts, without the database."""
    return round(sum(usage.pss for name, usage in usages.items() if name != POSTGRES) / MEBIBYTE, 1)


def _family(process: psutil.Process) -> Iterator[psutil.Process]:
    yield process
    yield from process.children(recursive=True)


def _usage_of(process: psutil.Process) -> Usage:
    times = process.cpu_times()
    return Usage(
        times.user + times.system + times.children_user + times.children_system,
        process.memory_full_info().pss,
    )


def _name_of(process: psutil.Process) -> str:
    try:
        title = " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return RUNS
    name = title.removeprefix(TITLE) if title.startswith(TITLE) else UP
    return RUNS if name.startswith("run ") else name


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


class Most:
    """The most that was seen at any moment: connections by who holds them, and in all; memory of all processes."""

    def __init__(self) -> None:
        self.by_name: Counter[str] = Counter()
        self.in_all = 0
        self.pss_mib = 0.0

    def see(self, system: System, server: psutil.Process) -> None:
        found = connections_of(system)
        self.by_name |= Counter(found)
        self.in_all = max(self.in_all, sum(found.values()))
        self.pss_mib = max(self.pss_mib, pss_in_all(look(system, server)))

    def in_words(self) -> dict[str, Any]:
        return {
            "pss_mib_in_all": self.pss_mib,
            "connections": dict(self.by_name),
            "connections_in_all": self.in_all,
        }


def part_of(
    before: Mapping[str, Usage], after: Mapping[str, Usage], seconds: float, jobs: int
) -> dict[str, dict[str, float]]:
    """Each process's costs between two samples: per minute, and per job if there were any."""
    parts = {}
    for name, now in after.items():
        then = before.get(name, Usage(0, now.pss))
        parts[name] = {
            "cpu_s_per_minute": round((now.cpu_s - then.cpu_s) / seconds * 60, 2),
            "pss_mib": round(now.pss / MEBIBYTE, 1),
        }
        if jobs:
            parts[name]["cpu_s_per_job"] = round((now.cpu_s - then.cpu_s) / jobs, 3)
    return parts


def without_postgres(processes: Mapping[str, Mapping[str, float]]) -> float:
    """CPU seconds a minute of all processes that this project starts, without the database: the aim is at most 2."""
    return round(sum(costs["cpu_s_per_minute"] for name, costs in processes.items() if name != POSTGRES), 2)


def growth_of(before: Mapping[str, Usage], after: Mapping[str, Usage], jobs: int) -> dict[str, float]:
    """KiB of memory that each process gained per job between two samples."""
    return {
        name: round((after[name].pss - then.pss) / 1024 / jobs, 1) for name, then in before.items() if name in after
    }


def measure(opened: Bench, idle_seconds: int, minutes: int) -> dict[str, Any]:
    """Idle first, then the accelerated hour."""
    url = opened.database("ours", [demo_league.generate()])
    postmaster = psutil.Process(int((opened.folder / "postgres" / "postmaster.pid").read_text().split()[0]))
    with opened.ours(url) as ours:
        ours.warm_up()
        time.sleep(5)  # for the rest of the startup work
        say(f"Idle for {idle_seconds} s …")
        before, began, most = look(ours, postmaster), time.monotonic(), Most()
        while time.monotonic() < began + idle_seconds:
            time.sleep(1)
            most.see(ours, postmaster)
        idle_s = time.monotonic() - began
        processes = part_of(before, look(ours, postmaster), idle_s, 0)
        idle = {
            "seconds": round(idle_s),
            "processes": processes,
            "cpu_s_per_minute_without_postgres": without_postgres(processes),
            **most.in_words(),
        }

        before, began, most = look(ours, postmaster), time.monotonic(), Most()
        sent = []
        halfway = before
        for number in range(minutes):
            if number == minutes // 2:
                halfway = look(ours, postmaster)
            sent.append(ours.enqueue())
            while time.monotonic() < began + number + 1:
                time.sleep(0.2)
                most.see(ours, postmaster)
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
                **most.in_words(),
            },
        }


def main(
    minutes: Annotated[int, typer.Option(min=1, help="Jobs, a second apart, for one a minute.")] = 60,
    idle_seconds: Annotated[int, typer.Option(min=1, help="How long to look at it idle.")] = 60,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
) -> None:
    """What ours costs while idle, and over an hour of one job a minute that is played in a minute.

    For each process: CPU seconds a minute, proportional memory (what processes share is counted once in all), and how
    much that grew for each job of the second half; and the most database connections and memory seen at any moment.
    What a process has started and outlived is counted as its own CPU: the fork server's contains the runs'.

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
        most = f"{part['pss_mib_in_all']} MiB, {part['connections_in_all']} connections"
        say(f"{title}: at most {most}, without PostgreSQL's own memory")
    say(f"Idle, without PostgreSQL: {result['idle']['cpu_s_per_minute_without_postgres']} CPU seconds a minute")
    write_json(json_file, result)


if __name__ == "__main__":
    typer.run(main)
