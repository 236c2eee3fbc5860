"""Keeps a set of child processes running: starts them, restarts one that dies, ends them all together.

It knows nothing of Dagster; `up.py` lists the processes.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from stats_pipeline.errors import StatsPipelineError
from stats_pipeline.settings import LOG_FD, named_fd

_READY_SECONDS = 60
_LOOK_SECONDS = 0.05
_CHORE_SECONDS = 1
_MAX_LOG = 10_000_000  # bytes
STOP_SECONDS = 15  # for a child to end after SIGTERM, before SIGKILL
_BACKOFF = (0.5, 1, 2, 5, 10)  # seconds before a restart, by how often the child has died in a row
_STEADY_SECONDS = 60  # a child that ran this long starts again from the shortest wait


@dataclass
class Child:
    """One process to keep running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path  # to start it in
    log: Path  # gets what it and its libraries print
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    started_at: float = field(default=0, init=False)
    deaths: int = field(default=0, init=False)

    def start(self, exits: "queue.Queue[Child]") -> None:
        """Start it in its own session, so that Ctrl-C reaches the supervisor only, and report its exit.

        Its log lines go to the supervisor's standard error, through a separate file descriptor.
        """
        self.started_at = time.monotonic()
        for_lines = os.dup(2)
        try:
            with self.log.open("ab") as output:
                self.process = subprocess.Popen(
                    self.command,
                    env={**self.environment, LOG_FD: named_fd(for_lines)},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[for_lines],
                    start_new_session=True,
                )
        finally:
            os.close(for_lines)
        threading.Thread(target=self._report_exit, args=(self.process, exits), daemon=True).start()

    def keep_log_small(self) -> None:
        """Start a new log, keeping one old file. Lines written in between are lost."""
        if self.log.stat().st_size > _MAX_LOG:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)  # each child appends

    def _report_exit(self, process: "subprocess.Popen[bytes]", exits: "queue.Queue[Child]") -> None:
        process.wait()
        exits.put(self)


class Supervisor:
    """Runs children until `stop`. The pids are kept in a file: a supervisor that is killed leaves its children behind,
    and the next one ends them before it starts its own."""

    def __init__(self, pid_file: Path, say: Callable[[str], None]) -> None:
        self._pid_file = pid_file
        self._say = say
        self._children: list[Child] = []
        self._left_behind: list[psutil.Process] = []
        self._exits: queue.Queue[Child] = queue.Queue()

    def start(self, child: Child) -> None:
        """Start a child and keep it running from now on."""
        child.start(self._exits)
        self._children.append(child)
        self._write_pids()

    def wait_until_ready(self, child: Child, is_ready: Callable[[], bool]) -> None:
        """Return once a new child is ready. Raises `StatsPipelineError` if it is not ready within a minute (three
        seconds are normal), or if any child ends before that."""
        deadline = time.monotonic() + _READY_SECONDS
        while not is_ready():
            try:
                dead = self._exits.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise StatsPipelineError(
                        f"the {child.name} is not ready after {_READY_SECONDS} seconds{_see(child)}"
                    ) from None
            else:
                raise StatsPipelineError(f"the {dead.name} ended while it started{_see(dead)}")

    def watch(self, until: Callable[[], bool] = lambda: False, *, chore: Callable[[], None] = lambda: None) -> None:
        """Restart any child that dies until `until()` is true (polled 20 times a second). `chore` is called each
        second; a `StatsPipelineError` it raises is reported once, and it is called again."""
        problem, done_at = None, -float("inf")
        while not until():
            with suppress(queue.Empty):
                self._restart(self._exits.get(timeout=_LOOK_SECONDS))
            if time.monotonic() - done_at > _CHORE_SECONDS:
                for child in self._children:
                    child.keep_log_small()
                before, problem = problem, _try(chore)
                if problem is not None and problem != before:
                    self._say(problem)
                done_at = time.monotonic()

    def _restart(self, child: Child) -> None:
        assert child.process is not None
        if time.monotonic() - child.started_at > _STEADY_SECONDS:
            child.deaths = 0
        wait = _BACKOFF[min(child.deaths, len(_BACKOFF) - 1)]
        child.deaths += 1
        self._say(
            f"The {child.name} ended with exit code {child.process.returncode}: restarting in {wait} s{_see(child)}"
        )
        time.sleep(wait)
        child.start(self._exits)
        self._write_pids()

    def retire(self, child: Child) -> None:
        """End one child for good, but not its own child processes: they run until `stop`."""
        self._children.remove(child)
        if child.process is not None and child.process.poll() is None:
            process = psutil.Process(child.process.pid)
            self._left_behind += _family(process)
            _end([process])

    def stop(self) -> None:
        """End every child and its own child processes: SIGTERM to all, after fifteen seconds SIGKILL to the rest."""
        running = [psutil.Process(c.process.pid) for c in self._children if c.process and c.process.poll() is None]
        _end([member for process in running for member in _family(process)] + self._left_behind)
        self._children.clear()
        self._pid_file.unlink(missing_ok=True)

    def _write_pids(self) -> None:
        pids = {}
        for child in self._children:
            try:
                if child.process:
                    pids[child.process.pid] = psutil.Process(child.process.pid).create_time()
            except psutil.NoSuchProcess:
                continue
        written = self._pid_file.with_suffix(".new")
        written.write_text(json.dumps(pids))
        written.replace(self._pid_file)  # atomic: readers never see a partial file, even after a kill


def _try(chore: Callable[[], None]) -> str | None:
    try:
        chore()
    except StatsPipelineError as error:
        return str(error)
    return None


def _see(child: Child) -> str:
    """The child's log file and its last line, which in a Python traceback is the error."""
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
