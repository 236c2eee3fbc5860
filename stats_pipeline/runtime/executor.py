"""The executor of the stats jobs: every ready step runs in a thread of the run's own process.

The ten ops wait for PostgreSQL, so threads overlap them fully, while a process per step would cost a second of CPU each
for imports. Steps, retries and hooks remain Dagster's own code; only the scheduling lives here. Retry policies and
pools belong to the ops, the limit across runs to the run coordinator.

Dagster has no public interface below `Executor.execute`, hence the private imports: they are the parts its own
in-process and multiprocess executors are assembled from, and the pinned Dagster version keeps them in place.
"""

import asyncio
import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import dagster as dg
from dagster._core.definitions.executor_definition import IN_PROC_CONFIG  # the stock one, by config
from dagster._core.errors import DagsterExecutionInterruptedError  # makes a terminated run end as canceled
from dagster._core.events import EngineEventData  # shows in the UI which process executes
from dagster._core.execution.api import ExecuteRunWithPlanIterable  # enters and leaves the context below
from dagster._core.execution.compute_logs import create_compute_log_file_key  # where the UI looks for the output
from dagster._core.execution.context.system import (  # types only: of a run, and of a step
    PlanExecutionContext,
    PlanOrchestrationContext,
    StepExecutionContext,
)
from dagster._core.execution.context_creation_job import PlanExecutionContextManager  # initialises the resources
from dagster._core.execution.plan.active import ActiveExecution  # knows which steps are ready, failed, to be retried
from dagster._core.execution.plan.execute_plan import (  # a step, its hooks and its output, as events
    _handle_compute_log_setup_error,
    _handle_compute_log_teardown_error,
    _trigger_hook,
    dagster_event_sequence_for_step,
)
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext  # slots of pools
from dagster._core.execution.plan.objects import ErrorSource, step_failure_event_from_exc_info  # a step cut off
from dagster._core.execution.plan.plan import ExecutionPlan  # type only
from dagster._core.execution.retries import RetryMode, get_retries_config  # from run config
from dagster._core.execution.tags import get_tag_concurrency_limits_config  # from run config

MAX_CONCURRENT = 16

# Step threads report through a queue, which wakes the main thread at once. Two things do not wake it: a termination
# signal, and a pool slot released by another run. They are noticed within this many seconds.
WAKE_UP = 0.1

# A step's thread sends its events as they happen, and at the end None, or the exception that ended the thread.
_Reports = queue.SimpleQueue[tuple[StepExecutionContext, dg.DagsterEvent | BaseException | None]]


