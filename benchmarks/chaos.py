"""Random jobs for several clubs while processes are killed and the app fails at random; then calm, then the count.

Required: nothing lost, nothing stuck, nothing computed by two runs at once, no page of the app stale. The processes are
real, and so is each SIGKILL. A seed fixes the events and the pauses between them, not what they hit.
"""

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import psutil
import psycopg
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it can be run as a file too

from benchmarks.harness import percentiles, say, show, write_json
from stats_pipeline_tests.acceptance.app_server import (
    Behaviour,
    answer_garbage,
    close_half_way,
    leave,
    refuse,
)
from stats_pipeline_tests.acceptance.processes import (
    CODE_SERVER,
    DAEMON,
    DOOR,
    FORK_SERVER,
    RPCS,
    Pipeline,
    kill,
    running,
)
from stats_pipeline_tests.acceptance.soundness import OVERLAPS, unfinished

ARRIVAL_SECONDS = 2.0  # between two jobs, on average
FAULT_SECONDS = 6.0  # between the end of a fault and the next one, on average
PACE_SECONDS = 0.5  # how long each function takes, so that kills hit running ones
CALM_SECONDS = 180  # for everything to end; an app that was down for 20 seconds is called again after 40 at most
MAX_ATTEMPTS = 3  # the default: three deaths fail a job by design, so no third attempt is killed

# None: nothing listens.
MOODS: tuple[Behaviour | None, ...] = (
    None,
    refuse(500),
    refuse(401),
    leave("hall_of_fame"),
    answer_garbage,
    close_half_way,
    lambda _: time.sleep(7),
)


@dataclass(frozen=True)
class RunKill:
    """The kill of a run, by the clock of the host, and the jobs it was working on or about to start."""

    at: float
    jobs: tuple[UUID, ...]


@dataclass
class Chaos:
    """The faults, and a record of those that have happened."""

    pipeline: Pipeline
    dice: random.Random
    moods: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    run_kills: list[RunKill] = field(default_factory=list)

    def kill_until(self, stop: threading.Event) -> None:
        faults: dict[Callable[[], None], int] = {
            self.kill_a_run: 10,
            self.kill_a_child: 4,
            self.kill_a_session: 3,
            self.restart_the_database: 1,
            self.kill_the_database: 1,
        }
        while not stop.wait(self.dice.expovariate(1 / FAULT_SECONDS)):
            [fault] = self.dice.choices(list(faults), weights=list(faults.values()))
            try:
                fault()
            except (psycopg.OperationalError, psutil.NoSuchProcess) as error:
                say(f"  {fault.__name__} hit nothing: {' '.join(str(error).split())[:80]}")

    def somebody_is_at_the_last_attempt(self) -> bool:
        return bool(
            self.pipeline.value(
                "select count(*) from public.background_job_status where status <> 'failed' "
                "and completed_at is null and attempts >= %s",
                MAX_ATTEMPTS - 1,
            )
        )

    def kill_a_run(self) -> None:
        """At any point, from its first connection to its last hook."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.somebody_is_at_the_last_attempt():
                time.sleep(0.2)
                continue
            if pids := self.pipeline.run_pids():
                victim = self.dice.choice(pids)
                time.sleep(self.dice.uniform(0, 1.2))
                jobs = self._jobs_of(victim)
                at = time.time()
                kill(victim)
                if jobs:
                    self.run_kills.append(RunKill(at, jobs))
                self._count("run")
                return
            time.sleep(0.05)

    def _jobs_of(self, pid: int) -> tuple[UUID, ...]:
        rows = self.pipeline.query(
            """
            select distinct j.id
            from pg_stat_activity as a
            join public.background_job_status as j
                on a.application_name like format('stats-pipeline run %%s pid %%%%', left(j.run_id, 8))
            where j.status = 'processing' and a.application_name like '%% pid ' || %s
            """,
            str(pid),
        )
        return tuple(row["id"] for row in rows)

    def kill_a_child(self) -> None:
        name = self.dice.choice([DAEMON, DAEMON, CODE_SERVER, FORK_SERVER, DOOR])
        if pid := self.pipeline.child_pid(name):
            kill(pid)
            self._count(name)

    def kill_a_session(self) -> None:
        rows = self.pipeline.query(
            "select pid from pg_stat_activity where application_name <> 'witness' and backend_type = 'client backend'"
        )
        if rows and not self.somebody_is_at_the_last_attempt():
            self.pipeline.query("select pg_terminate_backend(%s)", self.dice.choice(rows)["pid"])
            self._count("database session")

    def restart_the_database(self) -> None:
        if not self.somebody_is_at_the_last_attempt():
            self.pipeline.control_server("restart", "-m", self.dice.choice(["immediate", "fast"]))
            self._count("database")

    def kill_the_database(self) -> None:
        """Its first process, as a host without memory does; `up` starts it again."""
        if not self.somebody_is_at_the_last_attempt():
            kill(int((self.pipeline.home / "postgres" / "postmaster.pid").read_text().split()[0]))
            self._count("database killed")

    def break_the_app_until(self, stop: threading.Event) -> None:
        """Let it work for a while, then fail for a while, and so on."""
        app = self.pipeline.app
        while not stop.wait(self.moods.uniform(3, 30)):
            mood, seconds = self.moods.choice(MOODS), self.moods.uniform(3, 20)
            with app.down() if mood is None else app.behaving(mood):
                stop.wait(seconds)
            self._count("app", f" for {seconds:.0f} s")

    def _count(self, kind: str, detail: str = "") -> None:
        self.kills[kind] += 1
        say(f"  {kind}{detail}")


def enqueue_until(pipeline: Pipeline, dice: random.Random, stop: threading.Event) -> set[UUID]:
    """Send jobs like an app that does not give up: repeat the same request until there is an answer."""
    tenants = [None, *(UUID(int=dice.getrandbits(128), version=4) for _ in range(3))]
    sent = set()
    while not stop.wait(dice.expovariate(1 / ARRIVAL_SECONDS)):
        tenant, request = dice.choice(tenants), str(uuid4())
        while True:
            with suppress(psycopg.OperationalError):
                sent.add(pipeline.enqueue(tenant, request))
                break
            time.sleep(0.2)
    return sent


# Jobs completed although one of their functions was not called for their tenant after they were enqueued.
UNSATISFIED = """
select count(distinct j.id)
from public.background_job_status as j
cross join unnest(%s::text[]) as f (rpc)
where j.id = any(%s) and j.status = 'completed' and not exists (
    select from witness.call as c
    where c.rpc = f.rpc and c.started >= j.created_at
        and c.tenant = coalesce(j.tenant_id, '00000000-0000-0000-0000-000000000001')
)
"""

# The recovery of a job: its next attempt, or its end if only the bookkeeping was left.
RECOVERED = """
select extract(epoch from min(t.at))::float
from public.background_job_status as j
cross join lateral (
    select a.started_at as at from stats_pipeline.attempt as a where a.job_id = j.id
    union all
    select j.completed_at
) as t
where j.id = %s and t.at > to_timestamp(%s)
"""


def recovery_seconds(pipeline: Pipeline, killed: RunKill) -> float:
    """From the kill until the last of the run's jobs had recovered."""
    return max(float(pipeline.value(RECOVERED, job, killed.at) or "inf") for job in killed.jobs) - killed.at


