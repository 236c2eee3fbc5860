"""The launcher of runs: forks each run's process from a server that has Dagster and our code already imported.

Dagster's own launcher starts a Python per run, which costs more than a second of imports; a fork takes milliseconds.
This one also tells run monitoring whether a run's process lives. `STATS_RUNTIME=stock` switches back. The steps inside
the process are the executor's.

`multiprocessing` has a fork server too, but only one per process: it cannot be replaced while one of its children runs,
it runs the parent's `__main__` again in each, and the parent's exit waits for them.
"""

import gc
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import dagster as dg
import psutil
from dagster._core.events import EngineEventData  # holds the record of a run's process
from dagster._core.instance.ref import InstanceRef  # an instance as passed between processes
from dagster._core.launcher.base import (  # the base class, and its answers to run monitoring
    CheckRunHealthResult,
    LaunchRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._grpc.impl import core_execute_run  # the entry point of Dagster's own run workers
from dagster._serdes import ConfigurableClass, ConfigurableClassData  # a class that dagster.yaml names
from dagster._utils import get_run_crash_explanation  # Dagster's description of an exit code
from dagster._utils.hosted_user_process import recon_job_from_origin  # loads the run's job
from dagster._utils.interrupts import capture_interrupts  # a signal waits until Dagster looks for it

_STARTED = "Started the run's process"
# Importing everything takes 1.5 s on an idle machine; a server that has not answered after this many is abandoned.
ANSWER_TIMEOUT = 60


@dataclass(frozen=True)
class Worker:
    """The process that executes a run, as it has recorded itself in the run's event log, to which only the run writes.
    A tag could be set by anyone who may launch a run."""

    pid: int
    started: float  # seconds from the boot
    host: str

    @classmethod
    def this(cls) -> Self:
        """This process."""
        process = psutil.Process()
        return cls(process.pid, _seconds_from_boot(process), _host())

    def record(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        """Write into the run's event log."""
        data = EngineEventData({name: dg.MetadataValue.text(str(value)) for name, value in asdict(self).items()})
        instance.report_engine_event(_STARTED, run, data)

    @classmethod
    def of_run(cls, instance: dg.DagsterInstance, run_id: str) -> Self | None:
        """The last record, if there is one."""
        for entry in reversed(instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)):
            event = entry.get_dagster_event()
            if event.message == _STARTED:
                said = {name: str(value.value) for name, value in event.engine_event_data.metadata.items()}
                # A record of version 0.1.0 has no host, so its process cannot be checked from here.
                return cls(int(said["pid"]), float(said.get("started", 0)), said.get("host", ""))
        return None

    @property
    def is_of_this_host(self) -> bool:
        """Whether its process id is valid here."""
        return self.host == _host()

    def process(self) -> psutil.Process | None:
        """The live process, if there is one."""
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid)
            # The start time tells it from a later process with the same id; the boot time is exact to the second.
            if abs(_seconds_from_boot(found) - self.started) < 2 and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None


class ForkserverRunLauncher(RunLauncher, ConfigurableClass):
    """Executes each run in a process forked from a server with `preload` (names of modules) imported.

    The server belongs to the process that launches, is started by its first run (or by `warm`), and is replaced when
    a source file of a preloaded package has changed (in development: installed ones are not watched). A worker leads
    its own session, so it survives its launcher. Every death is noticed: the server reports that of a worker at once,
    even after the launcher died; if the server died too, run monitoring does, by `check_run_worker_health`. A worker on
    another host (another pid namespace) is neither checked nor ended from here: its own host does that, and if that
    host has died, the heartbeats of its lease stop.
    """

    def __init__(self, preload: Sequence[str], inst_data: ConfigurableClassData | None = None) -> None:
        self._preload = tuple(preload)
        self._inst_data = inst_data
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {"preload": dg.Field([str], is_required=False, default_value=[])}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(preload=config_value["preload"], inst_data=inst_data)

    def warm(self) -> None:
        """Start the server in the background, so that this process's first run is as fast as the others."""
        with _servers_lock:
            self._current_server()

    def launch_run(self, context: LaunchRunContext) -> None:
        """Return once the worker exists. Raises if it cannot be started; Dagster then marks the run as failed."""
        with _servers_lock:
            self._current_server().fork(self._instance.get_ref(), context.dagster_run.run_id)

    def _current_server(self) -> "_Server":
        server = _servers.get(self._preload)
        if server is None or not server.is_current():
            if server is not None:
                server.retire()
            server = _servers[self._preload] = _Server(self._preload, self._instance.get_ref())
        return server

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        # Only after the status was set: a worker that has not recorded itself yet will see it, and not start.
        worker = Worker.of_run(self._instance, run_id)
        if worker is not None and worker.is_of_this_host:
            process = worker.process()
            if process is None:
                self._instance.report_run_canceled(run, message="The run's process was already gone.")
            else:
                with suppress(psutil.NoSuchProcess):  # it has just ended; its server reports that
                    process.terminate()
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        worker = Worker.of_run(self._instance, run.run_id)
        if worker is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "The run never recorded its process.")
        if not worker.is_of_this_host:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "The run's process is on another host.")
        if worker.process() is None:
            return CheckRunHealthResult(WorkerStatus.FAILED, "The run's process is gone.")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


