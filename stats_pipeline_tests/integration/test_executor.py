"""The thread executor with real Dagster instances: it keeps the guarantees of Dagster's executors.

Steps run in threads of the test's own process, so barriers and events prove overlap and order without clocks. Runs in
separate processes, with real signals, are in `test_launcher.py`.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.plan.objects import ErrorSource

from stats_pipeline.runtime.executor import thread_executor
from stats_pipeline_tests.integration import toy_jobs

pytestmark = pytest.mark.slow

PATIENCE = 30  # seconds until a wait for another thread counts as a deadlock


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(PATIENCE)
    assert not [thread.name for thread in left if thread.is_alive()]


class Run:
    """One finished run of a job defined in the test itself: its status and its events."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        job: dg.JobDefinition,
        threads: dict[str, Any] | None = None,
    ) -> None:
        run_config = {"execution": {"config": {"threads": threads}}} if threads else None
        run = instance.create_run_for_job(job, run_config=run_config)
        list(execute_run_iterator(InMemoryJob(job), run, instance))
        finished = instance.get_run_by_id(run.run_id)
        assert finished is not None
        self.run_id = run.run_id
        self.status = finished.status
        self.events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event]

    def of(self, event_type: dg.DagsterEventType) -> list[str]:
        return sorted(event.step_key or "" for event in self.events if event.event_type == event_type)


def parallel(
    *ops: Callable[[], object], hooks: set[dg.HookDefinition] | None = None, **kwargs: Any
) -> dg.JobDefinition:
    """A job of independent ops in threads."""

    @dg.job(executor_def=thread_executor, hooks=hooks, **kwargs)
    def toy() -> None:
        for op in ops:
            op()

    return toy


def op(name: str, body: Callable[[], object], **kwargs: Any) -> dg.OpDefinition:
    @dg.op(name=name, out=dg.Out(dg.Nothing), **kwargs)
    def toy_op() -> None:
        body()

    return toy_op


def fail() -> None:
    raise RuntimeError("broken on purpose")


