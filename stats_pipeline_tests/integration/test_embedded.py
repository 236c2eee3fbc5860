"""The embedded server when it or its users are killed: a real server, real SIGKILL."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy

from stats_pipeline import database
from stats_pipeline.database import embedded
from stats_pipeline.errors import DatabaseUnavailable
from stats_pipeline_tests.acceptance.processes import until

pytestmark = pytest.mark.slow

HOLD = """
import pathlib, sys
from stats_pipeline.database import embedded

with embedded.running(pathlib.Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


HOLD_FOR_GOOD = """
import pathlib, sys
from stats_pipeline.database import embedded

print(embedded.hold(pathlib.Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def hold(folder: Path, code: str = HOLD) -> "subprocess.Popen[bytes]":
    """Another process that has the server run until its input ends; returns when it does."""
    command = [sys.executable, "-c", code, str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    if not holder.stdout.readline():
        holder.communicate()
        pytest.fail("the server does not run")
    return holder


def answer(url: str) -> int:
    with psycopg.connect(url) as connection:
        (value,) = connection.execute("select 42").fetchone() or (0,)
    return int(value)


def test_the_last_one_to_leave_stops_it(tmp_path: Path) -> None:
    with embedded.running(tmp_path) as url:
        with hold(tmp_path) as other:
            other.communicate(b"")
        assert answer(url) == 42
    assert not embedded.is_running(tmp_path)


def test_a_killed_owner_does_not_keep_it_running_and_its_server_is_taken_over(tmp_path: Path) -> None:
    with hold(tmp_path) as owner:
        owner.kill()
    assert embedded.is_running(tmp_path)
    with embedded.running(tmp_path) as url:
        assert answer(url) == 42
    assert not embedded.is_running(tmp_path)


def caretakers(folder: Path) -> list[psutil.Process]:
    """The processes that wait to stop the server, or are at it."""
    marks = {embedded._STOP_AFTER_THE_LAST, str(folder)}
    return [process for process in psutil.process_iter() if marks <= set(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_server_that_is_held_stops_with_the_last_process_also_when_that_is_killed(tmp_path: Path) -> None:
    with hold(tmp_path, HOLD_FOR_GOOD) as first, hold(tmp_path, HOLD_FOR_GOOD) as second:
        [caretaker] = caretakers(tmp_path)
        first.kill()
        first.wait()
        assert answer(embedded.running_url(tmp_path)) == 42
        second.kill()
        second.wait()
        psutil.wait_procs([caretaker], timeout=30)
    assert not embedded.is_running(tmp_path)
    assert not caretakers(tmp_path)


def test_who_comes_while_the_last_one_leaves_finds_a_server_and_a_caretaker(tmp_path: Path) -> None:
    """Each time either the caretaker sees the new user, or the new user starts all anew."""
    with ExitStack() as held:
        holder = held.enter_context(hold(tmp_path, HOLD_FOR_GOOD))
        for _ in range(5):
            holder.kill()
            holder.wait()
            holder = held.enter_context(hold(tmp_path, HOLD_FOR_GOOD))
            held.callback(holder.kill)
            assert answer(embedded.running_url(tmp_path)) == 42
            until(lambda: caretakers(tmp_path), "a caretaker")  # one that becomes the other program has no words
        found = caretakers(tmp_path)
        holder.communicate(b"")
    psutil.wait_procs(found, timeout=30)
    assert not embedded.is_running(tmp_path)


def test_the_caretaker_leaves_alone_what_others_use(tmp_path: Path) -> None:
    with embedded.running(tmp_path) as url:
        with hold(tmp_path, HOLD_FOR_GOOD) as holder:
            holder.communicate(b"")
        assert answer(url) == 42
        found = caretakers(tmp_path)
    psutil.wait_procs(found, timeout=30)
    assert not embedded.is_running(tmp_path)
    assert not caretakers(tmp_path)


def test_a_killed_server_recovers(tmp_path: Path) -> None:
    with embedded.running(tmp_path) as url:
        with psycopg.connect(url) as connection:
            connection.execute("create table kept as select 1 as value")
        server = psutil.Process(int((tmp_path / "postgres" / "postmaster.pid").read_text().split()[0]))
        family = [server, *server.children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=30)
    with embedded.running(tmp_path) as url, psycopg.connect(url) as connection:
        assert connection.execute("select value from kept").fetchall() == [(1,)]


def test_a_pid_file_whose_pid_is_another_process_now_is_no_server(tmp_path: Path) -> None:
    with embedded.running(tmp_path):
        lines = (tmp_path / "postgres" / "postmaster.pid").read_text().split("\n")
    (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]))
    assert not embedded.is_running(tmp_path)
    with embedded.running(tmp_path) as url:
        assert answer(url) == 42


def test_a_lock_of_the_socket_whose_pid_is_another_process_now_is_no_server(tmp_path: Path) -> None:
    """Regression: killed together with its starter, the server could not be started while its pid was in use."""
    with embedded.running(tmp_path):
        lock = (tmp_path / "postgres" / ".s.PGSQL.5432.lock").read_text().split("\n")
    left = tmp_path / "postgres" / ".s.PGSQL.5432.lock"
    user = "pgserver" if os.geteuid() == 0 else None  # another user's process could not be a server
    with subprocess.Popen(["sleep", "60"], user=user) as another:
        left.write_text("\n".join([str(another.pid), *lock[1:]]))
        with embedded.running(tmp_path) as url:
            assert answer(url) == 42
        another.kill()


def test_a_data_folder_that_was_never_finished_is_made_again(tmp_path: Path) -> None:
    """Regression: killed during its first initdb, the server could never be started again."""
    unfinished = tmp_path / "postgres.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with embedded.running(tmp_path) as url:
        assert answer(url) == 42


def test_a_path_too_long_for_a_socket_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="STATS_HOME is too deep"), embedded.running(tmp_path / ("x" * 120)):
        pass


def test_who_is_not_running_has_no_url(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="stats-pipeline up"):
        embedded.running_url(tmp_path)


def test_the_state_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    """As root, the server's own user passes through it, without seeing what there is."""
    folder = tmp_path / "state"
    for _ in range(2):
        with embedded.running(folder):
            assert folder.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)


