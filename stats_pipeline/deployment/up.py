"""Everything that `up` runs, in the order it starts: database, migrations, code server, fork server, daemon, door.

A lock allows one such process per state folder. Restarting is in `supervisor.py`, forking in `forking.py`, the
definitions that Dagster loads are in `definitions.py`.
"""

import json
import os
import platform
import re
import resource
import secrets
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fasteners  # type: ignore[import-untyped]
import psutil
from psycopg import Connection
from setproctitle import setproctitle

from stats_pipeline import database, log
from stats_pipeline import settings as settings_module
from stats_pipeline.database import allowance, budget, embedded, migrate
from stats_pipeline.deployment import forking
from stats_pipeline.deployment.profile import check_names, write_dagster_yaml
from stats_pipeline.deployment.supervisor import Child, Supervisor, end_leftovers
from stats_pipeline.errors import AlreadyRunning, SettingsError
from stats_pipeline.jobs import health
from stats_pipeline.settings import IMPORT_PATH, IS_INSTALLED, PROJECT_ROOT, Settings
from stats_pipeline.web import address

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp

    from stats_pipeline.web.dagster_ui import DagsterUI

LOCATION = "stats_pipeline"
_DRAIN_SECONDS = 10
_CLOCK_SECONDS = 2  # by which a process's start may seem to move when the clock is set
_FEWEST_FILES, _ENOUGH_FILES = 256, 4096
_END_TICKS = signal.SIGUSR1  # to the code server: sensors that wait for work come to an end
_MOST_MIB = 160  # of a process that may leak: twice what it holds after some hours
# Secrets are passed only to the processes that need them.
_THE_DOORS_OWN = ("ADMIN_PASSWORD", "VIEWER_PASSWORD", "CRON_SECRET")
_THE_RUNS_OWN = ("STATS_HTTP_PROXY", "STATS_APP_HEADERS")
# All that a child inherits of the environment: libraries would read some of the other variables.
_INHERITED = re.compile(r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|(DY)?LD_LIBRARY_PATH")


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


def wait_for_database(settings: Settings, say: Callable[[str], None]) -> None:
    """Return when the given database has all connections of the budget free, or there is an embedded one.

    To be called before anything connects. Raises `StatsPipelineError` for any other trouble of the database.
    """
    if settings.database_url is not None and budget.is_kept(settings):
        url = settings.database_url.get_secret_value()
        forking.in_a_fork(lambda: allowance.wait_for_connections(url, settings.max_connections, say))


@contextmanager
def single_instance(settings: Settings) -> Iterator[None]:
    """Be the only process that runs services in this state folder, for the length of the block.

    Ends the processes that a killed predecessor has left running. Raises `AlreadyRunning` while there is another one.
    """
    _raise_limit_of_open_files()
    embedded.make_private(settings.home)
    lock = fasteners.InterProcessLock(settings.home / "up.lock")
    pid_file = settings.home / "up.pid"
    if not lock.acquire(blocking=False):
        raise AlreadyRunning(
            f"stats-pipeline is running here already ({_owner_in_words(settings)}state in {settings.home}): "
            "use it, stop it with Ctrl-C or `stats-pipeline down`, or set STATS_HOME to another folder"
        )
    try:
        pid_file.write_text(f"{os.getpid()} {psutil.Process().create_time()}")
        end_leftovers(_children(settings))
        yield
    finally:
        pid_file.unlink(missing_ok=True)
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
        process = owner(settings)
        if process is None:
            raise AlreadyRunning(
                f"a stats-pipeline in {settings.home} is just starting or stopping: try again"
            ) from None
        process.terminate()
        process.wait(timeout=60)
    return was_there


def owner(settings: Settings) -> psutil.Process | None:
    """The `up` or `demo` of this state folder; None if it has ended, or has not said yet who it is."""
    try:
        pid, created = (settings.home / "up.pid").read_text().split()
        process = psutil.Process(int(pid))
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    return process if abs(process.create_time() - float(created)) < _CLOCK_SECONDS else None  # the pid may be reused


def _owner_in_words(settings: Settings) -> str:
    found = owner(settings)
    return "" if found is None else f"process {found.pid}, "


def _children(settings: Settings) -> Path:
    return settings.home / "children.json"


@dataclass
class Deployment:
    """The processes of one `up`, forked from this one; to be made before anything in this process starts a thread."""

    settings: Settings
    database_url: str
    say: Callable[[str], None]
    start_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))  # the same for a door that is restarted

    def __post_init__(self) -> None:
        home = self.settings.home
        self._runtime = self.settings.runtime or "fast"
        self._supervisor = Supervisor(_children(self.settings), self.say)
        self._code_socket, self._launch_socket = home / "code.sock", _launch_socket(self.settings)
        self._workspace = home / "workspace.yaml"
        self._logs = home / "logs"

    @contextmanager
    def running(self, beside: Mapping[str, Callable[[], None]] | None = None) -> Iterator[None]:
        """All processes are ready at the start of the block, and have ended after it. `beside` is started first."""
        started = time.monotonic()
        self._prepare()
        try:
            for name, body in (beside or {}).items():
                self._start(name, body, {})
            self.say("Starting the code server …")
            code_server = self._start("code server", self._serve_code, self._for_dagster())
            if self._runtime == "fast":
                self._start("fork server", self._serve_runs, self._for_dagster())
            self._supervisor.wait_until_ready(code_server, lambda: _answers(self._code_socket))
            self.say("Starting the daemon and the web server …")
            daemon = self._start("daemon", self._run_daemon, self._for_dagster())
            door = self._start("door", self._open_door, self._for_door())
            listening = (address.address(self.settings), self.settings.port)
            self._supervisor.wait_until_ready(door, lambda: _answers(listening))
            slots = budget.slots(self.settings)
            with (
                nullcontext() if slots is None else slots.take("other"),
                database.connect(self.database_url, autocommit=True) as connection,
            ):
                self._supervisor.wait_until_ready(daemon, lambda: self._all_sensors_beat(connection, started))
            try:
                yield
            finally:
                self.say("Stopping …")
                if process := code_server.process:
                    process.send_signal(_END_TICKS)  # the daemon waits for them
                self._supervisor.retire(daemon)
                self._let_runs_end()
        finally:
            self._supervisor.stop()

    def watch(self) -> None:
        """Restart any process that dies, including the embedded database, until Ctrl-C."""
        self._supervisor.watch(chore=self._tend_database, is_idle=lambda: not self._supervisor.others())

    def carry_out(self, task: Callable[[], None]) -> int:
        """Watch only as long as a task takes, which has this process's terminal; its exit code."""
        return self._supervisor.carry_out(
            task, chore=self._tend_database, is_idle=lambda: not self._supervisor.others()
        )

    def _prepare(self) -> None:
        """Import what all processes need, write Dagster's files, make its tables."""
        write_dagster_yaml(self.settings.dagster_home, self._runtime, self._launch_socket)
        server = {"grpc_server": {"socket": str(self._code_socket), "location_name": LOCATION}}
        self._workspace.write_text(json.dumps({"load_from": [server]}))  # JSON is YAML, and quotes any folder name
        self._code_socket.unlink(missing_ok=True)
        self._logs.mkdir(exist_ok=True)
        self.say("Loading Dagster …")
        check_names(self._runtime)
        forking.import_ahead(self._runtime, environment=self._for_dagster())
        for name in forking.in_a_fork(self._prepare_storage):
            self.say(f"The sensor {name} had been stopped and was started again")  # no job runs without it

    def _prepare_storage(self) -> list[str]:
        """Make Dagster's tables, before two processes can do so at the same time; the sensors that were stopped."""
        os.environ.update(self._for_dagster())
        from dagster import DagsterInstance  # noqa: PLC0415

        from stats_pipeline.runtime.instance import start_stopped_sensors  # noqa: PLC0415

        with DagsterInstance.get() as instance:
            instance.get_runs(limit=1)
            return start_stopped_sensors(instance, LOCATION)

    def _start(self, name: str, body: Callable[[], None], environment: Mapping[str, str]) -> Child:
        output = self._logs / f"{name.replace(' ', '-')}.log"
        output.write_bytes(b"")
        most = _MOST_MIB if environment else None

        def begin() -> None:
            log.configure(self.settings.log_level)  # its lines have another file than this process's
            body()

        child = Child(name, begin, {**_surroundings(), **environment}, self.settings.home, output, most)
        self._supervisor.start(child)
        return child

    def _for_dagster(self) -> dict[str, str]:
        return self._environment(without=_THE_DOORS_OWN)

    def _for_door(self) -> dict[str, str]:
        return self._environment(without=_THE_RUNS_OWN)

    def _environment(self, *, without: Collection[str]) -> dict[str, str]:
        own = self.settings.environment(without=without)
        return own | dagster_environment(self.settings, self.database_url) | {"STATS_RUNTIME": self._runtime}

    # What each process does. All of it is imported already.

    def _serve_code(self) -> None:
        from stats_pipeline.defs import sensors  # noqa: PLC0415
        from stats_pipeline.runtime import commands  # noqa: PLC0415

        signal.signal(_END_TICKS, lambda *_: sensors.stop.set())
        # Dagster's own launcher and executor look for the module in this folder, not in the first of Python's path.
        folder = None if IS_INSTALLED else PROJECT_ROOT
        commands.serve_code(self._code_socket, module="stats_pipeline.definitions", folder=folder, location=LOCATION)

    def _serve_runs(self) -> None:
        from stats_pipeline.defs.resources import LEASE_TAG  # noqa: PLC0415
        from stats_pipeline.runtime import launcher  # noqa: PLC0415

        def before_run(run_id: str, tags: Mapping[str, str]) -> None:
            setproctitle(f"stats-pipeline: run {run_id[:8]}")
            budget.take_room_for_a_run(self.settings, by_hand=LEASE_TAG not in tags)

        launcher.serve(
            self._launch_socket,
            preload=("stats_pipeline.definitions",),
            before_run=before_run,
            before_report=lambda: budget.take_room_for_a_report(self.settings),
        )

    def _run_daemon(self) -> None:
        from stats_pipeline.runtime import commands  # noqa: PLC0415

        if self._runtime == "fast":
            from stats_pipeline.runtime.daemon import quicken_sensors  # noqa: PLC0415

            quicken_sensors()
        commands.run_daemon(self._workspace)

    def _open_door(self) -> None:
        from stats_pipeline.web import server  # noqa: PLC0415

        ui = dagster_ui(self._workspace, self.settings)
        server.serve(settings_module.load(), self.database_url, start_key=self.start_key, ui=ui)

    def _all_sensors_beat(self, connection: Connection[Any], since: float) -> bool:
        """Whether each sensor has been evaluated here since that moment (monotonic): from now on jobs are picked up."""
        needed = health.judge((), self.settings).needed
        here = [row for row in database.run(connection, "list_beats") if row["host"] == platform.node()]
        heard = {row["sensor"] for row in here if row["seconds_since"] < time.monotonic() - since}
        return heard.issuperset(needed)

    def _tend_database(self) -> None:
        if self.settings.database_url is None and embedded.restart(self.settings.home):
            self.say("The embedded PostgreSQL had died and was restarted")

    def _let_runs_end(self) -> None:
        """Wait for the runs in progress, which take a second. One that takes longer is cut off; the next start requeues
        its jobs."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while runs := len(self._supervisor.others()):
            if time.monotonic() > deadline:
                self.say(f"{runs} runs are still running: they are stopped now, and resumed at the next start")
                return
            time.sleep(0.1)


def dagster_ui(workspace: Path, settings: Settings) -> "DagsterUI":
    """The Dagster UI of a workspace file and the instance in `DAGSTER_HOME`, still closed. Imports Dagster."""
    from stats_pipeline.runtime import webserver  # noqa: PLC0415
    from stats_pipeline.web.dagster_ui import DagsterUI  # noqa: PLC0415
    from stats_pipeline.web.door import may_change  # noqa: PLC0415

    def open_app() -> "AbstractContextManager[ASGIApp]":
        if not budget.has_room():  # an earlier try may have failed
            budget.take_room_for_dagsters_ui(settings)
        return webserver.dagster_app(workspace, prefix=address.DAGSTER, may_change=may_change)

    return DagsterUI(
        open_app,
        addresses=webserver.ADDRESSES,
        root_files=webserver.FILES_AT_THE_ROOT,
        mutations_of=webserver.mutations_of,
    )


def _launch_socket(settings: Settings) -> Path:
    return settings.home / "launch.sock"


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
        write_dagster_yaml(settings.dagster_home, settings.runtime or "fast", _launch_socket(settings))
    return {
        "DAGSTER_HOME": str(settings.dagster_home),
        "STATS_DATABASE_URL": database_url,
        "STATS_DAGSTER_URL": database.dagster_url(settings, database_url, schema=migrate.DAGSTER_SCHEMA),
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


def _answers(address: Path | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(address) if isinstance(address, Path) else address) == 0
