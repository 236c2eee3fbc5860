"""The supervisor with real child processes: each writes a line when it starts, and lives or dies as told.

The children are forks that execute another program at once: the tests' own process has threads. What a fork without one
needs is in `test_forking.py`.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stats_pipeline.deployment import forking
from stats_pipeline.deployment import supervisor as module
from stats_pipeline.deployment.supervisor import Child, Supervisor, end_leftovers
from stats_pipeline.errors import StatsPipelineError

PATIENCE = 30  # seconds until something that must happen counts as not happening
SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture(autouse=True)
def _may_have_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "_check_single_thread", lambda: None)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[str]) -> Iterator[Supervisor]:
    running = Supervisor(tmp_path / "children.json", said.append)
    yield running
    running.stop()


def child(tmp_path: Path, code: str, name: str = "worker") -> Child:
    """A process that notes its pid, one line each time it starts, and then runs the code."""
    return Child(name, program(tmp_path, code, name), {}, tmp_path, tmp_path / f"{name}.log")


def program(tmp_path: Path, code: str, name: str) -> Callable[[], None]:
    return lambda: os.execv(sys.executable, command(tmp_path, code, name))


def command(tmp_path: Path, code: str, name: str) -> list[str]:
    noted = f"import os; open({str(tmp_path / name)!r}, 'a').write(f'{{os.getpid()}}\\n'); "
    return [sys.executable, "-c", noted + code]


def pids(tmp_path: Path, name: str = "worker") -> list[int]:
    file = tmp_path / name
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def within(condition: Callable[[], object]) -> Callable[[], bool]:
    """The condition, failing the test when it has not come true in time."""
    deadline = time.monotonic() + PATIENCE

    def check() -> bool:
        assert time.monotonic() < deadline, "it did not happen"
        return bool(condition())

    return check


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_child_that_is_killed_is_started_again(tmp_path: Path, supervisor: Supervisor, said: list[str]) -> None:
    supervisor.start(child(tmp_path, SLEEP))
    supervisor.watch(until=within(lambda: len(pids(tmp_path)) == 1))

    psutil.Process(pids(tmp_path)[0]).kill()

    supervisor.watch(until=within(lambda: len(pids(tmp_path)) == 2))
    first, second = pids(tmp_path)
    assert is_gone(first)
    assert not is_gone(second)
    log = tmp_path / "worker.log"
    assert said == [f"The worker ended with exit code -9: restarting in 0.5 s: nothing was logged (see {log})"]


def test_a_child_that_dies_at_once_is_started_ever_more_slowly(
    tmp_path: Path, supervisor: Supervisor, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", (0.01, 0.02, 0.04))
    supervisor.start(child(tmp_path, "raise SystemExit(7)"))
    supervisor.watch(until=within(lambda: len(said) == 5))
    assert [": ".join(line.split(": ")[:2]) for line in said] == [
        f"The worker ended with exit code 7: restarting in {wait} s" for wait in (0.01, 0.02, 0.04, 0.04, 0.04)
    ]


def test_a_child_that_ran_well_for_a_while_is_started_quickly_again(
    tmp_path: Path, supervisor: Supervisor, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", (0.01, 60))
    monkeypatch.setattr(module, "_STEADY_SECONDS", 0)
    supervisor.start(child(tmp_path, "raise SystemExit(7)"))
    supervisor.watch(until=within(lambda: len(said) == 3))
    assert all("restarting in 0.01 s" in line for line in said)


def test_the_others_keep_running(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(child(tmp_path, SLEEP, "steady"))
    supervisor.start(child(tmp_path, SLEEP, "killed"))
    supervisor.watch(until=within(lambda: pids(tmp_path, "steady") and pids(tmp_path, "killed")))
    psutil.Process(pids(tmp_path, "killed")[0]).kill()
    supervisor.watch(until=within(lambda: len(pids(tmp_path, "killed")) == 2))
    assert len(pids(tmp_path, "steady")) == 1


def test_stop_ends_children_and_grandchildren(tmp_path: Path, supervisor: Supervisor) -> None:
    grandchild = command(tmp_path, SLEEP, "grandchild")
    supervisor.start(child(tmp_path, f"import subprocess; subprocess.run({grandchild!r})"))
    supervisor.watch(until=within(lambda: pids(tmp_path, "grandchild")))

    supervisor.stop()

    assert all(is_gone(pid) for pid in pids(tmp_path) + pids(tmp_path, "grandchild"))
    assert not (tmp_path / "children.json").exists()


def test_stop_kills_what_ignores_it(tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    ready = tmp_path / "ready"
    supervisor.start(child(tmp_path, STUBBORN.replace("; import time", f"; open({str(ready)!r}, 'w'); import time")))
    supervisor.watch(until=within(ready.exists))

    supervisor.stop()

    assert is_gone(pids(tmp_path)[0])


def test_stop_without_children_and_twice(supervisor: Supervisor) -> None:
    supervisor.stop()
    supervisor.stop()


def test_the_next_supervisor_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    """The first supervisor is a process of its own, killed without a chance to clean up."""
    code = (
        "import os, sys; from pathlib import Path; from stats_pipeline.deployment.supervisor import Child, Supervisor\n"
        f"supervisor = Supervisor(Path({str(tmp_path / 'children.json')!r}), print)\n"
        f"folder, command = Path({str(tmp_path)!r}), {command(tmp_path, SLEEP, 'worker')!r}\n"
        "work = lambda: os.execv(sys.executable, command)\n"
        "supervisor.start(Child('worker', work, {}, folder, folder / 'worker.log'))\n"
        "supervisor.watch()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as killed:
        _wait(within(lambda: pids(tmp_path) and (tmp_path / "children.json").exists()))
        killed.send_signal(signal.SIGKILL)
    [leftover] = pids(tmp_path)
    assert not is_gone(leftover)

    end_leftovers(tmp_path / "children.json")

    assert is_gone(leftover)
    assert not (tmp_path / "children.json").exists()


def test_a_pid_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as stranger:
        file = tmp_path / "children.json"
        file.write_text(json.dumps({stranger.pid: psutil.Process(stranger.pid).create_time() - 1000}))
        end_leftovers(file)
        assert stranger.poll() is None
        stranger.kill()


def test_the_pid_file_is_whole_at_every_moment(tmp_path: Path, supervisor: Supervisor) -> None:
    """Whoever is killed while the list is written leaves the old one or the new one, never half of one."""
    supervisor.start(child(tmp_path, SLEEP, "first"))
    file = tmp_path / "children.json"
    with file.open() as old:
        supervisor.start(child(tmp_path, SLEEP, "second"))
        assert len(json.load(old)) == 1
    assert len(json.loads(file.read_text())) == 2


def test_a_child_gets_only_the_environment_it_is_given(tmp_path: Path, supervisor: Supervisor) -> None:
    out = tmp_path / "environment"
    body = program(tmp_path, f"open({str(out)!r}, 'w').write(' '.join(sorted(os.environ))); {SLEEP}", "worker")
    supervisor.start(Child("worker", body, {"GIVEN": "value"}, tmp_path, tmp_path / "worker.log"))
    supervisor.watch(until=within(lambda: out.exists() and out.read_text()))
    assert set(out.read_text().split()) <= {
        "GIVEN",
        "STATS_LOG_FD",
        "LC_CTYPE",
        "LINES",
        "COLUMNS",
    }  # C libraries set the last ones


def test_what_a_child_prints_goes_to_its_file_and_its_lines_to_ours(
    tmp_path: Path, supervisor: Supervisor, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import os; print('chatter', flush=True); fd = int(os.environ['STATS_LOG_FD'].split(':')[0])"
    code += "; os.write(fd, b'a line of ours')"
    started = child(tmp_path, f"{code}; {SLEEP}", "talker")
    supervisor.start(started)
    supervisor.watch(until=within(lambda: "chatter" in started.log.read_text()))
    said = ""

    def is_said() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "a line of ours" in said

    supervisor.watch(until=within(is_said))
    assert "chatter" not in said


def test_the_file_of_what_a_child_prints_stays_small(tmp_path: Path, supervisor: Supervisor) -> None:
    writing = (
        "import itertools, sys, time\nfor n in itertools.count(): print('x' * 999_999, flush=True); time.sleep(0.02)"
    )
    started = child(tmp_path, writing, "talker")
    supervisor.start(started)
    old = started.log.with_suffix(".log.1")
    supervisor.watch(until=within(lambda: old.exists() and started.log.stat().st_size < old.stat().st_size))
    assert old.stat().st_size > 10_000_000


def test_a_chore_that_fails_is_said_once_and_done_again(
    supervisor: Supervisor, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHORE_SECONDS", 0)
    done = 0

    def chore() -> None:
        nonlocal done
        done += 1
        if done < 4:
            raise StatsPipelineError("the kettle is cold")

    supervisor.watch(until=within(lambda: done == 4), chore=chore)
    assert said == ["the kettle is cold"]


def test_a_child_for_which_there_is_no_room_is_started_when_there_is(
    tmp_path: Path, supervisor: Supervisor, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF", (0.05,))
    supervisor.start(child(tmp_path, SLEEP))
    supervisor.watch(until=within(lambda: pids(tmp_path)))

    def refuse(*_: object, **__: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as full:
        full.setattr(module, "fork", refuse)
        psutil.Process(pids(tmp_path)[0]).kill()
        supervisor.watch(until=within(lambda: len(said) == 2))
    assert said[1] == "[Errno 11] Resource temporarily unavailable"
    supervisor.watch(until=within(lambda: len(pids(tmp_path)) == 2))
    assert len(said) == 2  # however often it was tried


def test_a_log_that_somebody_deletes_is_no_trouble(
    tmp_path: Path, supervisor: Supervisor, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHORE_SECONDS", 0)
    started = child(tmp_path, SLEEP)
    supervisor.start(started)
    supervisor.watch(until=within(lambda: pids(tmp_path)))
    started.log.unlink()
    looks = iter(range(5))
    supervisor.watch(until=lambda: next(looks, None) is None)
    psutil.Process(pids(tmp_path)[0]).kill()
    supervisor.watch(until=within(lambda: len(pids(tmp_path)) == 2))
    assert said == ["The worker ended with exit code -9: restarting in 0.5 s"]


def test_stop_ends_also_what_a_child_that_was_killed_had_started(tmp_path: Path, supervisor: Supervisor) -> None:
    grandchild = command(tmp_path, SLEEP, "grandchild")
    supervisor.start(child(tmp_path, f"import subprocess; subprocess.run({grandchild!r}, start_new_session=True)"))
    supervisor.watch(until=within(lambda: pids(tmp_path, "grandchild")))
    psutil.Process(pids(tmp_path)[0]).kill()
    [orphan] = pids(tmp_path, "grandchild")
    supervisor.watch(until=within(lambda: orphan in [process.pid for process in supervisor.others()]))

    supervisor.stop()

    assert is_gone(orphan)


def test_a_task_runs_while_the_children_are_watched(tmp_path: Path, supervisor: Supervisor) -> None:
    """It ends by itself, once a child that was killed meanwhile is there again."""
    supervisor.start(child(tmp_path, SLEEP))
    supervisor.watch(until=within(lambda: pids(tmp_path)))
    noted, pid = tmp_path / "worker", pids(tmp_path)[0]
    code = f"import os, time; os.kill({pid}, 9)\nwhile len(open({str(noted)!r}).readlines()) < 2: time.sleep(0.02)"
    task = [sys.executable, "-c", f"{code}\nraise SystemExit(7)"]
    assert supervisor.carry_out(lambda: os.execv(sys.executable, task)) == 7


def test_a_child_that_has_grown_is_started_anew_once_nothing_is_at_work(
    tmp_path: Path, supervisor: Supervisor, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    grown = child(tmp_path, f"held = b'x' * 60_000_000; open({str(ready)!r}, 'w'); {SLEEP}", "grown")
    slim = child(tmp_path, SLEEP, "slim")
    grown.most_mib = slim.most_mib = 50
    supervisor.start(grown)
    supervisor.start(slim)
    # Until a child executes its own program, it is as big as the tests.
    supervisor.watch(until=within(lambda: ready.exists() and pids(tmp_path, "slim")))
    monkeypatch.setattr(module, "_WEIGH_SECONDS", 0)
    looks = 0

    def is_idle() -> bool:
        nonlocal looks
        looks += 1
        assert looks > 20 or said == []
        return looks > 20

    supervisor.watch(until=within(lambda: len(pids(tmp_path, "grown")) == 2), is_idle=is_idle)
    assert re.match(r"The grown holds \d\d MiB of memory, more than 50: ending it", said[0])
    assert said[1].startswith("The grown ended with exit code -15: restarting in 0.5 s")
    assert len(pids(tmp_path, "slim")) == 1


def _wait(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    while not condition():
        waiting.wait(0.02)
