"""What each statement of the protocol costs when much has been done before: as many finished jobs as there ever were.

The history is made up, by set-based inserts; the work beside it, the same at every size, is made by the product's own
steps. `stats_pipeline_tests/integration/test_history.py` counts the rows that the same statements read.
"""

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
import psycopg
import typer
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from starlette.applications import Starlette

from benchmarks.harness import bench, say, show, write_json
from stats_pipeline import database
from stats_pipeline.database import Database, call_one, run
from stats_pipeline.jobs import queue, reconcile, retention
from stats_pipeline.jobs.models import Claim, Lease, Payload
from stats_pipeline.settings import SQL_ROOT, Settings
from stats_pipeline.web.app import build_app
from stats_pipeline_tests.integration import steps

CLUBS = (None, *(UUID(int=number) for number in range(0xC1, 0xC4)))  # that share the history
NEW_CLUB = UUID(int=0xC4)  # has none
OLD_JOBS = 2_000  # older than OLD_DAYS, however many there are in all
OLD_DAYS, NOT_SO_OLD_DAYS = 380, 600
COMPUTING_RUN, DELIVERING_RUN = "a run that computes", "a run that delivers"
ROUTE = "https://app.example.com/api/internal/cache/invalidate"
FOR_LONG = 86_400  # seconds
AIM_RATIO = 1.5

# The jobs of 400 to 500 days ago, then those of the last year but for the last day, oldest first.
_PAST = """
create temporary table past on commit drop as
select
    n,
    md5('job ' || n)::uuid as job_id,
    md5('lease ' || n)::uuid as lease_id,
    md5('lost lease ' || n)::uuid as lost_lease_id,
    md5('run ' || n)::uuid::text as run_id,
    md5('request ' || n) as request_id,
    (%(clubs)s::uuid[])[1 + n %% cardinality(%(clubs)s::uuid[])] as tenant_id,
    n %% 5 = 0 as has_failed, -- so many that no plan gets by with reading them
    n %% 50 = 0 as had_died,
    n %% 50 = 1 as had_expired,
    now() - case
        when n <= %(old)s then interval '400 days' + interval '100 days' * (1 - n::float8 / %(old)s)
        else interval '1 day' + interval '364 days' * (1 - n::float8 / %(jobs)s)
    end as at
from generate_series(1, %(jobs)s) as n
"""
_HISTORY = (
    """
    insert into public.background_job_status (
        id, job_payload, status, started_at, completed_at, error_message, results, created_at, updated_at, tenant_id,
        attempts, run_id, msg_id
    )
    select
        job_id,
        jsonb_strip_nulls(jsonb_build_object('triggeredBy', 'post-match', 'requestId', request_id, 'timestamp', at,
            'matchId', n, 'tenantId', tenant_id)),
        case when has_failed then 'failed' else 'completed' end,
        at + interval '0.3 s',
        at + interval '0.6 s',
        case when has_failed then 'Failed functions: ' || (%(rpcs)s::text[])[2] end,
        jsonb_build_object('run_id', run_id, 'attempt', 1, 'total_functions', 2, 'functions', (
            select jsonb_object_agg(f.rpc, jsonb_build_object('status', 'success', 'duration_ms', 25, 'tries', 1))
            from unnest(%(rpcs)s::text[]) as f (rpc)
        )),
        at,
        at + interval '0.6 s',
        tenant_id,
        1 + had_died::integer,
        run_id,
        n
    from past
    """,
    """
    insert into stats_pipeline.job_request (tenant_key, request_id, job_id)
    select stats_pipeline.tenant_key(tenant_id), request_id, job_id from past
    """,
    """
    insert into stats_pipeline.lease (
        id, tenant_id, job_ids, functions, run_id, acquired_at, claim_until, claimed_at, renewed_at, ended_at, outcome
    )
    select
        lease_id, tenant_id, array[job_id], %(rpcs)s::text[], run_id, at, at + interval '30 s', at + interval '0.3 s',
        at + interval '0.5 s', at + interval '0.5 s', case when has_failed then 'failed' else 'succeeded' end
    from past
    union all
    select
        lost_lease_id, tenant_id, array[job_id], %(rpcs)s::text[], 'dead ' || run_id, at, at + interval '30 s',
        at + interval '0.1 s', at + interval '0.1 s', at + interval '0.2 s', 'expired'
    from past
    where had_died
    union all
    select
        gen_random_uuid(), tenant_id, array[job_id], null, null, at, at + interval '0.2 s', null, null,
        at + interval '0.2 s', 'expired'
    from past
    where had_expired
    """,
    """
    insert into stats_pipeline.attempt (job_id, attempt, lease_id, started_at, ended_at, outcome)
    select job_id, 1 + had_died::integer, lease_id, at + interval '0.3 s', at + interval '0.6 s',
        case when has_failed then 'failed' else 'completed' end
    from past
    union all
    select job_id, 1, lost_lease_id, at + interval '0.1 s', at + interval '0.2 s', 'died' from past where had_died
    """,
    """
    insert into stats_pipeline.function_result (lease_id, rpc, status, tries, duration_ms, recorded_at)
    select lease_id, rpc, case when has_failed and number = 2 then 'failed' else 'success' end, 1, 25,
        at + interval '0.5 s'
    from past cross join unnest(%(rpcs)s::text[]) with ordinality as f (rpc, number)
    """,
    """
    insert into stats_pipeline.outbox (lease_id, rpc, tag, due_at, next_try_at, delivered_at, tries)
    select lease_id, rpc, tag, at + interval '0.5 s', at + interval '0.5 s', at + interval '0.6 s', 1
    from past cross join unnest(%(rpcs)s::text[], %(tags)s::text[]) as f (rpc, tag)
    """,
    """
    insert into pgmq.a_stats_update (msg_id, read_ct, enqueued_at, archived_at, vt, message)
    select n, 1, at, at + interval '0.6 s', at, jsonb_build_object('jobId', job_id) from past
    """,
    "select setval(pg_get_serial_sequence('pgmq.q_stats_update', 'msg_id'), max(n)) from past",
)

