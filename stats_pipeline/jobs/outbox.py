"""The outbox: cache tags that are due, and their delivery to the app.

A row is written in the transaction that makes its tag stale (`complete_function`), so a crash cannot lose it. Delivery
is at least once: invalidating a tag twice is harmless, not invalidating it leaves stale pages.
"""

from uuid import UUID

from stats_pipeline.database import Database, call
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Delivery

NOTHING_DUE = Delivery(frozenset())


def deliver(database: Database, cache: CacheClient, *, cache_deadline: int, lease_id: UUID | None = None) -> Delivery:
    """Deliver the due tags with one call: those that the run of one lease has made stale so far, or all.

    Between reading and recording no transaction is open. If the process dies after the app confirmed the tags and
    before that is recorded, they are delivered again. Rows added in between are not touched, so a tag that went stale
    again stays due. Nothing is due during the pause after a failure of the route.
    """
    due = database.run("list_due_tags", route=cache.url, lease_id=lease_id)
    if not due:
        return NOTHING_DUE
    delivery = cache.invalidate({row["tag"] for row in due}, request_id=str(due[0]["lease_id"]))
    with database.transaction() as connection:
        call(
            connection,
            "record_delivery",
            route=cache.url,
            asked=[row["id"] for row in due],
            taken=sorted(delivery.taken),
            problem=delivery.problem if delivery.route_failed else None,
            cache_deadline=cache_deadline,
        )
    return delivery
