"""Deleting what is old: jobs that ended, with their attempts; runs, with their results; delivered tags; the archive.

Each kind goes in batches, each batch in a transaction of its own, so that nothing waits for a long delete. Whether and
when to prune, and Dagster's own runs, belong to `defs/`.
"""

from stats_pipeline.database import Database

BATCH = 500

# In this order: a run may go when no job names it any more.
_KINDS = {"jobs": "prune_jobs", "runs": "prune_runs", "tags": "prune_tags", "messages": "prune_messages"}


def prune(database: Database, *, days: int) -> dict[str, int]:
    """Delete everything that ended more than so many days ago; how many rows of each kind went."""
    return {kind: _prune_kind(database, query, days) for kind, query in _KINDS.items()}


def _prune_kind(database: Database, query: str, days: int) -> int:
    total = 0
    while True:
        (row,) = database.run(query, days=days, batch=BATCH)
        if not row["pruned"]:
            return total
        total += row["pruned"]
