"""The forkserver launcher with real processes and real signals: every run ends, whichever process dies.

A run is held inside its op by `toy_jobs.reporting`, which connects to the test and waits. The launching process is the
test's own, unless it has to die; the fork server is a process of its own, which the test keeps running.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Listener
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.launcher.base import LaunchRunContext, WorkerStatus
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from stats_pipeline.runtime import launcher
from stats_pipeline.runtime.launcher import Worker
from stats_pipeline_tests.integration import toy_jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

PATIENCE = 30  # seconds until something that should happen at once counts as never happening


class ForkServer:
    """A process that serves launches at a socket, with the toy jobs imported."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = {
            "module": "stats_pipeline.runtime.launcher",
            "class": "ForkserverRunLauncher",
            "config": {"socket": str(folder / "launch.sock")},
        }

    def start(self, *preload: str) -> None:
        prepare = f"lambda run_id, tags: open({str(self._folder / 'prepared')!r}, 'a').write(run_id + chr(10))"
        program = (
            "from pathlib import Path; from stats_pipeline.runtime.launcher import serve; "
            f"serve(Path({self.config['config']['socket']!r}), preload={preload!r}, before_run={prepare})"  # type: ignore[index]
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen([sys.executable, "-c", program], env=environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def prepared(self) -> list[str]:
        return (self._folder / "prepared").read_text().split()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path)
    server.start(toy_jobs.__name__)
    yield server
    server.end()


@pytest.fixture
def instance(tmp_path: Path, server: ForkServer) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"run_launcher": server.config}) as instance:
        yield instance


@dataclass
class Held:
    """A run inside its op, which goes on when told to."""

    run_id: str
    worker: psutil.Process
    server: psutil.Process
    session: int
    loaded_by: int
    connection: Connection

    def release(self, how: str = "succeed") -> None:
        self.connection.send(how)


@pytest.fixture
def hold(instance: dg.DagsterInstance) -> Iterator[Callable[..., Held]]:
    with Listener(family="AF_UNIX") as listener:
        connections = []

        def launch_and_hold(launch: Callable[[str], object] = lambda run_id: instance.launch_run(run_id, None)) -> Held:  # type: ignore[arg-type]
            run_id = create_run(instance, toy_jobs.reporting_job, {toy_jobs.ADDRESS_TAG: str(listener.address)})
            launch(run_id)
            connection = listener.accept()
            connections.append(connection)
            said = connection.recv()
            worker, server = psutil.Process(said["pid"]), psutil.Process(said["parent"])
            return Held(run_id, worker, server, said["session"], said["loaded"], connection)

        yield launch_and_hold
        for connection in connections:
            connection.close()


def create_run(instance: dg.DagsterInstance, job: dg.JobDefinition, tags: dict[str, str] | None = None) -> str:
    recon_job = dg.reconstructable(job)
    return instance.create_run_for_job(job, tags=tags, job_code_origin=recon_job.get_python_origin()).run_id


def get_run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def final_status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    """Wait for the run's end; Dagster's storage has nothing to be woken by."""
    deadline = time.monotonic() + PATIENCE
    while not (run := get_run(instance, run_id)).is_finished:
        assert time.monotonic() < deadline, f"the run is still {run.status}"
        time.sleep(0.02)
    return run.status


