"""The world of the model: a migrated database with toy stats functions and an app's own objects, the connections of
everything that changes it, and time, which passes by moving the rows' times back.

The events are in the modules of rules, the expected outcome in `account.py`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from stats_pipeline import database
from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import migrate

DEFAULT = "00000000-0000-0000-0000-000000000001"  # the club that the stats functions compute when they are told none
CLUBS = (DEFAULT, *(f"c{number}000000-0000-4000-8000-000000000000" for number in (1, 2, 3)))
UNKNOWN_CLUB = "dead0000-0000-4000-8000-000000000000"  # the app's foreign key refuses it

FUNCTIONS = tuple(
    StatsFunction(name=rpc, rpc=rpc, cache_tags=tags, tables=("computed",), reads=(), summary="")
    for rpc, tags in (("toy_goals", ("goals", "table")), ("toy_wins", ("wins", "table")))
)
RPCS = tuple(function.rpc for function in FUNCTIONS)
TAGS = {function.rpc: function.cache_tags for function in FUNCTIONS}

PATIENCE = 2  # seconds that a step may wait for a lock of somebody else's

# What nobody should count on.
_DEFAULTS = {
    "default_transaction_isolation": "repeatable read",
    "TimeZone": "Pacific/Chatham",
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
}

_SETUP = f"""
create table public.computed (
    id bigint generated always as identity primary key, -- given when the call begins
    club uuid not null,
    rpc text not null
);
create table public.broken (rpc text primary key);
create table public.slow (rpc text primary key);

create table public.club (id uuid primary key);
insert into public.club (id) select unnest('{{{",".join(CLUBS)}}}'::uuid[]);
alter table public.background_job_status
    add constraint app_club foreign key (tenant_id) references public.club (id);
create unique index app_one_open_job_per_match on public.background_job_status ((job_payload -> 'matchId'))
    where job_payload ? 'matchId' and status in ('queued', 'processing');

create table public.refusal (job_id uuid, status text, primary key (job_id, status));
create function public.app_refuses() returns trigger language plpgsql as $$
begin
    if exists (select from public.refusal as r where r.job_id = new.id and r.status = new.status) then
        raise exception 'the app refuses %', new.status;
    end if;
    return new;
end;
$$;
create trigger app_refuses before update on public.background_job_status
    for each row execute function public.app_refuses();
"""

_GATE = 42  # the advisory lock that a slow function waits for

_TOY = f"""
create function public.{{rpc}}(target_tenant_id uuid default '{DEFAULT}') returns void language plpgsql as $$
begin
    if exists (select from public.broken where rpc = '{{rpc}}') then
        raise exception '{{rpc}} is broken';
    end if;
    insert into public.computed (club, rpc) values (target_tenant_id, '{{rpc}}');
    if exists (select from public.slow where rpc = '{{rpc}}') then
        perform pg_advisory_xact_lock_shared({_GATE});
    end if;
end;
$$;
"""

_LOOK = """
select
    (select coalesce(jsonb_agg(to_jsonb(j)), '[]') from (
        select id, status, tenant_id, job_payload, run_id, attempts, msg_id, error_message, results
        from public.background_job_status order by created_at, id) as j) as jobs,
    (select coalesce(jsonb_agg(jsonb_build_array(c.id, c.club, c.rpc) order by c.id), '[]')
        from public.computed as c) as computed,
    (select case when is_called then last_value else 0 end from public.computed_id_seq) as position,
    (select coalesce(jsonb_agg(coalesce(l.tenant_id, %(default)s) order by l.tenant_id), '[]')
        from stats_pipeline.lease as l where l.ended_at is null) as leased,
    (select coalesce(jsonb_agg(q.msg_id order by q.msg_id), '[]') from pgmq.q_stats_update as q) as messages,
    (select coalesce(jsonb_agg(jsonb_build_array(o.lease_id, o.tag) order by o.id), '[]')
        from stats_pipeline.outbox as o where o.delivered_at is null) as due,
    (select coalesce(jsonb_agg(jsonb_build_array(a.job_id, a.lease_id, a.ended_at is null)
            order by a.job_id, a.lease_id), '[]')
        from stats_pipeline.attempt as a) as attempts,
    {set_aside} as set_aside
