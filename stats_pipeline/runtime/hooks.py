"""One hook for both outcomes of an op.

A success hook and a failure hook would write ten more "skipped" events per run: some 40 ms of a job. The caller passes
the actions.
"""

from collections.abc import Callable, Sequence, Set

import dagster as dg
from dagster._core.definitions.decorators.hook_decorator import event_list_hook  # no public hook sees both outcomes
from dagster._core.definitions.events import HookExecutionResult  # the result type of such a hook


def outcome_hook(
    name: str,
    required_resource_keys: Set[str],
    *,
    succeeded: Callable[[dg.HookContext], None],
    failed: Callable[[dg.HookContext, dg.DagsterEvent], None],
) -> dg.HookDefinition:
    """Call `succeeded` or `failed` (with the failure's event) after an op; neither after a try that is retried."""

    @event_list_hook(name=name, required_resource_keys=set(required_resource_keys))
    def hook(context: dg.HookContext, event_list: Sequence[dg.DagsterEvent]) -> HookExecutionResult:
        if any(event.is_step_success for event in event_list):
            succeeded(context)
        elif failure := next((event for event in event_list if event.is_step_failure), None):
            failed(context, failure)
        else:
            return HookExecutionResult(hook_name=name, is_skipped=True)
        return HookExecutionResult(hook_name=name, is_skipped=False)

    return hook