def messages(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(entry.message for entry in instance.all_logs(run_id))


class OtherLauncher:
    """A process that launches one run and then does nothing, as the daemon would; and that may be killed."""

    def launch(self, run_id: str) -> None:
        program = (
            "import sys, signal, dagster; dagster.DagsterInstance.get().launch_run(sys.argv[1], None); signal.pause()"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen([sys.executable, "-c", program, run_id], env=environment)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def other() -> Iterator[OtherLauncher]:
    other = OtherLauncher()
    yield other
    other.kill()


def test_run_is_forked_from_preloaded_code(
    instance: dg.DagsterInstance, hold: Callable[..., Held], server: ForkServer
) -> None:
    held = hold()
    assert held.loaded_by == held.server.pid == server.pid != held.worker.pid
    assert server.prepared() == [held.run_id]
    assert held.session == held.worker.pid
    assert held.server.num_threads() == 1
    held.release()
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.SUCCESS
    held.worker.wait(PATIENCE)
    assert worker_of(instance, held.run_id).pid == held.worker.pid


@pytest.mark.parametrize("storage", ["sqlite", "postgres"])
def test_asset_job_in_its_own_process(
    storage: str, tmp_path: Path, server: ForkServer, create_database: Callable[..., str]
) -> None:
    overrides: dict[str, object] = {"run_launcher": server.config}
    if storage == "postgres":
        url = create_database().replace("postgresql://", "postgresql+psycopg2://")
        overrides["storage"] = {"postgres": {"postgres_url": url}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=overrides) as instance:
        launch_asset_job(instance)


def launch_asset_job(instance: dg.DagsterInstance) -> None:
    recon_job = dg.reconstructable(toy_jobs.asset_job)
    run = instance.create_run_for_job(recon_job.get_definition(), job_code_origin=recon_job.get_python_origin())
    instance.launch_run(run.run_id, None)  # type: ignore[arg-type]
    assert final_status(instance, run.run_id) == dg.DagsterRunStatus.SUCCESS
    assert all(instance.get_latest_materialization_event(dg.AssetKey([name])) for name in toy_jobs.NAMES)


def test_failing_op_is_an_ordinary_failure(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    held = hold()
    held.release("fail")
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.FAILURE
    assert "Steps failed: ['reporting']" in messages(instance, held.run_id)


def test_killed_worker_fails_its_run_and_no_other(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    killed, other = hold(), hold()
    killed.worker.kill()
    assert final_status(instance, killed.run_id) == dg.DagsterRunStatus.FAILURE
    assert "terminated by signal 9 (SIGKILL)" in messages(instance, killed.run_id)
    other.release()
    assert final_status(instance, other.run_id) == dg.DagsterRunStatus.SUCCESS


def test_terminate_does_not_wait_for_a_blocked_op(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    held = hold()
    assert instance.run_launcher.terminate(held.run_id)
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.CANCELED
    held.worker.wait(PATIENCE)
    assert not instance.run_launcher.terminate(held.run_id), "a finished run cannot be terminated"


def test_run_canceled_before_its_worker_is_recorded_never_starts(instance: dg.DagsterInstance) -> None:
    """`terminate` finds no process in this window and relies on the worker to see the status."""
    run_id = create_run(instance, toy_jobs.steady_and_flaky)
    assert instance.run_launcher.terminate(run_id)
    instance.run_launcher.launch_run(LaunchRunContext(get_run(instance, run_id), None))
    assert final_status(instance, run_id) == dg.DagsterRunStatus.CANCELED
    assert not instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)


def test_run_survives_its_launcher(
    instance: dg.DagsterInstance, hold: Callable[..., Held], other: OtherLauncher
) -> None:
    held = hold(other.launch)
    other.kill()
    health = instance.run_launcher.check_run_worker_health(get_run(instance, held.run_id))
    assert health.status == WorkerStatus.RUNNING
    held.release()
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.SUCCESS


def test_death_after_the_launchers_is_reported_too(
    instance: dg.DagsterInstance, hold: Callable[..., Held], other: OtherLauncher
) -> None:
    held = hold(other.launch)
    other.kill()
    held.worker.kill()
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.FAILURE


def test_death_of_everybody_is_found_by_run_monitoring(
    instance: dg.DagsterInstance, hold: Callable[..., Held], other: OtherLauncher
) -> None:
    held = hold(other.launch)
    other.kill()
    held.server.kill()
    held.worker.kill()
    psutil.wait_procs([held.server, held.worker], PATIENCE)
    run = get_run(instance, held.run_id)
    assert run.status == dg.DagsterRunStatus.STARTED
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED

    record = instance.get_run_record_by_id(held.run_id)
    assert record is not None
    monitor_started_run(instance, None, record, logging.getLogger())  # type: ignore[arg-type]
    assert get_run(instance, held.run_id).status == dg.DagsterRunStatus.FAILURE


def test_terminating_a_run_without_a_process_cancels_it(
    instance: dg.DagsterInstance, hold: Callable[..., Held], other: OtherLauncher
) -> None:
    held = hold(other.launch)
    other.kill()
    held.server.kill()
    held.worker.kill()
    psutil.wait_procs([held.server, held.worker], PATIENCE)
    assert instance.run_launcher.terminate(held.run_id)
    assert get_run(instance, held.run_id).status == dg.DagsterRunStatus.CANCELED


def worker_of(instance: dg.DagsterInstance, run_id: str) -> Worker:
    worker = Worker.of_run(instance, run_id)
    assert worker is not None
    return worker


def test_a_process_that_a_caller_names_is_left_alone(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    """Whoever may launch a run may give it any tags, and then terminate it."""
    held = hold()
    worker = worker_of(instance, held.run_id)
    other = create_run(instance, toy_jobs.steady_and_flaky)
    instance.add_run_tags(other, {"stats_pipeline/worker": f"{worker.pid} {worker.started} {worker.host}"})
    assert instance.run_launcher.terminate(other)
    assert held.worker.is_running()
    held.release()
    held.worker.wait(PATIENCE)


def test_recycled_process_id_is_not_the_worker(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    held = hold()
    worker = worker_of(instance, held.run_id)
    launcher = instance.run_launcher
    assert launcher.check_run_worker_health(get_run(instance, held.run_id)).status == WorkerStatus.RUNNING
    replace(worker, started=worker.started - 100).record(instance, get_run(instance, held.run_id))
    assert launcher.check_run_worker_health(get_run(instance, held.run_id)).status == WorkerStatus.FAILED
    assert launcher.terminate(held.run_id)
    assert held.worker.is_running(), "a stranger's process must not be signalled"
    held.release()
    held.worker.wait(PATIENCE)


def test_a_worker_of_another_host_is_neither_judged_nor_ended_from_here(
    instance: dg.DagsterInstance, hold: Callable[..., Held]
) -> None:
    held = hold()
    worker = worker_of(instance, held.run_id)
    elsewhere = replace(worker, pid=worker.pid + 1, host=f"another-{worker.host}")
    elsewhere.record(instance, get_run(instance, held.run_id))
    launcher = instance.run_launcher
    assert launcher.check_run_worker_health(get_run(instance, held.run_id)).status == WorkerStatus.RUNNING
    assert launcher.terminate(held.run_id)
    assert get_run(instance, held.run_id).status == dg.DagsterRunStatus.CANCELING
    assert held.worker.is_running()
    held.release()
    held.worker.wait(PATIENCE)


def test_a_worker_that_nobody_has_buried_is_dead(
    instance: dg.DagsterInstance, hold: Callable[..., Held], other: OtherLauncher
) -> None:
    """Its server does not get to run: the worker has ended, and is still in the list of processes."""
    held = hold(other.launch)
    held.server.suspend()
    held.worker.kill()
    while held.worker.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    try:
        health = instance.run_launcher.check_run_worker_health(get_run(instance, held.run_id))
        assert health.status == WorkerStatus.FAILED
        assert instance.run_launcher.terminate(held.run_id)
        assert get_run(instance, held.run_id).status == dg.DagsterRunStatus.CANCELED
    finally:
        held.server.resume()


def test_run_survives_its_server(instance: dg.DagsterInstance, hold: Callable[..., Held], server: ForkServer) -> None:
    held = hold()
    server.end()
    held.release()
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.SUCCESS


def test_a_launch_waits_for_a_server_that_is_started_again(
    instance: dg.DagsterInstance, hold: Callable[..., Held], server: ForkServer
) -> None:
    """Also while a worker of the old one lives, which must not answer in its place."""
    first = hold()
    server.end()
    starting = threading.Timer(0.2, server.start, [toy_jobs.__name__])
    starting.start()
    try:
        second = hold()
    finally:
        starting.join()
    assert second.server.pid == server.pid != first.server.pid
    for held in (first, second):
        held.release()
        assert final_status(instance, held.run_id) == dg.DagsterRunStatus.SUCCESS


def test_a_launch_without_a_server_fails_its_run(
    instance: dg.DagsterInstance, server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.end()
    monkeypatch.setattr(launcher, "ANSWER_TIMEOUT", 0.2)
    run_id = create_run(instance, toy_jobs.steady_and_flaky)
    with pytest.raises(RuntimeError, match=r"The fork server at .*launch\.sock is not there"):
        instance.launch_run(run_id, None)  # type: ignore[arg-type]
    assert final_status(instance, run_id) == dg.DagsterRunStatus.FAILURE
    assert "The fork server at" in messages(instance, run_id)


def test_nobody_else_can_connect(server: ForkServer, instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    hold().release()  # it is there
    address = Path(server.config["config"]["socket"])  # type: ignore[index]
    assert address.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("said", [b"", b"no request", b"[1]", b'["a", {}, "b", "c"]'])
def test_what_is_no_request_stops_no_other(
    said: bytes, server: ForkServer, instance: dg.DagsterInstance, hold: Callable[..., Held]
) -> None:
    first = hold()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(server.config["config"]["socket"])  # type: ignore[index]
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(10) == b""
    second = hold()
    assert first.server == second.server
    for held in (first, second):
        held.release()


def test_server_keeps_nothing_of_the_runs_it_served(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    def serve_one() -> tuple[psutil.Process, int]:
        held = hold()
        held.release()
        assert final_status(instance, held.run_id) == dg.DagsterRunStatus.SUCCESS
        held.worker.wait(PATIENCE)
        return held.server, held.server.num_fds()

    first, *others = (serve_one() for _ in range(4))
    assert set(others) == {first}


def test_concurrent_launches_share_one_server(instance: dg.DagsterInstance) -> None:
    run_ids = [create_run(instance, toy_jobs.steady_and_flaky) for _ in range(4)]
    threads = [threading.Thread(target=instance.launch_run, args=(run_id, None)) for run_id in run_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert {final_status(instance, run_id) for run_id in run_ids} == {dg.DagsterRunStatus.SUCCESS}


def test_module_that_cannot_be_preloaded_stops_no_other(tmp_path: Path) -> None:
    server = ForkServer(tmp_path)
    server.start("no_such_module", toy_jobs.__name__)
    try:
        with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"run_launcher": server.config}) as instance:
            run_id = create_run(instance, toy_jobs.steady_and_flaky)
            instance.launch_run(run_id, None)  # type: ignore[arg-type]
            assert final_status(instance, run_id) == dg.DagsterRunStatus.SUCCESS
    finally:
        server.end()


def test_stop_signal_to_every_process_of_the_service(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    """A service manager stops a service by SIGTERM to all: nobody asked to cancel the run, so it has failed."""
    held = hold()
    for process in (held.server, held.worker):
        process.send_signal(signal.SIGTERM)
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.FAILURE
    assert "Execution was interrupted unexpectedly" in messages(instance, held.run_id)
