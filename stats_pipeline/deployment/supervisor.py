"""Keeps a set of child processes running: forks them, restarts one that dies or grows, ends them all together.

It knows nothing of Dagster; `up.py` lists the processes, `forking.py` makes them.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from stats_pipeline.deployment.forking import adopt_orphans, fork, fork_task, undisturbed
from stats_pipeline.errors import StatsPipelineError

_READY_SECONDS = 60
_LOOK_SECONDS = 0.05
_CHORE_SECONDS = 1
_WEIGH_SECONDS = 60  # between two looks at the memory of the children
_MIB = 1024 * 1024
_MAX_LOG = 10_000_000  # bytes
STOP_SECONDS = 15  # for a child to end after SIGTERM, before SIGKILL
_BACKOFF = (0.5, 1, 2, 5, 10)  # seconds before a restart, by how often the child has died in a row
_STEADY_SECONDS = 60  # a child that ran this long starts again from the shortest wait


@dataclass
class Child:
    """One process to keep running."""

    name: str
    body: Callable[[], None]  # what it does, until it is told to stop
    environment: Mapping[str, str]
    folder: Path  # to start it in
    log: Path  # gets what it and its libraries print
    most_mib: int | None = None  # proportional memory above which it is started anew, when nothing is at work
    pid: int = field(default=0, init=False)
    exit_code: int | None = field(default=None, init=False)  # None while it runs
    started_at: float = field(default=0, init=False)
    due_at: float | None = field(default=None, init=False)  # when to start it again, if it has ended
    deaths: int = field(default=0, init=False)
    is_told_to_end: bool = field(default=False, init=False)  # as it has grown

    def start(self) -> None:
        """Fork it. Raises `OSError` if the system has no room for another process."""
        self.pid = fork(
            self.body,
            title=f"stats-pipeline: {self.name}",
            environment=self.environment,
            folder=self.folder,
            log=self.log,
        )
        self.started_at = time.monotonic()
        self.exit_code, self.due_at, self.is_told_to_end = None, None, False

    @property
    def process(self) -> psutil.Process | None:
        """The process, unless it has ended."""
        try:
            return psutil.Process(self.pid) if self.exit_code is None else None
        except psutil.NoSuchProcess:
            return None

    def keep_log_small(self) -> None:
        """Start a new log, keeping one old file. Lines written in between are lost."""
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)  # each child appends


class Supervisor:
    """Runs children until `stop`. The pids are kept in a file: a supervisor that is killed leaves its children behind,
    and the next one ends them before it starts its own."""

    def __init__(self, pid_file: Path, say: Callable[[str], None]) -> None:
        self._pid_file = pid_file
        self._say = say
        self._children: list[Child] = []
        self._left_behind: list[psutil.Process] = []
        self._tasks: dict[int, int | None] = {}  # exit codes of those that have ended
        self._problems: dict[str, str | None] = {}  # what was said last of each
        adopt_orphans()

    def start(self, child: Child) -> None:
        """Start a child and keep it running from now on."""
        with undisturbed():
            child.start()
            self._children.append(child)
            self._write_pids()

    def wait_until_ready(self, child: Child, is_ready: Callable[[], bool]) -> None:
        """Return once a new child is ready. Raises `StatsPipelineError` if it is not ready within a minute (three
        seconds are normal), or if any child ends before that."""
        deadline = time.monotonic() + _READY_SECONDS
        while not is_ready():
            for dead in self._collect():
                raise StatsPipelineError(f"the {dead.name} ended while it started{_see(dead)}")
            if time.monotonic() > deadline:
                raise StatsPipelineError(f"the {child.name} is not ready after {_READY_SECONDS} seconds{_see(child)}")
            time.sleep(_LOOK_SECONDS)

    def carry_out(
        self,
        task: Callable[[], None],
        *,
        chore: Callable[[], None] = lambda: None,
        is_idle: Callable[[], bool] = lambda: True,
    ) -> int:
        """Run a task in a process with this one's terminal, and watch the children meanwhile; the task's exit code."""
        with undisturbed():
            pid = fork_task(task)
            self._tasks[pid] = None
        try:
            self.watch(lambda: self._tasks[pid] is not None, chore=chore, is_idle=is_idle)
        except BaseException:
            if self._tasks[pid] is None:
                os.kill(pid, signal.SIGTERM)
            raise
        exit_code = self._tasks.pop(pid)
        assert exit_code is not None
        return exit_code

    def watch(
        self,
        until: Callable[[], bool] = lambda: False,
        *,
        chore: Callable[[], None] = lambda: None,
        is_idle: Callable[[], bool] = lambda: True,
    ) -> None:
        """Restart any child that dies until `until()` is true (polled 20 times a second).

        `chore` is called each second. A `StatsPipelineError` or `OSError` of its, of a restart or of keeping the logs
        small is said once, and it is tried again. A child that has grown above its limit is started anew once
        `is_idle()`.
        """
        done_at, weighed_at = -float("inf"), time.monotonic()
        while not until():
            for dead in self._collect():
                self._plan_restart(dead)
            for child in self._children:
                if child.due_at is not None and time.monotonic() >= child.due_at:
                    self._start_again(child)
            if time.monotonic() - done_at > _CHORE_SECONDS:
                self._try("log", self._keep_logs_small)
                self._try("chore", chore)
                done_at = time.monotonic()
            if time.monotonic() - weighed_at > _WEIGH_SECONDS:
                if is_idle():
                    self._end_grown()
                weighed_at = time.monotonic()
            time.sleep(_LOOK_SECONDS)

    def _try(self, what: str, do: Callable[[], None]) -> None:
        problem = None
        try:
            do()
        except (StatsPipelineError, OSError) as error:
            problem = str(error)
        if problem is not None and problem != self._problems.get(what):
            self._say(problem)
        self._problems[what] = problem

    def _keep_logs_small(self) -> None:
        for child in self._children:
            child.keep_log_small()

    def _end_grown(self) -> None:
        """Tell each child above its limit to end; it is restarted like any that ends. One that was told a minute ago is
        killed."""
        for child in self._children:
            if child.most_mib is not None and (process := child.process):
                mib = round(getattr(process.memory_full_info(), "pss", 0) / _MIB)  # Linux only
                if mib > child.most_mib:
                    self._say(f"The {child.name} holds {mib} MiB of memory, more than {child.most_mib}: ending it")
                    _send(process, signal.SIGKILL if child.is_told_to_end else signal.SIGTERM)
                    child.is_told_to_end = True

    def others(self) -> list[psutil.Process]:
        """The live processes that children have started, those of children that have died included."""
        known = {child.pid for child in self._children} | self._tasks.keys()
        return [
            process
            for process in psutil.Process().children(recursive=True)
            if process.pid not in known and _is_at_work(process)
        ]

    def _collect(self) -> list[Child]:
        """The children that have ended since the last call.

        Every process that has ended is collected, not only children: as the first process of a container, this one
        inherits those whose parent was killed.
        """
        ended: list[Child] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            exit_code = os.waitstatus_to_exitcode(status)
            if pid in self._tasks:
                self._tasks[pid] = exit_code
            for child in self._children:
                if child.pid == pid:
                    child.exit_code = exit_code
                    ended.append(child)

    def _plan_restart(self, child: Child) -> None:
        if time.monotonic() - child.started_at > _STEADY_SECONDS:
            child.deaths = 0
        wait = _BACKOFF[min(child.deaths, len(_BACKOFF) - 1)]
        child.deaths += 1
        child.due_at = time.monotonic() + wait
        self._say(f"The {child.name} ended with exit code {child.exit_code}: restarting in {wait} s{_see(child)}")

    def _start_again(self, child: Child) -> None:
        with undisturbed():
            self._try(child.name, child.start)
            if child.due_at is not None:
                child.due_at = time.monotonic() + _BACKOFF[-1]
            self._try("pids", self._write_pids)

    def retire(self, child: Child) -> None:
        """End one child for good, but not its own child processes: they run until `stop`."""
        self._children.remove(child)
        if process := child.process:
            self._left_behind += _family(process)
            _end([process])

    def stop(self) -> None:
        """End every child and its own child processes: SIGTERM to all, after fifteen seconds SIGKILL to the rest.

        A second Ctrl-C waits for that.
        """
        with undisturbed():
            self._stop()

    def _stop(self) -> None:
        running = [process for child in self._children if (process := child.process)]
        family = [member for process in running for member in _family(process)]
        _end(list({*family, *self._left_behind, *self.others()}))
        self._children.clear()
        self._pid_file.unlink(missing_ok=True)

    def _write_pids(self) -> None:
        pids = {process.pid: process.create_time() for child in self._children if (process := child.process)}
        written = self._pid_file.with_suffix(".new")
        written.write_text(json.dumps(pids))
        written.replace(self._pid_file)  # atomic: readers never see a partial file, even after a kill


def _is_at_work(process: psutil.Process) -> bool:
    """Whether it lives and is none of the embedded server's, which has users besides us."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.name() not in ("postgres", "pg_ctl")
    except psutil.NoSuchProcess:
        return False


def _see(child: Child) -> str:
    """The child's log file and its last line, which in a Python traceback is the error."""
    if not child.log.exists():
        return ""
    lines = child.log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was logged")
    return f": {last[:300]} (see {child.log})"


def end_leftovers(pid_file: Path) -> None:
    """End the children of a supervisor that was killed. A pid that was reused since is left alone."""
    if not pid_file.exists():
        return
    leftovers = []
    for pid, created in json.loads(pid_file.read_text()).items():
        try:
            process = psutil.Process(int(pid))
            if process.create_time() == created:
                leftovers.append(process)
        except psutil.NoSuchProcess:
            continue
    _end([member for process in leftovers for member in _family(process)])
    pid_file.unlink()


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        _send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return
