"""The forkserver launcher with real processes and real signals: every run ends, whichever process dies.

A run is held inside its op by `toy_jobs.reporting`, which connects to the test and waits. The launching process is the
test's own, unless it has to die.
"""

import logging
import os
import signal
import subprocess
import sys
import textwrap
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

from stats_pipeline.runtime.launcher import ForkserverRunLauncher, Worker, _servers
from stats_pipeline_tests.integration import toy_jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

PATIENCE = 30  # seconds until something that should happen at once counts as never happening


def launcher_config(*preload: str) -> dict[str, object]:
    return {
        "module": "stats_pipeline.runtime.launcher",
        "class": "ForkserverRunLauncher",
        "config": {"preload": list(preload)},
    }


@pytest.fixture(scope="module", autouse=True)
def no_server_is_left() -> Iterator[None]:
    """The fork servers belong to this process, and end with the module rather than with it."""
    yield
    for server in _servers.values():
        server.retire()
        server._process.wait(PATIENCE)
    _servers.clear()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    overrides = {"run_launcher": launcher_config(toy_jobs.__name__)}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=overrides) as instance:
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


def test_run_is_forked_from_preloaded_code(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    held = hold()
    assert held.loaded_by == held.server.pid != held.worker.pid
    assert held.session == held.worker.pid
    assert held.server.num_threads() == 1
    held.release()
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.SUCCESS
    held.worker.wait(PATIENCE)
    assert worker_of(instance, held.run_id).pid == held.worker.pid


@pytest.mark.parametrize("storage", ["sqlite", "postgres"])
def test_asset_job_in_its_own_process(storage: str, tmp_path: Path, create_database: Callable[..., str]) -> None:
    overrides: dict[str, object] = {"run_launcher": launcher_config(toy_jobs.__name__)}
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
    held.server.wait(PATIENCE)  # it has nobody left to work for


def test_death_after_the_launchers_is_reported_too(
    instance: dg.DagsterInstance, hold: Callable[..., Held], other: OtherLauncher
) -> None:
    held = hold(other.launch)
    other.kill()
    held.worker.kill()
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.FAILURE
    held.server.wait(PATIENCE)


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


def test_dead_server_is_replaced(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    first = hold()
    first.release()
    assert final_status(instance, first.run_id) == dg.DagsterRunStatus.SUCCESS
    first.server.kill()
    gone(first.server)
    second = hold()
    assert second.server != first.server
    second.release()
    assert final_status(instance, second.run_id) == dg.DagsterRunStatus.SUCCESS


def gone(process: psutil.Process) -> None:
    """Wait for the end of a child of ours without reaping it, which is its `Popen`'s affair."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


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


def test_changed_source_is_loaded_while_old_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "reloaded"
    package.mkdir()
    (package / "__init__.py").touch()

    def write(version: str) -> None:
        (package / "jobs.py").write_text(
            textwrap.dedent(f"""
                import dagster as dg
                from stats_pipeline.runtime.executor import thread_executor

                @dg.op
                def tell(context: dg.OpExecutionContext) -> None:
                    with open(context.run.tags["pipe"]) as pipe:
                        pipe.read()
                    context.log.info("this is the {version} version")

                @dg.job(executor_def=thread_executor)
                def told():
                    tell()
                """)
        )

    write("first")
    monkeypatch.syspath_prepend(tmp_path)
    from reloaded.jobs import told  # type: ignore[import-not-found]  # noqa: PLC0415

    overrides = {"run_launcher": launcher_config("reloaded.jobs")}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=overrides) as instance:
        run_ids = []
        for version in ("first", "second"):
            write(version)
            pipe = tmp_path / version
            os.mkfifo(pipe)
            run_ids.append(create_run(instance, told, {"pipe": str(pipe)}))
            instance.launch_run(run_ids[-1], None)  # type: ignore[arg-type]
        for version, run_id in zip(("first", "second"), run_ids, strict=True):
            (tmp_path / version).open("w").close()
            assert final_status(instance, run_id) == dg.DagsterRunStatus.SUCCESS
            assert f"this is the {version} version" in messages(instance, run_id)


def test_module_that_cannot_be_preloaded_stops_no_other(tmp_path: Path) -> None:
    overrides = {"run_launcher": launcher_config("no_such_module", toy_jobs.__name__)}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=overrides) as instance:
        run_id = create_run(instance, toy_jobs.steady_and_flaky)
        instance.launch_run(run_id, None)  # type: ignore[arg-type]
        assert final_status(instance, run_id) == dg.DagsterRunStatus.SUCCESS


def test_warm_server_is_the_one_that_is_used(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    assert isinstance(instance.run_launcher, ForkserverRunLauncher)
    instance.run_launcher.warm()
    children = psutil.Process().children()
    held = hold()
    assert held.server in children
    held.release()
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.SUCCESS


def test_stop_signal_to_every_process_of_the_service(instance: dg.DagsterInstance, hold: Callable[..., Held]) -> None:
    """A service manager stops a service by SIGTERM to all: nobody asked to cancel the run, so it has failed."""
    held = hold()
    for process in (held.server, held.worker):
        process.send_signal(signal.SIGTERM)
    assert final_status(instance, held.run_id) == dg.DagsterRunStatus.FAILURE
    assert "Execution was interrupted unexpectedly" in messages(instance, held.run_id)
