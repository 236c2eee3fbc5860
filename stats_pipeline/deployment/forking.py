"""Forks processes from this one, which has imported everything that any of them needs.

A fork is ready in a tenth of a second and shares the memory of all imported code; a new Python imports for two seconds
and holds 100 MB of its own. The price: this process must stay a single thread with no open connection, since a fork
copies both in an unknown state, and changed code is loaded by a restart of it only. What is kept running, and when it
is restarted, is in `supervisor.py`.
"""

import ctypes
import gc
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from setproctitle import getproctitle, setproctitle

from stats_pipeline import log
from stats_pipeline.errors import StatsPipelineError, one_line
from stats_pipeline.settings import LOG_FD, Runtime, named_fd

Result = TypeVar("Result")

_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# All that the processes of `up` import, besides the definitions. The last names are what Dagster, SQLAlchemy and our
# HTTP client import only when they use it, so in each run.
_AHEAD = (
    "stats_pipeline.defs.assets",
    "stats_pipeline.defs.schedules",
    "stats_pipeline.runtime.commands",
    "stats_pipeline.runtime.instance",
    "stats_pipeline.runtime.webserver",
    "stats_pipeline.web.server",
    *("certifi", "fsspec.implementations.local", "h11", "httpcore", "psycopg2.extras", "upath.core"),
    *("dagster._core.instance.factory", "dagster._core.secrets.env_file", "dagster._core.storage.sqlite_storage"),
    *("dagster._core.utility_ops", "dagster._core.workspace.autodiscovery", "dagster._grpc.server"),
    *("sqlalchemy.dialects.postgresql.psycopg2", "uvicorn.lifespan.on", "uvicorn.loops.auto"),
    *("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.websockets.auto"),
)
_FAST = tuple(
    f"stats_pipeline.runtime.{name}" for name in ("daemon", "executor", "hooks", "launcher", "secrets", "storage")
)


def import_ahead(runtime: Runtime, *, environment: Mapping[str, str]) -> None:
    """Import everything that the profile needs, in about two seconds: last the definitions, which are made from the
    settings in this environment. What is imported is never collected: a collection would write to the memory that the
    forks share."""
    for name in (*_AHEAD, *(_FAST if runtime == "fast" else ())):
        importlib.import_module(name)
    getproctitle()  # it finds the memory of the title, for which the environment must be as it was at the start
    before = dict(os.environ)
    try:
        _set_environment(environment)
        definitions = importlib.import_module("stats_pipeline.definitions")
        definitions.defs.get_repository_def().get_all_jobs()
    finally:
        _set_environment(before)
        log.configure("error")  # the definitions have chosen the level of their own processes
    gc.collect()
    gc.freeze()


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def fork(body: Callable[[], None], *, title: str, environment: Mapping[str, str], folder: Path, log: Path) -> int:
    """Run `body` in a new process and return its id. Its exit code is 1 if `body` raises.

    The process has a session of its own, so that Ctrl-C does not reach it, and only the given environment. What it
    prints goes to `log`; its log lines go to this process's standard error, through a separate file descriptor.
    """

    log.touch()

    def begin() -> None:
        os.setsid()
        for_lines = os.dup(2)
        os.set_inheritable(for_lines, True)  # a run of Dagster's own launcher is a new Python
        with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        _set_environment({**environment, LOG_FD: named_fd(for_lines)})
        os.chdir(folder)
        setproctitle(title)
        warnings.simplefilter("ignore")  # of libraries; a run of Dagster's own launcher has them in its own log
        body()

    return _fork(begin)


def fork_task(body: Callable[[], None]) -> int:
    """Run `body` in a new process with this one's terminal and environment; its id. Ctrl-C reaches both."""
    return _fork(body)


def in_a_fork(body: Callable[[], Result]) -> Result:
    """What `body` returns, in a process of its own that ends with it: for what opens connections or starts threads.

    Raises `StatsPipelineError` with the reason if it fails.
    """
    receiver, sender = Pipe(duplex=False)

    def begin() -> None:
        try:
            answer: tuple[bool, Any] = (True, body())
        except StatsPipelineError as error:
            answer = (False, str(error))
        except Exception as error:
            traceback.print_exc()
            answer = (False, one_line(error))
        sender.send(answer)

    with undisturbed():
        pid = _fork(begin)
        sender.close()
    try:
        is_done, result = receiver.recv()
    except EOFError:
        is_done, result = False, "a process that prepares the start was killed"
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        receiver.close()
        os.waitpid(pid, 0)
    if not is_done:
        raise StatsPipelineError(result)
    return result  # type: ignore[no-any-return]  # what `body` has returned


def adopt_orphans() -> None:
    """Become the parent of every process whose parent dies below this one, where the system can do that (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that end this process wait for the end of the block: nothing in it is left half done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(body: Callable[[], None]) -> int:
    _check_single_thread()
    sys.stdout.flush()
    sys.stderr.flush()
    with undisturbed():  # a signal must not have a new process return into the code of the old one
        pid = os.fork()
        if pid == 0:
            _run_and_exit(body)
        return pid


def _run_and_exit(body: Callable[[], None]) -> NoReturn:
    exit_code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        body()
        exit_code = 0
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        exit_code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(exit_code)


def _check_single_thread() -> None:
    tasks = Path("/proc/self/task")
    if tasks.exists() and (threads := len(list(tasks.iterdir()))) > 1:
        raise RuntimeError(f"a process with {threads} threads cannot be forked safely")
