"""Everything that `up` runs, in the order it starts: database, migrations, code server, daemon, web server.

A lock allows one such process per state folder. Restarting is in `supervisor.py`, the definitions that Dagster loads
are in `definitions.py`.
"""

import json
import os
import re
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fasteners  # type: ignore[import-untyped]
import psutil
import psycopg

from stats_pipeline import database
from stats_pipeline.database import embedded, migrate
from stats_pipeline.deployment.profile import check_names, write_dagster_yaml
from stats_pipeline.deployment.supervisor import Child, Supervisor, end_leftovers
from stats_pipeline.errors import AlreadyRunning, SettingsError
from stats_pipeline.settings import IMPORT_PATH, IS_INSTALLED, PROJECT_ROOT, Settings
from stats_pipeline.web import address

if TYPE_CHECKING:
    from dagster import DagsterInstance

LOCATION = "stats_pipeline"
_DRAIN_SECONDS = 10
_FEWEST_FILES, _ENOUGH_FILES = 256, 4096
# Secrets are passed only to the processes that need them.
_THE_PAGES_OWN = ("ADMIN_PASSWORD", "VIEWER_PASSWORD", "CRON_SECRET")
_THE_RUNS_OWN = ("STATS_HTTP_PROXY", "STATS_APP_HEADERS")
# All that a child inherits of the environment: libraries would read some of the other variables.
_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|(DY)?LD_LIBRARY_PATH|FORWARDED_ALLOW_IPS"
)


@dataclass(frozen=True)
class Running:
    """The running services, for the command that started them."""

    ui_url: str
    web_url: str
    _settings: Settings
    _supervisor: Supervisor
    _say: Callable[[str], None]

    def watch(self) -> None:
        """Restart any service that dies, including the embedded database, until Ctrl-C."""
        self._supervisor.watch(chore=self._tend_database)

    def _tend_database(self) -> None:
        if self._settings.database_url is None and embedded.restart(self._settings.home):
            self._say("The embedded PostgreSQL had died and was restarted")


