"""The decision about a lease, for every combination of known facts."""

import itertools
from datetime import UTC, datetime
from uuid import UUID

import pytest

from stats_pipeline.jobs import reconcile
from stats_pipeline.jobs.reconcile import (
    DagsterState,
    ExpireLease,
    FailInDagster,
    LeaseRow,
    Limits,
    RevokeLease,
    SettleLease,
    Snapshot,
)

LIMITS = Limits(dead_after=6, cache_deadline=900, cache_configured=False)
WITH_APP = Limits(dead_after=6, cache_deadline=900, cache_configured=True)


NOW = datetime.now(UTC)
EVERY_LEASE = [
    LeaseRow(
        UUID(int=1), run_id, outcome, NOW if run_id else None, expired, overdue, silent, ended, unrecorded, tags_due
    )
    for run_id, outcome, expired, overdue, silent, ended, unrecorded, tags_due in itertools.product(
        (None, "run-1"),
        (None, "succeeded", "failed", "empty", "expired", "revoked"),
        (False, True),
        (False, True),
        (0.0, 7.0),
        (0.0, 901.0),
        (0, 1),
        (False, True),
    )
]
EVERY_STATE: tuple[DagsterState, ...] = ("live", "finished", "canceled", "unknown", "not asked")


def only(row: LeaseRow) -> Snapshot:
    return Snapshot([], [], [row], [], frozenset())


@pytest.mark.parametrize("limits", [LIMITS, WITH_APP])
@pytest.mark.parametrize("state", EVERY_STATE)
def test_every_lease_there_can_be(state: DagsterState, limits: Limits) -> None:
    for row in EVERY_LEASE:
        key = row.run_id or str(row.id)
        kinds = [type(repair) for repair in reconcile.decide(only(row), {key: state}, limits)]
        assert kinds == expected(row, state, limits), (row, state)


def expected(row: LeaseRow, state: DagsterState, limits: Limits) -> list[type]:
    is_open = row.outcome is None
    is_claimed = row.run_id is not None
    end: type = RevokeLease if state == "canceled" else ExpireLease
    if not is_claimed:
        never_launched = row.launch_overdue and state == "unknown"
        is_over = is_open and (row.claim_overdue or never_launched or state in ("finished", "canceled"))
        return [end] if is_over else []
    if row.outcome in ("expired", "revoked"):
        return [FailInDagster] if state == "live" else []
    if not is_open or row.unrecorded == 0:
        ended = row.ended_seconds or 0.0
        waits = not is_open and limits.cache_configured and row.tags_due and ended < limits.cache_deadline
        return [] if waits else [SettleLease]
    if state in ("finished", "canceled"):
        return [end]
    if (row.silent_seconds or 0.0) > limits.dead_after:
        return [ExpireLease, FailInDagster] if state == "live" else [ExpireLease]
    return []
