"""A real `stats-pipeline up`, in a temporary folder, with a database that can be paused at any step.

The product knows nothing of this: triggers and wrappers in the test's database wait at gates (advisory locks), and the
test that holds a gate decides when the waiting process continues, or is killed. `soundness.py` checks the outcome.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
import psutil
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import embedded
from stats_pipeline.errors import DatabaseUnavailable
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.app_server import KEY, App
from stats_pipeline_tests.ports import free_port

RPCS = sorted(function.rpc for function in STATS_FUNCTIONS)
RPC_OF_TAG = {tag: function.rpc for function in STATS_FUNCTIONS for tag in function.cache_tags}
DAEMON, CODE_SERVER, FORK_SERVER, DOOR = "daemon", "code server", "fork server", "door"  # the children of `up`
PASSWORD = "the password of the admin"
PATIENCE = 90  # seconds; only a broken pipeline ever needs them

# As from a terminal, also where the tests themselves run under nohup, which children inherit.
_UP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); from stats_pipeline.cli.commands import app; app()"

_Found = TypeVar("_Found")

# The log is written in the transaction of the function itself, so what it shows was committed. The count of its rows
# is the version of the data: it grows with every commit.
_LOG = """
create schema witness;
create table witness.call (
    id bigint generated always as identity primary key,
    rpc text not null,
    tenant uuid not null,
    backend text not null default current_setting('application_name'),
    started timestamptz not null default clock_timestamp(),
    ended timestamptz
);
create table witness.pace (seconds float not null); -- how much slower each function is than it would be
insert into witness.pace values (0);
create schema original;
create function witness.pass(gate text) returns void language sql set search_path = '' as $$
    select pg_advisory_xact_lock_shared(hashtextextended('witness:' || gate, 0));
$$;

create function witness.at_claim() returns trigger language plpgsql as $$
begin
    perform witness.pass('claim');
    return new;
end;
$$;
create trigger witness_claim before update on stats_pipeline.lease
for each row when (old.run_id is null and new.run_id is not null) execute function witness.at_claim();

create function witness.at_finish() returns trigger language plpgsql as $$
begin
    perform witness.pass('finish');
    return new;
end;
$$;
create trigger witness_finish before update on stats_pipeline.lease
for each row when (old.ended_at is null and new.outcome in ('succeeded', 'failed'))
execute function witness.at_finish();
"""

_WRAPPER = """
alter function public.{rpc}(uuid) set schema original;
create function public.{rpc}(target_tenant_id uuid default '00000000-0000-0000-0000-000000000001') returns void
language plpgsql set search_path = '' as $$
declare
    logged bigint;
begin
    perform witness.pass('functions');
    insert into witness.call (rpc, tenant) values ('{rpc}', target_tenant_id) returning id into logged;
    perform witness.pass('{rpc}');
    perform original.{rpc}(target_tenant_id);
    perform pg_sleep(p.seconds) from witness.pace as p where p.seconds > 0;
    update witness.call set ended = clock_timestamp() where id = logged;