def count(pipeline: Pipeline, chaos: Chaos, sent: set[UUID]) -> dict[str, Any]:
    """The result, after the calm."""
    ids = list(sent)
    statuses = Counter(
        row["status"]
        for row in pipeline.query("select status from public.background_job_status where id = any(%s)", ids)
    )
    recoveries = [recovery_seconds(pipeline, killed) for killed in chaos.run_kills]
    return {
        "enqueued": len(sent),
        "completed": statuses["completed"],
        "failed": statuses["failed"],
        "lost": len(sent) - statuses.total() + pipeline.value(UNSATISFIED, RPCS, ids),
        "stuck": statuses["queued"] + statuses["processing"],
        "runs": pipeline.value("select count(distinct run_id) from stats_pipeline.lease"),
        "attempts": pipeline.value("select count(*) from stats_pipeline.attempt where job_id = any(%s)", ids),
        "doubled": len(pipeline.query(OVERLAPS)),
        "stale_tags": len(pipeline.app.stale_tags()),
        "recovery_s": percentiles(recoveries) if recoveries else {"p50": None, "p95": None, "max": None},
        "kills": chaos.kills.total() - chaos.kills["app"],
        "kills_by_kind": dict(chaos.kills),
        "calls": pipeline.value("select count(*) from witness.call"),
        "unfinished": unfinished(pipeline),
        "failures": [
            row["error_message"]
            for row in pipeline.query(
                "select error_message from public.background_job_status where id = any(%s) and status = 'failed'", ids
            )
        ],
    }


def main(
    minutes: Annotated[float, typer.Option(help="How long the chaos lasts.", min=0.1)] = 20,
    seed: Annotated[int, typer.Option(help="What happens, and when.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result there.")] = None,
) -> None:
    """Exit code 1 if a job was lost, stuck or failed, work was doubled, or a page is stale."""
    stop = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as home,
        running(Path(home)) as pipeline,
    ):
        pipeline.query("update witness.pace set seconds = %s", PACE_SECONDS)
        chaos = Chaos(pipeline, random.Random(f"faults {seed}"), random.Random(f"moods {seed}"))
        say(f"Chaos for {minutes:g} minutes …")
        faults = [
            threading.Thread(target=fault, args=(stop,)) for fault in (chaos.kill_until, chaos.break_the_app_until)
        ]
        threading.Timer(minutes * 60, stop.set).start()
        for fault in faults:
            fault.start()
        sent = enqueue_until(pipeline, random.Random(f"jobs {seed}"), stop)
        for fault in faults:
            fault.join()
        say(f"Calm, for at most {CALM_SECONDS} seconds …")
        deadline = time.monotonic() + CALM_SECONDS
        while unfinished(pipeline) and time.monotonic() < deadline:
            time.sleep(0.5)
        result = {"minutes": minutes, "seed": seed, **count(pipeline, chaos, sent)}
    show("Chaos", [{"what": key, "result": str(value)} for key, value in result.items()])
    write_json(json_file, result)
    if any(result[key] for key in ("failed", "lost", "stuck", "doubled", "stale_tags")):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