class _Server:
    """The launching process's end of its fork server; used by one thread at a time."""

    def __init__(self, preload: tuple[str, ...], instance_ref: InstanceRef) -> None:
        self._preload = preload
        self._sources = _source_files(preload)
        self._connection, theirs = Pipe()
        arguments = f"{theirs.fileno()}, {preload!r}"
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"import sys; sys.path = {sys.path!r}; from {__name__} import serve; serve({arguments})",
                ],
                close_fds=False,  # a run's log lines go to a file that this process has inherited
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the launcher's terminal is not meant for the runs
            )
        self._connection.send(instance_ref)

    def is_current(self) -> bool:
        return self._process.poll() is None and self._sources == _source_files(self._preload)

    def fork(self, instance_ref: InstanceRef, run_id: str) -> None:
        try:
            self._connection.send((instance_ref, run_id))
            if not self._connection.poll(ANSWER_TIMEOUT):
                raise TimeoutError(f"no answer within {ANSWER_TIMEOUT} seconds")
            self._connection.recv()
        except (OSError, EOFError) as error:
            self._process.kill()
            raise RuntimeError("The fork server failed; its own words are in this process's error output") from error

    def retire(self) -> None:
        """Let the server end after its last worker."""
        self._connection.close()
        threading.Thread(target=self._process.wait, daemon=True).start()  # otherwise it would become a zombie


_servers: dict[tuple[str, ...], _Server] = {}
_servers_lock = threading.Lock()


def _source_files(preload: Iterable[str]) -> set[tuple[str, int]]:
    """The Python files of the packages of these modules, each with its modification time.

    Installed packages are left out: the launcher itself uses the old ones until it is restarted.
    """
    files = set()
    installed = sysconfig.get_path("purelib")
    for package in {name.partition(".")[0] for name in preload}:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if Path(folder).is_relative_to(installed):
                continue
            for path in Path(folder).rglob("*.py"):
                with suppress(FileNotFoundError):  # just being replaced: the next call sees the difference
                    files.add((str(path), path.stat().st_mtime_ns))
    return files


def _host() -> str:
    """The scope of a process id: this boot of this machine, and its pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: no namespaces
        return platform.node()


def _seconds_from_boot(process: psutil.Process) -> float:
    # As a time of day the start would change whenever the clock is set.
    return process.create_time() - psutil.boot_time()


# The functions below run in the server and in the processes it forks.


def serve(launcher_fd: int, preload: Sequence[str]) -> None:
    """Import everything, then fork a worker per request, until the launcher and the last worker have ended.

    Stays a single thread with no connection to a database, since a fork would copy both in an unknown state.
    """
    launcher = Connection(launcher_fd)
    storages = [data.module_name for data in launcher.recv() if isinstance(data, ConfigurableClassData)]
    for name in (*storages, *preload):
        try:
            for value in vars(importlib.import_module(name)).values():
                if isinstance(value, dg.Definitions):
                    value.get_repository_def().get_all_jobs()
        except Exception:
            traceback.print_exc()
    gc.collect()
    gc.freeze()  # the collector would otherwise write to, and so copy, every page the workers share

    requests = [launcher]
    children: dict[int, tuple[int, tuple[InstanceRef, str] | None]] = {}  # sentinel -> pid, the run it executes
    while requests or children:
        for ready in wait([*requests, *children]):
            if isinstance(ready, int):
                pid, run = children.pop(ready)
                os.close(ready)
                exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if run and exit_code:
                    explanation = get_run_crash_explanation(f"The run's process ({pid})", exit_code)
                    pid, sentinel = _fork(launcher, _report_end, *run, explanation)
                    children[sentinel] = pid, None
            else:
                try:
                    run = launcher.recv()
                    pid, sentinel = _fork(launcher, _execute_run, *run)
                    children[sentinel] = pid, run
                    launcher.send(pid)
                except (EOFError, ConnectionError):  # the launcher died, or has retired this server
                    requests.clear()


def _fork(launcher: Connection, body: Callable[..., None], *args: object) -> tuple[int, int]:
    """Run body(*args) in a new process; return its id, and a file descriptor that reads as closed once it has ended."""
    sentinel, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, sentinel
    exit_code = 1
    try:
        os.setsid()
        launcher.close()  # otherwise the launcher would not notice the end of the server
        body(*args)
        exit_code = 0
    except BaseException:  # in any case, this process must not return into the server's loop
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(exit_code)


def _execute_run(instance_ref: InstanceRef, run_id: str) -> None:
    with capture_interrupts(), dg.DagsterInstance.from_ref(instance_ref) as instance:
        run = instance.get_run_by_id(run_id)
        if run is None or run.job_code_origin is None:
            raise RuntimeError(f"Run {run_id} was deleted before it could start, or its job cannot be loaded by name")
        Worker.this().record(instance, run)
        recon_job = recon_job_from_origin(run.job_code_origin)
        run = instance.get_run_by_id(run_id) or run
        if run.status != dg.DagsterRunStatus.CANCELING:  # terminated before its process was recorded
            with suppress(Exception):  # Dagster has already logged it
                for _ in core_execute_run(recon_job, run, instance, inject_env_vars=True):
                    pass
        _end(instance, run_id, "The run's process ended before the run did.")


def _report_end(instance_ref: InstanceRef, run_id: str, explanation: str) -> None:
    with dg.DagsterInstance.from_ref(instance_ref) as instance:
        _end(instance, run_id, explanation)


def _end(instance: dg.DagsterInstance, run_id: str, explanation: str) -> None:
    """Give a run without a process its final status, unless it has one."""
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message=explanation)
    elif run is not None and not run.is_finished:
        instance.report_run_failed(run, message=explanation)