@pytest.mark.parametrize(
    "name", ["my projects", "o'brien", 'say "no"', "$HOME `id`", "50% off; a&b", "#1 ?x=y", "Zürich", "@host:1"]
)
def test_any_name_of_a_folder_will_do(tmp_path: Path, name: str) -> None:
    with embedded.running(tmp_path / name / "state") as url:
        assert answer(url) == 42
        assert database.describe(url)
        dagster = sqlalchemy.create_engine(database.sqlalchemy_url(url, schema="public"))
        with dagster.connect() as connection:
            assert connection.execute(sqlalchemy.text("select 42")).scalar() == 42
        dagster.dispose()


def test_what_libraries_read_in_the_environment_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "PGSERVER_POSTGRES_VERSION": "9",
        "LC_ALL": "tr_TR",
    }.items():
        monkeypatch.setenv(name, value)
    with embedded.running(tmp_path) as url, psycopg.connect(url) as connection:
        assert connection.execute("select lower('IÉ'), 'a' < 'B'").fetchall() == [("ié", False)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could open them")
def test_folders_above_are_not_opened(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(DatabaseUnavailable, match=f"chmod o\\+x {closed}"), embedded.running(closed / "state"):
        pass
    assert closed.stat().st_mode & 0o777 == 0o700
    closed.chmod(0o711)
    with embedded.running(closed / "state") as url:
        assert answer(url) == 42
    assert closed.stat().st_mode & 0o777 == 0o711


def test_a_server_that_has_died_is_started_again(tmp_path: Path) -> None:
    with embedded.running(tmp_path) as url:
        assert not embedded.restart(tmp_path)
        server = psutil.Process(int((tmp_path / "postgres" / "postmaster.pid").read_text().split()[0]))
        server.kill()
        psutil.wait_procs([server], timeout=30)
        assert embedded.restart(tmp_path)
        assert answer(url) == 42
    assert not embedded.is_running(tmp_path)
