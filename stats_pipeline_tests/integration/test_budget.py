"""The slots of a deployment's connections, shared by real processes: who waits, who goes first, what a death frees."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stats_pipeline import settings
from stats_pipeline.database import Database, budget
from stats_pipeline.database.budget import Kind, Slots
from stats_pipeline_tests.acceptance.processes import until

Query = Callable[..., list[dict[str, Any]]]
PATIENCE = 60

_HOLD = """
import sys
from pathlib import Path
from stats_pipeline.database.budget import Slots

held = Slots(Path(sys.argv[1]), int(sys.argv[2])).take(sys.argv[3], int(sys.argv[4]))
print("held", flush=True)
sys.stdin.read()
"""

_HOLD_AND_FORK = """
import os, sys
from pathlib import Path
from stats_pipeline.database.budget import Slots

held = Slots(Path(sys.argv[1]), int(sys.argv[2])).take(sys.argv[3], int(sys.argv[4]))
if os.fork() == 0:
    print("held", flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""

# Holds its two slots until it ends, and computes ten functions at a time, as far as there are slots.
_RUN = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stats_pipeline.database import Database
from stats_pipeline.database.budget import Slots

slots = Slots(Path(sys.argv[1]), int(sys.argv[2]))
held = slots.take("run", 2)
print("held", flush=True)
most = {"max_connections": 0, "slots": slots, "kind": "computing", "shared": 10}
with Database(sys.argv[3], **most, application_name="run") as opened:
    def compute(_):
        with opened.transaction() as connection:
            connection.execute("select pg_sleep(0.02)")
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(compute, range(30)))
"""


class Process:
    """Another process; `has_it` once it holds its slots."""

    def __init__(self, code: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.has_it = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline():
            self.has_it.set()

    def holding(self) -> "Process":
        assert self.has_it.wait(PATIENCE)
        return self

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """Ends a process that waits for its input to end; returns the exit code of any."""
        self._process.communicate(timeout=PATIENCE)
        return self._process.returncode

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a process on the test's folder, to be killed at the end."""
    with ExitStack() as stack:
        yield lambda code, *arguments: stack.enter_context(Process(code, tmp_path, *arguments))


def shared(most: int) -> int:
    return budget.split(most, 4).shared


@pytest.mark.parametrize("code", [_HOLD, _HOLD_AND_FORK])
def test_what_a_killed_process_held_is_free_at_once(tmp_path: Path, start: Callable[..., Process], code: str) -> None:
    slots = Slots(tmp_path, 3)
    holder = start(code, 3, "run", 2).holding()
    assert slots.try_to_take("run", 2) is None
    holder.kill()
    with slots.try_to_take("run", 2) or pytest.fail("not free"):
        pass


@pytest.mark.parametrize("kind", ["other", "computing"])
def test_a_run_takes_its_two_together_and_goes_first(tmp_path: Path, start: Callable[..., Process], kind: Kind) -> None:
    slots = Slots(tmp_path, 5)
    first, second = (slots.take("run", 2) for _ in range(2))
    second.release()
    one = slots.take("other")
    waiting = start(_HOLD, 5, "run", 2)
    until(lambda: first.is_wanted() and one.is_wanted(), "a run that waits")
    # One is free, and not for it alone; but who comes now does not get it.
    assert slots.try_to_take("other") is None
    assert not waiting.has_it.is_set()
    with slots.try_to_take("computing") or pytest.fail("nothing can compute"):
        assert slots.try_to_take(kind) is None
    one.release()
    waiting.holding()


def test_what_computes_is_asked_to_give_way_and_keeps_what_nobody_else_may_have(
    tmp_path: Path, start: Callable[..., Process]
) -> None:
    slots = Slots(tmp_path, 4)
    reserved, for_all, *for_runs = (slots.take("computing") for _ in range(4))
    with start(_HOLD, 4, "other", 1) as command:
        until(for_all.is_wanted, "a command that waits")
        assert not reserved.is_wanted()
        assert not any(each.is_wanted() for each in for_runs)
        for_all.release()
        command.holding()
        assert slots.try_to_take("computing") is None
    with start(_HOLD, 4, "run", 2) as run:
        until(lambda: all(each.is_wanted() for each in for_runs), "a run that waits")
        assert not reserved.is_wanted()
        for each in for_runs:
            each.release()
        run.holding()
    start(_HOLD, 4, "computing", 1).holding()


def test_a_process_that_cannot_compute_gets_one_of_those_who_have_more(
    tmp_path: Path, start: Callable[..., Process]
) -> None:
    slots = Slots(tmp_path, 3)
    mine = [slots.take("computing") for _ in range(3)]
    other = start(_HOLD, 3, "computing", 1)
    until(mine[0].is_wanted, "a process without any")
    mine[0].release()
    assert slots.try_to_take("computing", has_some=True) is None
    other.holding()


def test_a_run_by_hand_leaves_a_run_with_a_lease_what_that_needs(tmp_path: Path, start: Callable[..., Process]) -> None:
    slots = Slots(tmp_path, 6)
    start(_HOLD, 6, "by-hand", 2).holding()
    another = start(_HOLD, 6, "by-hand", 2)
    with slots.take("run", 2) as leased, slots.take("computing"):
        assert not leased.is_wanted()
    assert not another.has_it.is_set()


def test_a_run_by_hand_goes_before_all_but_a_run_with_a_lease(tmp_path: Path, start: Callable[..., Process]) -> None:
    slots = Slots(tmp_path, 5)
    one, another = slots.take("other"), slots.take("other")
    with start(_HOLD, 5, "by-hand", 2) as by_hand:
        until(one.is_wanted, "a run by hand that waits")
        one.release()
        assert slots.try_to_take("other") is None
        slots.take("run", 3).release()
        another.release()
        by_hand.holding()


