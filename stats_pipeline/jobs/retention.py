"""Deletes old rows: ended jobs with their attempts, leases with their results, delivered tags, archived messages, and
the audit.

Each kind is deleted in batches, each in its own transaction, so that nothing waits for a long delete. Whether and when
to prune, and Dagster's own runs, belong to `defs/`.
"""

from stats_pipeline.database import Database, call_one

BATCH = 500

# In this order: a lease may be deleted when no job names its run any more.
_KINDS = {
    "jobs": "prune_jobs",
    "leases": "prune_leases",
    "tags": "prune_tags",
    "messages": "prune_messages",
    "audit": "prune_audit",
}


def prune(database: Database, *, days: int) -> dict[str, int]:
    """Delete everything that ended or happened more than `days` days ago; returns the number of rows of each kind."""
    return {kind: _prune_kind(database, query, days) for kind, query in _KINDS.items()}


def _prune_kind(database: Database, function: str, days: int) -> int:
    total = 0
    while True:
        with database.connection() as connection:
            pruned = call_one(connection, function, days=days, batch=BATCH)
        if not pruned:
            return total
        total += pruned