@contextmanager
def database_for(settings: Settings) -> Iterator[str]:
    """The URL of the database to use, embedded or given, available for the length of the block.

    Raises `DatabaseUnavailable` at once; a pool would try for ten seconds and log each failure.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        database.connect(url).close()
        yield url
        return
    with embedded.running(settings.home) as url:
        yield url


def check_there_is_a_database(settings: Settings) -> None:
    """Raises `SettingsError` if the settings select the embedded database and it does not exist yet."""
    if settings.database_url is None and not embedded.exists(settings.home):
        raise SettingsError(
            f"there is no database in {settings.home} yet: check STATS_HOME, set STATS_DATABASE_URL, or make one "
            "with `stats-pipeline up`"
        )


@contextmanager
def single_instance(settings: Settings) -> Iterator[None]:
    """Be the only process that runs services in this state folder, for the length of the block.

    Ends the processes that a killed predecessor has left running. Raises `AlreadyRunning` while there is another one.
    """
    _raise_limit_of_open_files()
    embedded.make_private(settings.home)
    lock = fasteners.InterProcessLock(settings.home / "up.lock")
    owner = settings.home / "up.pid"
    if not lock.acquire(blocking=False):
        raise AlreadyRunning(
            f"stats-pipeline is running here already (process {_owner(settings)}, state in {settings.home}): "
            "use it, stop it with Ctrl-C or `stats-pipeline down`, or set STATS_HOME to another folder"
        )
    try:
        end_leftovers(_children(settings))
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _raise_limit_of_open_files() -> None:
    """For connections, event streams and logs; children inherit the limit. Raises `SettingsError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEWEST_FILES:
        raise SettingsError(f"only {hard} files may be open at a time: allow {_FEWEST_FILES} or more (`ulimit -Hn`)")
    if soft != resource.RLIM_INFINITY and soft < _ENOUGH_FILES:
        enough = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def stop_all(settings: Settings) -> bool:
    """Stop the `up` or `demo` of this state folder and the processes left by a killed one; whether there were any."""
    was_there = _children(settings).exists() or embedded.is_running(settings.home)
    try:
        with single_instance(settings):
            if embedded.is_running(settings.home):
                with embedded.running(settings.home):
                    pass  # its last user stops the server
    except AlreadyRunning:
        process = psutil.Process(int(_owner(settings)))
        process.terminate()
        process.wait(timeout=60)
    return was_there


def _owner(settings: Settings) -> str:
    owner = settings.home / "up.pid"
    return owner.read_text() if owner.exists() else "unknown"


def _children(settings: Settings) -> Path:
    return settings.home / "children.json"


@contextmanager
def dagster_running(settings: Settings, database_url: str, *, say: Callable[[str], None]) -> Iterator[Running]:
    """Code server, daemon and web server, all ready, for the length of the block."""
    web_address = (address.address(settings), settings.port)
    runtime = settings.runtime or "fast"
    write_dagster_yaml(settings.dagster_home, runtime)
    dagster = dagster_environment(settings, database_url) | {"STATS_RUNTIME": runtime}
    given = _surroundings() | {"STATS_DATABASE_URL": database_url}
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True)
    code_socket = settings.home / "code.sock"
    workspace = _write_workspace(settings.home, code_socket)

    def start(name: str, *arguments: str, environment: dict[str, str]) -> Child:
        log = logs / f"{name.replace(' ', '-')}.log"
        log.write_bytes(b"")
        command = [sys.executable, "-P", "-W", "ignore", "-m", *arguments]  # -P: no module of the folder's
        child = Child(name, command, given | environment, settings.home, log)
        supervisor.start(child)
        return child

    def start_dagster(name: str, *arguments: str) -> Child:
        return start(name, *arguments, environment=settings.environment(without=_THE_PAGES_OWN) | dagster)

    supervisor = Supervisor(_children(settings), say)
    try:
        say("Starting the code server …")
        code_socket.unlink(missing_ok=True)
        # Dagster's own launcher and executor look for the module in this folder, not in the first one of Python's path.
        folder = () if IS_INSTALLED else ("-d", str(PROJECT_ROOT))
        module = ("-m", "stats_pipeline.definitions", *folder, "--location-name", LOCATION)
        # Each waiting sensor holds a worker thread; the default leaves too few on a small machine.
        serve = ("dagster", "api", "grpc", "--socket", str(code_socket), "--max-workers", "16")
        code_server = start_dagster("code server", *serve, *module)
        check_names(runtime)
        with _dagster_instance(dagster, say) as instance:
            supervisor.wait_until_ready(code_server, lambda: _answers(code_socket))
            say("Starting the daemon and the web server …")
            its_daemon = "stats_pipeline.runtime.daemon" if runtime == "fast" else "dagster._daemon"
            daemon = start_dagster("daemon", its_daemon, "run", "-w", str(workspace))
            own = settings.environment(without=_THE_RUNS_OWN) | dagster
            web_server = start("web server", "stats_pipeline.web", str(workspace), environment=own)
            supervisor.wait_until_ready(web_server, lambda: _answers(web_address))
            try:
                yield Running(address.dagster_url(settings), address.url(settings), settings, supervisor, say)
            finally:
                say("Stopping …")
                is_there = _wake_sensors(database_url)
                supervisor.retire(daemon)
                if is_there:
                    _let_runs_end(instance, say)
    finally:
        supervisor.stop()


def _surroundings() -> dict[str, str]:
    """The part of the user's environment that a child inherits, and the import path of a package not installed."""
    inherited = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
    # Dagster drops the first folder of the path before it loads the definitions: not the one with all packages.
    return inherited | IMPORT_PATH


def migrated(settings: Settings, database_url: str) -> migrate.Applied:
    """Migrate the database to this version; with the reference stats if it is the embedded one."""
    with database.connect(database_url, autocommit=True) as connection:
        return migrate.migrate(connection, reference_stats=settings.database_url is None)


def dagster_environment(settings: Settings, database_url: str) -> dict[str, str]:
    """The environment in which a process uses our Dagster instance: the one that `up` last wrote."""
    written = settings.dagster_home / "dagster.yaml"
    if not written.exists() or written.is_symlink():  # version 0.1.0 made a link
        write_dagster_yaml(settings.dagster_home, settings.runtime or "fast")
    return {
        "DAGSTER_HOME": str(settings.dagster_home),
        "STATS_DATABASE_URL": database_url,
        "STATS_DAGSTER_URL": database.sqlalchemy_url(database_url, schema=migrate.DAGSTER_SCHEMA),
        "STATS_HOME": str(settings.home),
    }


def check_ports(settings: Settings) -> None:
    """Raises `SettingsError` if the port that `up` listens on is taken: to be called before anything is started."""
    check_port_is_free(address.address(settings), settings.port, "STATS_PORT")


def check_port_is_free(host: str, port: int, variable: str) -> None:
    """Raises `SettingsError` naming the variable if another process listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"{variable}: port {port} on {host} cannot be used ({error.strerror}); choose another"
            ) from None


def _write_workspace(home: Path, code_socket: Path) -> Path:
    workspace = home / "workspace.yaml"
    server = {"grpc_server": {"socket": str(code_socket), "location_name": LOCATION}}
    workspace.write_text(json.dumps({"load_from": [server]}))  # JSON is YAML, and quotes any folder name
    return workspace


@contextmanager
def _dagster_instance(environment: Mapping[str, str], say: Callable[[str], None]) -> "Iterator[DagsterInstance]":
    """Open Dagster's storage. Creates its tables first, so that no two processes create them at the same time."""
    os.environ.update(dict(environment))
    from dagster import DagsterInstance  # noqa: PLC0415  # a second of imports that no other command needs

    from stats_pipeline.runtime.instance import start_stopped_sensors  # noqa: PLC0415

    with DagsterInstance.get() as instance:
        instance.get_runs(limit=1)
        for name in start_stopped_sensors(instance, LOCATION):  # no job runs without them
            say(f"The sensor {name} had been stopped and was started again")
        yield instance


def _let_runs_end(instance: "DagsterInstance", say: Callable[[str], None]) -> None:
    """Wait for the runs in progress, which take a second. One that takes longer is cut off; the next start requeues
    its jobs."""
    from stats_pipeline.runtime.instance import count_runs_in_progress  # noqa: PLC0415

    deadline = time.monotonic() + _DRAIN_SECONDS
    while (runs := count_runs_in_progress(instance)) > 0:
        if time.monotonic() > deadline:
            say(f"{runs} runs are still running: they are stopped now, and resumed at the next start")
            return
        time.sleep(0.1)


def _answers(address: Path | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(address) if isinstance(address, Path) else address) == 0


def _wake_sensors(database_url: str) -> bool:
    """End the ticks of waiting sensors, without which their process would not stop. Whether the database answers."""
    try:
        with psycopg.connect(database_url, autocommit=True, connect_timeout=2) as connection:
            connection.execute("notify stats_pipeline_stop")
    except psycopg.Error:
        return False  # without a database no sensor waits
    return True