class ThreadExecutor(dg.Executor):
    """Runs the steps of one run in daemon threads; at most `max_concurrent` of them are alive at a time.

    Resources are initialised once per run and shared by the threads, so they must be thread-safe: a connection pool,
    not a connection. A step's hooks run on its thread after its outcome was reported: downstream steps and the pool
    slot do not wait for a slow hook, but the end of the run does. Output is captured once for the whole process,
    because a file descriptor cannot be redirected per thread.

    Termination does not wait for the steps: they are recorded as interrupted failures, no further hook starts, and
    their threads end with the process. A running statement continues inside PostgreSQL until the server notices the
    lost client (`client_connection_check_interval`) or its `statement_timeout` ends it.
    """

    def __init__(self, retries: RetryMode, max_concurrent: int, tag_concurrency_limits: list[dict[str, Any]]) -> None:
        self._retries = retries
        self._max_concurrent = max_concurrent
        self._tag_concurrency_limits = tag_concurrency_limits

    @property
    def retries(self) -> RetryMode:
        return self._retries

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        yield dg.DagsterEvent.engine_event(
            plan_context,
            f"Executing steps in threads (pid: {os.getpid()})",
            EngineEventData.in_process(os.getpid(), execution_plan.step_keys_to_execute),
        )
        yield from ExecuteRunWithPlanIterable(
            execution_plan=execution_plan,
            iterator=self._execute_with_output_captured,
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=execution_plan,
                run_config=plan_context.run_config,
                dagster_run=plan_context.dagster_run,
                instance=plan_context.instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
            ),
        )

    def _execute_with_output_captured(
        self, job_context: PlanExecutionContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        manager = job_context.instance.compute_log_manager
        log_key = manager.build_log_key_for_run(job_context.run_id, create_compute_log_file_key())
        with ExitStack() as capture:
            try:
                log_context = capture.enter_context(manager.capture_logs(log_key))
                yield dg.DagsterEvent.capture_logs(
                    job_context, execution_plan.step_keys_to_execute, log_key, log_context
                )
            except Exception:
                yield from _handle_compute_log_setup_error(job_context, sys.exc_info())
            yield from self._execute_steps(job_context, execution_plan)
            try:
                capture.close()
            except Exception:
                yield from _handle_compute_log_teardown_error(job_context, sys.exc_info())

    def _execute_steps(
        self, job_context: PlanExecutionContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        reports: _Reports = queue.SimpleQueue()
        interrupted = threading.Event()
        running: set[StepExecutionContext] = set()  # the step's thread is alive
        undecided: set[StepExecutionContext] = set()  # it has not yet reported success, failure or retry
        error: BaseException | None = None
        with (
            InstanceConcurrencyContext(job_context.instance, job_context.dagster_run) as pool_slots,
            ActiveExecution(
                execution_plan,
                retry_mode=self._retries,
                max_concurrent=self._max_concurrent,
                tag_concurrency_limits=self._tag_concurrency_limits,
                instance_concurrency_context=pool_slots,
            ) as active,
        ):
            # After an error of the framework itself nothing new is started; running steps may finish.
            while running or not (error or active.is_complete):
                if not error:
                    yield from active.plan_events_iterator(job_context)
                    for step in active.get_steps_to_execute(limit=self._max_concurrent - len(running)):
                        step_context = job_context.for_step(step, active.get_known_state())
                        running.add(step_context)
                        undecided.add(step_context)
                        threading.Thread(
                            target=_execute_step, args=(step_context, reports, interrupted), name=step.key, daemon=True
                        ).start()
                    yield from active.concurrency_event_iterator(job_context)

                # Handle pending reports first, so that no finished step is recorded as interrupted.
                if reports.empty() and active.check_for_interrupts():
                    interrupted.set()
                    yield from _interrupt(undecided)

                try:
                    step_context, report = reports.get(timeout=_seconds_until_ready(active))
                except queue.Empty:
                    continue
                if isinstance(report, dg.DagsterEvent):
                    yield report
                    active.handle_event(report)
                    if report.is_step_success or report.is_step_failure or report.is_step_up_for_retry:
                        undecided.discard(step_context)
                else:
                    error = error or report
                    running.remove(step_context)
                    if step_context in undecided:
                        undecided.remove(step_context)
                        active.verify_complete(job_context, step_context.step.key)
            if error:
                raise error


def _execute_step(step_context: StepExecutionContext, reports: _Reports, interrupted: threading.Event) -> None:
    """The body of a step's thread. Dagster turns the exceptions of ops and hooks into events, so an exception that
    arrives here is the framework's own (its storage is gone), or was requested with `raise_on_error`.
    """
    error: BaseException | None = None
    events: list[dg.DagsterEvent] = []
    try:
        # Async ops are driven by the context's event loop, and a loop cannot be shared by running threads.
        with closing(asyncio.new_event_loop()) as step_context._event_loop:
            for event in dagster_event_sequence_for_step(step_context):
                events.append(event)
                reports.put((step_context, event))
            if not interrupted.is_set():
                for event in _trigger_hook(step_context, events):
                    reports.put((step_context, event))
    except BaseException as exc:
        error = exc
    reports.put((step_context, error))


def _interrupt(steps: set[StepExecutionContext]) -> Iterator[dg.DagsterEvent]:
    """Record the steps as interrupted, then raise the error that makes Dagster end the run as canceled."""
    try:
        raise DagsterExecutionInterruptedError("The run was terminated")
    except DagsterExecutionInterruptedError:
        for step_context in steps:
            yield step_failure_event_from_exc_info(step_context, sys.exc_info(), error_source=ErrorSource.INTERRUPT)
        raise


def _seconds_until_ready(active: ActiveExecution) -> float:
    # Dagster's interval is the time to the next retry, but not positive while a step waits for a pool slot.
    interval = active.sleep_interval()
    return min(interval, WAKE_UP) if interval > 0 else WAKE_UP


@dg.executor(
    name="thread_executor",
    config_schema=dg.Field(
        dg.Selector(
            {
                "threads": {
                    "max_concurrent": dg.Field(
                        int, default_value=MAX_CONCURRENT, description="The number of steps that may run at once."
                    ),
                    "retries": get_retries_config(),
                    "tag_concurrency_limits": get_tag_concurrency_limits_config(),
                },
                "in_process": IN_PROC_CONFIG,
            }
        ),
        default_value={"threads": {}},
    ),
    requirements=dg.multi_or_in_process_executor.get_requirements,
)
def thread_executor(init_context: dg.InitExecutorContext) -> dg.Executor:
    """Threads by default; run config may select Dagster's own in-process executor instead, to debug a step:
    `execution: {config: {in_process: {}}}`. Not its multiprocess executor: each of its processes would connect to
    Dagster's storage before any of our code could say that there is no connection for it.
    """
    config: Any = init_context.executor_config.get("threads")
    if config is None:
        return dg.multi_or_in_process_executor.executor_creation_fn(init_context)  # type: ignore[misc]  # it has one
    if config["max_concurrent"] < 1:
        raise dg.DagsterInvariantViolationError("max_concurrent must be at least 1, or no step would ever start")
    return ThreadExecutor(
        RetryMode(next(iter(config["retries"]))),
        config["max_concurrent"],
        config.get("tag_concurrency_limits", []),
    )
