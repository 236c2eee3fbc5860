"""Shared by the benchmarks: a separate database server with a league, the app, and the systems that are compared.

A system is a real process (`stats-pipeline up`, the plain worker, Dagster with its defaults), each with its own
database on the one server. Measuring and reporting belong to each benchmark. Nothing here is part of the product, and
nothing outlives the benchmark: the state is in a temporary folder.
"""

import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import psycopg
import typer
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from stats_pipeline import database
from stats_pipeline.catalog import STATS_FUNCTIONS
from stats_pipeline.database import embedded, migrate
from stats_pipeline.demo import league as demo_league
from stats_pipeline.jobs.models import Payload
from stats_pipeline.settings import PROJECT_ROOT

LOOK_SECONDS = 0.1  # between two reads of the job table, by one query on its index
STOP_SECONDS = 60
TAGS = frozenset(tag for function in STATS_FUNCTIONS for tag in function.cache_tags)
OUR_VARIABLES = ("STATS_", "DAGSTER_", "NEXT_PUBLIC_", "INTERNAL_API_KEY", "ADMIN_", "CRON_SECRET")

# Run by each version in its own folder. A folder without the package would import an installed one.
_MIGRATE = """
import sys
from pathlib import Path
import stats_pipeline
used, wanted = Path(stats_pipeline.__file__).parents[1], Path(sys.argv[1])
if used != wanted:
    sys.exit(f"{used} would be used in place of {wanted}")
from stats_pipeline import database
try:
    from stats_pipeline.database import migrate
except ImportError:  # 0.1.0
    from stats_pipeline import migrate
with database.connect(sys.argv[2], autocommit=True) as connection:
    migrate.migrate(connection, reference_stats=True)
"""

# Dagster's defaults, except for its storage and telemetry.
STOCK_DAGSTER_YAML = "storage: {postgres: {postgres_url: {env: STATS_DAGSTER_URL}}}\ntelemetry: {enabled: false}\n"

_console = Console(stderr=True)


class BenchmarkFailed(Exception):
    """A system under test did not do its work, so there is nothing to measure."""


def say(text: str) -> None:
    """Progress, on standard error."""
    _console.print(text, highlight=False, markup=False, soft_wrap=True)


def percentiles(values: Collection[float]) -> dict[str, float]:
    """p50, p95 and the maximum, each a value that was measured (nearest rank), to the millisecond."""
    ordered = sorted(values)
    return {
        "p50": round(ordered[math.ceil(0.50 * len(ordered)) - 1], 3),
        "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 3),
        "max": round(ordered[-1], 3),
    }


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print a table on standard output; the first row's keys are the columns."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def write_json(file: Path | None, result: object) -> None:
    """Write the result where `--json` says."""
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n")
        say(f"Wrote {file}")


# The app.


@dataclass(frozen=True)
class Receipt:
    """One tag that the app was told to invalidate, and when, by `time.monotonic`."""

    at: float
    tag: str


class App:
    """The app's cache invalidation route, which confirms every tag at once."""

    def __init__(self) -> None:
        self.key = uuid4().hex
        self.receipts: list[Receipt] = []
        self._server = _AppServer(("127.0.0.1", 0), _Call)
        self._server.app = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator["App"]:
        """Serve for the length of the block."""
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def received_all(self, since: float, *, patience: float = 10) -> float:
        """The time at which the last tag arrived, counting for each tag its first arrival after `since`."""
        deadline = time.monotonic() + patience
        while True:
            first: dict[str, float] = {}
            for receipt in self.receipts[:]:
                if receipt.at >= since:
                    first.setdefault(receipt.tag, receipt.at)
            if first.keys() >= TAGS:
                return max(first.values())
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"the app was never told of {', '.join(sorted(TAGS - first.keys()))}")
            time.sleep(LOOK_SECONDS)


class _AppServer(ThreadingHTTPServer):
    daemon_threads = True
    app: App


