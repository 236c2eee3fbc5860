"""Many jobs at once: fifty for one club, and a thousand for a hundred clubs.

Shows that a burst costs two runs, that the cost of a job does not grow with the number of tenants, that no more runs
are open than allowed, and that no tenant starves. The systems are started in `harness.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from psycopg.rows import DictRow

from benchmarks.harness import Bench, System, bench, percentiles, say, show, write_json
from stats_pipeline.demo import league as demo_league

TENANT_PLAYERS, TENANT_MATCHES = 20, 40
IDS_PER_TENANT = 10_000
MAX_RUNS = 4  # STATS_MAX_RUNS of ours


def last_completed(rows: Sequence[DictRow]) -> float:
    """Seconds from the first enqueue to the last completion, by the database's clock."""
    first, last = min(row["created_at"] for row in rows), max(row["completed_at"] for row in rows)
    seconds: float = (last - first).total_seconds()
    return round(seconds, 3)


def one_burst(system: System, jobs: int) -> list[DictRow]:
    """Enqueue `jobs` jobs for one club, one after the other without a pause, and wait for all."""
    rows = system.wait([system.enqueue() for _ in range(jobs)])
    say(f"{system.name}: {jobs} jobs in {last_completed(rows)} s")
    return rows


def compare(opened: Bench, jobs: int, league: str) -> dict[str, Any]:
    """The same burst for ours and for the plain worker, one after the other."""
    players, matches = map(int, league.split("/"))
    made = demo_league.generate(players=players, matches=matches)
    urls = {name: opened.database(name, [made]) for name in ("ours", "plain")}
    with opened.ours(urls["ours"]) as ours:
        ours.warm_up()
        our_rows = one_burst(ours, jobs)
    with opened.plain(urls["plain"]) as plain:
        plain.warm_up()
        plain_rows = one_burst(plain, jobs)
    return burst_result(our_rows, plain_rows)


def burst_result(our_rows: Sequence[DictRow], plain_rows: Sequence[DictRow]) -> dict[str, Any]:
    """The first part of the JSON; `runs` are ours."""
    return {
        "jobs": len(our_rows),
        "ours_s": last_completed(our_rows),
        "plain_s": last_completed(plain_rows),
        "runs": len({row["run_id"] for row in our_rows}),
    }


def many_tenants(opened: Bench, tenants: int, jobs_per_tenant: int) -> dict[str, Any]:
    """`jobs_per_tenant` jobs for each of `tenants` tenants, enqueued in turns, processed by ours."""
    ids = [UUID(int=number) for number in range(1, tenants + 1)]
    say(f"{tenants} tenants: making their leagues …")
    url = opened.database(
        f"tenants_{tenants}",
        (
            demo_league.generate(
                seed=number,
                players=TENANT_PLAYERS,
                matches=TENANT_MATCHES,
                tenant_id=tenant,
                id_offset=number * IDS_PER_TENANT,
            )
            for number, tenant in enumerate(ids)
        ),
    )
    open_runs: list[int] = []
    with opened.ours(url, STATS_MAX_RUNS=str(MAX_RUNS)) as ours:

        def look(completed: int) -> None:
            [row] = ours.connection.execute("select count(*) as runs from stats_pipeline.lease where ended_at is null")
            open_runs.append(row["runs"])
            if len(open_runs) % 50 == 0:
                say(f"{tenants} tenants: {completed} of {tenants * jobs_per_tenant} jobs completed, {row['runs']} open")

        ours.warm_up()
        sent = [ours.enqueue(tenant) for _ in range(jobs_per_tenant) for tenant in ids]
        rows = ours.wait(sent, look=look)
    return tenants_result(rows, max(open_runs))


def tenants_result(rows: Sequence[DictRow], max_open: int) -> dict[str, Any]:
    """The part of the JSON for one number of tenants. A tenant waits from its first enqueue to its first start."""
    seconds = last_completed(rows)
    waits: dict[UUID, float] = {}
    for row in rows:
        waits[row["tenant_id"]] = min(waits.get(row["tenant_id"], row["started_s"]), row["started_s"])
    return {
        "tenants": len(waits),
        "jobs": len(rows),
        "runs": len({row["run_id"] for row in rows}),
        "seconds": seconds,
        "completed_per_s": round(len(rows) / seconds, 2),
        "ms_per_job": round(seconds / len(rows) * 1000, 1),
        "max_open_runs": max_open,
        "allowed_runs": MAX_RUNS,
        "wait_of_tenant_s": percentiles(waits.values()),
    }


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of the burst for one club.")] = 50,
    league: Annotated[
        str, typer.Option(help="That club's players/matches: the longer a refresh, the more it saves.")
    ] = ("40/200"),
    tenants: Annotated[int, typer.Option(min=0, help="Tenants of the large burst; 0 leaves it out.")] = 100,
    jobs_per_tenant: Annotated[int, typer.Option(min=1, help="Jobs of each of them.")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
) -> None:
    """Bursts: 50 jobs at once for one club, ours against a plain worker, then 1 000 jobs for 100 clubs.

    The first counts the seconds until the last job is completed, and the runs that ours needed for it. The second runs
    with a tenth of the tenants first, so that the cost of a job can be compared; it samples the number of open runs and
    reports how long each tenant waited for its first run.

    Takes about 5 minutes with the defaults. Ctrl-C stops everything.
    """
    with bench() as opened:
        result = compare(opened, jobs, league)
        sizes = sorted({max(1, tenants // 10), tenants}) if tenants else []
        result["tenants"] = [many_tenants(opened, size, jobs_per_tenant) for size in sizes]
    show("Burst for one club", [{"plain / ours": result["plain_s"] / result["ours_s"]} | _without(result, "tenants")])
    if len(sizes) == 2:
        few, many = result["tenants"]
        result["growth_per_job"] = round(many["ms_per_job"] / few["ms_per_job"], 3)
    if sizes:
        show(
            "Bursts for many clubs",
            [
                _without(part, "wait_of_tenant_s")
                | {f"wait {which}": s for which, s in part["wait_of_tenant_s"].items()}
                for part in result["tenants"]
            ],
        )
        say(f"Cost of a job with {tenants} tenants / with {sizes[0]}: {result.get('growth_per_job', 1)}")
    write_json(json_file, result)


def _without(result: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != key}


if __name__ == "__main__":
    typer.run(main)
