"""Deleting what is old: jobs that ended, with their attempts; leases, with their results; delivered tags; the archive.

Each kind goes in batches, each batch in a transaction of its own, so that nothing waits for a long delete. Whether and
when to prune, and Dagster's own runs, belong to `defs/`.
"""

from stats_pipeline.database import Database, call_one

BATCH = 500

# In this order: a lease may go when no job names its run any more.
_KINDS = {"jobs": "prune_jobs", "leases": "prune_leases", "tags": "prune_tags", "messages": "prune_messages"}


def prune(database: Database, *, days: int) -> dict[str, int]:
    """Delete everything that ended more than so many days ago; how many rows of each kind went."""
    return {kind: _prune_kind(database, query, days) for kind, query in _KINDS.items()}


def _prune_kind(database: Database, function: str, days: int) -> int:
    total = 0
    while True:
        with database.connection() as connection:
            pruned = call_one(connection, function, days=days, batch=BATCH)
        if not pruned:
            return total
        total += pruned
