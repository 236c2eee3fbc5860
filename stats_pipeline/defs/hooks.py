"""What follows each op: its result in the job's row and its cache tags to the app, or its error in the row.

Hooks do not see a run that is killed, cancelled or timed out, and one that raises only leaves a log line. So nothing
depends on them alone: what they record and deliver is in the database before they start.
"""

import dagster as dg

from stats_pipeline.errors import one_line


@dg.success_hook(required_resource_keys={"refresh"})
def deliver_tags(context: dg.HookContext) -> None:
    """Deliver the function's tags; ends the job when it was the last function."""
    delivery = context.resources.refresh.deliver(context.run_id, context.op.name)
    if delivery.problem:
        context.log.warning("Cache tags of %s stay due: %s", context.op.name, delivery.problem)


@dg.failure_hook(required_resource_keys={"refresh"})
def record_failure(context: dg.HookContext) -> None:
    """Record the function's last error; ends the job when it was the last function."""
    error = context.op_exception
    problem = one_line(error) if error is not None else "the op was stopped"
    if isinstance(error, dg.Failure) and error.description:
        problem = error.description
    context.resources.refresh.fail(context.run_id, context.op.name, problem)


HOOKS = {deliver_tags, record_failure}
