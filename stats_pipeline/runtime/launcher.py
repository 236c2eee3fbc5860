"""The launcher of runs, and the fork server that it asks: each run's process is forked from the server, which has
Dagster and our code imported.

Dagster's own launcher starts a Python per run, which costs more than a second of imports; a fork takes milliseconds.
This one also tells run monitoring whether a run's process lives. `STATS_RUNTIME=stock` switches back. There is one
server for all processes that launch; whoever starts it keeps it running. The steps inside a run are the executor's.
"""

import gc
import importlib
import json
import os
import platform
import selectors
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

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
from dagster._serdes import (  # a class that dagster.yaml names; an instance as text
    ConfigurableClass,
    ConfigurableClassData,
    deserialize_value,
    serialize_value,
)
from dagster._utils import get_run_crash_explanation  # Dagster's description of an exit code
from dagster._utils.hosted_user_process import recon_job_from_origin  # loads the run's job
from dagster._utils.interrupts import capture_interrupts  # a signal waits until Dagster looks for it

_STARTED = "Started the run's process"
ANSWER_TIMEOUT = 30  # seconds for the server to fork, and for one that has died to be there again
_LOOK_SECONDS = 0.05


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
    """Executes each run in a process forked by the server that listens on `socket`.

    A worker leads its own session, so it survives launcher and server. Every death is noticed: the server reports that
    of a worker at once; if the server died too, run monitoring does, by `check_run_worker_health`. A worker on another
    host (another pid namespace) is neither checked nor ended from here: its own host does that, and if that host has
    died, the heartbeats of its lease stop.
    """

    def __init__(self, socket: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._socket = socket
        self._inst_data = inst_data
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {"socket": dg.Field(str, description="Path of the Unix socket of the fork server.")}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(socket=config_value["socket"], inst_data=inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Return once the worker exists. Raises if it cannot be started; Dagster then marks the run as failed."""
        run = context.dagster_run
        _Request(run.run_id, dict(run.tags), serialize_value(self._instance.get_ref())).send(self._socket)

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


class _Request(NamedTuple):
    """A run to be executed, and its instance: one line of JSON, answered by the worker's process id."""

    run_id: str
    tags: dict[str, str]
    instance: str  # serialized

    def send(self, address: str) -> None:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_TIMEOUT)
                try:
                    connection.connect(address)
                except (FileNotFoundError, ConnectionRefusedError) as error:  # it has died, and is being started again
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"The fork server at {address} is not there") from error
                    time.sleep(_LOOK_SECONDS)
                    continue
                connection.sendall(json.dumps(self).encode())
                connection.shutdown(socket.SHUT_WR)
                if not connection.recv(64):
                    raise RuntimeError("The fork server has died, or could not fork; its log says why")
                return

    @classmethod
    def receive(cls, connection: socket.socket) -> Self:
        """Raises `OSError` or `ValueError` if what comes is not one."""
        connection.settimeout(1)
        with connection.makefile("rb") as sent:
            return cls(*json.loads(sent.read()))

    def ref(self) -> InstanceRef:
        return deserialize_value(self.instance, InstanceRef)


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


# All below runs in the server and in the processes it forks.


def serve(
    address: Path,
    *,
    preload: Sequence[str],
    before_run: Callable[[str, Mapping[str, str]], None] = lambda *_: None,
    before_report: Callable[[], None] = lambda: None,
) -> None:
    """Import the modules, then fork a worker per request, until the process is ended.

    Each worker first calls `before_run` with the run's id and tags, and a process that reports a worker's crash to
    Dagster calls `before_report`, before either opens a connection. Only this user can connect. The process stays a
    single thread with no connection to a database, since a fork would copy both in an unknown state.
    """
    for name in preload:
        try:
            for value in vars(importlib.import_module(name)).values():
                if isinstance(value, dg.Definitions):
                    value.get_repository_def().get_all_jobs()
        except Exception:
            traceback.print_exc()
    gc.collect()
    gc.freeze()  # the collector would otherwise write to, and so copy, every page the workers share
    _Server(address, before_run, before_report).serve()


class _Child(NamedTuple):
    """A process of the server: the worker of a run, or one that reports the end of a worker."""

    pid: int
    request: _Request | None  # what a worker executes


class _Server:
    def __init__(
        self, address: Path, before_run: Callable[[str, Mapping[str, str]], None], before_report: Callable[[], None]
    ) -> None:
        self._before_run, self._before_report = before_run, before_report
        self._children: dict[int, _Child] = {}  # by a file descriptor that reads as closed once the process has ended
        self._selector = selectors.DefaultSelector()
        self._listening = socket.socket(socket.AF_UNIX)
        address.unlink(missing_ok=True)  # of a server that was killed
        before = os.umask(0o077)
        self._listening.bind(str(address))
        os.umask(before)
        self._listening.listen(64)
        self._selector.register(self._listening, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for ready, _ in self._selector.select():
                if ready.fd in self._children:
                    self._collect(ready.fd)
                else:
                    self._answer()

    def _answer(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            try:
                request = _Request.receive(connection)
            except (OSError, ValueError, TypeError):
                return  # somebody has looked whether the server is there

            def execute() -> None:
                connection.close()  # the launcher is to notice the server's end
                self._before_run(request.run_id, request.tags)
                _execute_run(request)

            try:
                pid = self._fork(execute, request)
            except OSError:  # no room for another process: the launcher is told by the end of its connection
                traceback.print_exc()
                return
            with suppress(OSError):  # the launcher has died
                connection.sendall(str(pid).encode())

    def _collect(self, sentinel: int) -> None:
        """Take note of a process's end; have it reported, if that was a crash."""
        child = self._children.pop(sentinel)
        self._selector.unregister(sentinel)
        os.close(sentinel)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        if child.request is not None and exit_code:
            explanation = get_run_crash_explanation(f"The run's process ({child.pid})", exit_code)
            crashed = child.request

            def report() -> None:
                self._before_report()
                _report_end(crashed, explanation)

            try:
                self._fork(report)
            except OSError:  # no room for another process: run monitoring will find the run without one
                traceback.print_exc()

    def _fork(self, body: Callable[[], None], request: _Request | None = None) -> int:
        """Run body() in a new process; its id."""
        sentinel, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(sentinel)
            os.close(writer)
            raise
        if pid:
            os.close(writer)
            self._children[sentinel] = _Child(pid, request)
            self._selector.register(sentinel, selectors.EVENT_READ)
            return pid
        exit_code = 1
        try:
            os.setsid()
            self._listening.close()  # otherwise a launcher could connect to it after the server's end
            body()
            exit_code = 0
        except BaseException:  # in any case, this process must not return into the server's loop
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(exit_code)


def _execute_run(request: _Request) -> None:
    run_id = request.run_id
    with capture_interrupts(), dg.DagsterInstance.from_ref(request.ref()) as instance:
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


def _report_end(request: _Request, explanation: str) -> None:
    with dg.DagsterInstance.from_ref(request.ref()) as instance:
        _end(instance, request.run_id, explanation)


def _end(instance: dg.DagsterInstance, run_id: str, explanation: str) -> None:
    """Give a run without a process its final status, unless it has one."""
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message=explanation)
    elif run is not None and not run.is_finished:
        instance.report_run_failed(run, message=explanation)