"""


@dataclass(frozen=True)
class Seen:
    """All there is, but for times."""

    jobs: list[dict[str, Any]]
    computed: list[tuple[int, str, str]]  # position, club and RPC of each call that has committed
    position: int  # of the last call that has begun
    leased: list[str]  # the clubs of the open leases
    messages: list[int]
    due: list[tuple[str, str]]  # lease and tag
    attempts: list[tuple[str, str, bool]]  # job, lease, and whether it is open
    set_aside: list[dict[str, Any]]


class World:
    """One database for all examples, and who is connected to it."""

    def __init__(self, url: str) -> None:
        with database.connect(url, autocommit=True) as owner:
            migrate.migrate(owner)
            for name, value in _DEFAULTS.items():
                owner.execute(f"alter database {owner.info.dbname} set {name} = '{value}'".encode())
        self.database = database.Database(url, max_connections=4)
        self.hand = _connect(url)  # an admin, or the app
        self.restore = _connect(url, triggers=False)
        self.holder = _connect(url, autocommit=False)  # an app's long transaction
        self.holder.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self._watcher = _connect(url)
        self._gate = _connect(url)
        self.hand.execute(_SETUP.encode())
        for rpc in RPCS:
            self.hand.execute(_TOY.format(rpc=rpc).encode())
        self._empty, self._pass = self._prepare()
        # Silence counts from the server's start: let it be old enough.
        self.hand.execute("select pg_sleep(7 - extract(epoch from clock_timestamp() - pg_postmaster_start_time()))")
        [has_set_aside] = self.hand.execute(
            "select to_regclass('stats_pipeline.set_aside') is not null as it"
        ).fetchall()
        set_aside = "(select coalesce(jsonb_agg(to_jsonb(s)), '[]') from stats_pipeline.set_aside as s)"
        self._look = _LOOK.format(set_aside=set_aside if has_set_aside["it"] else "'[]'::jsonb")
        self._examples = 0
        self._since: float | None = None
        self._has_blocked = False
        self._is_closing = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()
        self.wake()
        self._threads.shutdown()
        for connection in (self.holder, self.hand, self.restore, self._watcher, self._gate):
            connection.close()
        self.database.__exit__()

    def _prepare(self) -> tuple[str, str]:
        """The statements that empty the database, and that let time pass, for whatever tables there are."""
        columns: dict[str, list[str]] = {}
        for row in self.hand.execute(
            "select t.schemaname || '.' || t.tablename as name, c.column_name as time from pg_tables as t "
            "left join information_schema.columns as c on c.table_schema = t.schemaname "
            "    and c.table_name = t.tablename and c.data_type = 'timestamp with time zone' "
            "where t.schemaname = 'stats_pipeline' and t.tablename <> 'migration' "
            "    or t.schemaname = 'pgmq' and t.tablename in ('q_stats_update', 'a_stats_update') "
            "    or t.schemaname = 'public' and t.tablename = 'background_job_status'"
        ).fetchall():
            columns.setdefault(row["name"], []).extend([row["time"]] if row["time"] else [])
        counters = {  # what a migration has put there stays
            name for name in columns if self.hand.execute(f"select from {name} limit 1".encode()).fetchone() is not None
        }
        tables = [name for name in columns if name not in counters] + [
            f"public.{table}" for table in ("computed", "broken", "slow", "refusal")
        ]
        moves = [
            f"update {name} set {', '.join(f'{time} = {time} - {{span}}' for time in times)}"
            + (" where msg_id <> all({messages})" if name == "pgmq.q_stats_update" else "")
            for name, times in columns.items()
            if times
            and name != "public.background_job_status"  # nothing waits for those; and a row that is moved is touched
        ]
        emptying = [f"delete from {name}" for name in tables]
        emptying += [
            f"select setval('{name}', 1, false)"
            for name in ("pgmq.q_stats_update_msg_id_seq", "public.computed_id_seq")
        ]
        return "; ".join(emptying), "; ".join(moves)

    def empty(self) -> None:
        """Forget everything, for the next example."""
        self.holder.rollback()
        self.wake()
        self._examples += 1
        self.restore.execute(self._empty.encode())
        if self._examples % 50 == 0:
            self.restore.execute("vacuum")  # or else the dead rows cost more and more

    def look(self) -> Seen:
        row = self.hand.execute(self._look.encode(), {"default": DEFAULT}).fetchone()
        assert row is not None
        return Seen(**row)

    def pass_time(self, seconds: int, held: set[int]) -> None:
        """Move all times back, but for those of messages that somebody holds."""
        statement = self._pass.format(
            span=f"interval '{seconds} seconds'", messages=f"'{{{','.join(map(str, held))}}}'::bigint[]"
        )
        self.restore.execute(statement.encode())

    def ask(self, statement: str, *parameters: Any) -> Any:
        """What the app does with SQL of its own, and the one value that it returns."""
        row = self.hand.execute(statement.encode(), parameters).fetchone()
        return next(iter(row.values())) if row else None

    def by_hand(
        self,
        statement: str,
        *parameters: Any,
        triggers: bool = True,
        unless: Callable[[Any], bool] = lambda _: False,
    ) -> Any:
        """The same by somebody whom a constraint, the app or a lock may stop, or who thinks better of it; None then."""
        connection = self.hand if triggers else self.restore
        try:
            with connection.transaction():
                cursor = connection.execute(statement.encode(), parameters)
                row = cursor.fetchone() if cursor.description else None
                value = next(iter(row.values())) if row else None
                if value is not None and unless(value):
                    value = None
                    raise psycopg.Rollback
        except (psycopg.IntegrityError, psycopg.errors.RaiseException, psycopg.errors.LockNotAvailable):
            return None
        return value

    def put_to_sleep(self, rpc: str, call: Callable[[], None]) -> Future[None]:
        """Begin a call of a function that does not end before `wake`; it has computed, and not committed."""
        self._gate.execute("select pg_advisory_lock(%s)", [_GATE])
        self.hand.execute("insert into public.slow (rpc) values (%s)", [rpc])
        sleeping = self._threads.submit(call)
        asleep = "select from pg_locks where locktype = 'advisory' and objid = %s and not granted"
        while not sleeping.done() and self.hand.execute(asleep, [_GATE]).fetchone() is None:
            time.sleep(0.001)
        self.hand.execute("delete from public.slow")
        return sleeping

    def wake(self) -> None:
        self._gate.execute("select pg_advisory_unlock_all()")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A step of the product's. Fails if it waits for the app's transaction."""
        self._has_blocked = False
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None
            assert not self._has_blocked, f"waited over {PATIENCE} seconds for a lock of the app's"

    def _watch(self) -> None:
        while not self._is_closing.wait(0.1):
            since = self._since
            if since is None or time.monotonic() - since < PATIENCE:
                continue
            cancelled = self._watcher.execute(
                "select pg_cancel_backend(pid) from pg_stat_activity "
                "where datname = current_database() and %s = any(pg_blocking_pids(pid))",
                [self.holder.info.backend_pid],
            ).fetchall()
            self._has_blocked |= bool(cancelled) and self._since == since


def _connect(url: str, *, autocommit: bool = True, triggers: bool = True) -> Connection[DictRow]:
    connection: Connection[DictRow] = psycopg.connect(url, autocommit=True, row_factory=dict_row)
    connection.execute("set lock_timeout = '1s'")
    if not triggers:
        connection.execute("set session_replication_role = replica")
    connection.autocommit = autocommit
    return connection