class _Call(BaseHTTPRequestHandler):
    server: _AppServer
    protocol_version = "HTTP/1.1"  # keeps the connection
    disable_nagle_algorithm = True  # header and body are two writes: the second would wait 40 ms for the first's answer

    def do_POST(self) -> None:
        tags = json.loads(self.rfile.read(int(self.headers["content-length"])))["tags"]
        is_allowed = self.headers["authorization"] == f"Bearer {self.server.app.key}"
        if is_allowed:
            now = time.monotonic()
            self.server.app.receipts.extend(Receipt(now, tag) for tag in tags)
        answer = json.dumps({"success": is_allowed, "invalidated_tags": tags if is_allowed else [], "failed_tags": []})
        self.send_response(200 if is_allowed else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing: only the benchmark's progress is printed."""


# The systems.


@dataclass(frozen=True)
class Sent:
    """A job, and when it was sent, by `time.monotonic`."""

    job_id: UUID
    at: float


class System:
    """A running process that processes the jobs in its database."""

    def __init__(
        self, name: str, connection: Connection[DictRow], app: App, process: "subprocess.Popen[bytes]"
    ) -> None:
        self.name, self.app, self.process = name, app, process
        self.connection = connection

    def enqueue(self, tenant: UUID | None = None) -> Sent:
        """Send one job as the app would."""
        payload = Payload(triggered_by="post-match", request_id=str(uuid4()), tenant_id=str(tenant) if tenant else None)
        at = time.monotonic()
        [row] = self.connection.execute("select public.enqueue_stats_job(%s) as answer", (Jsonb(payload.as_json()),))
        return Sent(UUID(row["answer"]["jobId"]), at)

    def wait(
        self, sent: Collection[Sent], *, patience: float = 300, look: Callable[[int], object] = lambda _: None
    ) -> list[DictRow]:
        """The jobs' rows, with durations in seconds since they were created, once all are completed.

        `look` is called about ten times a second with the number of finished jobs. Raises `BenchmarkFailed` if a job
        fails, the process ends, or no job completes for `patience` seconds.
        """
        ids = [job.job_id for job in sent]
        last, deadline = 0, time.monotonic() + patience
        while True:
            [counts] = self.connection.execute(
                "select count(*) filter (where status = 'completed') as completed, "
                "min(id || ' failed: ' || error_message) filter (where status = 'failed') as failure "
                "from public.background_job_status where id = any(%s)",
                (ids,),
            )
            look(counts["completed"])
            if counts["failure"] is not None:
                raise BenchmarkFailed(f"{self.name}: job {counts['failure']}")
            if counts["completed"] == len(ids):
                break
            if counts["completed"] > last:
                last, deadline = counts["completed"], time.monotonic() + patience
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed(f"{self.name}: {len(ids) - last} of {len(ids)} jobs were never completed")
            time.sleep(LOOK_SECONDS)
        return self.connection.execute(
            "select id, tenant_id, run_id, extract(epoch from started_at - created_at)::float8 as started_s, "
            "extract(epoch from completed_at - created_at)::float8 as completed_s, created_at, completed_at "
            "from public.background_job_status where id = any(%s) order by created_at",
            (ids,),
        ).fetchall()

    def warm_up(self) -> None:
        """Run one job, so that everything is started and imported."""
        self.wait([self.enqueue()])


class Bench:
    """One server with a database for each system, and the folder for their state."""

    def __init__(self, folder: Path, server_url: str) -> None:
        self.folder, self.server_url = folder, server_url
        self._templates: dict[Path, str] = {}

    def database(self, name: str, leagues: Iterable[demo_league.League], *, checkout: Path = PROJECT_ROOT) -> str:
        """Create a database with these leagues, migrated by the checkout's own code; returns its URL."""
        if checkout not in self._templates:
            template = f"template_{len(self._templates)}"
            migrate_by(checkout, self._create(template, "postgres"))
            self._templates[checkout] = template
        url = self._create(name, self._templates[checkout])
        with database.connect(url) as connection:
            for league in leagues:
                demo_league.load(connection, league)
        with database.connect(url, autocommit=True) as connection:
            connection.execute("vacuum analyze")
        return url

    def _create(self, name: str, template: str) -> str:
        with psycopg.connect(self._url("template1"), autocommit=True) as connection:
            statement = sql.SQL("create database {} template {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return self._url(name)

    def _url(self, name: str) -> str:
        return self.server_url.replace("/postgres?", f"/{name}?", 1)

    @contextmanager
    def ours(
        self, database_url: str, *, name: str = "ours", checkout: Path = PROJECT_ROOT, **settings: str
    ) -> Iterator[System]:
        """`stats-pipeline up` of this version, or of another checkout's."""
        is_package = (checkout / "stats_pipeline" / "cli").is_dir()  # since 0.2.0
        module = "stats_pipeline.cli.commands" if is_package else "stats_pipeline.cli"
        command = (sys.executable, "-c", f"from {module} import app; app()", "up")
        with self._running(name, command, database_url, settings, checkout) as system:
            yield system

    @contextmanager
    def plain(self, database_url: str) -> Iterator[System]:
        """The plain worker."""
        with self._running("plain", (sys.executable, "-m", "benchmarks.plain_worker"), database_url) as system:
            yield system

    @contextmanager
    def stock(self, database_url: str) -> Iterator[System]:
        """Dagster's daemon with Dagster's defaults, which starts its own code server."""
        command = (sys.executable, "-W", "ignore", "-m", "dagster._daemon", "run", "-m", "benchmarks.stock_definitions")
        home = self._home(database_url) / "dagster"
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text(STOCK_DAGSTER_YAML)
        settings = {
            "DAGSTER_HOME": str(home),
            "STATS_DAGSTER_URL": database.sqlalchemy_url(database_url, schema=migrate.DAGSTER_SCHEMA),
            # It takes ten times as long from a lease to the first op, and a process per op has gaps in its heartbeat.
            "STATS_LEASE_SECONDS": "300",
            "STATS_DEAD_AFTER_SECONDS": "60",
        }
        with self._running("stock", command, database_url, settings) as system:
            yield system

    def _home(self, database_url: str) -> Path:
        return self.folder / str(conninfo_to_dict(database_url)["dbname"])

    @contextmanager
    def _running(
        self,
        name: str,
        command: Sequence[str],
        database_url: str,
        settings: Mapping[str, str] | None = None,
        checkout: Path = PROJECT_ROOT,
    ) -> Iterator[System]:
        home = self._home(database_url)
        home.mkdir(parents=True, exist_ok=True)
        app = App()
        environment = {
            **_environment(checkout),
            "STATS_DATABASE_URL": database_url,
            "STATS_HOME": str(home),
            **_door(checkout),
            "NEXT_PUBLIC_APP_URL": app.url,
            "INTERNAL_API_KEY": app.key,
            **(settings or {}),
        }
        log = home / "output.log"
        with app.serving(), database.connect(database_url, autocommit=True) as connection:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=checkout,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the benchmark, which then stops its systems in order
                )
            try:
                yield System(name, connection, app, process)
            except BenchmarkFailed:
                say(f"The last words of {name}:\n{log.read_text(errors='replace')[-3000:]}")
                raise
            finally:
                _stop(process)


def _door(checkout: Path) -> dict[str, str]:
    """The port and the password of the checkout's door; earlier versions had two ports and needed no password."""
    if (checkout / "stats_pipeline" / "web" / "door.py").exists():
        return {"STATS_PORT": str(_free_port()), "ADMIN_PASSWORD": secrets.token_urlsafe(16)}
    return {"STATS_UI_PORT": str(_free_port()), "STATS_WEB_PORT": str(_free_port())}


def _environment(checkout: Path) -> dict[str, str]:
    """The environment without the developer's settings, and with this checkout's packages before installed ones."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OUR_VARIABLES)}
    return {**kept, "PYTHONPATH": str(checkout)}


def migrate_by(checkout: Path, database_url: str) -> None:
    """Migrate an empty database, reference stats included, with the code and the SQL of a checkout.

    Raises `BenchmarkFailed` if that does not work, or if Python imports other code than the checkout's.
    """
    done = subprocess.run(
        [sys.executable, "-c", _MIGRATE, str(checkout), database_url],
        cwd=checkout,
        env=_environment(checkout),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchmarkFailed(f"not migrated: {done.stderr.decode(errors='replace')[-3000:]}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process as Ctrl-C would, and any processes it has left behind."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in psutil.wait_procs(family, timeout=5)[1]:
        left.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def bench() -> Iterator[Bench]:
    """A database server in a temporary folder for the length of the block; Ctrl-C ends the benchmark with code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell script started us with `&`
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, embedded.running(Path(folder)) as url:
            yield Bench(Path(folder), url)
    except KeyboardInterrupt:
        say("Stopped")
        raise typer.Exit(130) from None
    except BenchmarkFailed as error:
        say(f"Failed: {error}")
        raise typer.Exit(1) from None