def test_a_command_that_works_as_a_run_says_once_that_it_waits_and_may_lose_patience(tmp_path: Path) -> None:
    given = settings.load(STATS_HOME=str(tmp_path), STATS_RUNTIME="fast")
    slots = Slots(tmp_path / "connections", shared(given.max_connections))
    said: list[str] = []
    with slots.take("run", shared(given.max_connections) - 1):
        assert not budget.take_room_for_a_command(given, lambda: said.append("waits"), patience=0.1)
        assert not budget.has_room()
    assert said == ["waits"]


@pytest.mark.parametrize("most", [11, 12])
def test_runs_a_page_the_ui_and_a_command_line_wait_for_each_other_and_all_end(
    tmp_path: Path, database_url: str, query: Query, start: Callable[..., Process], most: int
) -> None:
    """The worst case: nobody but what computes ever gives way, and there are more runs than have room."""
    page, ui = (start(_HOLD, shared(most), "other", 1).holding() for _ in range(2))
    by_hand = start(_HOLD, shared(most), "by-hand", 2)
    runs = [start(_RUN, shared(most), database_url) for _ in range(4)]
    command = start(_HOLD, shared(most), "other", 1)
    highest = 0

    def have_ended() -> bool:
        nonlocal highest
        [row] = query("select count(*) as now from pg_stat_activity where application_name = 'run'")
        highest = max(highest, row["now"])
        return all(run._process.poll() is not None for run in runs)

    until(have_ended, "the end of all runs", patience=PATIENCE)
    assert [run.end() for run in runs] == [0] * len(runs)
    assert 1 <= highest <= shared(most) - 2 - budget.A_RUN
    page.end()
    by_hand.holding().end()
    command.holding()
    assert ui.has_it.is_set()


def test_a_connection_goes_from_hand_to_hand_and_is_closed_when_nobody_here_wants_it(
    tmp_path: Path, database_url: str, query: Query
) -> None:
    with Database(
        database_url, max_connections=0, slots=Slots(tmp_path, 4), kind="computing", shared=10, application_name="run"
    ) as opened:
        pids: list[int] = []

        def compute(_: int) -> None:
            with opened.connection() as connection:
                pids.append(connection.info.backend_pid)
                connection.execute("select pg_sleep(0.01)")

        threads = [threading.Thread(target=compute, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pids) == 20
        assert len(set(pids)) == 4
        assert not query("select 1 from pg_stat_activity where application_name = 'run'")
    Slots(tmp_path, 4).take("run", 2)


def test_a_connection_is_given_up_after_the_function_when_somebody_waits(
    tmp_path: Path, database_url: str, start: Callable[..., Process]
) -> None:
    slots = Slots(tmp_path, 3)
    with Database(database_url, max_connections=0, slots=slots, kind="computing", shared=10) as opened:
        with ExitStack() as computing:
            for _ in range(3):
                computing.enter_context(opened.connection())
            waiting = start(_HOLD, 3, "run", 2)
            until(lambda: slots.is_wanted(1), "a run that waits")
        waiting.holding()
        with opened.connection() as connection:  # one is for computing alone
            assert connection.execute("select 42 as answer").fetchone() == {"answer": 42}


def test_a_command_keeps_its_connection_for_its_next_use_and_lets_others_have_it(
    tmp_path: Path, database_url: str, start: Callable[..., Process]
) -> None:
    slots = Slots(tmp_path, 4)
    with Database(database_url, max_connections=0, slots=slots, shared=1) as opened:
        with opened.connection() as connection:
            first = connection.info.backend_pid
        with opened.connection() as connection:
            assert connection.info.backend_pid == first
        start(_HOLD, 4, "other", 1).holding()


def test_a_process_opens_a_second_connection_when_its_own_one_is_busy_for_long(
    tmp_path: Path, database_url: str
) -> None:
    slots = Slots(tmp_path, 4)
    with Database(database_url, max_connections=1, slots=slots, shared=1, turn=PATIENCE) as opened:
        with opened.connection() as own, opened.connection() as second:
            assert own.info.backend_pid != second.info.backend_pid
            assert slots.try_to_take("other") is None
        slots.take("other").release()


def test_a_slot_is_given_up_also_when_this_process_can_open_no_more_files(tmp_path: Path, database_url: str) -> None:
    slots = Slots(tmp_path, 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with Database(database_url, max_connections=0, slots=slots, kind="computing", shared=1) as opened:
            with opened.connection() as connection:
                last = os.dup(0)
                os.close(last)
                resource.setrlimit(resource.RLIMIT_NOFILE, (last, hard))
            assert connection.closed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    slots.take("run", 3).release()
    with slots.try_to_take("computing") or pytest.fail("not free"):
        pass


def test_room_is_held_until_the_process_ends(tmp_path: Path) -> None:
    code = """
import sys
from stats_pipeline import settings
from stats_pipeline.database import budget

assert not budget.has_room()
budget.take_room_for_a_run(settings.load(STATS_HOME=sys.argv[1], STATS_RUNTIME=sys.argv[2]))
print(budget.has_room(), flush=True)
sys.stdin.read()
"""
    slots = Slots(tmp_path / "connections", shared(12))
    with Process(code, tmp_path, "stock") as process:
        process.holding()
        slots.take("run", 6).release()
    with Process(code, tmp_path, "fast") as process:
        process.holding()
        assert slots.try_to_take("run", 5) is None
        process.end()
        slots.take("run", 6).release()
