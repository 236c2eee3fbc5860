"""Debian's PostgreSQL 15 with the queue, and Debian's PgBouncer in front of it, as on a Supabase project.

Both run as a user of their own if the tests are root, and listen on loopback only. `connections` counts what the server
has from our deployment.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from stats_pipeline.database import embedded
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.ports import free_port

_BINARIES = Path("/usr/lib/postgresql/15/bin")
_PGBOUNCER = shutil.which("pgbouncer", path=f"/usr/sbin:{os.defpath}")
_PASSWORD = "p@ss/word"
_USER = embedded._ROOTS_USER if os.geteuid() == 0 else None
POOL_SIZE = 15  # Supabase's default
WATCHER = "watcher"  # the test's own connections, which do not count

Mode = Literal["session", "transaction"]

needs_both = pytest.mark.skipif(
    not _BINARIES.is_dir() or _PGBOUNCER is None, reason="needs Debian's postgresql-15 and pgbouncer"
)


def _own(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if _USER is not None:
        shutil.chown(folder, _USER)


def _run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        user=_USER,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout


@contextmanager
def postgres(folder: Path, *, max_connections: int = 60) -> Iterator[int]:
    """A server with the queue installed; its port."""
    data, port = folder / "pg15", free_port()
    _own(data)
    password = data.with_name("password")
    password.write_text(_PASSWORD)
    password.chmod(0o644)
    _run(
        _BINARIES / "initdb",
        *("-D", ".", "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync"),
        cwd=data,
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k . -c fsync=off -c max_connections={max_connections}"
    # The log is a file: pg_ctl's caller would otherwise wait for the server's end.
    _run(_BINARIES / "pg_ctl", "-D", ".", "-l", "log", "-w", "-o", options, "start", cwd=data)
    try:
        embedded._install_queue(url_of(port))
        yield port
    finally:
        _run(_BINARIES / "pg_ctl", "-D", ".", "-m", "immediate", "stop", cwd=data)


def url_of(port: int, *, mode: Mode = "session") -> str:
    """The URL of the server, or of a pooler in front of it."""
    pooled = "?pgbouncer=true" if mode == "transaction" else ""
    return (
        f"postgresql://postgres:{_PASSWORD.replace('@', '%40').replace('/', '%2F')}@127.0.0.1:{port}/postgres{pooled}"
    )


@contextmanager
def pgbouncer(folder: Path, server: int, mode: Mode, *, size: int = POOL_SIZE, **options: object) -> Iterator[int]:
    """A pooler in front of the server; its port. As configured by Debian, but for the mode and the size."""
    assert _PGBOUNCER is not None
    port = free_port()
    own = folder / f"pgbouncer-{mode}-{port}"
    _own(own)
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": own / "users",
        "pool_mode": mode,
        "default_pool_size": size,
        "max_client_conn": 200,
        **options,
    }
    (own / "users").write_text(f'"postgres" "{_PASSWORD}"\n')
    settings = "\n".join(f"{name} = {value}" for name, value in lines.items())
    (own / "ini").write_text(f"[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\n{settings}\n")
    with (
        (own / "log").open("wb") as log,
        subprocess.Popen(
            [_PGBOUNCER, str(own / "ini")], user=_USER, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process,
    ):
        try:
            until(lambda: _answers(port), f"PgBouncer; see {own}", patience=10)
            yield port
        finally:
            process.kill()


def _answers(port: int) -> bool:
    with psycopg.connect(url_of(port)):
        return True


class Watch:
    """The highest number of client connections that the server had, looked at every few milliseconds."""

    _COUNT = b"select count(*) from pg_stat_activity where backend_type = 'client backend' and application_name <> %s"

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, application_name=WATCHER)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.highest = 0
        self.looks = 0

    def now(self) -> int:
        (count,) = self._connection.execute(self._COUNT, [WATCHER]).fetchone() or (0,)
        return int(count)

    def _look(self) -> None:
        while not self._ended.wait(0.003):
            self.highest = max(self.highest, self.now())
            self.looks += 1

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._connection.close()