end;
$$;
"""


def until(find: Callable[[], _Found | None], what: str, *, patience: float = PATIENCE) -> _Found:
    """What `find` returns once that is true; an outage of the database is no answer."""
    deadline = time.monotonic() + patience
    while True:
        with suppress(psycopg.OperationalError):
            if found := find():
                return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:g} seconds: {what}")
        time.sleep(0.03)


def kill(pid: int) -> None:
    """SIGKILL, and wait until the process can do nothing more."""
    psutil.Process(pid).kill()
    until(lambda: is_gone(pid), f"the end of process {pid}")


def is_gone(pid: int) -> bool:
    """Whether the process can do nothing more, collected by its parent or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Pipeline:
    """`stats-pipeline up` as a process, its database, and the app it tells."""

    def __init__(self, home: Path, app: App, settings: Mapping[str, str], *, folder: Path = PROJECT_ROOT) -> None:
        self.home, self.app, self._folder = home, app, folder
        self.log = home / "up.log"
        self._environment = {
            **os.environ,
            "STATS_HOME": str(home),
            "STATS_PORT": str(free_port()),
            "ADMIN_PASSWORD": PASSWORD,
            "NEXT_PUBLIC_APP_URL": app.url,
            "INTERNAL_API_KEY": KEY,
            **settings,
        }
        self.app.version = self.versions
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        home_log = self.log.open("ab")
        with home_log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _UP, "up"],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=home_log,
                stderr=subprocess.STDOUT,
            )
        until(self._is_up, f"up; see {self.log}", patience=120)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        return "Up." in self.log.read_text()

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(90)

    # The database.

    @property
    def url(self) -> str:
        return self._environment.get("STATS_DATABASE_URL") or embedded.running_url(self.home)

    def connect(self) -> Connection[DictRow]:
        """Raises `psycopg.OperationalError` also for a server that is between its end and its next start."""
        try:
            url = self.url
        except DatabaseUnavailable as error:
            raise psycopg.OperationalError(str(error)) from None
        options = "-c DateStyle=ISO"  # whatever the role's is: psycopg reads no other
        return psycopg.connect(url, autocommit=True, row_factory=dict_row, application_name="witness", options=options)

    def query(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *parameters: object) -> Any:
        (row,) = self.query(statement, *parameters)
        (value,) = row.values()
        return value

    # The door.

    @property
    def door(self) -> str:
        """The address of page, API and the Dagster UI."""
        return f"http://127.0.0.1:{self._environment['STATS_PORT']}"

    @contextmanager
    def logged_in(self) -> Iterator[httpx.Client]:
        """The admin's browser."""
        with httpx.Client(base_url=self.door, timeout=30, trust_env=False) as client:
            answer = client.post("/login", data={"password": self._environment["ADMIN_PASSWORD"]})
            assert answer.status_code == HTTPStatus.SEE_OTHER, answer.text
            yield client

    def ask_dagster(self, query: str, **variables: Any) -> Any:
        """Ask what the Dagster UI asks, once it is there."""
        body = {"query": query, "variables": variables}
        with self.logged_in() as client:
            until(lambda: client.get("/dagster/server_info").status_code == HTTPStatus.OK, "the Dagster UI")
            answer = client.post("/dagster/graphql", json=body).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def install_witness(self) -> None:
        """Log every call of a stats function, and put the gates in place."""
        with self.connect() as connection, connection.transaction():
            connection.execute(_LOG.encode())
            for rpc in RPCS:
                connection.execute(_WRAPPER.format(rpc=rpc).encode())

    def versions(self) -> dict[str, int]:
        """The version of the data behind each tag."""
        rows = self.query("select rpc, count(*) as version from witness.call group by rpc")
        of_rpc = {row["rpc"]: row["version"] for row in rows}
        return {tag: of_rpc.get(rpc, 0) for tag, rpc in RPC_OF_TAG.items()}

    def enqueue(self, tenant: UUID | None = None, request_id: str | None = None) -> UUID:
        payload = {"triggeredBy": "admin", "requestId": request_id or str(uuid4())}
        if tenant is not None:
            payload["tenantId"] = str(tenant)
        return UUID(self.value("select public.enqueue_stats_job(%s) ->> 'jobId'", Jsonb(payload)))

    def job(self, job_id: UUID) -> dict[str, Any]:
        (row,) = self.query("select * from public.background_job_status where id = %s", job_id)
        return row

    def run_id(self, job_id: UUID) -> str:
        """The run that works on the job, once there is one."""
        return str(until(lambda: self.job(job_id)["run_id"], f"a run of job {job_id}"))

    @contextmanager
    def gate(self, name: str) -> Iterator[None]:
        """Closed for the length of the block: 'claim', 'functions' (all), the name of one function, or 'finish'."""
        connection = self.connect()
        try:
            connection.execute("select pg_advisory_lock(hashtextextended('witness:' || %s, 0))", (name,))
            yield
        finally:
            connection.close()  # which opens the gate; so does an end of the server

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Nobody reads or writes the table for the length of the block."""
        with self.connect() as connection, connection.transaction(force_rollback=True):
            connection.execute(f"lock table {table} in access exclusive mode".encode())
            yield

    def waiting(self, *, on_table: str | None = None) -> list[int]:
        """The processes of runs that wait for a gate, or for a table."""
        rows = self.query(
            """
            select distinct a.application_name as name
            from pg_locks as l
            join pg_stat_activity as a using (pid)
            where not l.granted and a.application_name like 'stats-pipeline run %%'
                and case when %s::text is null then l.locktype = 'advisory' else l.relation = to_regclass(%s) end
            """,
            on_table,
            on_table,
        )
        return [pid for row in rows if psutil.pid_exists(pid := _pid_of(row["name"]))]

    # The processes.

    def run_pids(self) -> list[int]:
        """The processes of runs that are connected to the database."""
        rows = self.query(
            "select distinct application_name as name from pg_stat_activity "
            "where application_name like 'stats-pipeline run %%'"
        )
        return [pid for row in rows if psutil.pid_exists(pid := _pid_of(row["name"]))]

    def kill_run(self, pid: int) -> None:
        """Kill a run's process, and wait until the server has noticed and undone what it was at."""
        kill(pid)
        sessions = "select 1 from pg_stat_activity where application_name like 'stats-pipeline run %% pid ' || %s"
        until(lambda: not self.query(sessions, str(pid)), "the end of its sessions")

    def children(self) -> list[psutil.Process]:
        """The processes that `up` itself has started."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children()

    def child_pid(self, name: str) -> int | None:
        """The child of `up` with this name, for example `DAEMON`."""
        for child in self.children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if " ".join(child.cmdline()).strip() == f"stats-pipeline: {name}":
                    return child.pid
        return None

    def launchers_of(self, run_pid: int) -> list[int]:
        """The processes between `up` and a run, the nearest last: they would notice its end."""
        assert self._process is not None
        up = psutil.Process(self._process.pid)
        between: list[int] = []
        for ancestor in psutil.Process(run_pid).parents():
            if ancestor == up:
                return between[::-1]
            between.append(ancestor.pid)
        return []

    def kill_child(self, name: str) -> int:
        """Kill a child of `up` once it is there, and wait for the one that `up` starts in its place; the old pid."""
        killed = until(lambda: self.child_pid(name), f"a {name}")
        kill(killed)
        until(lambda: self.child_pid(name) not in (None, killed), f"another {name}")
        return killed

    def control_server(self, *arguments: str) -> None:
        """`pg_ctl` on the embedded server, for example `restart -m immediate`."""
        with embedded.sole(self.home):  # or `up` would start it at the same time
            embedded.control(self.home, *arguments)


def _pid_of(application_name: str) -> int:
    found = re.search(r" pid (\d+)$", application_name)
    assert found is not None, application_name
    return int(found.group(1))


@contextmanager
def running(home: Path, **settings: str) -> Iterator[Pipeline]:
    """The pipeline and its app, up for the length of the block."""
    home.mkdir(parents=True, exist_ok=True)
    app = App()
    app.start()
    pipeline = Pipeline(home, app, settings)
    try:
        pipeline.start()
        pipeline.query("alter system set fsync = off")  # nobody's data
        pipeline.query("select pg_reload_conf()")
        pipeline.install_witness()
        yield pipeline
        assert pipeline.stop() in (0, 130)
    finally:
        if pipeline._process is not None and pipeline._process.poll() is None:
            pipeline.stop()
        app.stop()