def test_ten_steps_overlap_and_leave_no_file_behind(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    barrier = threading.Barrier(10)
    names = [f"op_{i}" for i in range(10)]
    run = Run(instance, parallel(*(op(name, lambda: barrier.wait(PATIENCE)) for name in names)))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert run.of(dg.DagsterEventType.STEP_SUCCESS) == names
    assert not list(tmp_path.glob("storage/**/result"))


def test_max_concurrent_bounds_the_threads(instance: dg.DagsterInstance) -> None:
    overlap = threading.Semaphore(2)
    refused: list[str] = []

    def body() -> None:
        if not overlap.acquire(blocking=False):
            refused.append("a third step ran")
        threading.Event().wait(0.02)
        overlap.release()

    run = Run(instance, parallel(*(op(f"op_{i}", body) for i in range(8))), {"max_concurrent": 2})
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert not refused


def test_run_that_could_start_no_step_fails_at_once(instance: dg.DagsterInstance) -> None:
    assert Run(instance, parallel(op("a", lambda: None)), {"max_concurrent": 0}).status == dg.DagsterRunStatus.FAILURE


def test_limit_by_op_tag(instance: dg.DagsterInstance) -> None:
    overlap = threading.Lock()
    refused: list[str] = []

    def body() -> None:
        if not overlap.acquire(blocking=False):
            refused.append("a second tagged step ran")
        threading.Event().wait(0.02)
        overlap.release()

    run = Run(
        instance,
        parallel(*(op(f"op_{i}", body, tags={"weight": "heavy"}) for i in range(4))),
        {"tag_concurrency_limits": [{"key": "weight", "value": "heavy", "limit": 1}]},
    )
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert not refused


def test_pool_limit(instance: dg.DagsterInstance) -> None:
    """Regression: an executor that waits for ever when Dagster's sleep interval is not positive hangs here."""
    instance.event_log_storage.set_concurrency_slots("one_at_a_time", 1)
    overlap = threading.Lock()
    refused: list[str] = []

    def body() -> None:
        if not overlap.acquire(blocking=False):
            refused.append("a second step held the slot")
        threading.Event().wait(0.02)
        overlap.release()

    run = Run(instance, parallel(*(op(f"op_{i}", body, pool="one_at_a_time") for i in range(2))))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert not refused
    assert instance.event_log_storage.get_concurrency_info("one_at_a_time").active_slot_count == 0


def test_retries_back_off_while_others_go_on(instance: dg.DagsterInstance) -> None:
    """The steady op ends long before the last try, so the retries are also the only thing left to wait for."""
    tries: list[int] = []

    def third_time_lucky() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            fail()

    policy = dg.RetryPolicy(max_retries=3, delay=0.1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
    run = Run(instance, parallel(op("flaky", third_time_lucky, retry_policy=policy), op("steady", lambda: None)))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert len(tries) == 3
    waits = [event.step_retry_data.seconds_to_wait or 0 for event in run.events if event.is_step_up_for_retry]
    assert len(waits) == 2
    assert all(waits)
    asked, restarted = (
        [entry.timestamp for entry in instance.all_logs(run.run_id, of_type=event_type)]
        for event_type in (dg.DagsterEventType.STEP_UP_FOR_RETRY, dg.DagsterEventType.STEP_RESTARTED)
    )
    assert all(start - since >= wait for start, since, wait in zip(restarted, asked, waits, strict=True))


def test_retries_end_in_failure_and_one_failure_hook(instance: dg.DagsterInstance) -> None:
    failed: list[str] = []

    @dg.failure_hook
    def on_failure(context: dg.HookContext) -> None:
        failed.append(f"{context.op.name}: {context.op_exception}")

    policy = dg.RetryPolicy(max_retries=2)  # no delay: the next try may start before the last one's hooks are done
    run = Run(instance, parallel(op("hopeless", fail, retry_policy=policy), hooks={on_failure}))
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert run.of(dg.DagsterEventType.STEP_UP_FOR_RETRY) == ["hopeless", "hopeless"]
    assert run.of(dg.DagsterEventType.STEP_FAILURE) == ["hopeless"]
    assert failed == ["hopeless: broken on purpose"]


def test_retries_can_be_disabled(instance: dg.DagsterInstance) -> None:
    job = parallel(op("flaky", fail, retry_policy=dg.RetryPolicy(max_retries=2)))
    run = Run(instance, job, {"retries": {"disabled": {}}})
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert run.of(dg.DagsterEventType.STEP_UP_FOR_RETRY) == []


def test_failure_skips_only_what_depends_on_it_and_re_execution_repeats_only_that(instance: dg.DagsterInstance) -> None:
    recon_job = dg.reconstructable(toy_jobs.steady_and_flaky)
    toy_jobs.broken.set()
    try:
        first = dg.execute_job(recon_job, instance)
    finally:
        toy_jobs.broken.clear()
    assert not first.success
    assert {event.step_key for event in first.get_step_success_events()} == {"steady"}
    assert {event.step_key for event in first.get_step_failure_events()} == {"flaky"}

    second = dg.execute_job(
        recon_job, instance, reexecution_options=dg.ReexecutionOptions.from_failure(first.run_id, instance)
    )
    assert second.success
    assert {event.step_key for event in second.get_step_success_events()} == {"flaky", "downstream"}


def test_hooks_run_on_the_steps_thread_and_stall_nobody(instance: dg.DagsterInstance) -> None:
    downstream_ran = threading.Event()
    seen: list[bool] = []

    @dg.success_hook
    def slow(_context: dg.HookContext) -> None:
        seen.append(downstream_ran.wait(PATIENCE))

    first = op("first", lambda: None)
    second = op("second", downstream_ran.set, ins={"after": dg.In(dg.Nothing)})

    @dg.job(executor_def=thread_executor)
    def chain() -> None:
        second(first.with_hooks({slow})())

    run = Run(instance, chain)
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert seen == [True]
    assert run.of(dg.DagsterEventType.HOOK_COMPLETED) == ["first"]


def test_raising_hook_is_only_an_event(instance: dg.DagsterInstance) -> None:
    after: list[str] = []

    @dg.success_hook
    def raising(_context: dg.HookContext) -> None:
        fail()

    @dg.success_hook
    def steady(context: dg.HookContext) -> None:
        after.append(context.op.name)

    run = Run(instance, parallel(op("a", lambda: None), op("b", lambda: None), hooks={raising, steady}))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert run.of(dg.DagsterEventType.HOOK_ERRORED) == ["a", "b"]
    assert sorted(after) == ["a", "b"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_termination_does_not_wait_for_blocked_steps(instance: dg.DagsterInstance, signum: signal.Signals) -> None:
    release = threading.Event()
    hooked: list[str] = []
    read_end, write_end = os.pipe()

    @dg.success_hook
    def on_success(context: dg.HookContext) -> None:
        hooked.append(context.op.name)

    @dg.op(out=dg.Out(dg.Nothing))
    def terminated(context: dg.OpExecutionContext) -> None:
        context.instance.report_run_canceling(context.run)
        os.kill(os.getpid(), signum)
        release.wait(PATIENCE)

    before = set(threading.enumerate())
    job = parallel(terminated, op("in_system_call", lambda: os.read(read_end, 1)), hooks={on_success})
    run = Run(instance, job)
    try:
        assert not release.is_set()
        assert run.status == dg.DagsterRunStatus.CANCELED
        assert run.of(dg.DagsterEventType.STEP_FAILURE) == ["in_system_call", "terminated"]
        failures = [event.step_failure_data for event in run.events if event.is_step_failure]
        assert {failure.error_source for failure in failures} == {ErrorSource.INTERRUPT}
    finally:
        release.set()
        os.write(write_end, b"x")
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
    assert not hooked
    os.close(read_end)
    os.close(write_end)


def test_error_of_the_framework_ends_the_run_after_the_other_steps(instance: dg.DagsterInstance) -> None:
    """A step whose events cannot be stored has no outcome: the run fails, is not left hanging, and starts no more."""
    raised = threading.Event()
    store_event = instance.handle_new_event

    def refuse(event: dg.EventLogEntry, **kwargs: Any) -> None:
        if event.step_key == "unlucky" and event.dagster_event is not None and not event.dagster_event.is_hook_event:
            raised.set()
            raise OSError("storage is gone")
        store_event(event, **kwargs)

    instance.handle_new_event = refuse  # type: ignore[method-assign]
    unlucky = op("unlucky", lambda: None)

    def wait_for_unlucky() -> None:
        raised.wait(PATIENCE)
        for thread in threading.enumerate():
            if thread.name == "unlucky":
                thread.join(PATIENCE)

    patient = op("patient", wait_for_unlucky)
    never = op("never", lambda: None, ins={"after": dg.In(dg.Nothing)})

    @dg.job(executor_def=thread_executor)
    def toy() -> None:
        unlucky()
        never(patient())

    run = Run(instance, toy)
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert run.of(dg.DagsterEventType.STEP_SUCCESS) == ["patient"]


def test_resources_are_initialised_once_and_shared(instance: dg.DagsterInstance) -> None:
    made: list[object] = []
    closed: list[object] = []
    used: set[int] = set()

    @dg.resource
    def shared(_context: dg.InitResourceContext) -> Iterator[object]:
        made.append(object())
        yield made[-1]
        closed.append(made[-1])

    @dg.op(out=dg.Out(dg.Nothing), required_resource_keys={"shared"})
    def use(context: dg.OpExecutionContext) -> None:
        used.add(id(context.resources.shared))

    job = parallel(*(use.alias(f"use_{i}") for i in range(5)), resource_defs={"shared": shared})
    run = Run(instance, job)
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert len(made) == len(used) == 1
    assert closed == made


def test_resource_that_cannot_start_fails_the_run(instance: dg.DagsterInstance) -> None:
    @dg.resource
    def broken(_context: dg.InitResourceContext) -> None:
        fail()

    needy = op("needy", lambda: None, required_resource_keys={"broken"})
    run = Run(instance, parallel(needy, resource_defs={"broken": broken}))
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert run.of(dg.DagsterEventType.STEP_START) == []


@pytest.mark.parametrize("fails", ["at its start", "at its end"])
def test_resource_that_fails_is_told_as_dagsters_own_executor_tells_it(
    instance: dg.DagsterInstance, fails: str
) -> None:
    """Since Dagster 1.12 an executor marks steps and run as failed itself; with one set of resources for the whole run,
    no step has begun, and none is tried again."""

    @dg.resource
    def odd(_context: dg.InitResourceContext) -> Iterator[None]:
        if fails == "at its start":
            fail()
        yield
        fail()

    retried = dg.RetryPolicy(max_retries=2)
    needy = op("needy", lambda: None, required_resource_keys={"odd"}, retry_policy=retried)
    after = op("after", lambda: None, ins={"needy": dg.In(dg.Nothing)})

    def told(executor: dg.ExecutorDefinition) -> tuple[dg.DagsterRunStatus, list[tuple[str, str | None]]]:
        @dg.job(resource_defs={"odd": odd}, executor_def=executor)
        def toy() -> None:
            after(needy())

        run = Run(instance, toy)
        engine = dg.DagsterEventType.ENGINE_EVENT
        return run.status, [(e.event_type_value, e.step_key) for e in run.events if e.event_type != engine]

    ours, stock = told(thread_executor), told(dg.in_process_executor)
    assert ours[0] == stock[0]
    assert ours[0] == (dg.DagsterRunStatus.FAILURE if fails == "at its start" else dg.DagsterRunStatus.SUCCESS)
    assert sorted(ours[1], key=str) == sorted(stock[1], key=str)


def test_async_ops_overlap(instance: dg.DagsterInstance) -> None:
    barrier = threading.Barrier(2)

    @dg.op(out=dg.Out(dg.Nothing))
    async def meet() -> None:
        await asyncio.sleep(0)
        barrier.wait(PATIENCE)

    run = Run(instance, parallel(meet.alias("a"), meet.alias("b")))
    assert run.status == dg.DagsterRunStatus.SUCCESS


def test_output_of_all_steps_is_captured_in_one_log(instance: dg.DagsterInstance) -> None:
    run = Run(instance, parallel(*(op(name, partial(print, name, flush=True)) for name in ("ping", "pong"))))
    (captured,) = (
        event.logs_captured_data for event in run.events if event.event_type == dg.DagsterEventType.LOGS_CAPTURED
    )
    assert sorted(captured.step_keys) == ["ping", "pong"]
    log = instance.compute_log_manager.get_log_data(
        instance.compute_log_manager.build_log_key_for_run(run.run_id, captured.file_key)
    )
    assert sorted((log.stdout or b"").split()) == [b"ping", b"pong"]


def test_asset_job_materializes_all_and_fires_each_hook_once(instance: dg.DagsterInstance) -> None:
    toy_jobs.hooked.clear()
    result = dg.execute_job(dg.reconstructable(toy_jobs.asset_job), instance)
    assert result.success
    materialized = [event.materialization.label for event in result.get_asset_materialization_events()]
    assert sorted(materialized) == sorted(toy_jobs.hooked) == toy_jobs.NAMES


def executed_by(instance: dg.DagsterInstance, executor: str) -> dg.JobExecutionResult:
    config: dict[str, Any] = {"execution": {"config": {executor: {}}}}
    return dg.execute_job(dg.reconstructable(toy_jobs.steady_and_flaky), instance, run_config=config)


def test_dagsters_in_process_executor_stays_selectable(instance: dg.DagsterInstance) -> None:
    result = executed_by(instance, "in_process")
    assert result.success
    assert "Executing steps in process" in "\n".join(event.message or "" for event in result.all_events)


def test_there_is_no_process_for_each_op(instance: dg.DagsterInstance) -> None:
    """Each would open connections that the deployment does not have."""
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"(?s)multiprocess.*in_process.*threads"):
        executed_by(instance, "multiprocess")


def test_raise_on_error_raises_what_the_op_raised(instance: dg.DagsterInstance) -> None:
    toy_jobs.broken.set()
    try:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            dg.execute_job(dg.reconstructable(toy_jobs.steady_and_flaky), instance, raise_on_error=True)
    finally:
        toy_jobs.broken.clear()
