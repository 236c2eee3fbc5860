"""The hooks after each op: they record its result and deliver its cache tags to the app, or record its error.

Hooks do not run when a run is killed, cancelled or timed out, and one that raises only leaves a log line. So nothing
depends on them alone: what they record and deliver is in the database before they start, or repaired by the upkeep
sensor. In the `fast` profile one hook does the work of two (`runtime/hooks.py`).
"""

from collections.abc import Set

import dagster as dg

from stats_pipeline.errors import is_outage, one_line
from stats_pipeline.settings import Runtime

# Dagster itself failed, in practice because its storage could not be reached; the op may not even have started.
_DAGSTERS_OWN = {"FRAMEWORK_ERROR", "UNEXPECTED_ERROR"}


def hooks_for(runtime: Runtime) -> Set[dg.HookDefinition]:
    """The hooks attached to each op. Both profiles record and deliver the same."""
    if runtime == "stock":
        return STOCK_HOOKS
    # Imported here: `stock` must load even if a private name of Dagster's is missing.
    from stats_pipeline.runtime.hooks import outcome_hook  # noqa: PLC0415

    return {outcome_hook("record_outcome", {"refresh"}, succeeded=_deliver_tags, failed=_record_failure)}


@dg.success_hook(required_resource_keys={"refresh"})
def deliver_tags(context: dg.HookContext) -> None:
    """Deliver the tags that are due; ends the job when it was the last function."""
    _deliver_tags(context)


@dg.failure_hook(required_resource_keys={"refresh"})
def record_failure(context: dg.HookContext) -> None:
    """Record the last error; ends the job when it was the last function."""
    failures = context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    events = [entry.get_dagster_event() for entry in failures if entry.step_key == context.step_key]
    _record_failure(context, events[-1])


STOCK_HOOKS = {deliver_tags, record_failure}


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
        context.log.warning("%s is left for the job's next run: %s", context.op.name, problem)
        refresh.record_failed_try(context.op.name, tries=1, duration_ms=0, problem=problem)
    else:
        refresh.fail(context.op.name, problem)


def _is_dagsters_own(failure: dg.DagsterEvent) -> bool:
    data = failure.step_failure_data
    # For a `Failure` that the op raised on purpose Dagster records FRAMEWORK_ERROR as the source.
    return data.user_failure_data is None and data.error_source.name in _DAGSTERS_OWN