# All that was read so far in this transaction: rows of sequential scans, entries of indexes.
_ROWS_READ = """
select c.relname as name, pg_stat_get_xact_tuples_returned(c.oid) + (
    select coalesce(sum(pg_stat_get_xact_tuples_returned(i.indexrelid)), 0)
    from pg_catalog.pg_index as i
    where i.indrelid = c.oid
)::bigint as rows
from pg_catalog.pg_class as c
where c.relkind = 'r' and c.relnamespace in ('public'::regnamespace, 'stats_pipeline'::regnamespace,
    'pgmq'::regnamespace)
"""


def load(url: str, jobs: int) -> None:
    """Put so many finished jobs into a migrated database, with all that the protocol has ever kept about them."""
    parameters = {
        "jobs": jobs,
        "old": min(OLD_JOBS, jobs // 2),
        "clubs": list(CLUBS),
        "rpcs": [function.rpc for function in steps.TWO],
        "tags": [function.cache_tags[0] for function in steps.TWO],
    }
    with psycopg.connect(url) as connection:
        connection.execute("set local session_replication_role = replica")  # no triggers
        connection.execute("set local synchronous_commit = off")
        for statement in (_PAST, *_HISTORY):
            connection.execute(statement.encode(), parameters)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


# The work.


class _InTransaction(Database):
    """The one connection of `Work`, for code that wants a pool; its transactions are savepoints."""

    def __init__(self, url: str, connection: Connection[DictRow]) -> None:
        super().__init__(url)
        self._one = connection

    @contextmanager
    def connection(self) -> Iterator[Connection[DictRow]]:
        yield self._one


@dataclass(frozen=True)
class Work:
    """What there is to do beside the history: a job of each of five clubs, each at another point of its life."""

    connection: Connection[DictRow]
    database: Database  # the same connection
    app: Starlette  # the web process's, with that database
    settings: Settings
    loop: asyncio.Runner
    waiting: UUID  # a job, of a club with a history like the next three
    leased: Lease
    computing: Claim  # one of its two functions is done
    delivering: Claim  # both are, and the app has not been told
    new_club: Lease
    failed: UUID  # a job of the history

    def apply(self, repair: reconcile.Repair) -> None:
        """Carry one repair out."""
        assert reconcile.apply_all(self.database, [repair], self.settings, lambda _: None) == []

    @contextmanager
    def undone(self, statement: "Statement") -> Iterator[None]:
        """A transaction in which what comes before the statement is done, and that is rolled back."""
        with self.connection.transaction(force_rollback=True):
            statement.before(self)
            yield

    def seconds(self, statement: "Statement") -> float:
        """What one call takes."""
        with self.undone(statement):
            began = time.perf_counter()
            statement.call(self)
            return time.perf_counter() - began

    def rows_read(self, statement: "Statement", *, generic_plans: bool = False) -> dict[str, int]:
        """How many rows or index entries one call reads, by table, those that read none left out."""
        with self.undone(statement):
            self.connection.execute("set local max_parallel_workers_per_gather = 0")  # what they read is not counted
            if generic_plans:  # as a session makes them once it has called a function a few times
                self.connection.execute("set local plan_cache_mode = force_generic_plan")
            before = self._rows_read()
            statement.call(self)
            after = self._rows_read()
        return {name: rows - before.get(name, 0) for name, rows in after.items() if rows > before.get(name, 0)}

    def _rows_read(self) -> dict[str, int]:
        return {row["name"]: row["rows"] for row in self.connection.execute(_ROWS_READ)}


@contextmanager
def work_on(url: str) -> Iterator[Work]:
    """Start work in a database that may have a history, and hold it for the length of the block."""
    with ExitStack() as stack:
        connection = stack.enter_context(database.connect(url, autocommit=True))
        tenants = (CLUBS[1], CLUBS[2], CLUBS[3], NEW_CLUB)
        for tenant in tenants:
            steps.enqueue(connection, tenant)
        leases = {
            leased.tenant_id: leased
            for leased in queue.lease(connection, lease_seconds=FOR_LONG, max_runs=len(tenants))
        }
        leased, computing, delivering, new_club = (leases[tenant] for tenant in tenants)
        claims = [
            steps.claim(connection, computing, COMPUTING_RUN),
            steps.claim(connection, delivering, DELIVERING_RUN),
        ]
        assert claims[0] is not None
        assert claims[1] is not None
        with Database(url) as pool:
            steps.compute(pool, claims[0], steps.TWO[0])
            steps.compute(pool, claims[1])
        connection.execute(
            "update stats_pipeline.outbox set due_at = due_at - interval '1 minute' where delivered_at is null"
        )
        settings = Settings(_env_file=None)
        app = build_app(settings, url)
        in_transaction = _InTransaction(url, connection)
        app.state.web = replace(app.state.web, database=in_transaction)
        yield Work(
            connection=connection,
            database=in_transaction,
            app=app,
            settings=settings,
            loop=stack.enter_context(asyncio.Runner()),
            waiting=steps.enqueue(connection, CLUBS[0]),
            leased=leased,
            computing=claims[0],
            delivering=claims[1],
            new_club=new_club,
            failed=connection.execute(
                "select id from public.background_job_status where status = 'failed' order by created_at desc limit 1"
            ).fetchall()[0]["id"],
        )


# The statements.


@dataclass(frozen=True)
class Statement:
    """A call of the product's; what comes before it, in the same transaction, is not measured."""

    call: Callable[[Work], object]
    before: Callable[[Work], object] = lambda _: None


def _lease(count: int) -> Callable[[Work], None]:
    def lease(work: Work) -> None:
        assert len(queue.lease(work.connection, lease_seconds=30, max_runs=100)) == count

    return lease


def _claim(work: Work, lease: Lease | None, run_id: str = "another run", tenant: UUID | None = None) -> None:
    assert steps.claim(work.connection, lease, run_id, tenant=tenant) is not None


def _beat(work: Work) -> None:
    assert steps.renew(work.connection, work.computing.lease_id, lease_seconds=2 * FOR_LONG)


def _query(name: str, **parameters: Any) -> Callable[[Work], object]:
    return lambda work: run(work.connection, name, **parameters)


def _named(folder: str, prefix: str) -> list[str]:
    return sorted(path.stem for path in (SQL_ROOT / folder).glob(f"{prefix}_*.sql"))


def _insert(work: Work) -> None:
    work.connection.execute(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
        (Jsonb(steps.payload()),),
    )


def _send_raw(work: Work) -> None:
    work.connection.execute("select pgmq.send('stats_update'::text, %s)", (Jsonb(steps.payload()),))


def _due(work: Work) -> list[DictRow]:
    due = run(work.connection, "list_due_tags", route=ROUTE, lease_id=work.delivering.lease_id)
    assert due
    return due


def _claimed(work: Work) -> Lease:
    return dataclasses.replace(work.leased, lease_id=work.computing.lease_id, tenant_id=CLUBS[2])


def _record_delivery(work: Work) -> None:
    due = _due(work)
    work.database.call(
        "record_delivery",
        route=ROUTE,
        asked=[row["id"] for row in due],
        taken=sorted({row["tag"] for row in due}),
        problem=None,
        cache_deadline=900,
    )


def _metrics(work: Work) -> None:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(work.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/metrics")

    work.loop.run(get()).raise_for_status()


def _prune(name: str, days: int) -> Callable[[Work], None]:
    def prune(work: Work) -> None:
        pruned = call_one(work.connection, name, days=days, batch=retention.BATCH)
        assert pruned == (retention.BATCH if days == OLD_DAYS else 0)

    return prune


def _prune_all_jobs(work: Work) -> None:
    while call_one(work.connection, "prune_jobs", days=OLD_DAYS, batch=retention.BATCH):
        pass


def _lost(work: Work) -> tuple[UUID, datetime]:
    """A claimed lease, and a time since which it has not been renewed."""
    return work.computing.lease_id, datetime.now(UTC) + timedelta(minutes=1)


def _job_of(claim: Claim) -> UUID:
    return claim.job_ids[0]


STATEMENTS: dict[str, Statement] = {
    "enqueue_stats_job": Statement(lambda work: steps.enqueue(work.connection, CLUBS[0])),
    "enqueue_stats_job, known already": Statement(
        lambda work: steps.enqueue(work.connection, requestId="known"),
        lambda work: steps.enqueue(work.connection, requestId="known"),
    ),
    "a plain insert": Statement(_insert),
    "retry_stats_job": Statement(lambda work: queue.retry(work.connection, work.failed)),
    "acquire_leases, nothing waiting": Statement(_lease(0), before=_lease(1)),
    "acquire_leases, one waiting": Statement(_lease(1)),
    "acquire_leases, a raw message waiting": Statement(_lease(1), before=_send_raw),
    "claim_lease": Statement(lambda work: _claim(work, work.leased)),
    "claim_lease, a new club": Statement(lambda work: _claim(work, work.new_club)),
    "claim_lease, by hand": Statement(lambda work: _claim(work, None, tenant=CLUBS[0])),
    "claim_lease, claimed already": Statement(lambda work: _claim(work, _claimed(work), COMPUTING_RUN)),
    "renew_lease": Statement(_beat),
    "record_function": Statement(
        lambda work: work.database.call(
            "record_function",
            this_lease=work.computing.lease_id,
            rpc=steps.TWO[1].rpc,
            status="retrying",
            tries=1,
            duration_ms=25,
            problem="no such table",
        )
    ),
    "fail_function": Statement(
        lambda work: steps.fail_function(work.connection, steps.TWO[1].rpc, "no such table", work.computing.lease_id)
    ),
    "complete_function": Statement(
        lambda work: work.database.call(
            "complete_function",
            this_lease=work.computing.lease_id,
            rpc=steps.TWO[1].rpc,
            tags=list(steps.TWO[1].cache_tags),
            tries=1,
            duration_ms=25,
        )
    ),
    "settle_lease, half done": Statement(lambda work: steps.settle(work.connection, work.computing.lease_id, app=True)),
    "settle_lease, the end": Statement(lambda work: steps.settle(work.connection, work.delivering.lease_id)),
    "list_due_tags, of a lease": Statement(_due),
    "list_due_tags, of all": Statement(_query("list_due_tags", route=ROUTE, lease_id=None)),
    "list_due_tags, then record_delivery": Statement(_record_delivery),
    "expire_lease, unclaimed": Statement(
        lambda work: work.apply(reconcile.ExpireLease(work.leased.lease_id, None, "late"))
    ),
    "expire_lease, claimed": Statement(lambda work: work.apply(reconcile.ExpireLease(*_lost(work), "dead"))),
    "revoke_lease, unclaimed": Statement(
        lambda work: work.apply(reconcile.RevokeLease(work.leased.lease_id, None, "cancelled"))
    ),
    "revoke_lease, claimed": Statement(lambda work: work.apply(reconcile.RevokeLease(*_lost(work), "cancelled"))),
    "requeue_jobs": Statement(lambda work: work.apply(reconcile.RequeueJob(_job_of(work.computing)))),
    "ensure_messages": Statement(lambda work: work.apply(reconcile.SendMessage(work.waiting))),
    "archive_stale_messages": Statement(
        lambda work: work.apply(
            reconcile.ArchiveMessage(run(work.connection, "get_job", job_id=work.waiting)[0]["msg_id"])
        )
    ),
    **{name: Statement(_query(name)) for name in _named("queries", "snapshot")},
    "make_jobs_visible": Statement(_query("make_jobs_visible")),
    "list_jobs": Statement(lambda work: queue.list_jobs(work.connection, limit=100)),
    "get_job": Statement(lambda work: queue.get_job(work.connection, work.failed)),
    **{
        name: Statement(_query(name))
        for name in ("list_job_states", "read_overview", "list_durations", "list_set_aside", "tidy_up")
    },
    "check_health": Statement(_query("check_health", route=ROUTE)),
    "enqueue_or_put_aside": Statement(
        lambda work: queue.enqueue_each(work.connection, [Payload(triggered_by="?", request_id="refused")])
    ),
    "put_aside": Statement(
        lambda work: queue.put_aside(work.connection, "repair", "SettleLease 1", RuntimeError("refused"))
    ),
    "read_set_aside": Statement(_query("read_set_aside", key="default")),
    "take_up_again": Statement(_query("take_up_again", what="enqueue", key="default")),
    **{name: Statement(_query(name)) for name in _named("queries", "measure")},
    "GET /metrics": Statement(_metrics),
    **{
        f"{name}, {what}": Statement(_prune(name, days), _prune_all_jobs if name == "prune_leases" else lambda _: None)
        for name in _named("functions", "prune")
        for what, days in (("one batch", OLD_DAYS), ("nothing old", NOT_SO_OLD_DAYS))
    },
}


# The measurement.


def measure(small: Work, large: Work, rounds: int) -> dict[str, dict[str, float]]:
    """The statements' part of the JSON. The sizes take turns; the rows read are those of the table most is read of."""
    measured = {}
    for name, statement in STATEMENTS.items():
        say(name)
        for work in (small, large):
            work.seconds(statement)  # plans and caches
        seconds = [(small.seconds(statement), large.seconds(statement)) for _ in range(rounds)]
        rows = max(large.rows_read(statement).values(), default=0)
        measured[name] = result_of(seconds, rows)
    return measured


def result_of(seconds: Sequence[tuple[float, float]], rows: int) -> dict[str, float]:
    """One statement's part of the JSON, from its calls with either history."""
    small, large = (statistics.median(side) for side in zip(*seconds, strict=True))
    return {
        "small_ms": round(small * 1000, 3),
        "large_ms": round(large * 1000, 3),
        "ratio": round(large / small, 2),
        "rows_read": rows,
    }


def main(
    small: Annotated[int, typer.Option(min=1_000, help="Finished jobs of the small history.")] = 10_000,
    large: Annotated[int, typer.Option(min=1_000, help="Finished jobs of the large one.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each statement; the median counts.")] = 15,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
) -> None:
    """What each statement of the protocol costs with a small and with a large history, in milliseconds.

    Two databases on one embedded server have so many finished jobs, each with its lease, attempt, request, archived
    message, two results of functions and two delivered tags, and the same few jobs at every point of their life. Every
    statement is called through the product's own code, for one and for the other database in turn, in a transaction
    that is rolled back. Beside the times stands how many rows it reads in the large one, of the table it reads most of.

    The aim is a ratio of at most 1.5; a statement that misses it is marked with an asterisk. Needs 6 GB of disk for
    1 000 000 jobs, and takes about 5 minutes.
    """
    with bench() as opened, ExitStack() as stack:
        with psycopg.connect(opened.server_url, autocommit=True) as connection:
            for setting in ("fsync = off", "autovacuum = off", "max_wal_size = '2GB'"):  # nobody's data
                connection.execute(f"alter system set {setting}".encode())
            connection.execute("select pg_reload_conf()")
        works: list[Work] = []
        for jobs in (small, large):
            say(f"{jobs} jobs: loading …")
            url = opened.database(f"history_{len(works)}", [])
            load(url, jobs)
            works.append(stack.enter_context(work_on(url)))
        result = measure(works[0], works[1], rounds)
    show(
        "Milliseconds",
        [
            {
                "": name,
                f"{small} jobs": row["small_ms"],
                f"{large} jobs": row["large_ms"],
                "ratio": f"{row['ratio']:.2f}{'*' if row['ratio'] > AIM_RATIO else ' '}",
                "rows read": row["rows_read"],
            }
            for name, row in result.items()
        ],
    )
    write_json(json_file, {"small": small, "large": large, "rounds": rounds, "statements": result})


if __name__ == "__main__":
    typer.run(main)
