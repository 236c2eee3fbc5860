"""What follows each op: its result in the job's row and its cache tags to the app, or its error in the row.

Hooks do not see a run that is killed, cancelled or timed out, and one that raises only leaves a log line. So nothing
depends on them alone: what they record and deliver is in the database before they start, or repaired by the upkeep
sensor.
"""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.decorators.hook_decorator import event_list_hook  # private: the reason is below
from dagster._core.definitions.events import HookExecutionResult
from dagster._core.execution.plan.objects import ErrorSource

from stats_pipeline.errors import is_outage, one_line

# Dagster itself failed, in practice because its storage could not be reached; the op may not even have started.
_DAGSTERS_OWN = {ErrorSource.FRAMEWORK_ERROR, ErrorSource.UNEXPECTED_ERROR}


# One hook for both outcomes, where a success hook and a failure hook would write ten more "skipped" events per run.
@event_list_hook(required_resource_keys={"refresh"})
def record_outcome(context: dg.HookContext, event_list: Sequence[dg.DagsterEvent]) -> HookExecutionResult:
    """Deliver the tags that are due or record its last error; ends the job when it was the last function."""
    if any(event.is_step_success for event in event_list):
        _deliver_tags(context)
    elif failure := next((event for event in event_list if event.is_step_failure), None):
        _record_failure(context, failure)
    else:  # a failed try, with another one to come
        return HookExecutionResult(hook_name="record_outcome", is_skipped=True)
    return HookExecutionResult(hook_name="record_outcome", is_skipped=False)


def _deliver_tags(context: dg.HookContext) -> None:
    delivery = context.resources.refresh.deliver()
    if delivery.problem:
        context.log.warning("Cache tags stay due: %s", delivery.problem)


def _record_failure(context: dg.HookContext, failure: dg.DagsterEvent) -> None:
    error = context.op_exception
    problem = one_line(error) if error is not None else "the op was stopped"
    if isinstance(error, dg.Failure) and error.description:
        problem = error.description
    refresh = context.resources.refresh
    if _is_dagsters_own(failure) or (error is not None and is_outage(error)):
        context.log.warning("%s stays open, for another run to do: %s", context.op.name, problem)
        refresh.record_failed_try(context.op.name, tries=1, duration_ms=0, problem=problem)
    else:
        refresh.fail(context.op.name, problem)


def _is_dagsters_own(failure: dg.DagsterEvent) -> bool:
    data = failure.step_failure_data
    # A `Failure` that the op raised on purpose has no source, for which Dagster puts FRAMEWORK_ERROR.
    return data.user_failure_data is None and data.error_source in _DAGSTERS_OWN


HOOKS = {record_outcome}
